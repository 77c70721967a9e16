"""The reconstruction gap: what differs between an image and its reconstruction, and how.

Absolute, structural at two scales (SSIM; Wang et al. 2004, uniform window) and of the gradient's
magnitude.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from metaformer.networks.feature_maps import gradient_magnitude

GAP_STRIDE = 4
"""Pixels of the small copy along a cell of the gap."""
SSIM_WINDOW = 7
"""Side of SSIM's window in pixels; uniform, odd."""
SSIM_C1, SSIM_C2 = 0.02**2, 0.06**2
"""Constants of SSIM for values of range 2: (0.01 L)^2 and (0.03 L)^2."""


def gap_maps(images: Tensor, rebuilt: Tensor) -> Tensor:
    """Images and reconstructions (B, 3, H, W) in [-1, 1] -> (B, 4, H / 4, W / 4), 0 or more.

    Mean over cells of the absolute difference, of (1 - SSIM) / 2 at full and at half size, and of
    the difference of gradient magnitudes; all but the first of the mean colour.
    """
    grey, other = images.mean(1, keepdim=True), rebuilt.mean(1, keepdim=True)
    halves = F.avg_pool2d(grey, 2), F.avg_pool2d(other, 2)
    full_size = torch.cat(
        [
            (images - rebuilt).abs().mean(1, keepdim=True),
            ssim_gap(grey, other),
            (gradient_magnitude(grey) - gradient_magnitude(other)).abs(),
        ],
        dim=1,
    )
    coarse = F.avg_pool2d(ssim_gap(*halves), GAP_STRIDE // 2)
    return torch.cat([F.avg_pool2d(full_size, GAP_STRIDE), coarse], dim=1)


def ssim_gap(x: Tensor, y: Tensor) -> Tensor:
    """(B, C, H, W) twice, range 2 -> (1 - SSIM) / 2 in [0, 1] at each pixel."""
    mean_x, mean_y = _window_mean(x), _window_mean(y)
    variance_x = _window_mean(x * x) - mean_x**2
    variance_y = _window_mean(y * y) - mean_y**2
    covariance = _window_mean(x * y) - mean_x * mean_y
    light = (2 * mean_x * mean_y + SSIM_C1) / (mean_x**2 + mean_y**2 + SSIM_C1)
    structure = (2 * covariance + SSIM_C2) / (variance_x + variance_y + SSIM_C2)
    return ((1 - light * structure) / 2).clamp(0, 1)


def _window_mean(x: Tensor) -> Tensor:
    edge = SSIM_WINDOW // 2
    return F.avg_pool2d(F.pad(x, (edge,) * 4, mode="reflect"), SSIM_WINDOW, stride=1)
