"""The feature preset adapted: distances, how they make a map, and what is kept of the support."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from metaformer.detection.feature.adapted import AdaptedFeature, adapt
from metaformer.detection.feature.comparison import fuse
from metaformer.detection.feature.config import ALIGNED as ALIGNED_SETTINGS
from metaformer.detection.feature.config import FeatureConfig
from metaformer.detection.feature.feature_image import FeatureImage
from metaformer.detection.feature.memory_bank import POOLED, describe, to_rows
from metaformer.detection.feature.preset import FeaturePreset
from metaformer.detection.preprocessing import to_tensor
from metaformer.detection.scoring.anomaly_map import image_score, smooth
from metaformer.networks.efficientnet import EfficientNetLite0, load_backbone
from tests.helpers import boards

CONFIG = FeatureConfig(resolution=96, transformer=False, cosine_rows=1_024)
"""All patches of three images are compared with."""
EXACT = replace(CONFIG, principal_directions=0)
ALIGNED = replace(CONFIG, aligned=True, **ALIGNED_SETTINGS)
PURE = replace(EXACT, cosine_floor=0.0, sigma=0.0, mirrored_images=0)
"""The distances and nothing else."""


@pytest.fixture(scope="module")
def backbone() -> EfficientNetLite0:
    return load_backbone(16)


def preset(backbone: EfficientNetLite0, config: FeatureConfig = CONFIG) -> FeaturePreset:
    return FeaturePreset(config, backbone)


def prepared(
    preset: FeaturePreset, images: Sequence, *, support_size: int | None = None
) -> list[FeatureImage]:
    return [
        preset.prepare(to_tensor(image, image.shape[:2]), support_size=support_size)
        for image in images
    ]


def support(preset: FeaturePreset, count: int) -> list[FeatureImage]:
    return prepared(preset, [boards.good(seed) for seed in range(count)], support_size=count)


def adapted_to(preset: FeaturePreset, images: list[FeatureImage], seed: int = 0) -> AdaptedFeature:
    done = adapt(preset.config, preset.backbone, images, network=None, seed=seed)
    found = done.adapted
    assert isinstance(found, AdaptedFeature)
    found.frame = None  # what is tested here are the distances; the check has its own tests
    return found


def query(preset: FeaturePreset, seed: int = 50) -> FeatureImage:
    return prepared(preset, [boards.defective(seed)])[0]


def distances(model: AdaptedFeature, image: FeatureImage) -> dict[str, torch.Tensor]:
    config = model.config
    return model.distances(describe(image.features, config.levels, config.cosine_share))


# Distances


@pytest.mark.parametrize("aligned", [False, True])
def test_a_support_image_is_at_distance_zero_of_itself(backbone, aligned):
    model = preset(backbone, ALIGNED if aligned else EXACT)
    images = support(model, 2)
    adapted = adapted_to(model, images)
    for image in images:
        own, other = distances(adapted, image), distances(adapted, query(model))
        for name, found in own.items():
            # Not quite zero: a difference of rounded numbers, for lengths under a root.
            assert (
                float(found.max())
                < (0.02 if name == POOLED else 1e-4) * float(other[name].max()) + 1e-5
            )


def test_distances_are_to_the_nearest_of_all_support_patches(backbone):
    model = preset(backbone, PURE)
    images = support(model, 3)
    found = distances(adapted_to(model, images), query(model))
    described = describe(query(model).features, PURE.levels, PURE.cosine_share)
    for name, grid in described.items():
        bank = torch.cat(
            [
                to_rows(describe(each.features, PURE.levels, PURE.cosine_share)[name])
                for each in images
            ]
        )
        expected = torch.cdist(to_rows(grid), bank).min(dim=1).values
        if name != POOLED:
            expected = expected**2 / 2  # of unit length: 1 - cosine
        shaped = expected.reshape(1, *grid.shape[2:])
        torch.testing.assert_close(found[name], shaped, rtol=1e-3, atol=1e-4)


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 6), st.integers(0, 10_000))
def test_more_memory_never_raises_a_distance_nor_the_score(backbone, count, seed):
    """While the bank is not cut. It is why earlier scores are lowered, and never raised."""
    model = preset(backbone, replace(EXACT, coreset_size=10**6, cosine_rows=10**6))
    images = prepared(
        model, [boards.good(seed + i) for i in range(count + 1)], support_size=count + 1
    )
    image = query(model, seed)
    few, many = adapted_to(model, images[:-1]), adapted_to(model, images)
    before, after = distances(few, image), distances(many, image)
    for name, found in after.items():
        # The matrix product rounds differently with other sizes.
        assert (found <= before[name] * (1 + 1e-4) + 1e-4).all(), name
    share = model.config.score_share
    scores = [image_score(each.anomaly_maps(image)[0], share) for each in (few, many)]
    assert scores[1] <= scores[0] * (1 + 1e-4)


def test_order_of_the_support_does_not_matter(backbone):
    model = preset(backbone)
    images = support(model, 3)
    forward, backward = (
        adapted_to(model, order).anomaly_maps(query(model)) for order in (images, images[::-1])
    )
    torch.testing.assert_close(forward, backward, rtol=1e-5, atol=1e-5)


# From distances to the map


def by_hand(adapted: AdaptedFeature, image: FeatureImage, share: float) -> torch.Tensor:
    config, found = adapted.config, distances(adapted, image)
    size = image.features[config.levels[0]].shape[2:]
    resized = [
        F.interpolate(found[str(level)][:, None], size, mode="bilinear")[0, 0]
        for level in config.levels
    ]
    weights = config.level_weights
    cosine = sum(w * grid for w, grid in zip(weights, resized, strict=True)) / sum(weights)
    powers = (1 - share) * found[POOLED][0].log() + share * (cosine + config.cosine_floor).log()
    return smooth(powers.exp()[None], config.sigma)[0]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_map_is_the_weighted_geometric_mean_of_both_distances(backbone, share):
    model = preset(backbone, replace(CONFIG, cosine_share=share))
    adapted = adapted_to(model, support(model, 2))
    image = query(model)
    torch.testing.assert_close(
        adapted.anomaly_maps(image)[0], by_hand(adapted, image, share), rtol=1e-4, atol=1e-5
    )


def test_a_cosine_share_of_0_is_the_euclidean_distance_alone(backbone):
    model = preset(backbone, replace(PURE, cosine_share=0.0))
    adapted = adapted_to(model, support(model, 2))
    assert set(adapted.compare.search.keys()) == {POOLED}
    found = distances(adapted, query(model))
    assert torch.equal(adapted.anomaly_maps(query(model)), found[POOLED])


def test_a_cosine_share_of_1_is_the_mean_cosine_distance_alone(backbone):
    model = preset(backbone, replace(PURE, cosine_share=1.0))
    adapted = adapted_to(model, support(model, 2))
    assert set(adapted.compare.search.keys()) == {"8", "16"}
    found = distances(adapted, query(model))
    coarse = F.interpolate(found["16"][:, None], (12, 12), mode="bilinear")[0, 0]
    expected = (0.5 * found["8"][0] + 1.0 * coarse) / 1.5
    torch.testing.assert_close(adapted.anomaly_maps(query(model))[0], expected)


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_a_map_rises_with_each_distance(share):
    config = replace(PURE, cosine_share=share)
    generator = torch.Generator().manual_seed(0)
    names = [POOLED] * (share < 1) + ["8", "16"] * (share > 0)
    base = {name: torch.rand(1, 4, 4, generator=generator) + 0.1 for name in names}
    before = fuse(base, config)
    for name in names:
        after = fuse({**base, name: 2 * base[name]}, config)
        assert (after > before).all()


@pytest.mark.parametrize("change", [{"cosine_share": 1.1}, {"score_share": -0.1}, {"levels": (8,)}])
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(CONFIG, **change)


def test_a_real_defect_stands_out_where_it_is(backbone):
    model = preset(backbone)
    good = prepared(model, [boards.good(seed, "77000005") for seed in range(3)], support_size=3)
    adapted = adapted_to(model, good)
    defective, normal = (
        adapted.anomaly_maps(prepared(model, [make(50, "77000005")])[0])[0]
        for make in (boards.defective, boards.good)
    )
    assert defective.shape == (12, 12)
    assert float(defective.max()) > 1.2 * float(normal.max())
    row, column = divmod(int(defective.argmax()), 12)
    # Cells are 8 pixels wide and the defect lies at the centre of the cut, give or take a few.
    assert abs(row - 5.5) <= 3 and abs(column - 5.5) <= 3


# What is kept


def test_a_small_support_is_also_known_mirrored(backbone):
    model = preset(backbone)
    image = boards.good(0)
    plain = preset(backbone, replace(CONFIG, mirrored_images=0))
    with_mirrored, without = (
        adapted_to(each, prepared(each, [image], support_size=1)) for each in (model, plain)
    )
    # A third of the patches of each of three mirror images: as many again.
    assert with_mirrored.bank is not None and without.bank is not None
    assert len(with_mirrored.bank.rows["8"]) == 2 * len(without.bank.rows["8"]) == 2 * 144
    for turned in (image[::-1], image[:, ::-1], image[::-1, ::-1]):
        (seen,) = prepared(model, [turned.copy()])
        known, unknown = (each.anomaly_maps(seen).mean() for each in (with_mirrored, without))
        assert float(known) < 0.9 * float(unknown)
    (same,) = prepared(model, [image])
    assert same.mirrored == {}  # a test image has none


def test_a_larger_support_is_not_mirrored_nor_an_aligned_one(backbone):
    few, many = (
        adapted_to(preset(backbone), support(preset(backbone), count)) for count in (10, 11)
    )
    assert few.bank is not None and many.bank is not None
    assert len(few.bank.rows["8"]) == 2 * 10 * 144
    assert len(many.bank.rows["8"]) == 11 * 144
    assert not any(image.mirrored for image in support(preset(backbone, ALIGNED), 2))


def test_a_left_out_image_is_not_compared_with_its_mirror_images(backbone):
    model = preset(backbone)
    images = support(model, 3)
    done = adapt(model.config, model.backbone, images, network=None, seed=0)
    for i, image in enumerate(images):
        others = adapted_to(model, [each for j, each in enumerate(images) if j != i])
        torch.testing.assert_close(done.left_out[i], others.anomaly_maps(image))


def test_a_large_support_is_drawn_from_by_seed(backbone):
    model = preset(backbone, replace(CONFIG, max_patches=100))
    images = support(model, 3)
    whole = adapted_to(preset(backbone), images).bank
    first, again, other = (adapted_to(model, images, seed).bank for seed in (1, 1, 2))
    assert whole is not None and first is not None and again is not None and other is not None
    for name, rows in first.rows.items():
        assert rows.shape == (100, whole.rows[name].shape[1])
        assert torch.equal(rows, again.rows[name])
        assert not torch.equal(rows, other.rows[name])
        # Every row is one of the support's, and none is kept twice.
        assert (rows[:, None] == whole.rows[name][None]).all(dim=2).any(dim=1).all()
        assert len(rows.unique(dim=0)) == len(rows)


def test_no_more_than_the_coreset_is_compared_with(backbone):
    model = preset(backbone, replace(CONFIG, coreset_size=50, cosine_rows=40))
    adapted = adapted_to(model, support(model, 3))
    assert {name: search.columns.shape[1] for name, search in adapted.compare.search.items()} == {
        "8": 40,
        "16": 40,
        POOLED: 50,
    }
    assert adapted.bank is not None and len(adapted.bank.rows["8"]) == 2 * 3 * 144


# Aligned


def test_what_is_normal_elsewhere_is_found_only_by_place(backbone):
    """A copy of one piece of a good board put over another piece of it."""
    normal = [boards.good(seed, "77000005", 192, 192) for seed in range(3)]
    right = boards.good(9, "77000005", 192, 192)
    wrong = right.copy()
    wrong[8:56, 8:56] = wrong[100:148, 60:108]
    ratios = {}
    for by_place in (False, True):
        model = preset(backbone, replace(ALIGNED, aligned=by_place))
        adapted = adapted_to(model, prepared(model, normal, support_size=3))
        whole, changed = (
            adapted.anomaly_maps(image)[0] for image in prepared(model, [right, wrong])
        )
        ratios[by_place] = float(changed[4:12, 4:12].mean() / whole.mean())
    assert ratios[True] > 1.5 * ratios[False]


def test_an_aligned_part_may_be_out_of_place_by_the_reach(backbone):
    model = preset(backbone, replace(ALIGNED, cosine_share=1.0, cosine_floor=0.0))
    image = boards.good(0, "77000005", 160, 160)
    adapted = adapted_to(model, prepared(model, [image], support_size=1))

    def score(shift: int) -> float:
        moved = torch.roll(to_tensor(image, image.shape[:2]), shift, dims=3)
        return float(adapted.anomaly_maps(model.prepare(moved))[0, 12:-12, 12:-12].mean())

    assert score(0) < 1e-5
    assert score(8) < 0.3 * score(48)


def test_aligned_support_images_are_bounded_and_drawn_by_seed(backbone):
    model = preset(backbone, replace(ALIGNED, max_patches=1200))
    images = support(model, 10)
    first, again, other = (adapted_to(model, images, seed) for seed in (1, 1, 2))
    assert len(first.support) == 2 and not first.is_whole  # 576 patches each
    assert first.compare.grids["4"].shape == (2, 24, 24, 24) and first.compare.grids["8"].shape == (
        2,
        40,
        12,
        12,
    )
    assert list(first.support) == list(again.support)
    assert torch.equal(first.compare.grids["4"], again.compare.grids["4"])
    assert list(first.support) != list(other.support)


def test_features_of_a_very_large_support_take_half_the_memory(backbone):
    model = preset(backbone)
    image = to_tensor(boards.good(0), model.working_size(*boards.good(0).shape[:2]))
    few, many = (model.prepare(image, support_size=count) for count in (100, 2_000))
    for stride, grid in many.kept.items():
        assert grid.dtype == torch.float16 and few.kept[stride].dtype == torch.float32
        largest = float(few.features[stride].abs().max())
        torch.testing.assert_close(
            many.features[stride], few.features[stride], rtol=0, atol=1e-3 * largest
        )
