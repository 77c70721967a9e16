from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import boards
from metaformer.adaptation import has_places
from metaformer.detector import Detector, DetectorFileError, Metaformer
from metaformer.detector_file import read_detector_file, write_detector_file
from metaformer.feature_config import PLAIN, FeatureConfig
from metaformer.feature_model import PLACES, FeatureModel
from metaformer.memory import make_folds
from metaformer.metric import POOLED
from metaformer.places import (
    GRID,
    LEAST_GAIN,
    MARKING,
    RIDGE,
    SHARES,
    TWINS,
    Places,
    choose_share,
    twins_of,
)
from metaformer.preprocess import to_tensor

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


@given(st.integers(1, 1000))
def test_about_as_many_twins_as_asked_spread_over_the_support(count: int):
    copies = twins_of(count)
    assert len(copies) == count
    assert TWINS <= sum(copies) < TWINS + count if count <= TWINS else sum(copies) == TWINS
    assert max(copies) - min(copies) <= 1
    if count > 2 * TWINS:  # nowhere a long stretch without
        gaps = np.diff(np.flatnonzero(copies))
        assert gaps.max() <= count / TWINS + 2


def test_the_share_that_tells_defects_best_is_chosen():
    normal = [float(i) for i in range(10)]
    blind, fair, sharp = ([i + shift for i in normal] for shift in (0, 5, 20))
    assert choose_share([(normal, one) for one in (blind, fair, sharp)]) == SHARES[2]
    assert choose_share([(normal, one) for one in (blind, sharp, fair)]) == SHARES[1]
    assert choose_share([(normal, one) for one in (sharp, sharp, sharp)]) == 0


def test_a_gain_too_small_changes_nothing():
    normal, defective = list(range(100)), [*range(50, 100), *range(100, 150)]
    hardly = [defective[0] + 2 * 100 * LEAST_GAIN / 2, *defective[1:]]
    assert choose_share([(normal, defective), (normal, hardly), (normal, hardly)]) == 0


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
    adapted = model.adapt(tokens, seed=0, places=True)
    good, moved = model.prepare(halves(99)), model.prepare(halves(98, swapped=True))
    assert adapted.places is not None and adapted.places.count == 12

    def middle(share: float) -> float:
        """How much more the moved part stands out than the same place of a good image."""
        adapted.place_share = share
        scores = [adapted.anomaly_maps(image)[0][5:7, 2:3].mean() for image in (moved, good)]
        return float(scores[0] / scores[1])

    assert middle(1.0) > 1.5 * middle(0.0)  # a nearest token sees its edges only


def test_no_share_leaves_the_maps_as_they_are(model: FeatureModel):
    tokens = [model.prepare(halves(seed)) for seed in range(6)]
    without, adapted = (model.adapt(tokens, seed=0, places=known) for known in (False, True))
    query = model.prepare(halves(7, swapped=True))
    assert torch.equal(without.anomaly_maps(query), adapted.anomaly_maps(query))
    adapted.place_share = 1.0
    score_map, pixel_map = adapted.anomaly_maps(query)
    assert adapted.place_shares == (1.0, MARKING)
    resized = torch.nn.functional.interpolate(
        adapted.distances(query)[PLACES][None, None], score_map.shape, mode="bilinear"
    )[0, 0]
    torch.testing.assert_close(score_map, resized)  # nothing else has a share in it
    assert not torch.equal(pixel_map, resized)


def test_a_left_out_image_and_its_twin_are_unknown(model: FeatureModel):
    tokens = [model.prepare(halves(seed)) for seed in range(12)]
    twins = [(i, model.prepare(halves(i, swapped=True))) for i in (0, 11)]
    found = model.left_out_distances(tokens, seed=0, twins=twins)
    assert len(found) == 14
    for fold in make_folds(12, model.max_folds):
        others = Places.of([image[POOLED] for i, image in enumerate(tokens) if i not in fold])
        for i in fold:
            assert torch.equal(found[i][PLACES], others.distance(tokens[i][POOLED]))
        for j, (i, twin) in enumerate(twins):
            if i in fold:
                assert torch.equal(found[12 + j][PLACES], others.distance(twin[POOLED]))


def test_only_many_images_in_the_learned_metric_have_places(model: FeatureModel):
    assert not has_places(model, 5) and has_places(model, 6)
    assert not has_places(FeatureModel(replace(MANY, places=0), model.backbone), 1000)
    plain = FeatureModel.from_pretrained(replace(PLAIN, resolution=96))
    assert not has_places(plain, 1000)


def always(share: float, monkeypatch: pytest.MonkeyPatch) -> Detector:
    """A detector of eight boards, for which synthetic defects are said to want ``share``."""
    monkeypatch.setattr("metaformer.adaptation.choose_share", lambda scores: share)
    universal = Metaformer(FeatureModel.from_pretrained(MANY), "feature")
    return universal.adapt([boards.good(seed) for seed in range(8)])


@pytest.mark.parametrize("share", SHARES)
def test_a_detector_file_keeps_places_bit_for_bit(tmp_path, monkeypatch, share: float):
    detector = always(share, monkeypatch)
    assert (detector.adapted.places is not None) == (share > 0)
    detector.save(tmp_path / "board")
    again = Detector.load(tmp_path / "board")
    for make in (boards.good, boards.defective):
        before, after = detector.predict(make(50)), again.predict(make(50))
        assert before.raw_score == after.raw_score
        assert np.array_equal(before.anomaly_map, after.anomaly_map)
    assert again.adapted.place_share == share


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("places.mean", torch.zeros(7, 64), "shapes"),
        ("places.count", torch.tensor(0), "0 images"),
        ("places.share", torch.tensor(1.5), "exponent 1.5"),
        ("places.covariances", -torch.ones(CELLS, 64 * 65 // 2), "positive"),
        ("places.covariances", None, "places.covariances"),
    ],
)
def test_damaged_places_are_refused(tmp_path, monkeypatch, name, value, message):
    always(1.0, monkeypatch).save(tmp_path / "board")
    header, tensors = read_detector_file(tmp_path / "board")
    tensors.pop(name)
    if value is not None:
        tensors[name] = value
    write_detector_file(
        tmp_path / "damaged",
        {k: v for k, v in header.items() if not k.startswith("format")},
        tensors,
    )
    with pytest.raises(DetectorFileError, match=message):
        Detector.load(tmp_path / "damaged")


def test_more_images_join_the_places(monkeypatch):
    detector = always(1.0, monkeypatch)
    longer = detector.extended_with([boards.good(seed) for seed in range(20, 23)])
    assert longer.adapted.places is not None and longer.adapted.places.count == 11
    assert longer.adapted.place_share == 1.0
    assert longer.made["additions"][0]["calibration"] == "estimated"
    images = [boards.good(seed) for seed in [*range(8), *range(20, 23)]]
    at_once = Metaformer(detector.model, "feature").adapt(images)
    torch.testing.assert_close(
        longer.adapted.places.mean, at_once.adapted.places.mean, atol=1e-5, rtol=1e-4
    )
    scores = [d.predict(boards.defective(40)).raw_score for d in (longer, at_once)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-2)


def test_adapting_to_many_is_repeatable(monkeypatch):
    """Synthetic defects are drawn by the seed."""
    images = [boards.good(seed) for seed in range(8)]
    universal = Metaformer(FeatureModel.from_pretrained(MANY), "feature")
    seen: list[object] = []
    monkeypatch.setattr(
        "metaformer.adaptation.choose_share", lambda scores: seen.append(scores) or 0.5
    )
    first, again, _ = (universal.adapt(images, seed=seed) for seed in (3, 3, 4))
    assert seen[0] == seen[1] != seen[2]
    query = boards.defective(9)
    assert first.predict(query).raw_score == again.predict(query).raw_score
    good, bad = seen[0][0]
    assert len(good) == 8 and len(bad) == sum(twins_of(8))
    assert np.median(bad) > np.median(good)  # the defects are real ones to the model
