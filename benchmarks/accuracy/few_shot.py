"""Few-shot accuracy, ours and the baselines': any methods on any data, one JSON, one table.

    python -m benchmarks.accuracy.few_shot DATA_ROOT... --output results.json

Each result is added to the file as soon as it is there, and a run that was stopped goes on where
it was: a result already in the file with the same settings, seeds and test images is not computed
again. Beside the JSON stands the same as a Markdown table.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.accuracy.baselines import PaDiM, PatchCore, PerPixel, ScratchAutoencoder
from metaformer.data.datasets.loading import load_categories
from metaformer.detection.detector import Metaformer
from metaformer.detection.feature.config import PLAIN, FeatureConfig
from metaformer.detection.feature.preset import FeatureModel
from metaformer.evaluation.detector_method import DetectorMethod
from metaformer.evaluation.metrics import METRICS
from metaformer.evaluation.protocol import Method, Shots, evaluate, save_results
from metaformer.evaluation.table import HEADINGS, cell
from metaformer.io.atomic_files import write_text
from metaformer.networks.patch_metric import Shares

WITH_T = FeatureConfig(
    transformer=True,
    compared_tokens=2_000,
    maps=(Shares(pooled=0.6), Shares(pooled=0.8)),
    sigma=1.0,
    places=0,
    own=0.0,
)
"""T and the maps that it was measured with (docs/decisions/09-transformer.md)."""

METHODS: tuple[Method, ...] = (
    DetectorMethod("feature"),
    DetectorMethod("feature", aligned=True, name="feature-aligned"),
    DetectorMethod("feature", aligned=True, resolution=512, name="feature-aligned-512"),
    # The control of the learned metric: the same tokens, compared without learning.
    DetectorMethod.of(
        Metaformer(FeatureModel.from_pretrained(PLAIN), "feature"),
        "feature-plain",
    ),
    # Gains nothing on real defects.
    DetectorMethod.of(
        Metaformer(FeatureModel.from_pretrained(WITH_T), "feature"), "feature-transformer"
    ),
    DetectorMethod("pixel"),
    DetectorMethod("pixel", aligned=True, name="pixel-aligned"),
    PerPixel(),
    ScratchAutoencoder(),
    # Distance to the nearest token and nothing else.
    PatchCore(name="nearest-patch", strides=(16,), standardise=True, neighbours=0),
    PatchCore(),
    # Deeper levels suit some materials better (magnetic tile) and others worse (cookie).
    PatchCore(name="patchcore-deep", strides=(16, 32)),
    PaDiM(),
    # What architecture and random weights find by themselves: the bar for the pixel preset, whose
    # weights are its own too.
    PatchCore(name="patchcore-untrained", trained=False, standardise=True),
)


UNIFIED = "one detector for all"
"""Results with ``--unified`` are kept under this name."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    torch.set_num_threads(options.threads)
    methods = [method for method in METHODS if method.name in options.methods]
    results = _read(options.output)
    sets = {root.name: load_categories(root) for root in options.roots}
    if options.unified:
        sets = {UNIFIED: [category for categories in sets.values() for category in categories]}
    for data, categories in sets.items():
        # Pairs have one normal image whatever the shots.
        all_paired = all(category.is_paired for category in categories)
        for shots in (1,) if all_paired else options.shots:
            for method in methods:
                place = _find(results, data, method, shots)
                if place is not None and _is_same(results[place], method, options):
                    continue
                print(f"{data}, {method.name}, {shots} shots", flush=True)
                result = {"data": data} | evaluate(
                    categories,
                    method,
                    shots=shots,
                    seeds=options.seeds,
                    unified=options.unified,
                    test_limit=options.test_limit,
                    quiet=options.quiet,
                )
                if place is None:
                    results.append(result)
                else:
                    results[place] = result
                save_results({"results": results}, options.output)
                write_text(options.output.with_suffix(".md"), markdown(results))


def markdown(results: Sequence[dict[str, Any]]) -> str:
    """One table a data set: a row for each number of shots and method, percent."""
    headings = [
        "shots",
        "method",
        "seeds",
        "images",
        *HEADINGS.values(),
        "adapt (s)",
        "predict (ms)",
    ]
    lines = [
        "Percent, mean ± standard deviation over seeds; time to adapt, and per image. Images are "
        "all test images, or at most so many of a category. Times were taken in passing, on busy "
        "machines, not always the same: compare times in the speed table only.",
        "",
    ]
    for data in dict.fromkeys(result["data"] for result in results):
        rows = [result for result in results if result["data"] == data]
        lines += [f"## {data}", "", f"| {' | '.join(headings)} |", f"|{' --- |' * len(headings)}"]
        for row in sorted(rows, key=lambda row: _shots_order(row["shots"])):
            cells = [
                f"{row['shots']}",
                row["preset"],
                str(len(row["seeds"])),
                "all" if row["test_limit"] is None else f"{row['test_limit']}",
                *(cell(row, metric) for metric in METRICS),
                f"{row['seconds']['adapt']:.2f}",
                f"{1000 * row['seconds']['predict_per_image']:.0f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
        for kind, why in rows[0]["undefined"].items():
            lines += ["", f"No {kind} metrics: {why}."]
        lines.append("")
    return "\n".join(lines)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    names = [method.name for method in METHODS]
    parser = argparse.ArgumentParser(description="Few-shot accuracy of ours and the baselines.")
    parser.add_argument("roots", nargs="+", type=Path, metavar="DATA_ROOT")
    parser.add_argument("--output", type=Path, required=True, help="JSON; .md is written beside")
    parser.add_argument("--methods", type=_names, default=names, help=",".join(names))
    parser.add_argument("--shots", type=_shots, default=[1, 4, 10], help='as 1,4,10 or "full"')
    parser.add_argument("--seeds", type=_numbers, default=[0, 1, 2], help="as 0,1,2")
    parser.add_argument("--test-limit", type=int, help="at most so many test images a category")
    parser.add_argument("--unified", action="store_true", help="one detector for all sets together")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.methods if name not in names]
    if unknown:
        parser.error(f"unknown method {unknown[0]!r}; there are {', '.join(names)}")
    if options.output.suffix != ".json":
        parser.error(f"--output must end in .json, got {options.output}")
    root_names = [root.name for root in options.roots]
    if len(set(root_names)) != len(root_names):
        parser.error("two data roots have the same folder name; results are kept by that name")
    return options


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _shots(text: str) -> list[Shots]:
    return ["full" if part == "full" else int(part) for part in _names(text)]


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    results: list[dict[str, Any]] = json.loads(path.read_text())["results"]
    return results


def _find(results: Sequence[dict[str, Any]], data: str, method: Method, shots: Shots) -> int | None:
    for place, result in enumerate(results):
        if (result["data"], result["preset"], result["shots"]) == (data, method.name, shots):
            return place
    return None


def _is_same(result: dict[str, Any], method: Method, options: argparse.Namespace) -> bool:
    return bool(
        result["settings"] == json.loads(json.dumps(method.settings))
        and result["seeds"] == options.seeds
        and result["test_limit"] == options.test_limit
    )


def _shots_order(shots: Shots) -> float:
    return float("inf") if shots == "full" else shots


if __name__ == "__main__":
    main()
