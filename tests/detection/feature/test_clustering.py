from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from metaformer.detection.adaptation import prepare
from metaformer.detection.feature.clustering import FEWEST, find_products
from metaformer.detection.feature.config import FeatureConfig
from metaformer.detection.feature.position_memory import SamePlace
from metaformer.detection.feature.preset import FeatureModel
from metaformer.detection.feature.state import adapted_from_state
from tests.helpers import boards

CONFIG = FeatureConfig(resolution=96)
NUMBERS = st.integers(0, 10**6)


def product(seed: int, count: int, variation: float = 0.3) -> list[torch.Tensor]:
    """(N, C) tokens of images of one product: nearer to each other than to those of another."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(60, 24, generator=generator)
    return [
        F.normalize(base + variation * torch.randn(base.shape, generator=generator), dim=1)
        for _ in range(count)
    ]


@given(st.lists(st.integers(3, 6), min_size=1, max_size=4), st.randoms(), NUMBERS)
def test_images_of_each_product_are_found_in_any_order(counts, random, seed):
    images = [
        (tokens, number)
        for number, count in enumerate(counts)
        for tokens in product(seed + number, count)
    ]
    random.shuffle(images)
    found = find_products(torch.stack([tokens for tokens, _ in images]))
    names: dict[int, int] = {}
    if len(images) < FEWEST:
        assert set(found) == {0}
    else:
        assert found == tuple(names.setdefault(number, len(names)) for _, number in images)


@given(st.integers(1, 3), NUMBERS)
def test_a_part_photographed_twice_is_no_product_of_its_own(times, seed):
    images = product(seed, 4)
    again = [images[i % 4] for i in range(times)]
    assert set(find_products(torch.stack([*images, *again]))) == {0}


def test_a_few_images_are_of_one_product():
    assert find_products(torch.stack(product(0, 2) + product(1, 3))) == (0,) * 5


def test_images_alike_to_the_last_bit_are_of_one_product():
    assert find_products(torch.stack(product(0, 1) * 8)) == (0,) * 8


# In a detector


@pytest.fixture(scope="module")
def model() -> FeatureModel:
    return FeatureModel.from_pretrained(CONFIG)


def standing(count: int) -> list[np.ndarray]:
    """Photos of one board with different noise."""
    rng = np.random.default_rng(0)
    board = boards.good(0).astype(np.float32)
    return [
        np.clip(board + rng.normal(0, 3, board.shape), 0, 255).astype(np.uint8)
        for _ in range(count)
    ]


def stripes(count: int, first: int = 0) -> list[np.ndarray]:
    """Of a material of which no place looks like that of another image."""
    images = []
    for seed in range(first, first + count):
        turn = np.random.default_rng(seed).uniform(0, 2 * np.pi, 2)
        rows, columns = np.mgrid[:96, :96]
        waves = np.sin(rows / 3 + turn[0]) + np.sin(columns / 5 + turn[1])
        images.append(np.repeat((127 + 60 * waves).astype(np.uint8)[..., None], 3, axis=2))
    return images


def test_each_product_says_how_far_its_places_count(model):
    tokens = [prepare(model, image) for image in [*standing(4), *stripes(4)]]
    adapted = model.adapt(tokens, seed=0)
    assert adapted.same_place.products == (0,) * 4 + (1,) * 4
    board, material = adapted.same_place.alignments
    assert board > 0.9 > 0.8 > material
    assert board == pytest.approx(*model.adapt(tokens[:4], seed=0).same_place.alignments)
    for number, image in enumerate((boards.defective(9), stripes(1, first=9)[0])):
        query = prepare(model, image)
        assert adapted.product_of(query) == number
        expected = adapted.join(adapted.distances(query), number)
        assert torch.equal(adapted.anomaly_maps(query), expected)
        assert not torch.equal(adapted.join(adapted.distances(query), 1 - number), expected)


@pytest.mark.parametrize("most", [20_000, 200])
def test_a_file_says_what_products_there_are(model, most):
    drawn = model.with_config(replace(CONFIG, max_tokens=most))
    tokens = [prepare(drawn, image) for image in [*standing(3), *stripes(3)]]
    adapted = drawn.adapt(tokens, seed=0)
    tensors, settings = adapted.state()
    restored = adapted_from_state(tensors, settings)
    assert restored.same_place.products == (0, 0, 0, 1, 1, 1)
    assert restored.shares == adapted.shares
    for image in (boards.defective(9), stripes(1, first=9)[0]):
        query = prepare(drawn, image)
        assert torch.equal(restored.anomaly_maps(query), adapted.anomaly_maps(query))
    for damaged in ([0] * 6, [0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 2], []):
        with pytest.raises(ValueError, match=r"products (is|are)"):
            adapted_from_state(tensors, {**settings, "products": damaged})


def test_products_are_asked_again_when_images_are_added(model):
    drawn = model.with_config(replace(CONFIG, max_tokens=200))
    tokens = [prepare(drawn, image) for image in [*standing(3), *stripes(3)]]
    alone = drawn.adapt(tokens[:3], seed=0)
    assert len(alone.shares) == 1
    both = alone.extended(tokens[3:], earlier=3, seed=0)
    assert both.same_place.products == (0, 0, 0, 1, 1, 1) and len(both.shares) == 2


def test_one_product_is_read_as_if_none_were_told(model):
    tokens = [prepare(model, image) for image in standing(6)]
    adapted = model.adapt(tokens, seed=0)
    query = prepare(model, boards.defective(9))
    (alignment,) = adapted.same_place.alignments
    untold = model.adapt(tokens, seed=0, alignment=alignment)
    assert SamePlace.of(tokens).products == untold.same_place.products == ()
    assert torch.equal(adapted.anomaly_maps(query), untold.anomaly_maps(query))
