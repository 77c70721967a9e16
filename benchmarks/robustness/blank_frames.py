"""Is a frame flagged that does not show the product?

    python -m benchmarks.robustness.blank_frames DATA --output benchmarks/results/blank_frames.json

For each set, number of normal images and preset: a lens cap, an overexposed frame, plain grey, the
mean colour, noise, good test images whose lower half is lost, the background alone, and images of
the other sets. Written down are the share flagged at the default false-alarm rate and the smallest
score, which is 0.5 at the threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.accuracy.methods import METHODS
from benchmarks.robustness.sets import Image, in_words, load, parse, provenance, supports
from metaformer.evaluation.detector_method import FittedDetector
from metaformer.evaluation.protocol import save_results
from metaformer.io.atomic_files import write_text
from metaformer.io.images import read_image

OTHERS = 4
"""Images taken of each other set."""
NOISES = 3
BORDER = 0.05
"""Share of each side that shows the background."""
FRAMES = (
    "lens cap",
    "overexposed",
    "plain grey",
    "mean colour",
    "noise",
    "lower half lost",
    "empty background",
    "another product",
)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse("Frames without the product.", ("feature", "pixel"), 5, arguments)
    categories = {name: load(options.data, name) for name in options.sets}
    good = {
        name: [s.image for s in category.test if not s.is_anomalous][: options.limit]
        for name, category in categories.items()
    }
    rows: list[dict[str, Any]] = []
    for name, category in categories.items():
        others = [path for other in good if other != name for path in good[other][:OTHERS]]
        frames: dict[str, list[Image]] | None = None
        for shots, seed, support in supports(category, options.shots, options.seeds):
            if frames is None:
                frames = frames_of(support[0], good[name], others)
            for method in options.methods:
                fitted = METHODS[method]().fit(support, seed)
                assert isinstance(fitted, FittedDetector)
                for frame, images in frames.items():
                    row = {"data": name, "method": method, "shots": shots, "seed": seed}
                    rows.append(row | {"frame": frame} | judge(fitted, images))
        content = provenance(options) | {"rows": rows}
        save_results(content, options.output)
        write_text(options.output.with_suffix(".md"), markdown(content))
        missed = sum(row["flagged"] < 1 for row in rows if row["data"] == name)
        print(f"{name}: {missed} kinds of frames not all flagged", flush=True)


def frames_of(
    normal: Image, good: Sequence[Path], others: Sequence[Path]
) -> dict[str, list[Image]]:
    """Kind of frame -> images. Plain ones are as large as the ``normal`` image."""
    rng = np.random.default_rng(0)
    shape = normal.shape
    lit = [read_image(path) for path in good]
    frames = {
        "lens cap": [np.clip(rng.normal(2, 1.5, shape), 0, 255).astype(np.uint8)],
        "overexposed": [np.full(shape, 255, np.uint8)],
        "plain grey": [np.full(shape, 128, np.uint8)],
        "mean colour": [np.full(shape, normal.mean(axis=(0, 1)).round(), np.uint8)],
        "noise": [rng.integers(0, 256, shape, dtype=np.uint8) for _ in range(NOISES)],
        "lower half lost": [half_lost(image) for image in lit],
        "empty background": [background(image) for image in lit],
        "another product": [read_image(path) for path in others],
    }
    return {kind: images for kind, images in frames.items() if images}


def half_lost(image: Image) -> Image:
    """As a transfer that broke off leaves it."""
    lost = image.copy()
    lost[len(image) // 2 :] = 0
    return lost


def background(image: Image) -> Image:
    """The image with all but its border in the border's colour, blurred."""
    margin = [max(1, round(BORDER * side)) for side in image.shape[:2]]
    inside = np.zeros(image.shape[:2], bool)
    inside[margin[0] : -margin[0], margin[1] : -margin[1]] = True
    empty = image.copy()
    empty[inside] = np.median(image[~inside], axis=0)
    return np.asarray(cv2.GaussianBlur(empty, (0, 0), sum(margin) / 2), np.uint8)


def judge(fitted: FittedDetector, images: Sequence[Image]) -> dict[str, Any]:
    calibration = fitted.detector.calibration
    raw = [score for score, _ in fitted.score(images)]
    return {
        "images": len(images),
        "flagged": float(np.mean([score >= fitted.threshold for score in raw])),
        "smallest_score": min(calibration.score(score) for score in raw),
    }


def markdown(content: dict[str, Any]) -> str:
    """A row for each method, set and number of images; what was not all flagged in bold."""
    lines = [
        "Frames that do not show the product: percent flagged / smallest score (0.5 is the "
        "threshold). " + in_words(content),
        "",
        "| preset | set | images | " + " | ".join(FRAMES) + " |",
        "|---" * (len(FRAMES) + 3) + "|",
    ]
    found: dict[tuple[str, str, int], dict[str, list[dict[str, Any]]]] = {}
    for row in content["rows"]:
        by_frame = found.setdefault((row["method"], row["data"], row["shots"]), {})
        by_frame.setdefault(row["frame"], []).append(row)
    for (method, data, shots), by_frame in sorted(found.items()):
        cells = [cell(by_frame.get(frame, [])) for frame in FRAMES]
        lines.append(f"| {method} | {data} | {shots} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def cell(rows: Sequence[dict[str, Any]]) -> str:
    """Over seeds."""
    if not rows:
        return "–"
    flagged = float(np.mean([row["flagged"] for row in rows]))
    text = f"{100 * flagged:.0f} / {min(row['smallest_score'] for row in rows):.2f}"
    return text if flagged == 1 else f"**{text}**"


if __name__ == "__main__":
    main()
