"""The gap's channels are what they are named."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from metaformer.detection.pixel.reconstruction_gap import (
    GAP_CHANNELS,
    SSIM_WINDOW,
    gap_channels,
    gradient_magnitude,
    ssim_gap,
    template_gap,
)

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
    gap_channels(torch.zeros(1, 3, 16, 16), flat).sum().backward()
    assert flat.grad is not None
    assert flat.grad.isfinite().all()


def test_channels_are_in_the_order_named() -> None:
    x, y = images(1), images(2)
    gap = gap_channels(x, y)
    assert gap.shape == (2, GAP_CHANNELS, 20, 28)
    assert torch.equal(gap[:, :3], x)
    assert torch.equal(gap[:, 3:6], y)
    assert torch.equal(gap[:, 6:9], (x - y).abs())
    grey, other = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
    assert torch.equal(gap[:, 9:10], ssim_gap(grey, other))
    steepness = (gradient_magnitude(grey) - gradient_magnitude(other)).abs()
    assert torch.equal(gap[:, 10:], steepness)


def test_template_gap_is_that_to_the_likest_within_reach() -> None:
    g = torch.Generator().manual_seed(0)
    template = torch.rand(3, 12, 16, generator=g) * 2 - 1
    moved = torch.roll(template, (1, -1), (1, 2))[None]
    assert template_gap(moved, [template], 1)[0, 2:-2, 2:-2].max() == 0
    assert template_gap(moved, [template], 0)[0, 2:-2, 2:-2].min() > 0
    other = torch.ones(3, 12, 16)
    assert torch.equal(template_gap(other[None], [template, other], 0), torch.zeros(1, 12, 16))
    opposite = template_gap(other[None], [-other], 1)
    assert torch.equal(opposite, torch.ones(1, 12, 16)), "the range is 0 to 1"
    assert template_gap(moved, [other[:, :6, :8]], 1).shape == (1, 12, 16)
