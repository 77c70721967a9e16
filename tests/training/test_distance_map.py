"""The distance map that meta-training asks of the autoencoder's features."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metaformer.networks.autoencoder import Autoencoder
from metaformer.training.universal.distance_map import (
    LEAST_UNIT,
    MOST_QUERIES,
    STRIDE,
    DefectLogit,
    distance_map,
    mean_distance_between,
)

seeds = st.integers(0, 10_000)
SPOT = slice(48 // STRIDE, 72 // STRIDE), slice(64 // STRIDE, 88 // STRIDE)


def photos(count: int, seed: int, height: int = 128, width: int = 128) -> Tensor:
    """Images of one fabric, (count, 3, height, width) in [-1, 1]: other threads in each."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, height // 4, width // 4, generator=generator) * 0.6 - 0.3
    weave = 0.4 * torch.sin(torch.arange(width) * 0.8)
    return (F.interpolate(coarse, (height, width), mode="bilinear") + weave).clamp(-1, 1)


def with_spot(images: Tensor) -> Tensor:
    """The same with a bright square, rows 48 to 72 and columns 64 to 88."""
    spoilt = images.clone()
    spoilt[:, :, 48:72, 64:88] = torch.tensor([1.0, 1.0, -1.0])[:, None, None]
    return spoilt


@pytest.fixture(scope="module")
def autoencoder() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder().requires_grad_(False)


def map_of(autoencoder: Autoencoder, query: Tensor, support: Tensor) -> Tensor:
    """Of queries by the moments and features of a support, as a task is read."""
    known, _, moments = autoencoder.read(support)
    stages, _, _ = autoencoder.read(query, moments)
    return distance_map(stages, known)


@pytest.mark.parametrize("shots", [1, 3])
def test_about_1_where_all_is_normal_and_more_on_a_defect(
    autoencoder: Autoencoder, shots: int
) -> None:
    good = photos(1, 2)
    normal, spoilt = map_of(autoencoder, torch.cat([good, with_spot(good)]), photos(shots, 1))
    assert normal.shape == (128 // STRIDE, 128 // STRIDE)
    # One image is compared with half of itself, which holds less, so that the unit is larger.
    assert normal.mean() == pytest.approx(1, abs=0.2)
    assert spoilt[SPOT].mean() > normal[SPOT].mean() + 0.2
    assert spoilt[SPOT].mean() > spoilt[:8].mean() + 0.2
    row, column = divmod(int(spoilt.argmax()), spoilt.shape[1])
    # Within the receptive field of the coarsest stage.
    assert 48 - 32 <= row * STRIDE <= 72 + 32
    assert 64 - 32 <= column * STRIDE <= 88 + 32


def test_a_spot_is_found_where_it_is_in_a_rectangle(autoencoder: Autoencoder) -> None:
    image = photos(1, 2, 128, 256)
    image[:, :, 96:120, 200:224] = 1.0
    (found,) = map_of(autoencoder, image, photos(2, 1, 256, 128))
    assert found.shape == (32, 64)
    row, column = divmod(int(found.argmax()), found.shape[1])
    assert row * STRIDE >= 96 - 32
    assert 200 - 32 <= column * STRIDE <= 224 + 32


def test_a_support_image_is_at_no_distance_of_itself(autoencoder: Autoencoder) -> None:
    support = photos(2, 1)
    assert map_of(autoencoder, support[:1], support).max() < 0.01


def test_a_map_does_not_depend_on_the_batch_nor_on_the_order_of_the_support(
    autoencoder: Autoencoder,
) -> None:
    support = photos(3, 1)
    queries = torch.cat([with_spot(photos(1, 2)), photos(1, 3), torch.ones(1, 3, 128, 128)])
    together = map_of(autoencoder, queries, support)
    alone = map_of(autoencoder, queries[:1], support)
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-4)
    turned = map_of(autoencoder, queries, support[[2, 0, 1]])
    torch.testing.assert_close(turned, together, rtol=1e-4, atol=1e-4)


def test_a_flat_support_gives_a_finite_map(autoencoder: Autoencoder) -> None:
    flat = torch.full((2, 3, 128, 128), 0.2)
    normal, spoilt = map_of(autoencoder, torch.cat([flat[:1], with_spot(flat[:1])]), flat)
    assert normal.isfinite().all() and spoilt.isfinite().all()
    assert normal.max() < 1.5
    assert spoilt.max() > normal.max() + 0.5


def test_gradients_reach_the_support_and_the_query() -> None:
    torch.manual_seed(0)
    autoencoder = Autoencoder().requires_grad_(False)
    support, query = photos(2, 1).requires_grad_(), photos(1, 2).requires_grad_()
    map_of(autoencoder, query, support).mean().backward()
    for images in (support, query):
        assert images.grad is not None
        assert images.grad.isfinite().all()
        assert images.grad.abs().max() > 0


# Units


def unit_rows(count: int, channels: int, generator: torch.Generator) -> Tensor:
    return F.normalize(torch.randn(count, channels, generator=generator), dim=1)


@settings(max_examples=20, deadline=None)
@given(seed=seeds, count=st.integers(1, 4), rows=st.integers(2, 700))
def test_the_mean_distance_is_a_distance_and_has_no_order(seed: int, count: int, rows: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = [unit_rows(rows, 4, generator) for _ in range(count)]
    distance = mean_distance_between(images)
    assert 0 <= distance <= 2
    torch.testing.assert_close(distance, mean_distance_between(images[::-1]), rtol=1e-4, atol=1e-6)
    assert mean_distance_between(images[:1] * 3) < 1e-5


def test_the_mean_distance_is_that_to_the_other_images() -> None:
    generator = torch.Generator().manual_seed(0)
    images = [unit_rows(count, 8, generator) for count in (500, 300, 400)]
    expected = []
    for i, image in enumerate(images):
        others = torch.cat([other for j, other in enumerate(images) if j != i])
        some = image[:: 2 if len(image) > MOST_QUERIES else 1]
        assert len(some) <= MOST_QUERIES
        expected.append((1 - some @ others.T).amin(1))
    torch.testing.assert_close(mean_distance_between(images), torch.cat(expected).mean())


def test_one_image_is_compared_half_with_half() -> None:
    rows = unit_rows(40, 8, torch.Generator().manual_seed(0))
    found = mean_distance_between([rows])
    assert found > 0.01
    torch.testing.assert_close(found, mean_distance_between([rows[:20], rows[20:]]))


def test_a_map_is_the_logarithm_of_distances_in_units() -> None:
    """Where the support is at no distance of itself, the unit is the least one."""
    one, other = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    support = [one[None, :, None, None].expand(2, 2, side, side) for side in (16, 8, 4, 2)]
    cosine = torch.tensor(0.97)
    query_row = cosine * one + (1 - cosine**2).sqrt() * other
    query = [query_row[None, :, None, None].expand(1, 2, side, side) for side in (16, 8, 4, 2)]
    expected = torch.full((1, 8, 8), float(torch.log2(1 + 0.03 / torch.tensor(LEAST_UNIT))))
    torch.testing.assert_close(distance_map(query, support), expected, rtol=1e-3, atol=1e-3)


def test_logits_rise_with_the_map() -> None:
    logits = DefectLogit()(torch.tensor([0.5, 1.0, 2.0, 3.0]))
    assert (logits.diff() > 0).all()
    assert logits[1] < 0 < logits[3], "1 is normal; 3 is not"
