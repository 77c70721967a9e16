"""Maps that are read of images: the features of a backbone by stride, others by negative keys."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

Features = dict[int, Tensor]
"""Stride -> (B, C, H / stride, W / stride); and what stands under the keys below."""
GAP = -1
"""What differs between the image and its reconstruction, (B, G, any, any)."""
RESPONSE = -2
"""The response map, (B, 1, any, any)."""
PIXELS = -3
"""The image itself, (B, 3, H, W)."""
DETAIL = -4
"""How much detail the image shows, (B, 1, H / 8, W / 8); see ``with_detail``."""
DETAIL_STRIDE = 8


def with_detail(features: Features, images: Tensor) -> Features:
    """With the mean gradient magnitude of images (B, 3, H, W) in [0, 1] over each cell."""
    steepness = gradient_magnitude(images.mean(1, keepdim=True))
    return {**features, DETAIL: F.avg_pool2d(steepness, DETAIL_STRIDE)}


def gradient_magnitude(x: Tensor) -> Tensor:
    """(B, C, H, W) -> length of the gradient by central differences, edges repeated."""
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    across = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]) / 2
    down = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]) / 2
    # The root has no derivative at zero, where flat images are.
    return (across**2 + down**2 + 1e-6).sqrt()
