"""Tables of results: a short one for README.md, the whole ones for docs/benchmarks.md.

    python -m benchmarks.readme_tables

No number in the README is typed by hand.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.accuracy.report import order
from metaformer.evaluation.table import HEADINGS
from metaformer.io.atomic_files import write_text

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
METHODS = ("feature", "nearest-patch")
COLUMNS = ("recall_at_5", "image_auroc", "pixel_ap", "aupro")
THRESHOLD = ("recall", "false_alarm_rate")
HEADLINE = (
    ("recall_at_5", "1"),
    ("recall_at_5", "4"),
    ("recall_at_5", "10"),
    ("image_auroc", "4"),
    ("pixel_ap", "4"),
)
"""Columns of the README: metric and number of normal images."""
PAIRED = "feature-aligned"
"""What a set of template and test pairs is measured with."""


def main() -> None:
    argparse.ArgumentParser(description="Put the table of results into README.md.").parse_args()
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    write_text(readme, put(text, "results", headline()))


def put(text: str, marker: str, table: str) -> str:
    """Replace what stands between ``<!-- marker -->`` and ``<!-- /marker -->``."""
    pattern = re.compile(f"(<!-- {marker} -->\n).*?(<!-- /{marker} -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"README.md has no markers for {marker}.")
    return pattern.sub(lambda match: match[1] + table + "\n" + match[2], text)


def headline() -> str:
    """One row per set, defects caught first: ours and the control, mean over seeds."""
    found = few_shot()
    sets = sorted({data for data, _, name in found if name == METHODS[0]})
    columns = HEADLINE
    words = {"recall_at_5": "caught", "image_auroc": "AUROC", "pixel_ap": "pixel AP"}
    heads = [f"{words[m]}, {s} image{'' if s == '1' else 's'}" for m, s in columns]
    heads.append("own threshold, 10 images")
    lines = [f"|set|{'|'.join(heads)}|", "|---|" + "---|" * len(heads)]
    flagged = {
        (data, metric): value_of(found.get((data, "10", METHODS[0])), metric)
        for data in sets
        for metric in THRESHOLD
    }
    values = {
        (data, column, name): value_of(found.get((data, column[1], name)), column[0])
        for data in sets
        for column in columns
        for name in METHODS
    }
    for data in sets:
        cells = ["/".join(whole(values[data, c, name]) for name in METHODS) for c in columns]
        cells.append("/".join(whole(flagged[data, metric]) for metric in THRESHOLD))
        lines.append(f"|{data}|{'|'.join(cells)}|")
    means = [
        "/".join(whole(mean_of([values[data, c, name] for data in sets])) for name in METHODS)
        for c in columns
    ]
    means.append("/".join(whole(mean_of([flagged[data, m] for data in sets])) for m in THRESHOLD))
    lines.append(f"|**mean**|{'|'.join(means)}|")
    return "\n".join(lines)


def few_shot() -> dict[tuple[str, str, str], dict[str, Any]]:
    """Results by set, number of images and method."""
    results = json.loads((RESULTS / "few_shot.json").read_text())["results"]
    return {(row["data"], str(row["shots"]), row["preset"]): row for row in results}


def accuracy() -> str:
    """One row per set and number of shots: ours and the control, mean over seeds."""
    headings = [*(HEADINGS[metric] for metric in COLUMNS), "at our threshold"]
    lines = [
        "Percent, mean over three supports, at most 50 test images a set: `feature` / "
        "`nearest-patch`, both on the same backbone. `caught at 5 %`: defective images above a "
        "threshold that at most 5 % of the good test images lie above. `at our threshold`: what "
        "`feature` catches / flags of the good images at the threshold it finds from the normal "
        "images alone.",
        "",
        f"| set | normal images | {' | '.join(headings)} |",
        "|---|---|" + "---|" * len(headings),
    ]
    found = few_shot()
    for data, shots in sorted({key[:2] for key in found}, key=lambda key: (key[0], order(key[1]))):
        paired = (data, shots, PAIRED) in found
        names = (PAIRED, *METHODS[1:]) if paired else METHODS
        rows = [found.get((data, shots, name)) for name in names]
        if rows[0] is None:
            continue
        cells = [" / ".join(cell(row, metric) for row in rows) for metric in COLUMNS]
        cells.append(" / ".join(cell(rows[0], metric) for metric in THRESHOLD))
        name = f"{data} (`--aligned`)" if paired else data
        lines.append(f"| {name} | {shots} | {' | '.join(cells)} |")
    return "\n".join(lines)


def false_alarms() -> str:
    """Share of good images flagged, by the rate asked; mean over sets and seeds."""
    results = json.loads((RESULTS / "false_alarms.json").read_text())
    asked = [0.01, 0.05, 0.1, 0.2]
    lines = [
        "Unseen good images that were flagged, percent, mean over the sets and three seeds, by the "
        "false-alarm rate asked for:",
        "",
        f"| images adapted to | {' | '.join(f'asked {rate:.0%}' for rate in asked)} |",
        "|---|" + "---|" * len(asked),
    ]
    for shots, row in results["mean"].items():
        cells = [f"{100 * row[f'flagged_at_{rate}']:.1f}" for rate in asked]
        lines.append(f"| {shots} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(result: dict[str, Any] | None, metric: str) -> str:
    value = value_of(result, metric)
    return "–" if value is None else f"{100 * value:.1f}"


def whole(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f}"


def value_of(result: dict[str, Any] | None, metric: str) -> float | None:
    return None if result is None else result["mean"].get(metric)


def mean_of(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


if __name__ == "__main__":
    main()
