"""Time of the ``pixel`` preset: adapting to ten images, and scoring one beside A alone.

    python -m benchmarks.pixel_speed CATEGORY_FOLDER --output results.json

A alone is its forward pass over a batch of eight images of the size that the preset works at, per
image. It and scoring are timed in turn, so that a busy machine slows both; the figures are medians.
``cpu_seconds`` is processor time over all threads, which other programs disturb less than time on
the clock; the load average before and after says how busy the machine was.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from metaformer.allocation import keep_freed_memory
from metaformer.benchmark import save_results
from metaformer.datasets import draw_support, load_categories
from metaformer.detector import Detector, Metaformer
from metaformer.images import read_image
from metaformer.pixel_model import AdaptedPixel, PixelModel, padded
from metaformer.preprocess import working_size
from metaformer.summary import machine

SHOTS = 10
BATCH = 8


def timed(work: Callable[[], Any]) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def measure(folder: Path, shots: int, repeats: int, adaptations: int) -> dict[str, Any]:
    (category,) = load_categories(folder)
    support = [read_image(path) for path in draw_support(category, shots, 0)]
    image = read_image(category.test[0].image)
    universal = Metaformer.from_pretrained("pixel")
    detectors: list[Detector] = []
    adapting = [
        timed(lambda: detectors.append(universal.adapt(support))) for _ in range(adaptations)
    ]
    detector = detectors[-1]
    adapted, model = detector.adapted, universal.model
    assert isinstance(adapted, AdaptedPixel) and isinstance(model, PixelModel)
    size = working_size(
        image.shape[0], image.shape[1], model.config.resolution, model.size_multiple
    )
    batch = padded(torch.rand(BATCH, 3, *size) * 2 - 1)

    autoencoder = adapted.universal.autoencoder
    with torch.no_grad():
        moments = autoencoder.support_moments(batch)

    @torch.no_grad()
    def alone() -> None:
        autoencoder(batch, moments)

    detector.predict_pixels(image)  # the first pass plans memory; not counted
    alone()
    pairs = []
    for _ in range(repeats):
        a = {name: value / BATCH for name, value in timed(alone).items()}
        pairs.append((timed(lambda: detector.predict_pixels(image)), a))
    return {
        "adapt": medians(adapting),
        "predict": medians([predicted for predicted, _ in pairs]),
        "autoencoder_alone": medians([a for _, a in pairs]),
        "predict_to_autoencoder": medians(
            [{name: one[name] / a[name] for name in a} for one, a in pairs]
        ),
        "working_size": list(size),
        "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Time of the pixel preset beside A alone.")
    parser.add_argument("folder", type=Path, metavar="CATEGORY_FOLDER")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--shots", type=int, default=SHOTS)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--adaptations", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as the command does
    before = os.getloadavg()[0]
    figures = measure(options.folder, options.shots, options.repeats, options.adaptations)
    result = {
        "category": options.folder.name,
        "shots": options.shots,
        "threads": options.threads,
        **figures,
        "load_average": [before, os.getloadavg()[0]],
        "machine": machine(),
    }
    for name in ("adapt", "predict", "autoencoder_alone", "predict_to_autoencoder"):
        print(name, {key: round(value, 3) for key, value in figures[name].items()})
    if options.output:
        save_results(result, options.output)


if __name__ == "__main__":
    main()
