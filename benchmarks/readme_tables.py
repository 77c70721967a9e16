"""Put the numbers of ``benchmarks/results`` into README.md, between its markers.

    python -m benchmarks.readme_tables

So that no number in the README is typed by hand.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from metaformer.io.atomic_files import write_text

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
COLUMNS = (("image_auroc", "image AUROC"), ("pixel_auroc", "pixel AUROC"), ("pixel_ap", "pixel AP"))


def main() -> None:
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    text = put(text, "results", accuracy())
    text = put(text, "false alarms", false_alarms())
    text = put(text, "speed", speed())
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
            if ours["test_limit"] != peer["test_limit"]:
                name += f", ours on {ours['counts']['test_defective']} images"
            lines.append(f"| {name} | {shots} | {' | '.join(cells)} |")
    return "\n".join(lines)


def false_alarms() -> str:
    """Share of good images flagged, by the rate asked; mean over sets and seeds."""
    results = json.loads((RESULTS / "false_alarms.json").read_text())
    asked = [0.01, 0.05, 0.1, 0.2]
    lines = [
        "Good images flagged that the detector had not seen, percent, mean over four sets and "
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
        "feature": "`feature`",
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
        row = results["median"][name]
        lines.append(
            f"| {words} | {row['adapt_seconds']:.2f} s | {1000 * row['predict_seconds']:.0f} ms | "
            f"{row['peak_megabytes']:.0f} MB |"
        )
    ratio = results["ratio_of_feature_to"]["patchcore-256"]
    lines.append(
        f"| ratio `feature` / PatchCore | {ratio['adapt_seconds']:.2f} | "
        f"{ratio['predict_seconds']:.2f} | {ratio['peak_megabytes']:.2f} |"
    )
    return "\n".join(lines)


def is_of(result: dict[str, Any], data: str, preset: str) -> bool:
    return bool(result["data"] == data and result["preset"] == preset)


def cell(result: dict[str, Any], metric: str) -> str:
    value = result["mean"][metric]
    return "–" if value is None else f"{100 * value:.1f}"


if __name__ == "__main__":
    main()
