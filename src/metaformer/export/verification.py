"""Does an exported model say what PyTorch says, and what does lower precision cost?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaformer.data.synthetic.defects import draw_defect
from metaformer.detection.detector import Detector
from metaformer.detection.engines.sessions import RunModel
from metaformer.detection.scoring.prediction import Prediction
from metaformer.export.backends import with_engine
from metaformer.io.images import ImageError, list_images, read_image, resize_image

Image = NDArray[np.uint8]

SCORE_TOLERANCE = 0.001
"""How far a calibrated score (0.5 is the threshold) may lie from PyTorch's. Measured: 1e-7 to
5e-5, from the order of sums and now and then a pixel rounded the other way."""
MAP_TOLERANCE = 0.005
"""The same of each pixel of the calibrated map."""
ENLARGED = 20
"""How many times as far, for images smaller than the working size: OpenCV enlarges bytes in
fixed-point numbers. The model follows it, but builds of OpenCV for other processors may differ in
the last bit, and one grey level moved scores by up to 0.013."""
CLEARLY_APART = 0.01
"""Images whose calibrated scores differ by this much have an order."""
LEAST_ORDER_KEPT = 0.98
"""Share of such pairs that a model of lower precision must put in the same order."""
MOST_SCORE_CHANGE = 0.05
"""And the most a calibrated score may move."""
MOST_CHECKED = 16
"""Check images read from a folder at most."""
LEAST_IMAGES = 4
"""Fewest images to measure lower precision on; each is used as it is and with a drawn defect."""
SEED = 0
"""Of the drawn defects."""


class ExportRefusedError(ValueError):
    """The exported model differs from PyTorch by more than is allowed. Nothing was written."""


@dataclass(frozen=True)
class Differences:
    """How far a model is from PyTorch, over ``images`` images."""

    images: int
    max_score: float
    """Largest difference of a calibrated score."""
    max_map: float
    """Largest difference of a pixel of a calibrated map."""
    mean_map: float
    verdicts: int
    """Images on the other side of the threshold."""
    order_kept: float | None
    """Share of the pairs of images clearly apart that keep their order; None if there is none."""


def bundled_images() -> list[Image]:
    """Real photos from inside the package: boards (640 x 640) and wall covering."""
    with resources.as_file(resources.files("metaformer.data") / "demo_images") as folder:
        boards = list_images(folder / "circuit_board" / "test")[:3]
        walls = list_images(folder / "wall_covering" / "test")[:3]
        return [read_image(path) for path in (*boards, *walls)]


def read_check_images(folder: Path, detector: Detector) -> list[Image]:
    """At most ``MOST_CHECKED`` images of a folder, evenly spread over it.

    Raises:
        ImageError: an image cannot be read, or the folder holds none.
    """
    paths = list_images(folder)
    if not paths:
        raise ImageError(
            str(folder), "no images in this folder. Give the folder that holds them itself."
        )
    white_level = detector.provenance["white_level"]
    return [read_image(paths[i], white_level=white_level) for i in spread(len(paths), MOST_CHECKED)]


def spread(count: int, most: int) -> list[int]:
    """At most ``most`` of ``count`` indices, evenly spread."""
    return sorted(set(np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()))


def with_other_sizes(detector: Detector, images: Sequence[Image]) -> list[Image]:
    """The images, and the first at three more sizes: half, oblong, and smaller than it is worked
    at. An exported model takes any size, so more than one is checked."""
    first = images[0]
    height, width = first.shape[:2]
    small = detector.model.working_size(height, width)
    sizes = (
        (max(8, height // 2), max(8, width // 2)),
        (max(8, height // 3), width),
        (max(8, small[0] * 3 // 4), max(8, small[1] * 2 // 3)),
    )
    return [*images, *(resize_image(first, size) for size in sizes)]


def with_defects(images: Sequence[Image]) -> list[Image]:
    """The images, and each again with drawn defects, so that scores differ as they do in use."""
    rng = np.random.default_rng(SEED)
    return [*images, *(draw_defect(image, rng)[0] for image in images)]


def same_sized(images: Sequence[Image]) -> Iterator[list[int]]:
    """Indices of images that can be stacked."""
    by_size: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, image in enumerate(images):
        by_size[image.shape].append(i)
    yield from by_size.values()


@dataclass(frozen=True)
class Comparison:
    """One image through PyTorch and through an exported model."""

    expected: Prediction
    found: dict[str, NDArray[Any]]
    """The model's outputs for this image: see ``onnx.detector.full_model``."""
    is_enlarged: bool

    @property
    def score(self) -> float:
        return abs(float(self.found["score"]) - self.expected.score)

    @property
    def map(self) -> NDArray[np.float32]:
        return np.abs(self.found["anomaly_map"] - self.expected.anomaly_map)

    @property
    def verdict_differs(self) -> bool:
        return bool(self.found["is_anomalous"]) != self.expected.is_anomalous


def compare(
    detector: Detector,
    run: RunModel,
    images: Sequence[Image],
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> list[Comparison]:
    """Each image through PyTorch alone and through the model in batches of one size."""
    pytorch = with_engine(detector, "torch")
    comparisons = []
    for group in same_sized(images):
        found = run(np.stack([images[i] for i in group]))
        for place, i in enumerate(group):
            height, width = images[i].shape[:2]
            size = detector.model.working_size(height, width)
            comparisons.append(
                Comparison(
                    pytorch.predict_pixels(images[i]),
                    {name: values[place] for name, values in found.items()},
                    size[0] > height or size[1] > width,
                )
            )
            on_step(len(comparisons), len(images))
    return comparisons


def measure(comparisons: Sequence[Comparison]) -> Differences:
    return Differences(
        images=len(comparisons),
        max_score=max(c.score for c in comparisons),
        max_map=max(float(c.map.max()) for c in comparisons),
        mean_map=float(np.mean([c.map.mean() for c in comparisons])),
        verdicts=sum(c.verdict_differs for c in comparisons),
        order_kept=order_kept(comparisons),
    )


def order_kept(comparisons: Sequence[Comparison]) -> float | None:
    """Share of the pairs of images clearly apart that the model puts in PyTorch's order.

    The order of images that score alike is chance (a detector gives its own images the same score),
    and is not held against the model.
    """
    expected = np.array([c.expected.score for c in comparisons])
    found = np.array([float(c.found["score"]) for c in comparisons])
    above = expected[:, None] - expected[None, :] >= CLEARLY_APART
    return float((found[:, None] > found[None, :])[above].mean()) if above.any() else None


def refuse_if_wrong(comparisons: Sequence[Comparison]) -> None:
    """Refuse a float32 model whose results are not PyTorch's.

    Raises:
        ExportRefusedError: an image differs by more than the tolerances, or is on the other side
            of the threshold without being on its edge.
    """
    for c in comparisons:
        factor = ENLARGED if c.is_enlarged else 1
        most_score, most_map = SCORE_TOLERANCE * factor, MAP_TOLERANCE * factor
        on_edge = abs(c.expected.score - 0.5) <= most_score
        worst = float(c.map.max())
        # Written so that NaN is refused too.
        if c.score <= most_score and worst <= most_map and (on_edge or not c.verdict_differs):
            continue
        height, width = c.expected.anomaly_map.shape
        raise ExportRefusedError(
            f"the exported model differs from PyTorch on an image of {width} x {height} pixels: "
            f"score {float(c.found['score']):.5f} instead of {c.expected.score:.5f} (allowed: "
            f"{most_score:g} apart), map at most {worst:.5f} apart (allowed: {most_map:g}). "
            f"Nothing was written. Please report this, with the versions that "
            f"`pip list` shows for onnx, onnxruntime, openvino and torch."
        )


def refuse_if_poor(cost: Differences, precision: str) -> None:
    """Hold a model of lower precision against what it may cost.

    Raises:
        ExportRefusedError: ranking or scores change too much.
    """
    kept = cost.order_kept if cost.order_kept is not None else 1.0
    if kept >= LEAST_ORDER_KEPT and cost.max_score <= MOST_SCORE_CHANGE:
        return
    raise ExportRefusedError(
        f"{precision} costs too much accuracy here. On {cost.images} images (half with drawn "
        f"defects) {kept:.1%} of the pairs clearly apart kept their order (needed "
        f"{LEAST_ORDER_KEPT:.0%}), a score moved by up to {cost.max_score:.3f} (allowed "
        f"{MOST_SCORE_CHANGE}), {cost.verdicts} verdicts changed. Nothing was written. Use "
        f"--precision f32."
    )
