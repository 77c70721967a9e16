from __future__ import annotations

import os
from multiprocessing import get_context

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metaformer.detection.preprocessing import MAX_ASPECT, helpers, shrunk, to_tensor, working_size
from metaformer.detection.scoring.anomaly_map import image_score, smooth, to_image_size
from tests.helpers import trees

sides = st.integers(8, 30_000)
resolutions = st.sampled_from([64, 128, 256, 512, 1024])


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((100, 100), (256, 256)),
        ((3000, 3000), (256, 256)),
        ((480, 640), (224, 288)),
        ((640, 480), (288, 224)),
        ((200, 800), (128, 512)),
    ],
)
def test_working_size_of_common_shapes(shape, expected):
    assert working_size(*shape, 256, 16) == expected


@given(sides, sides, resolutions, st.sampled_from([8, 16, 32]))
def test_sides_are_multiples_and_the_area_is_about_the_same(height, width, resolution, multiple):
    h, w = working_size(height, width, resolution, multiple)
    assert h % multiple == 0 and w % multiple == 0
    assert min(h, w) >= multiple
    # Each side is within half a multiple of what the area asks for.
    aspect = np.clip(height / width, 1 / MAX_ASPECT, MAX_ASPECT)
    assert abs(h - max(resolution * aspect**0.5, multiple)) <= multiple / 2 + 1e-9
    assert abs(w - max(resolution / aspect**0.5, multiple)) <= multiple / 2 + 1e-9


@given(sides, sides)
def test_turning_the_image_turns_the_working_size(height, width):
    assert working_size(height, width, 256, 16) == working_size(width, height, 256, 16)[::-1]


@pytest.mark.parametrize("shape", [(8, 20_000), (20_000, 8), (8, 65), (100, 8000)])
def test_extreme_aspect_is_squeezed_and_costs_no_more(shape):
    h, w = working_size(*shape, 256, 16)
    assert max(h, w) / min(h, w) <= MAX_ASPECT * 1.1
    assert h * w <= 1.2 * 256**2


# Images to tensors


def test_to_tensor_keeps_colour_order_range_and_place():
    image = np.zeros((64, 128, 3), np.uint8)
    image[:32, :64] = (255, 0, 0)
    image[32:, 64:] = (0, 0, 255)
    tensor = to_tensor(image, (32, 64))
    assert tensor.shape == (1, 3, 32, 64)
    assert tensor.dtype == torch.float32
    assert tensor[0, :, 4, 4].tolist() == [1, 0, 0]
    assert tensor[0, :, 28, 60].tolist() == [0, 0, 1]
    assert tensor[0, :, 4, 60].tolist() == [0, 0, 0]


def test_to_tensor_at_the_same_size_changes_nothing():
    image = trees.picture(1, 48, 64)
    assert torch.equal(to_tensor(image, (48, 64)), torch.tensor(image).permute(2, 0, 1)[None] / 255)


def test_shrinking_averages_and_does_not_skip_pixels():
    """Lines one pixel wide, eight apart, keep their share of the brightness."""
    image = np.zeros((256, 256, 3), np.uint8)
    image[:, ::8] = 255
    assert to_tensor(image, (32, 32)).numpy() == pytest.approx(1 / 8, abs=1 / 255)


@pytest.mark.parametrize("size", [(32, 32), (160, 96), (64, 512)])
@pytest.mark.parametrize("shape", [(64, 64), (8, 900), (900, 8), (33, 77)])
def test_to_tensor_of_a_constant_is_constant(shape, size):
    tensor = to_tensor(np.full((*shape, 3), 77, np.uint8), size)
    assert tensor.shape == (1, 3, *size)
    assert tensor.numpy() == pytest.approx(77 / 255)


@pytest.mark.parametrize("threads", [2, 3, 4, 7])
@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 200), st.integers(1, 90), st.booleans())
def test_strips_of_several_threads_are_the_whole(threads, rows, columns, height, width, is_view):
    """Whatever the sizes, of which some cannot be shared and some grow along a side."""
    size = (8 * rows, 8 * columns)
    image = trees.picture(height + width, height, width)
    if is_view:
        image = image[:, ::-1]
    whole = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
    torch.set_num_threads(threads)
    assert np.array_equal(shrunk(image, size), whole)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_a_process_forked_after_strips_were_shared_shares_its_own():
    torch.set_num_threads(2)
    image = trees.picture(1, 64, 64)
    before = shrunk(image, (32, 32))
    with get_context("fork").Pool(1) as other:  # which ends its process whatever happens
        found = other.apply_async(shrunk, (image, (32, 32))).get(timeout=60)
    assert np.array_equal(found, before)


def test_an_image_is_shrunk_when_no_thread_takes_work_any_more():
    torch.set_num_threads(2)
    image = trees.picture(1, 64, 64)
    before = shrunk(image, (32, 32))
    helpers(1).shutdown()
    try:
        assert np.array_equal(shrunk(image, (32, 32)), before)
    finally:
        helpers.cache_clear()


# Maps


@pytest.mark.parametrize("sigma", [0, 0.3, 1, 4, 50])
@pytest.mark.parametrize("shape", [(1, 1), (2, 30), (16, 16)])
def test_smoothing_keeps_constants_and_shape(sigma, shape):
    maps = torch.full((2, *shape), 0.7)
    smoothed = smooth(maps, sigma)
    assert smoothed.shape == maps.shape
    assert torch.allclose(smoothed, maps, atol=1e-6)


def test_smoothing_is_a_gaussian():
    maps = torch.zeros(1, 41, 41)
    maps[0, 20, 20] = 1
    smoothed = smooth(maps, 2.0)[0].double()
    assert float(smoothed.sum()) == pytest.approx(1, abs=1e-5)
    offsets = torch.arange(41).double() - 20
    assert float((smoothed.sum(0) * offsets**2).sum()) == pytest.approx(4, rel=0.03)
    assert float(smoothed[20, 22] / smoothed[20, 20]) == pytest.approx(np.exp(-0.5), rel=1e-4)
    assert torch.allclose(smoothed, smoothed.T) and torch.allclose(smoothed, smoothed.flip(0))


def test_smoothing_treats_each_map_alone():
    maps = torch.rand(3, 9, 12, generator=torch.Generator().manual_seed(0))
    together = smooth(maps, 1.0)
    for i in range(3):
        assert torch.allclose(smooth(maps[i : i + 1], 1.0)[0], together[i], atol=1e-7)
    assert smooth(maps, 0) is maps


@pytest.mark.parametrize(
    ("share", "expected"), [(0.01, 9.9), (0.1, 9.45), (1.0, 4.95), (1e-9, 9.9)]
)
def test_image_score_is_the_mean_of_the_highest_share(share, expected):
    cells = torch.arange(100) / 10
    shuffled = cells[torch.randperm(100, generator=torch.Generator().manual_seed(0))]
    assert image_score(shuffled.reshape(4, 25), share) == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(40, 56), (41, 57, 3), (8, 900), (5, 4)])
def test_to_image_size(shape):
    raw = torch.rand(7, 9, generator=torch.Generator().manual_seed(0))
    resized = to_image_size(raw, shape)
    assert resized.shape == shape[:2]
    assert resized.dtype == np.float32
    assert resized.min() >= raw.min() and resized.max() <= raw.max()


def test_to_image_size_puts_a_cell_where_its_pixels_are():
    raw = torch.zeros(8, 16)
    raw[6, 3] = 1
    resized = to_image_size(raw, (80, 320))
    rows, columns = np.nonzero(resized > 0.9)
    assert rows.mean() == pytest.approx(6.5 * 10 - 0.5, abs=0.6)
    assert columns.mean() == pytest.approx(3.5 * 20 - 0.5, abs=0.6)


def test_to_image_size_takes_a_map_that_is_not_contiguous():
    raw = torch.rand(6, 10, generator=torch.Generator().manual_seed(0))
    assert np.array_equal(
        to_image_size(raw.T, (20, 12)), to_image_size(raw.T.contiguous(), (20, 12))
    )
