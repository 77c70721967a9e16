"""The reconstruction gap: what differs between an image and its reconstruction, and how.

Absolute, structural (SSIM; Wang et al. 2004, uniform window) and of the gradient's magnitude. And
the gap to a golden sample, where the camera shows every part in the same place.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

GAP_CHANNELS = 11
SSIM_WINDOW = 7
"""Side of SSIM's window in pixels; uniform, odd."""
SSIM_C1, SSIM_C2 = 0.02**2, 0.06**2
"""Constants of SSIM for values of range 2: (0.01 L)^2 and (0.03 L)^2."""


def gap_channels(images: Tensor, rebuilt: Tensor) -> Tensor:
    """Images and reconstructions (B, 3, H, W) in [-1, 1] -> (B, 11, H, W).

    Channels 0 to 2 are the image, 3 to 5 the reconstruction, 6 to 8 their absolute difference,
    9 is (1 - SSIM) / 2 and 10 the difference of gradient magnitudes, both of the mean colour.
    """
    grey, other = images.mean(1, keepdim=True), rebuilt.mean(1, keepdim=True)
    return torch.cat(
        [
            images,
            rebuilt,
            (images - rebuilt).abs(),
            ssim_gap(grey, other),
            (gradient_magnitude(grey) - gradient_magnitude(other)).abs(),
        ],
        dim=1,
    )


def template_gap(images: Tensor, templates: Sequence[Tensor], reach: int) -> Tensor:
    """Difference of images (B, 3, H, W) to the likest of some templates (3, h, w) each, (B, H, W).

    In [0, 1], the mean over the colours. A template may be shifted by up to ``reach`` pixels, at
    each place its own way; one of another size is resampled.
    """
    height, width = images.shape[2:]
    least = images.new_ones(images.shape[0], height, width)
    for template in templates:
        same = template.float()[None]
        if same.shape[2:] != (height, width):
            same = F.interpolate(same, (height, width), mode="bilinear")
        padded = F.pad(same, (reach,) * 4, mode="replicate")
        for down in range(2 * reach + 1):
            for right in range(2 * reach + 1):
                shifted = padded[:, :, down : down + height, right : right + width]
                least = torch.minimum(least, (images - shifted).abs().mean(1) / 2)
    return least


def ssim_gap(x: Tensor, y: Tensor) -> Tensor:
    """(B, C, H, W) twice, range 2 -> (1 - SSIM) / 2 in [0, 1] at each pixel."""
    mean_x, mean_y = _window_mean(x), _window_mean(y)
    variance_x = _window_mean(x * x) - mean_x**2
    variance_y = _window_mean(y * y) - mean_y**2
    covariance = _window_mean(x * y) - mean_x * mean_y
    light = (2 * mean_x * mean_y + SSIM_C1) / (mean_x**2 + mean_y**2 + SSIM_C1)
    structure = (2 * covariance + SSIM_C2) / (variance_x + variance_y + SSIM_C2)
    return ((1 - light * structure) / 2).clamp(0, 1)


def gradient_magnitude(x: Tensor) -> Tensor:
    """(B, C, H, W) -> length of the gradient by central differences, edges repeated."""
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    across = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]) / 2
    down = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]) / 2
    # The root has no derivative at zero, where flat images are.
    return (across**2 + down**2 + 1e-6).sqrt()


def _window_mean(x: Tensor) -> Tensor:
    edge = SSIM_WINDOW // 2
    return F.avg_pool2d(F.pad(x, (edge,) * 4, mode="reflect"), SSIM_WINDOW, stride=1)
