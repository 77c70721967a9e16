"""Few-shot accuracy of ours, the control, the baselines and the peers: one JSON, and tables.

    python -m benchmarks.accuracy.few_shot DATA_ROOT... --output benchmarks/results/few_shot.json

Each result is added to the file as soon as it is there, and a run that was stopped goes on where
it was: a result already in the file with the same settings, seeds and test images is not computed
again. Beside the JSON stands the same as Markdown (``report.py``). What the backbone says of an
image is computed once for all methods, numbers of images and seeds, so the times of the methods are
not written down; ``benchmarks.speed`` measures them.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import torch

from benchmarks.accuracy.baselines.feature_cache import keep_features
from benchmarks.accuracy.methods import METHODS, USUAL
from benchmarks.accuracy.report import LISTED, UNIFIED, order, report
from metaformer.data.datasets.loading import Category, load_categories
from metaformer.evaluation.protocol import Method, Shots, evaluate, save_results
from metaformer.io.atomic_files import write_text

PACKAGES = ("anomalib", "timm", "torchvision", "lightning", "kornia")


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    keep_features(options.keep)
    results: list[dict[str, Any]] = []
    if options.output.exists():
        results = json.loads(options.output.read_text())["results"]
    sets = {root.name: load_categories(root) for root in options.roots}
    if options.unified:
        sets = {UNIFIED: [category for categories in sets.values() for category in categories]}
    jobs = list(jobs_of(sets, options))
    for number, (data, shots, name) in enumerate(jobs, start=1):
        method = METHODS[name]()
        key = (data, name, shots)
        earlier = [r for r in results if (r["data"], r["preset"], r["shots"]) == key]
        if earlier and is_same(earlier[0], method, options):
            continue
        started = time.perf_counter()
        result = {"data": data} | evaluate(
            sets[data],
            method,
            shots=shots,
            seeds=options.seeds,
            unified=options.unified,
            test_limit=options.limit,
            quiet=options.quiet,
        )
        for summary in (result, *result.get("categories", {}).values()):
            del summary["seconds"]  # features are shared, so these are not the methods' times
        results = [r for r in results if r not in earlier] + [result]
        save_results({"packages": versions(), "results": results}, options.output)
        write_text(options.output.with_suffix(".md"), report(results, versions()))
        seconds = time.perf_counter() - started
        done = f"{number} of {len(jobs)}: {data}, {name}, {shots} shots"
        print(f"{done}, {seconds:.0f} s", flush=True)


def jobs_of(
    sets: dict[str, list[Category]], options: argparse.Namespace
) -> Iterator[tuple[str, Shots, str]]:
    """Data, shots, method: one set after another, so that its features stay in memory. Pairs have
    one normal image whatever the shots; a set with fewer normal images than that is told of."""
    for data, categories in sets.items():
        paired = all(category.is_paired for category in categories)
        fewest = min(len(category.train) for category in categories)
        for shots in (1,) if paired else options.shots:
            if not paired and order(shots) < float("inf") and shots > fewest:
                print(f"{data}: {fewest} normal images, so none with {shots}", flush=True)
                continue
            for name in options.methods:
                yield data, shots, name


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Few-shot accuracy of ours and others' methods.")
    parser.add_argument("roots", nargs="+", type=Path, metavar="DATA_ROOT")
    parser.add_argument("--output", type=Path, required=True, help="JSON; .md is written beside")
    parser.add_argument("--methods", type=names, default=list(USUAL), help=",".join(METHODS))
    parser.add_argument("--shots", type=numbers_of_images, default=[1, 4, 10], help='1,4 or "full"')
    parser.add_argument("--seeds", type=numbers, default=[0, 1, 2], help="as 0,1,2")
    parser.add_argument("--limit", type=int, help="at most so many test images a category")
    parser.add_argument("--unified", action="store_true", help="one detector for all sets together")
    parser.add_argument("--keep", type=int, default=1000, help="MB of features kept a backbone")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.methods if name not in METHODS]
    if unknown:
        parser.error(f"unknown method {unknown[0]!r}; there are {', '.join(METHODS)}")
    if options.output.suffix != ".json":
        parser.error(f"--output must end in .json, got {options.output}")
    root_names = [root.name for root in options.roots]
    if len(set(root_names)) != len(root_names):
        parser.error("two data roots have the same folder name; results are kept by that name")
    return options


def names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def numbers_of_images(text: str) -> list[Shots]:
    return ["full" if part == "full" else int(part) for part in names(text)]


def is_same(result: dict[str, Any], method: Method, options: argparse.Namespace) -> bool:
    return bool(
        result["mean"].keys() >= set(LISTED)  # or it is of an earlier version
        and result["settings"] == json.loads(json.dumps(method.settings))
        and result["seeds"] == options.seeds
        and result["test_limit"] == options.limit
    )


def versions() -> dict[str, str]:
    """Of the peers' packages, where they are installed."""
    installed = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
    return {name: installed[name] for name in PACKAGES if name in installed}


if __name__ == "__main__":
    main()
