"""What every baseline does to images and maps: to a square and back."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from metaformer.io.images import resize_image, resize_map

SMOOTHING = 4.0
"""Sigma of the Gaussian over a map at the working size; PaDiM and PatchCore publish 4 pixels at
224 and 256."""


def to_batch(images: Sequence[NDArray[np.uint8]], side: int) -> Tensor:
    """Images (H, W, 3) uint8 of any sizes -> (B, 3, side, side) in [0, 1], squeezed to a square."""
    squares = [resize_image(image, (side, side)) for image in images]
    batch = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2)
    return batch.float() / 255


def smooth_map(grid: Tensor, side: int) -> NDArray[np.float32]:
    """(h, w) -> (side, side), bilinear, then smoothed."""
    enlarged = F.interpolate(grid[None, None], (side, side), mode="bilinear")[0, 0]
    return blur(enlarged.numpy(), SMOOTHING)


def blur(array: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """Gaussian over the first two axes."""
    return np.asarray(cv2.GaussianBlur(array, (0, 0), sigma), dtype=np.float32)


def to_image_size(
    anomaly_map: NDArray[np.float32], image: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """A square map stretched back over its image."""
    return resize_map(anomaly_map, (image.shape[0], image.shape[1]))
