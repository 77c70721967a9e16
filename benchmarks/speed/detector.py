"""Time and memory of adapting to ten images and scoring one, against PatchCore, in one run.

    python -m benchmarks.speed.detector CATEGORY_FOLDER --output results.json

Each method runs in a process of its own, in turn, several times: the figures are medians, and the
comparison is the median of the ratios of neighbouring runs, which a busy machine disturbs least.
PatchCore is the baseline of the accuracy table, on the same backbone, at its own 224 pixels and at
our 256. Ours includes calibration (leave-one-out), which PatchCore does not. With ``--clock cpu``
the seconds are of the processor, on all its threads together: for a machine with other work to do.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from metaformer.data.datasets.loading import draw_support, load_categories
from metaformer.evaluation.aggregate import machine
from metaformer.evaluation.protocol import Method, save_results
from metaformer.io.images import read_image

METHODS = ("feature", "patchcore-224", "patchcore-256", "pixel")
SHOTS = 10
PREDICTIONS = 20


def build(name: str) -> Method:
    from benchmarks.accuracy.baselines import PatchCore
    from metaformer.evaluation.detector_method import DetectorMethod

    if name.startswith("patchcore"):
        return PatchCore(resolution=int(name.split("-")[1]))
    return DetectorMethod("pixel" if name == "pixel" else "feature")


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def measure(name: str, folder: Path, threads: int, clock: str) -> dict[str, float]:
    """In this process: seconds to adapt, seconds per image, peak resident megabytes."""
    import torch

    from metaformer.inference.allocator import keep_freed_memory

    keep_freed_memory()  # as the command does; the rivals have it too
    torch.set_num_threads(threads)
    now = CLOCKS[clock]
    (category,) = load_categories(folder)
    support = [read_image(path) for path in draw_support(category, SHOTS, 0)]
    tests = [read_image(sample.image) for sample in category.test[:PREDICTIONS]]
    method = build(name)
    started = now()
    fitted = method.fit(support, 0)
    adapted = now()
    fitted.score(tests[:1])  # the first pass plans memory; not counted
    scored = []
    for image in tests:
        before = now()
        fitted.score([image])
        scored.append(now() - before)
    return {
        "adapt_seconds": adapted - started,
        "predict_seconds": statistics.median(scored),
        "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and memory against PatchCore.")
    parser.add_argument("folder", type=Path, metavar="CATEGORY_FOLDER")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a child process measures this one
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.folder, options.threads, options.clock)))
        return
    names = options.methods.split(",")
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(options.repeats):
        for name in names:
            command = [sys.executable, "-m", "benchmarks.speed.detector", str(options.folder)]
            command += ["--one", name, "--threads", str(options.threads), "--clock", options.clock]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            runs[name].append(json.loads(done.stdout.splitlines()[-1]))
    figures = ("adapt_seconds", "predict_seconds", "peak_megabytes")
    result: dict[str, Any] = {"shots": SHOTS, "threads": options.threads, "clock": options.clock}
    result |= {"date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine()}
    result["median"] = {
        name: {f: statistics.median(run[f] for run in runs[name]) for f in figures}
        for name in names
    }
    result["ratio_of_feature_to"] = {
        name: {
            f: statistics.median(
                ours[f] / theirs[f]
                for ours, theirs in zip(runs["feature"], runs[name], strict=True)
            )
            for f in figures
        }
        for name in names
        if name != "feature"
    }
    result["runs"] = runs
    print(json.dumps({k: result[k] for k in ("median", "ratio_of_feature_to")}, indent=2))
    if options.output:
        save_results(result, options.output)


if __name__ == "__main__":
    main()
