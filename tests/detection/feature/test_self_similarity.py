"""What else an image shows: where the map is lowered, and where it is not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from metaformer.detection.adaptation import prepare
from metaformer.detection.feature.adapted import AdaptedFeature, on_one_grid
from metaformer.detection.feature.config import FeatureConfig
from metaformer.detection.feature.preset import FeatureModel
from metaformer.detection.feature.self_similarity import NAMES, elsewhere, lowered, own_distances
from metaformer.networks.patch_metric import READINGS, load_metric
from tests.helpers import boards

SIDES = st.integers(1, 14)


def adapt_to(model: FeatureModel, support: list[np.ndarray]) -> AdaptedFeature:
    return model.adapt([prepare(model, image) for image in support], seed=0)


def by_hand(tokens: torch.Tensor, every: int, *, euclidean: bool) -> torch.Tensor:
    _, height, width = tokens.shape
    reach = round(0.25 * (height * width) ** 0.5)
    found = torch.full((height, width), torch.inf, dtype=torch.float64)
    for row in range(height):
        for column in range(width):
            one = tokens[:, row, column].double()
            for down in range(0, height, every):
                for right in range(0, width, every):
                    if abs(down - row) <= reach and abs(right - column) <= reach:
                        continue
                    other = tokens[:, down, right].double()
                    apart = (one - other).norm() if euclidean else 1 - one @ other
                    found[row, column] = min(found[row, column], apart)
    return found


@settings(max_examples=30, deadline=None)
@given(height=SIDES, width=SIDES, every=st.sampled_from([1, 2]), euclidean=st.booleans())
def test_the_nearest_is_looked_for_elsewhere_on_the_image(height, width, every, euclidean):
    generator = torch.Generator().manual_seed(height * 100 + width)
    tokens = F.normalize(torch.randn(5, height, width, generator=generator), dim=0)
    found = elsewhere(tokens, every, 0.25, euclidean=euclidean)
    expected = by_hand(tokens, every, euclidean=euclidean)
    is_known = expected.isfinite()
    torch.testing.assert_close(found[is_known].double(), expected[is_known], rtol=1e-3, atol=1e-3)
    assert bool((found[~is_known] > 10).all()), "nothing elsewhere: farther than any token can be"
    assert bool(found.isfinite().all())


@pytest.mark.parametrize("euclidean", [True, False])
def test_of_a_large_image_no_more_is_compared_with(euclidean):
    generator = torch.Generator().manual_seed(0)
    tokens = F.normalize(torch.randn(3, 70, 40, generator=generator), dim=0)  # over 32^2 cells
    found = elsewhere(tokens, 1, 0.25, euclidean=euclidean)
    assert torch.equal(found, elsewhere(tokens, 2, 0.25, euclidean=euclidean))
    kept = tokens[:, ::2, ::2].flatten(1)
    rows = tokens.flatten(1).T
    down, right = torch.meshgrid(torch.arange(70), torch.arange(40), indexing="ij")
    places = torch.stack([down, right], 2)
    others = places[::2, ::2].reshape(-1, 2)
    near = (places.reshape(-1, 1, 2) - others).abs().amax(2) <= 13
    apart = torch.cdist(rows, kept.T) if euclidean else 1 - rows @ kept
    expected = apart.masked_fill(near, torch.inf).amin(1).reshape(70, 40)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), share=st.floats(0, 1))
def test_the_map_is_lowered_where_the_image_itself_is_nearer_and_never_raised(seed, share):
    metric = load_metric()
    generator = torch.Generator().manual_seed(seed)
    distances = {
        name: torch.rand(6, 7, generator=generator) for name in (*READINGS, *NAMES.values())
    }
    factor = lowered(metric, distances, share)
    remembered = metric.join({reading: distances[reading] for reading in READINGS})
    own = metric.join({reading: distances[NAMES[reading]] for reading in READINGS})
    expected = torch.where(own < remembered, (own / remembered) ** share, torch.ones(()))
    torch.testing.assert_close(factor, expected, rtol=1e-4, atol=1e-6)
    assert float(factor.max()) <= 1 and float(factor.min()) > 0


def test_it_stands_in_both_maps():
    model = FeatureModel.from_pretrained(FeatureConfig(resolution=96))
    support = [stripes(160, seed, scratch=False) for seed in range(2)]
    with_own = adapt_to(model, support)
    without = model.with_config(replace(model.config, own=0.0))
    plain = adapt_to(without, support)
    tokens = prepare(model, stripes(40, 7, scratch=True))
    distances = with_own.distances(tokens)
    assert distances.keys() - plain.distances(tokens).keys() == set(NAMES.values())
    resized = on_one_grid(distances, model.config.readings[0])
    factor = lowered(model.metric, resized, model.config.own)
    assert float((factor < 1).float().mean()) > 0
    torch.testing.assert_close(
        with_own.anomaly_maps(tokens), plain.anomaly_maps(tokens) * factor, rtol=1e-4, atol=1e-6
    )


def stripes(brightness: float, seed: int, scratch: bool) -> np.ndarray:
    """A surface that looks alike all over, (128, 128, 3), with a scratch or not."""
    generator = np.random.default_rng(seed)
    x = np.arange(128)
    pixels = brightness * (1 + 0.3 * np.sin(2 * np.pi * (x[None] + 0.5 * x[:, None]) / 16))
    pixels = pixels + generator.normal(0, 3, pixels.shape)
    if scratch:
        pixels[50:56, 30:80] *= 0.5
    return np.repeat(np.clip(pixels, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def test_a_surface_in_other_light_is_told_from_a_scratch():
    """Four times darker than the normal images: without its own image all of it looks wrong."""
    support = [stripes(160, seed, scratch=False) for seed in range(2)]
    contrasts = {}
    for own in (0.0, FeatureConfig().own):
        model = FeatureModel.from_pretrained(FeatureConfig(resolution=128, own=own))
        adapted = adapt_to(model, support)
        grid = adapted.anomaly_maps(prepare(model, stripes(40, 7, scratch=True)))[-1]
        wrong = torch.zeros_like(grid, dtype=torch.bool)
        wrong[6:7, 4:10] = True
        contrasts[own] = float(grid[wrong].mean() / grid[~wrong].mean())
    before, now = contrasts.values()
    assert now > 1.2 * before, contrasts


def test_own_distances_are_of_one_image_alone():
    model = FeatureModel.from_pretrained(FeatureConfig(resolution=96))
    tokens = prepare(model, boards.defective(5))
    found = own_distances(tokens)
    assert {name: grid.shape for name, grid in found.items()} == {
        NAMES[reading]: tokens[reading].shape[1:] for reading in READINGS
    }


@pytest.mark.parametrize("own", [-0.1, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(own):
    with pytest.raises(ValueError, match="own: found"):
        FeatureConfig(own=own)
