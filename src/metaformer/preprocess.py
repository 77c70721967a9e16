"""From checked images to tensors at the size a network works at, and maps back again."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

MAX_ASPECT = 8.0
"""Beyond this ratio of sides an image is squeezed along its longer side, to bound the cost."""
MOST_ENLARGED, LEAST_ENLARGED = 2**0.5, 0.5
"""Whatever its size, an image takes at most twice the time and memory of a usual one."""


def working_size(height: int, width: int, resolution: float, multiple: int) -> tuple[int, int]:
    """Sides (H, W) near ``resolution``^2 pixels in area, aspect kept, each a multiple.

    Area rather than the shorter side is fixed, so that every image costs the same.
    """
    aspect = min(max(height / width, 1 / MAX_ASPECT), MAX_ASPECT)
    wanted_height = resolution * aspect**0.5
    wanted_width = resolution / aspect**0.5
    return (
        max(1, round(wanted_height / multiple)) * multiple,
        max(1, round(wanted_width / multiple)) * multiple,
    )


def enlarged(height: int, width: int, side: float, kept: float) -> float:
    """How many times the usual resolution an image is worked at, if one of ``side``^2 pixels is at
    just that: with ``kept`` 0 all have one area, with 1 one scale, in between in logarithms."""
    times = ((height * width) ** 0.5 / side) ** kept
    return float(min(max(times, LEAST_ENLARGED), MOST_ENLARGED))


def to_tensor(image: NDArray[np.uint8], size: tuple[int, int]) -> Tensor:
    """(H, W, 3) uint8 RGB -> (1, 3, *size) float32 in [0, 1]."""
    height, width = size
    shrinks = height * width < image.shape[0] * image.shape[1]
    resized = cv2.resize(
        image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )
    return torch.from_numpy(resized).permute(2, 0, 1)[None].float() / 255


def smooth(maps: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (B, h, w) maps, borders repeated; ``sigma`` in cells, 0 for none."""
    if sigma <= 0:
        return maps
    radius = min(int(np.ceil(3 * sigma)), 4 * max(maps.shape[1:]))
    offsets = torch.arange(-radius, radius + 1, dtype=maps.dtype)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    x = F.pad(maps[:, None], (radius,) * 4, mode="replicate")  # (B, 1, h + 2r, w + 2r)
    x = F.conv2d(x, kernel[None, None, :, None])  # (B, 1, h, w + 2r)
    x = F.conv2d(x, kernel[None, None, None, :])  # (B, 1, h, w)
    return x[:, 0]


def image_score(raw_map: Tensor, share: float) -> float:
    """Mean of the highest ``share`` of a (h, w) map's cells, at least one cell."""
    count = max(1, round(share * raw_map.numel()))
    return float(raw_map.flatten().topk(count).values.mean())


def to_image_size(raw_map: Tensor, shape: Sequence[int]) -> NDArray[np.float32]:
    """(h, w) map -> (H, W) float32 at the image's own size, bilinear."""
    height, width = shape[:2]
    resized = cv2.resize(
        raw_map.contiguous().numpy(), (width, height), interpolation=cv2.INTER_LINEAR
    )
    return np.asarray(resized, dtype=np.float32)
