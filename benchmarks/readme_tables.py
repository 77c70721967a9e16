"""The tables of results: the first goes into README.md, all of them into the documentation.

    python -m benchmarks.readme_tables

So that no number in the README is typed by hand.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from benchmarks.accuracy.report import order
from metaformer.evaluation.table import HEADINGS
from metaformer.io.atomic_files import write_text

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
METHODS = ("feature", "nearest-patch", "patchcore")
COLUMNS = ("recall_at_5", "image_auroc", "pixel_ap", "aupro")
THRESHOLD = ("recall", "false_alarm_rate")
PAIRED = "feature-aligned"
"""What a set of template and test pairs is measured with."""


def main() -> None:
    argparse.ArgumentParser(description="Put the table of results into README.md.").parse_args()
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    write_text(readme, put(text, "results", accuracy()))


def put(text: str, marker: str, table: str) -> str:
    """Replace what stands between ``<!-- marker -->`` and ``<!-- /marker -->``."""
    pattern = re.compile(f"(<!-- {marker} -->\n).*?(<!-- /{marker} -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"README.md has no markers for {marker}.")
    return pattern.sub(lambda match: match[1] + table + "\n" + match[2], text)


def accuracy() -> str:
    """One row per set and number of shots: ours, the control and PatchCore, mean over seeds."""
    results = json.loads((RESULTS / "few_shot.json").read_text())["results"]
    headings = [*(HEADINGS[metric] for metric in COLUMNS), "at our threshold"]
    lines = [
        "Percent, mean over support seeds: `feature` / `nearest-patch` / PatchCore, all three on "
        "the same backbone. `caught at 5 %`: defective images above a threshold that at most 5 % "
        "of the good test images lie above. `at our threshold`: what `feature` catches / flags of "
        "the good images at the threshold it finds from the normal images alone.",
        "",
        f"| set | normal images | {' | '.join(headings)} |",
        "|---|---|" + "---|" * len(headings),
    ]
    found = {(row["data"], row["shots"], row["preset"]): row for row in results}
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
        "Good images flagged that the detector had not seen, percent, mean over the sets and "
        "three seeds, by the rate asked:",
        "",
        f"| images adapted to | {' | '.join(f'asked {rate:.0%}' for rate in asked)} |",
        "|---|" + "---|" * len(asked),
    ]
    for shots, row in results["mean"].items():
        cells = [f"{100 * row[f'flagged_at_{rate}']:.1f}" for rate in asked]
        lines.append(f"| {shots} | {' | '.join(cells)} |")
    return "\n".join(lines)


def speed() -> str:
    """Ours and PatchCore on the same backbone and resolution, measured in turn in one run."""
    results = json.loads((RESULTS / "speed.json").read_text())
    names = {
        "metaformer": "`feature`",
        "nearest-patch": "`nearest-patch`",
        "patchcore-256": "PatchCore, same backbone",
        "pixel": "`pixel`",
    }
    lines = [
        f"| {results['threads']} thread{'' if results['threads'] == 1 else 's'}, "
        f"{results['machine']['processor']}, 256 pixels"
        f"{', processor time' if results.get('clock') == 'cpu' else ''} "
        f"| adapt to {results['shots']} images | one image | peak memory |",
        "|---|---|---|---|",
    ]
    for name, words in names.items():
        if (row := results["median"].get(name)) is not None:
            lines.append(
                f"| {words} | {row['adapt_seconds']:.2f} s | {1000 * row['seconds_at_1']:.0f} ms | "
                f"{row['peak_megabytes']:.0f} MB |"
            )
    ratio = results["ratios"]["metaformer / patchcore-256"]
    lines.append(
        f"| ratio `feature` / PatchCore | {ratio['adapt_seconds']:.2f} | "
        f"{ratio['seconds_at_1']:.2f} | {ratio['peak_megabytes']:.2f} |"
    )
    return "\n".join(lines)


def cell(result: dict[str, Any] | None, metric: str) -> str:
    value = None if result is None else result["mean"].get(metric)
    return "–" if value is None else f"{100 * value:.1f}"


if __name__ == "__main__":
    main()
