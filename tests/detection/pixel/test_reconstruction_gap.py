"""The maps of the gap are what they are named."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from metaformer.detection.pixel.reconstruction_gap import (
    GAP_STRIDE,
    SSIM_WINDOW,
    gap_maps,
    ssim_gap,
)
from metaformer.networks.feature_maps import gradient_magnitude

seeds = st.integers(0, 10_000)


def images(seed: int, channels: int = 3, height: int = 20, width: int = 28) -> Tensor:
    """Smooth and rough images alike, in [-1, 1]."""
    g = torch.Generator().manual_seed(seed)
    roughness = float(torch.rand((), generator=g)) ** 3
    noise = torch.rand(2, channels, height, width, generator=g) * 2 - 1
    level = torch.rand(2, channels, 1, 1, generator=g) * 2 - 1
    return (1 - roughness) * level + roughness * noise


@settings(max_examples=30, deadline=None)
@given(seed=seeds, other=seeds)
def test_ssim_gap_is_symmetric_and_in_range(seed: int, other: int) -> None:
    x, y = images(seed), images(other)
    gap = ssim_gap(x, y)
    assert gap.shape == x.shape
    assert gap.min() >= 0
    assert gap.max() <= 1
    torch.testing.assert_close(gap, ssim_gap(y, x), rtol=0, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=seeds)
def test_ssim_gap_is_zero_for_equal_images(seed: int) -> None:
    x = images(seed)
    assert ssim_gap(x, x).max() < 1e-4


def test_ssim_gap_is_largest_for_a_negative() -> None:
    # One wave to a window, so that its mean is zero.
    waves = torch.sin(2 * torch.pi * torch.arange(28) / SSIM_WINDOW).expand(1, 1, 20, 28)
    inside = ssim_gap(waves, -waves)[..., SSIM_WINDOW:-SSIM_WINDOW]
    assert inside.min() > 0.95


@settings(max_examples=10, deadline=None)
@given(seed=seeds, other=seeds)
def test_ssim_gap_is_that_of_the_formula(seed: int, other: int) -> None:
    """Against SSIM window by window in double precision, away from the edges."""
    x, y = images(seed, 1, 10, 12), images(other, 1, 10, 12)
    edge = SSIM_WINDOW // 2
    expected = (1 - plain_ssim(x[0, 0].double().numpy(), y[0, 0].double().numpy())) / 2
    got = ssim_gap(x, y)[0, 0, edge:-edge, edge:-edge].numpy()
    # Single precision loses digits in the variance of nearly flat windows.
    np.testing.assert_allclose(got, expected.clip(0, 1), atol=2e-3)


def plain_ssim(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """SSIM of Wang et al. (2004), range 2, uniform windows that lie inside."""
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    height, width = (side - SSIM_WINDOW + 1 for side in x.shape)
    result = np.empty((height, width))
    for row in range(height):
        for column in range(width):
            here = slice(row, row + SSIM_WINDOW), slice(column, column + SSIM_WINDOW)
            a, b = x[here].ravel(), y[here].ravel()
            (var_a, cov), (_, var_b) = np.cov(a, b, bias=True)
            light = (2 * a.mean() * b.mean() + c1) / (a.mean() ** 2 + b.mean() ** 2 + c1)
            result[row, column] = light * (2 * cov + c2) / (var_a + var_b + c2)
    return result


def test_gradient_of_a_ramp_is_its_slope() -> None:
    down, across = torch.meshgrid(torch.arange(9.0), torch.arange(11.0), indexing="ij")
    ramp = (0.03 * down + 0.04 * across)[None, None]
    magnitude = gradient_magnitude(ramp)
    assert magnitude.shape == ramp.shape
    torch.testing.assert_close(
        magnitude[..., 1:-1, 1:-1], torch.full((1, 1, 7, 9), 0.05), rtol=0, atol=2e-5
    )
    # At the left edge, repeated, half of the slope across is left.
    torch.testing.assert_close(
        magnitude[0, 0, 1:-1, 0], torch.full((7,), (0.03**2 + 0.02**2) ** 0.5), rtol=0, atol=2e-5
    )


def test_a_flat_image_has_a_gradient_to_learn_by() -> None:
    flat = torch.zeros(1, 3, 16, 16, requires_grad=True)
    gap_maps(torch.zeros(1, 3, 16, 16), flat).sum().backward()
    assert flat.grad is not None
    assert flat.grad.isfinite().all()


def test_maps_are_in_the_order_named() -> None:
    x, y = images(1, height=32, width=48), images(2, height=32, width=48)
    gap = gap_maps(x, y)
    assert gap.shape == (2, 4, 32 // GAP_STRIDE, 48 // GAP_STRIDE)
    grey, other = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
    difference = (x - y).abs().mean(1, keepdim=True)
    steepness = (gradient_magnitude(grey) - gradient_magnitude(other)).abs()
    half_size = ssim_gap(F.avg_pool2d(grey, 2), F.avg_pool2d(other, 2))
    expected = [
        *(F.avg_pool2d(full, 4) for full in (difference, ssim_gap(grey, other), steepness)),
        F.avg_pool2d(half_size, 2),
    ]
    torch.testing.assert_close(gap, torch.cat(expected, dim=1))


@settings(max_examples=30, deadline=None)
@given(seed=seeds, other=seeds)
def test_maps_are_not_negative_and_zero_where_all_is_rebuilt(seed: int, other: int) -> None:
    x, y = images(seed, height=32, width=48), images(other, height=32, width=48)
    assert gap_maps(x, y).min() >= 0
    assert gap_maps(x, x).max() < 1e-4


def test_an_image_s_gap_is_its_own_and_in_its_place() -> None:
    x = images(1, height=64, width=64)
    rebuilt = x.clone()
    rebuilt[0, :, 32:40, 16:24] = torch.tensor([1.0, -1.0, 1.0])[:, None, None]
    gap = gap_maps(x, rebuilt)
    assert gap[1].max() < 1e-4
    assert gap[0, :, 8:10, 4:6].amin((1, 2)).min() > 0.01
    assert gap[0, :, :, 10:].max() < 1e-4
    assert torch.equal(gap_maps(x[:1], rebuilt[:1]), gap[:1])
