"""Few-shot accuracy of ours and the peers: one JSON, one table.

    python -m benchmarks.accuracy.peers DATA_ROOT... --output peers.json

As ``benchmarks.accuracy.few_shot``, in the peers' own environment (``README.md`` here). A run that
was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.accuracy.baselines import PaDiM, PatchCore
from benchmarks.accuracy.baselines.feature_cache import keep_features, remembering
from benchmarks.accuracy.peers.anomaly_dino import AnomalyDino
from benchmarks.accuracy.peers.summary import UNIFIED, report
from metaformer.data.datasets.loading import Category, load_categories
from metaformer.detection.feature.config import PLAIN
from metaformer.detection.feature.preset import FeatureModel
from metaformer.evaluation.detector_method import DetectorMethod
from metaformer.evaluation.protocol import Method, Shots, evaluate, save_results
from metaformer.io.atomic_files import write_text

PACKAGES = ("anomalib", "timm", "torchvision", "lightning", "kornia")


def _anomalib_patchcore(name: str, **settings: Any) -> Method:
    from benchmarks.accuracy.peers.anomalib_methods import AnomalibPatchCore

    return AnomalibPatchCore(name=name, **settings)


def _anomalib_padim() -> Method:
    from benchmarks.accuracy.peers.anomalib_methods import AnomalibPadim

    return AnomalibPadim()


def _ours(name: str, *, learned: bool = True, **settings: Any) -> Method:
    method = DetectorMethod("feature", name=name, **settings)
    model: Any = method.universal.model
    if not learned:
        model = FeatureModel.from_pretrained(PLAIN)
        method.universal.model = model
    model.backbone = remembering(model.backbone, min(model.config.levels))
    return method


METHODS: dict[str, Callable[[], Method]] = {
    "feature": lambda: _ours("feature"),
    # PaDiM, too, compares place by place: its fair rival where parts stand still.
    "feature-plain": lambda: _ours("feature-plain", learned=False),  # without the learned metric
    "feature-aligned": lambda: _ours("feature-aligned", aligned=True),
    "feature-aligned-512": lambda: _ours("feature-aligned-512", aligned=True, resolution=512),
    # The control of every learned method on these features: distance alone, no learning.
    "nearest-patch": lambda: PatchCore(
        name="nearest-patch", strides=(16,), standardise=True, neighbours=0
    ),
    "patchcore": PatchCore,
    "patchcore-256": lambda: PatchCore(name="patchcore-256", resolution=256),
    "padim": PaDiM,
    "anomalib-patchcore": lambda: _anomalib_patchcore("anomalib-patchcore"),
    "anomalib-patchcore-all": lambda: _anomalib_patchcore("anomalib-patchcore-all", coreset=1.0),
    # Deeper levels suit some materials better and others worse.
    "anomalib-patchcore-deep": lambda: _anomalib_patchcore(
        "anomalib-patchcore-deep", coreset=1.0, strides=(16, 32)
    ),
    "anomalib-padim": _anomalib_padim,
    "anomaly-dino": AnomalyDino,
    "anomaly-dino-256": lambda: AnomalyDino(name="anomaly-dino-256", resolution=256),
    # Products that always lie the same way lose by turned supports.
    "anomaly-dino-upright": lambda: AnomalyDino(name="anomaly-dino-upright", rotations=1),
}


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    torch.set_num_threads(options.threads)
    results = json.loads(options.output.read_text())["results"] if options.output.exists() else []
    keep_features(options.keep)
    loaded = {root.name: load_categories(root) for root in options.roots}
    if options.unified:
        loaded = {UNIFIED: [c for categories in loaded.values() for c in categories]}
    for data, shots, name in _jobs(loaded, options):
        method = METHODS[name]()
        key = (data, name, shots)
        same = [r for r in results if (r["data"], r["preset"], r["shots"]) == key]
        if same and _is_same(same[0], method, options):
            continue
        started = time.perf_counter()
        result = {"data": data} | evaluate(
            loaded[data],
            method,
            shots=shots,
            seeds=options.seeds,
            unified=options.unified,
            test_limit=options.limit,
            quiet=options.quiet,
        )
        _without_times(result)
        print(f"{data}, {name}, {shots} shots: {time.perf_counter() - started:.0f} s", flush=True)
        results = [r for r in results if r not in same] + [result]
        save_results({"packages": _versions(), "results": results}, options.output)
        write_text(options.output.with_suffix(".md"), report(results, _versions()))


def _jobs(
    loaded: dict[str, list[Category]], options: argparse.Namespace
) -> Iterator[tuple[str, Shots, str]]:
    """Data, shots, method; by shots first, so that what is asked for first is whole first."""
    for i, shots in enumerate(options.shots):
        for data, categories in loaded.items():
            is_paired = all(category.is_paired for category in categories)
            if is_paired and i > 0:
                continue  # a template is one image, whatever the shots
            for name in options.methods:
                yield data, 1 if is_paired else shots, name


def _without_times(result: dict[str, Any]) -> None:
    """Features are kept between fits, so the times are not those of the methods."""
    for summary in (result, *result.get("categories", {}).values()):
        del summary["seconds"]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Few-shot accuracy of ours and the peers.")
    parser.add_argument("roots", nargs="+", type=Path, metavar="DATA_ROOT")
    parser.add_argument("--output", type=Path, required=True, help="JSON; .md is written beside")
    parser.add_argument("--methods", type=_names, default=list(METHODS), help=",".join(METHODS))
    parser.add_argument("--shots", type=_shots, default=[1, 4, 8], help='as 1,4,8 or "full"')
    parser.add_argument("--seeds", type=_numbers, default=[0, 1, 2, 3, 4], help="as 0,1,2")
    parser.add_argument("--limit", type=int, help="at most so many test images a category")
    parser.add_argument("--unified", action="store_true", help="one detector for all roots")
    parser.add_argument("--keep", type=int, default=3000, help="MB of features kept a backbone")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.methods if name not in METHODS]
    if unknown:
        parser.error(f"unknown method {unknown[0]!r}; there are {', '.join(METHODS)}")
    if options.output.suffix != ".json":
        parser.error(f"--output must end in .json, got {options.output}")
    return options


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _shots(text: str) -> list[Shots]:
    return ["full" if part == "full" else int(part) for part in _names(text)]


def _is_same(result: dict[str, Any], method: Method, options: argparse.Namespace) -> bool:
    return bool(
        result["settings"] == json.loads(json.dumps(method.settings))
        and result["seeds"] == options.seeds
        and result["test_limit"] == options.limit
    )


def _versions() -> dict[str, str]:
    """Of the peers' packages, where they are installed."""
    installed = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
    return {name: installed[name] for name in PACKAGES if name in installed}


if __name__ == "__main__":
    main()
