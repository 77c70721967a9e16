"""Changed copies of a support image, for a support of one."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np

from metaformer.io.images import Image

VIEWS = 8
"""Views of a lone support image that stand in for other normal images."""


def perturbed_views(image: Image, count: int, seed: int, *, moves: float = 1.0) -> Iterator[Image]:
    """Views of one image that differ as two photos of one part do: pose, light and noise.

    ``moves`` scales the pose; at 1 up to 4 degrees, 3 % of the size and 3 % of the sides.
    """
    rng = np.random.default_rng(seed)
    height, width = image.shape[:2]
    for _ in range(count):
        matrix = cv2.getRotationMatrix2D(
            (width / 2, height / 2),
            moves * rng.uniform(-4, 4),
            1 + moves * rng.uniform(-0.03, 0.03),
        )
        shift = moves * rng.uniform(-0.03, 0.03, 2) * (width, height)
        matrix = matrix + np.column_stack([np.zeros((2, 2)), shift])
        moved = cv2.warpAffine(
            image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
        )
        lit = moved * rng.uniform(0.9, 1.1) + rng.uniform(-8, 8)
        noisy = lit + rng.normal(0, rng.uniform(0, 5), image.shape)
        yield np.clip(noisy, 0, 255).astype(np.uint8)
