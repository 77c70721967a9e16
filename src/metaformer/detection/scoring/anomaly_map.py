"""An anomaly map: smoothed, scored, enlarged to the image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


def smooth(maps: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (B, h, w) maps, borders repeated; ``sigma`` in cells, 0 for none."""
    if sigma <= 0:
        return maps
    radius = min(math.ceil(3 * sigma), 4 * max(maps.shape[1:]))
    weights = [math.exp(-(offset**2) / (2 * sigma**2)) for offset in range(-radius, radius + 1)]
    x = F.pad(maps[:, None], (radius,) * 4, mode="replicate")  # (B, 1, h + 2r, w + 2r)
    for axis in (2, 3):
        x = weighted_shifts(x, [weight / sum(weights) for weight in weights], axis)
    return x[:, 0]


def weighted_shifts(x: Tensor, weights: Sequence[float], axis: int) -> Tensor:
    """Convolution along one axis, shorter by all weights but one. Of few weights and small maps it
    takes a third of the time of ``conv2d``."""
    length = x.shape[axis] - len(weights) + 1
    total = weights[0] * x.narrow(axis, 0, length)
    for i, weight in enumerate(weights[1:], start=1):
        total = torch.add(total, x.narrow(axis, i, length), alpha=weight)
    return total


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
