"""Put the numbers of ``benchmarks/results`` into README.md, between its markers.

    python -m benchmarks.readme_tables

So that no number in the README is typed by hand.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from metaformer.files import write_text

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
COLUMNS = (("image_auroc", "image AUROC"), ("pixel_auroc", "pixel AUROC"), ("pixel_ap", "pixel AP"))


def main() -> None:
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    text = put(text, "results", accuracy())
    write_text(readme, text)


def put(text: str, marker: str, table: str) -> str:
    """Replace what stands between ``<!-- marker -->`` and ``<!-- /marker -->``."""
    pattern = re.compile(f"(<!-- {marker} -->\n).*?(<!-- /{marker} -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"README.md has no markers for {marker}.")
    return pattern.sub(lambda match: match[1] + table + "\n" + match[2], text)


def accuracy() -> str:
    """One row per set and number of shots: ours against PatchCore, mean over seeds."""
    results = json.loads((RESULTS / "few_shot.json").read_text())["results"]
    lines = [
        "Percent, `feature` / PatchCore on the same backbone, mean over support seeds.",
        "",
        f"| set | shots | {' | '.join(heading for _, heading in COLUMNS)} |",
        "|---|---|" + "---|" * len(COLUMNS),
    ]
    pairs = {"deeppcb": "feature-aligned"}
    for data in dict.fromkeys(result["data"] for result in results):
        ours_by_shots = {
            r["shots"]: r for r in results if is_of(r, data, pairs.get(data, "feature"))
        }
        peer_by_shots = {r["shots"]: r for r in results if is_of(r, data, "patchcore")}
        for shots in sorted(ours_by_shots.keys() & peer_by_shots.keys()):
            ours, peer = ours_by_shots[shots], peer_by_shots[shots]
            cells = [f"{cell(ours, metric)} / {cell(peer, metric)}" for metric, _ in COLUMNS]
            name = f"{data} (`--aligned`)" if data in pairs else data
            lines.append(f"| {name} | {shots} | {' | '.join(cells)} |")
    return "\n".join(lines)


def is_of(result: dict[str, Any], data: str, preset: str) -> bool:
    return bool(result["data"] == data and result["preset"] == preset)


def cell(result: dict[str, Any], metric: str) -> str:
    value = result["mean"][metric]
    return "–" if value is None else f"{100 * value:.1f}"


if __name__ == "__main__":
    main()
