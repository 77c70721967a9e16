"""Poses of an episode's views: shift, turn and scale."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from metaformer.training.episodes.product_samplers import Image

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Pose:
    """Range of the poses of an episode's views."""

    turn: float
    scale: tuple[float, float]
    shift: float

    def draw(self, rng: Generator, size: int) -> NDArray[np.float64]:
        middle = ((size - 1) / 2, (size - 1) / 2)
        turn, scale = rng.uniform(-self.turn, self.turn), rng.uniform(*self.scale)
        moved = np.asarray(cv2.getRotationMatrix2D(middle, turn, scale), np.float64)
        moved[:, 2] += rng.uniform(-self.shift, self.shift, 2) * size
        return moved


def move(image: Image, pose: NDArray[np.float64]) -> Image:
    """The image seen from another pose; what comes into view is mirrored."""
    size = image.shape[0]
    border = cv2.BORDER_REFLECT_101
    return cv2.warpAffine(image, pose, (size, size), borderMode=border).astype(np.uint8, copy=False)


def move_mask(mask: Mask, pose: NDArray[np.float64]) -> Mask:
    return move((mask * np.uint8(255)).astype(np.uint8), pose) > 127
