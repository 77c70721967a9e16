"""Images a second with each engine.

    python -m benchmarks.speed.engines FOLDER_OF_NORMAL_IMAGES
        --output benchmarks/results/engines.json

Engines take turns in one process on one number of threads; figures are medians over the rounds, and
ratios are medians of the ratios within a round, which a busy machine disturbs least.
``--clock cpu`` counts the processor's time instead of the wall's: with one thread it says on a busy
machine about what the wall clock says on an idle one. "pixels in" is
everything from an image in memory to score and map; "networks" leaves out resizing and scoring.
Results of other programs, measured elsewhere, join the table with ``--peers FILE``: {"peers":
{name: {"1": images a second, "16": ...}}}.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metaformer.detection.detector import Detector
from metaformer.detection.engines.engine import installed_engines, make_engine, probe_image
from metaformer.detection.metaformer import Metaformer
from metaformer.detection.presets import PRESETS
from metaformer.evaluation.aggregate import machine
from metaformer.evaluation.protocol import save_results
from metaformer.export.backends import with_engine
from metaformer.inference.allocator import keep_freed_memory
from metaformer.io.atomic_files import write_text
from metaformer.io.images import list_images, read_image

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Clock = Callable[[], float]
Tasks = dict[str, Callable[[], object]]

BATCHES = (1, 16)
SUPPORT = 10


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of engines and networks.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--presets", default=",".join(PRESETS))
    parser.add_argument("--peers", type=Path)
    options = parser.parse_args()
    keep_freed_memory()  # as the command does
    torch.set_num_threads(options.threads)

    clock = CLOCKS[options.clock]
    images = [read_image(path) for path in list_images(options.folder)[:SUPPORT]]
    result: dict[str, Any] = {
        "machine": machine(),
        "threads": options.threads,
        "rounds": options.rounds,
        "clock": options.clock,
        "image_size": list(images[0].shape[:2]),
        "support": len(images),
        "presets": {},
    }
    for preset in PRESETS:
        if preset not in options.presets.split(","):
            continue
        detector = Metaformer.from_pretrained(preset).adapt(images)
        result["presets"][preset] = time_engines(detector, images[0], options.rounds, clock)
    if options.peers:
        result["peers"] = json.loads(options.peers.read_text())["peers"]
    save_results(result, options.output)
    write_text(options.output.with_suffix(".md"), table(result))


def in_turns(tasks: Tasks, rounds: int, clock: Clock) -> dict[str, list[float]]:
    """Seconds of each task in each round; the first round plans memory and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for round in range(rounds + 1):
        for name, task in tasks.items():
            started = clock()
            task()
            if round > 0:
                seconds[name].append(clock() - started)
    return seconds


def time_engines(
    detector: Detector, image: np.ndarray[Any, Any], rounds: int, clock: Clock
) -> dict[str, Any]:
    """Images a second by engine and batch, and their ratios to PyTorch."""
    names = installed_engines()
    result: dict[str, Any] = {}
    engines = {name: make_engine(detector, name) for name in names}
    for batch in BATCHES:
        x = probe_image(detector).expand(batch, -1, -1, -1).contiguous()
        tasks: Tasks = {name: partial(engine, x) for name, engine in engines.items()}
        result[f"networks, batch {batch}"] = rates(in_turns(tasks, rounds, clock), batch)
    detectors = {name: with_engine(detector, name) for name in names}
    tasks = {name: partial(d.predict_pixels, image) for name, d in detectors.items()}
    result["pixels in, one at a time"] = rates(in_turns(tasks, rounds, clock), 1)
    return result


def rates(seconds: dict[str, list[float]], images: int) -> dict[str, dict[str, float]]:
    return {
        name: {
            "images_per_second": images / statistics.median(times),
            "ratio_to_torch": statistics.median(
                torch_time / own for torch_time, own in zip(seconds["torch"], times, strict=True)
            ),
        }
        for name, times in seconds.items()
    }


def table(result: dict[str, Any]) -> str:
    """The results in Markdown."""
    lines = [
        "# Speed of engines and networks",
        "",
        f"{result['machine']['processor']}, {result['threads']} thread(s), "
        f"{result['clock']} clock, images of {result['image_size'][1]} x "
        f"{result['image_size'][0]} pixels, {result['support']} support images, "
        f"medians of {result['rounds']} alternating rounds. Made by "
        f"`python -m benchmarks.speed.engines`.",
        "",
        "| preset | what | engine | images a second | times PyTorch |",
        "|---|---|---|---|---|",
    ]
    for preset, figures in result["presets"].items():
        for what, engines in figures.items():
            for engine, figure in engines.items():
                rate, ratio = figure["images_per_second"], figure["ratio_to_torch"]
                lines.append(f"| {preset} | {what} | {engine} | {rate:.2f} | {ratio:.2f} |")
    if "peers" in result:
        lines += ["", "| peer | batch | images a second |", "|---|---|---|"]
        for name, by_batch in result["peers"].items():
            lines += [f"| {name} | {batch} | {rate:.2f} |" for batch, rate in by_batch.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
