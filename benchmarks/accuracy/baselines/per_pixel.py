"""Mean and spread of every pixel: what a plain comparison with the golden sample finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy.baselines.imaging import SMOOTHING, blur, to_batch, to_image_size


@dataclass(frozen=True)
class PerPixel:
    """Distance from the mean image in standard deviations, over images taken as aligned."""

    resolution: int = 256
    image_blur: float = 1.0
    """Sigma over the images, in pixels; forgives misalignment by about as much."""
    floor: float = 0.02
    """Smallest standard deviation of a pixel, out of a range of 1; sensor noise."""
    prior_images: float = 2.0
    """A pixel's variance is drawn to the mean variance as by this many images: with 1 or 4
    images a pixel's own variance says little."""
    name: str = "per-pixel"

    @property
    def settings(self) -> dict[str, Any]:
        return asdict(self)

    def fit(self, support: Sequence[NDArray[np.uint8]], seed: int) -> FittedPerPixel:
        images = np.stack([_prepare(self, image) for image in support])  # (K, S, S, 3)
        own = images.var(axis=0)
        shrunk = (len(images) * own + self.prior_images * own.mean()) / (
            len(images) + self.prior_images
        )
        return FittedPerPixel(self, images.mean(axis=0), np.sqrt(shrunk + self.floor**2))


@dataclass(frozen=True)
class FittedPerPixel:
    method: PerPixel
    mean: NDArray[np.float32]  # (S, S, 3)
    deviation: NDArray[np.float32]  # (S, S, 3)

    def score(self, images: Sequence[NDArray[np.uint8]]) -> list[tuple[float, NDArray[np.float32]]]:
        results = []
        for image in images:
            gap = np.abs(_prepare(self.method, image) - self.mean) / self.deviation
            anomaly_map = blur(gap.mean(axis=2), SMOOTHING)  # (S, S)
            results.append((float(anomaly_map.max()), to_image_size(anomaly_map, image)))
        return results


def _prepare(method: PerPixel, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(H, W, 3) uint8 -> (S, S, 3) in [0, 1], blurred."""
    square = to_batch([image], method.resolution)[0].permute(1, 2, 0).numpy()
    return blur(square, method.image_blur)
