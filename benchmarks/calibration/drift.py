"""How often the drift test warns falsely, and how soon it warns of a change.

    python -m benchmarks.calibration.drift [DATA_ROOT...] --output results.json

By simulation: false warnings an image for scores of several distributions, and images from a shift
of normal scores to the warning. On real normal images of each DATA_ROOT: a detector is made from
10, all other normal images (train and test) are scored as they are and as after a change of the
camera, and put in a random order many times: half as they are, then half changed.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from metaformer.data.datasets.loading import draw_support, load_categories
from metaformer.detection.metaformer import Metaformer
from metaformer.evaluation.aggregate import machine
from metaformer.evaluation.protocol import save_results
from metaformer.inference.drift import DriftTest
from metaformer.io.images import read_image

RUNS = 100
Image = NDArray[np.uint8]

DISTRIBUTIONS: dict[str, Callable[[random.Random], float]] = {
    "normal": lambda r: r.gauss(0, 1),
    "Pareto (heavy tail)": lambda r: r.paretovariate(1.1),
    "four values (ties)": lambda r: float(r.randrange(4)),
    "5 % far outliers": lambda r: r.gauss(0, 1) + 20 * (r.random() < 0.05),
}
CHANGES: dict[str, Callable[[Image], Image]] = {
    "none": lambda image: image,
    "light -10 %": lambda image: (image * 0.9).astype(np.uint8),
    "light -30 %": lambda image: (image * 0.7).astype(np.uint8),
    "blurred": lambda image: np.asarray(cv2.GaussianBlur(image, (0, 0), 1.5), np.uint8),
    "turned 3 degrees": lambda image: turned(image, 3),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="False warnings and delays of the drift test.")
    parser.add_argument("roots", nargs="*", type=Path, metavar="DATA_ROOT")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    false = [false_warnings(name, rate) for name in DISTRIBUTIONS for rate in (1e-2, 1e-3)]
    delays = [shift_delay(ref, shift) for ref in (50, 200, 1000) for shift in (0.5, 1.0, 2.0)]
    real = [row for root in options.roots for row in on_images(root)]
    for row in [*false, *delays, *real]:
        print(row, flush=True)
    content = {"false_warnings": false, "delays": delays, "images": real}
    save_results({**content, "machine": machine()}, options.output)


def false_warnings(name: str, rate: float, images: int = 200_000) -> dict[str, Any]:
    """Counted in runs of 20 / rate images, the test beginning anew after each warning."""
    count, length = 0, round(20 / rate)
    for run in range(images // length):
        r, test = random.Random(f"{name} {run}"), DriftTest(rate, seed=run)
        for _ in range(length):
            test.update(DISTRIBUTIONS[name](r))
            if test.drift is not None:
                count += 1
                test.restart()
    return {"scores": name, "stated": rate, "found": count / images}


def shift_delay(reference: int, shift: float, rate: float = 1e-4) -> dict[str, Any]:
    """Images from the shift to the warning; 1,000 if there was none."""
    waits = []
    for run in range(RUNS):
        r, test = random.Random(f"shift {run}"), DriftTest(rate, seed=run)
        for _ in range(reference):
            test.update(r.gauss(0, 1))
        waits.append(wait(test, lambda: r.gauss(shift, 1), 1000))  # noqa: B023
    row = {"reference": reference, "shift": shift, "rate": rate, "median": median(waits)}
    return {**row, "p95": sorted(waits)[95 * RUNS // 100], "never": waits.count(1000)}


def wait(test: DriftTest, draw: Callable[[], float], most: int) -> int:
    for count in range(1, most + 1):
        test.update(draw())
        if test.drift is not None:
            return count
    return most


def on_images(root: Path, rate: float = 1e-3) -> list[dict[str, Any]]:
    (category,) = load_categories(root)
    support = draw_support(category, 10, 0)
    others = [path for path in category.train if path not in set(support)]
    others += [sample.image for sample in category.test if not sample.is_anomalous]
    detector = Metaformer.from_pretrained().adapt(support)
    images = [read_image(path) for path in others]
    plain = [detector.score_pixels(image)[0] for image in images]
    rows = []
    for name, change in CHANGES.items():
        changed = plain if name == "none" else [detector.score_pixels(change(i))[0] for i in images]
        warned, early, waits = 0, 0, []
        for run in range(RUNS):
            order = random.Random(run).sample(range(len(images)), len(images))
            half, test = len(order) // 2, DriftTest(rate, seed=run)
            for i in order[:half]:
                test.update(plain[i])
            early += test.drift is not None
            rest = iter(order[half:])
            waited = wait(test, lambda: changed[next(rest)], len(order) - half)  # noqa: B023
            warned += test.drift is not None
            waits.append(waited)
        rows.append(
            {
                "data": root.name,
                "change": name,
                "rate": rate,
                "images_before": half,
                "images_after": len(order) - half,
                "shift_in_sd": float((np.mean(changed) - np.mean(plain)) / np.std(plain)),
                "warned_before_the_change": early / RUNS,
                "warned": warned / RUNS,
                "median_images_to_warning": median(waits),
            }
        )
    return rows


def turned(image: Image, degrees: float) -> Image:
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1.0)
    size = (width, height)
    return np.asarray(cv2.warpAffine(image, matrix, size, borderMode=cv2.BORDER_REFLECT), np.uint8)


if __name__ == "__main__":
    main()
