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
METHODS = ("feature", "nearest-patch")
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
    """One row per set and number of shots: ours and the control, mean over seeds."""
    results = json.loads((RESULTS / "few_shot.json").read_text())["results"]
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


def cell(result: dict[str, Any] | None, metric: str) -> str:
    value = None if result is None else result["mean"].get(metric)
    return "–" if value is None else f"{100 * value:.1f}"


if __name__ == "__main__":
    main()
