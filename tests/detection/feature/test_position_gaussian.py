from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metaformer.detection.detector import Detector, DetectorFileError, Metaformer
from metaformer.detection.detector_file import read_detector_file, write_detector_file
from metaformer.detection.feature.adapted import PLACES
from metaformer.detection.feature.config import PLAIN, FeatureConfig
from metaformer.detection.feature.position_gaussian import GRID, MARKING, RIDGE, Places
from metaformer.detection.feature.preset import FeatureModel
from metaformer.detection.preprocessing import to_tensor
from metaformer.detection.support_set import make_folds
from metaformer.networks.patch_metric import POOLED
from tests.helpers import boards

CELLS, CHANNELS = GRID[0] * GRID[1], 3


def grids(count: int, seed: int = 0, size: tuple[int, int] = GRID) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(CHANNELS, *size, generator=generator) for _ in range(count)]


def test_distance_is_that_of_mahalanobis_at_each_place():
    images, query = grids(12), grids(1, seed=1)[0]
    rows = np.stack([image.flatten(1).T.numpy() for image in images]).astype(float)  # (N, P, C)
    covariances = [np.cov(rows[:, place].T) for place in range(CELLS)]
    ridge = RIDGE * np.mean([np.diag(c) for c in covariances]) * np.eye(CHANNELS)
    offsets = query.flatten(1).T.numpy() - rows.mean(0)
    expected = [
        np.sqrt(offset @ np.linalg.inv(covariance + ridge) @ offset / CHANNELS)
        for offset, covariance in zip(offsets, covariances, strict=True)
    ]
    found = Places.of(images).distance(query)
    assert found.shape == GRID
    np.testing.assert_allclose(found.flatten(), expected, rtol=1e-3)


def test_normal_images_lie_about_1_away_and_the_mean_at_0():
    places = Places.of(grids(200))
    assert float(places.distance(grids(1, seed=5)[0]).mean()) == pytest.approx(1, abs=0.1)
    mean = places.mean.T.reshape(CHANNELS, *GRID)
    assert float(places.distance(mean).max()) == pytest.approx(0, abs=1e-6)


@given(st.lists(st.integers(1, 5), min_size=2, max_size=4))
def test_merging_is_learning_from_all(counts: list[int]):
    """Of single images too, which have no variance alone."""
    parts = [grids(count, seed=i) for i, count in enumerate(counts)]
    merged = Places.of(parts[0])
    for part in parts[1:]:
        merged = merged.merged(Places.of(part))
    whole = Places.of([image for part in parts for image in part])
    assert merged.count == whole.count
    torch.testing.assert_close(merged.mean, whole.mean, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(merged.covariances, whole.covariances, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("images", [grids(1), grids(1) * 3])
def test_images_without_variance_have_finite_distances(images: list[torch.Tensor]):
    places = Places.of(images)
    assert bool(torch.isfinite(places.distance(grids(1, seed=2)[0])).all())


def test_grids_of_any_size_fit():
    images = [*grids(2), *grids(2, size=(5, 70))]
    assert Places.of(images).distance(grids(1, size=(64, 3))[0]).shape == GRID


def test_the_share_grows_with_the_images():
    mean, covariances = torch.zeros(CELLS, CHANNELS), torch.zeros(CELLS, 6)
    shares = [Places(count, mean, covariances).shares(2) for count in (1, 2, CHANNELS, 1000)]
    scores = [share for share, _ in shares]
    assert scores == sorted(scores) and scores[2] == 0.5
    assert scores[0] > 0 and scores[-1] < 1
    assert all(marking == MARKING * share for share, marking in shares)
    assert Places(1, mean, covariances).shares(1) == (scores[0],)


# In the preset

MANY = FeatureConfig(resolution=96, places=6)


@pytest.fixture(scope="module")
def model() -> FeatureModel:
    return FeatureModel.from_pretrained(MANY)


def halves(seed: int, *, swapped: bool = False) -> torch.Tensor:
    """Dark on the left and bright on the right, with noise; ``swapped`` has a part of each moved to
    the other side: nothing that is not seen elsewhere."""
    rng = np.random.default_rng(seed)
    pixels = np.full((96, 96, 3), 60.0)
    pixels[:, 48:] = 190
    if swapped:
        pixels[32:64, 8:32], pixels[32:64, 64:88] = 190, 60
    noisy = pixels + rng.normal(0, 6, pixels.shape)
    return to_tensor(np.clip(noisy, 0, 255).astype(np.uint8), (96, 96))


def test_what_is_normal_elsewhere_is_found_by_its_place(model: FeatureModel):
    tokens = [model.prepare(halves(seed)) for seed in range(12)]
    good, moved = model.prepare(halves(99)), model.prepare(halves(98, swapped=True))

    def contrast(places: bool) -> float:
        """How much more the middle of the moved part stands out than that of a good image."""
        adapted = model.remember(tokens, seed=0, places=places)
        if adapted.places is not None:
            adapted.places = replace(adapted.places, count=10_000)
        first, second = (adapted.anomaly_maps(image)[0][5:7, 2].mean() for image in (moved, good))
        return float(first / second)

    assert contrast(True) > 1.5 * contrast(False)  # a nearest token sees its edges only


def test_places_join_the_maps_by_their_shares(model: FeatureModel):
    """What is elsewhere on the image lowers both together afterwards."""
    model = model.with_config(replace(model.config, own=0.0))
    tokens = [model.prepare(halves(seed)) for seed in range(6)]
    without, adapted = (model.remember(tokens, seed=0, places=known) for known in (False, True))
    query = model.prepare(halves(7, swapped=True))
    before, after = without.anomaly_maps(query), adapted.anomaly_maps(query)
    distance = adapted.distances(query)[PLACES][None, None]
    distance = torch.nn.functional.interpolate(distance, before.shape[1:], mode="bilinear")[0, 0]
    shares = adapted.places.shares(2)
    expected = [b ** (1 - share) * distance**share for b, share in zip(before, shares, strict=True)]
    torch.testing.assert_close(after, torch.stack(expected))


def test_a_left_out_image_is_unknown(model: FeatureModel):
    tokens = [model.prepare(halves(seed)) for seed in range(12)]
    found = model.left_out_distances(tokens, seed=0)
    for fold in make_folds(12, model.max_folds):
        others = Places.of([image[POOLED] for i, image in enumerate(tokens) if i not in fold])
        for i in fold:
            assert torch.equal(found[i][PLACES], others.distance(tokens[i][POOLED]))


def test_only_many_images_in_the_learned_metric_have_places(model: FeatureModel):
    tokens = [model.prepare(halves(seed)) for seed in range(6)]
    assert model.adapt(tokens, seed=0).places is not None
    assert model.adapt(tokens[:5], seed=0).places is None
    assert PLACES not in model.left_out_distances(tokens[:5], seed=0)[0]
    assert not model.with_config(replace(MANY, places=0)).has_places(1000)
    plain = FeatureModel.from_pretrained(replace(PLAIN, resolution=96))
    assert not plain.has_places(1000)


@cache
def detector(count: int = 8) -> Detector:
    universal = Metaformer(FeatureModel.from_pretrained(MANY), "feature")
    return universal.adapt([boards.good(seed) for seed in range(count)])


def test_a_detector_file_keeps_places_bit_for_bit(tmp_path):
    detector().save(tmp_path / "board")
    again = Detector.load(tmp_path / "board")
    assert again.adapted.places.count == 8
    for make in (boards.good, boards.defective):
        before, after = detector().predict(make(50)), again.predict(make(50))
        assert before.raw_score == after.raw_score
        assert np.array_equal(before.anomaly_map, after.anomaly_map)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("places.mean", torch.zeros(7, 64), "shapes"),
        ("places.count", torch.tensor(0), "0 images"),
        ("places.covariances", -torch.ones(CELLS, 64 * 65 // 2), "positive"),
        ("places.covariances", None, "places.covariances"),
    ],
)
def test_damaged_places_are_refused(tmp_path, name, value, message):
    detector().save(tmp_path / "board")
    header, tensors = read_detector_file(tmp_path / "board")
    tensors.pop(name)
    if value is not None:
        tensors[name] = value
    kept = {key: part for key, part in header.items() if not key.startswith("format")}
    write_detector_file(tmp_path / "damaged", kept, tensors)
    with pytest.raises(DetectorFileError, match=message):
        Detector.load(tmp_path / "damaged")


@pytest.mark.parametrize("earlier", [4, 8])
def test_a_whole_memory_is_extended_as_from_all_at_once(earlier: int):
    """Places begin where there are enough images."""
    longer = detector(earlier).extended_with([boards.good(seed) for seed in range(earlier, 11)])
    assert longer.made["additions"][0]["calibration"] == "recomputed"
    assert longer.adapted.places.count == 11
    query = boards.defective(40)
    assert longer.predict(query).raw_score == detector(11).predict(query).raw_score


def test_more_images_join_places_whose_images_are_gone(model: FeatureModel):
    tokens = [model.prepare(halves(seed)) for seed in range(9)]
    adapted = model.adapt(tokens[:8], seed=0)
    for new in (tokens[8:], []):
        longer = adapted.extended(new, earlier=8, seed=0)
        expected = Places.of([image[POOLED] for image in [*tokens[:8], *new]])
        assert longer.places.count == expected.count
        torch.testing.assert_close(longer.places.mean, expected.mean, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(
            longer.places.covariances, expected.covariances, atol=1e-5, rtol=1e-3
        )
