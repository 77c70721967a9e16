"""What a change of light or camera does to the verdicts at the shipped threshold.

    python -m benchmarks.robustness.camera DATA --output benchmarks/results/camera.json

Detectors are made from normal images as they are. The good and the defective test images are then
changed, one change at a time, and scored: false alarms and defects caught. PatchCore, which ships
no threshold, is given one by our calibration.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import cv2
import numpy as np

from benchmarks.accuracy.baselines.thresholded import Thresholded
from benchmarks.accuracy.methods import CONTROL, METHODS
from benchmarks.robustness.sets import Image, in_words, load, parse, provenance, supports
from metaformer.evaluation.protocol import HasThreshold, save_results
from metaformer.evaluation.samples import limit_samples
from metaformer.io.atomic_files import write_text
from metaformer.io.images import read_image

UNCHANGED = "unchanged"
SCALE = 256
"""Square root of the area, in pixels, that a defocus is stated at."""
AIM = ("gain -10 %", "gain +10 %")
"""Should add less than 5 points to the false alarms on every set."""


def gain(image: Image, factor: float) -> Image:
    return np.clip(image * factor + 0.5, 0, 255).astype(np.uint8)


def gamma(image: Image, exponent: float) -> Image:
    table = (255 * (np.arange(256) / 255) ** exponent + 0.5).astype(np.uint8)
    return np.asarray(table[image])


def white_balance(image: Image, factor: float) -> Image:
    """Red times the factor, blue divided by it."""
    return np.clip(image * np.array([factor, 1, 1 / factor]) + 0.5, 0, 255).astype(np.uint8)


def defocus(image: Image, sigma: float) -> Image:
    """``sigma`` in pixels of an image of 256 x 256."""
    scale = (image.shape[0] * image.shape[1]) ** 0.5 / SCALE
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma * scale), np.uint8)


def noise(image: Image, deviation: float) -> Image:
    """Of each pixel and colour by itself, in levels of 255."""
    rng = np.random.default_rng(0)
    return np.clip(image + rng.normal(0, deviation, image.shape) + 0.5, 0, 255).astype(np.uint8)


def jpeg(image: Image, quality: int) -> Image:
    bgr = np.ascontiguousarray(image[:, :, ::-1])
    encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    assert decoded is not None
    return np.ascontiguousarray(decoded[:, :, ::-1]).astype(np.uint8)


def moved(image: Image, share: float, degrees: float) -> Image:
    """By a share of both sides, and turned; the border is mirrored."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1.0)
    matrix[:, 2] += share * width, share * height
    size = (width, height)
    return np.asarray(cv2.warpAffine(image, matrix, size, borderMode=cv2.BORDER_REFLECT), np.uint8)


CHANGES: dict[str, Callable[[Image], Image]] = {
    UNCHANGED: lambda image: image,
    **{
        f"gain {percent:+d} %": partial(gain, factor=1 + percent / 100)
        for percent in (-20, -10, -5, 5, 10, 20)
    },
    "gamma 0.8": partial(gamma, exponent=0.8),
    "gamma 1.25": partial(gamma, exponent=1.25),
    "white balance +10 %": partial(white_balance, factor=1.1),
    "white balance -10 %": partial(white_balance, factor=1 / 1.1),
    "defocus 1 px": partial(defocus, sigma=1.0),
    "defocus 2 px": partial(defocus, sigma=2.0),
    "noise 3": partial(noise, deviation=3.0),
    "noise 8": partial(noise, deviation=8.0),
    **{f"JPEG {quality}": partial(jpeg, quality=quality) for quality in (90, 80, 70, 60)},
    "shift 2 %": partial(moved, share=0.02, degrees=0.0),
    "turn 2 degrees": partial(moved, share=0.0, degrees=2.0),
}


def main(arguments: Sequence[str] | None = None) -> None:
    methods = ("feature", CONTROL, "patchcore-256")
    options = parse("Changes of light and camera.", methods, 40, arguments)
    rows: list[dict[str, Any]] = []
    for name in options.sets:
        category = load(options.data, name)
        samples = limit_samples(category.test, options.limit)
        labels = np.array([sample.is_anomalous for sample in samples])
        images = [read_image(sample.image) for sample in samples]
        fitted = {
            (method, shots, seed): fit(method, support, seed)
            for shots, seed, support in supports(category, options.shots, options.seeds)
            for method in options.methods
        }
        for change, apply in CHANGES.items():
            changed = [apply(image) for image in images]  # once, so that features are shared
            for (method, shots, seed), detector in fitted.items():
                scores = np.array([score for score, _ in detector.score(changed)])
                flagged = scores >= detector.threshold
                rows.append(
                    {"data": name, "method": method, "shots": shots, "seed": seed, "change": change}
                    | {"good": int((~labels).sum()), "defective": int(labels.sum())}
                    | {"false_alarms": float(flagged[~labels].mean())}
                    | {"caught": float(flagged[labels].mean())}
                )
            print(f"{name}, {change}", flush=True)
        content = provenance(options) | {"rows": rows}
        save_results(content, options.output)
        write_text(options.output.with_suffix(".md"), markdown(content))


def fit(name: str, support: Sequence[Image], seed: int) -> Any:
    """A fitted method with a threshold."""
    method = METHODS[name]()
    fitted = method.fit(support, seed)
    return fitted if isinstance(fitted, HasThreshold) else Thresholded(method).fit(support, seed)


def markdown(content: dict[str, Any]) -> str:
    """By change, over sets; then by set, what the gains of the aim add."""
    rows = content["rows"]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = [
        "Percent of good images flagged / of defects caught at the shipped threshold, mean over "
        "sets and numbers of normal images. " + in_words(content),
        "",
        "| change | " + " | ".join(methods) + " |",
        "|---" * (len(methods) + 1) + "|",
    ]
    for change in CHANGES:
        cells = [
            f"{mean(rows, 'false_alarms', method=method, change=change):.1f} / "
            f"{mean(rows, 'caught', method=method, change=change):.1f}"
            for method in methods
        ]
        lines.append(f"| {change} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"Points that {' and '.join(AIM)} add to the false alarms, mean over numbers of normal "
        "images:",
        "",
        "| set | " + " | ".join(methods) + " |",
        "|---" * (len(methods) + 1) + "|",
    ]
    for data in dict.fromkeys(row["data"] for row in rows):
        cells = []
        for method in methods:
            where = {"data": data, "method": method}
            before = mean(rows, "false_alarms", **where, change=UNCHANGED)
            added = [mean(rows, "false_alarms", **where, change=c) - before for c in AIM]
            cells.append(" / ".join(f"{points:+.1f}" for points in added))
        lines.append(f"| {data} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def mean(rows: Sequence[dict[str, Any]], figure: str, **where: str) -> float:
    """Percent, over the rows that match."""
    chosen = [row[figure] for row in rows if all(row[key] == v for key, v in where.items())]
    return 100 * float(np.mean(chosen))


if __name__ == "__main__":
    main()
