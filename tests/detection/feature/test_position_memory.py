from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from metaformer.detection.adaptation import adapt_to_support, prepare
from metaformer.detection.feature.config import FeatureConfig
from metaformer.detection.feature.position_memory import MOST_IMAGES, SamePlace, measure_alignment
from metaformer.detection.feature.preset import FeatureModel
from metaformer.detection.feature.state import adapted_from_state
from metaformer.networks.patch_metric import FINE, HERE, RAW, Shares
from tests.helpers import boards

CONFIG = FeatureConfig(resolution=96)
CHANNELS = 6


@pytest.fixture(scope="module")
def model() -> FeatureModel:
    return FeatureModel.from_pretrained(CONFIG)


def grids(count: int, seed: int = 0, size: tuple[int, int] = (9, 7)) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        F.normalize(torch.randn(CHANNELS, *size, generator=generator), dim=0) for _ in range(count)
    ]


def images(
    count: int, seed: int = 0, size: tuple[int, int] = (9, 7)
) -> list[dict[str, torch.Tensor]]:
    return [{FINE: grid, RAW: 3 * grid} for grid in grids(count, seed, size)]


def noisy(grid: torch.Tensor, seed: int, amount: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(grid + amount * torch.randn(grid.shape, generator=generator), dim=0)


def test_parts_that_stand_still_are_told_from_those_that_do_not():
    part = grids(1, size=(16, 16))[0]
    still = [noisy(part, seed, 0.1) for seed in range(4)]
    moved = [grid.roll((5 * i, 3 * i), (1, 2)) for i, grid in enumerate(still)]
    texture = grids(4, size=(16, 16))
    assert measure_alignment(still) > 0.95
    assert measure_alignment(moved) < 0.2
    assert measure_alignment(texture) < 0.2


def test_a_shift_by_one_cell_is_still_the_same_place():
    part = grids(1, size=(16, 16))[0]
    shifted = [part, part.roll(1, 1), part.roll(1, 2)]
    assert (
        measure_alignment(shifted)
        > 0.8
        > measure_alignment([part, part.roll(3, 1), part.roll(3, 2)])
    )


@given(st.integers(2, 6), st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
def test_alignment_is_a_share_and_the_order_does_not_matter(
    count: int, height: int, width: int, seed: int
):
    found = measure_alignment(grids(count, seed, (height, width)))
    assert 0 <= found <= 1
    assert measure_alignment(grids(count, seed, (height, width))[::-1]) == pytest.approx(
        found, abs=1e-4
    )


def test_where_everything_looks_alike_places_say_nothing():
    assert measure_alignment([torch.ones(CHANNELS, 8, 8) / CHANNELS**0.5] * 3) == 0


def test_images_of_other_sizes_are_resampled():
    many = [*images(2), *images(1, size=(12, 5))]
    found = SamePlace.of(many).distances(images(1, seed=1, size=(20, 11))[0])
    assert {name: grid.shape for name, grid in found.items()} == {HERE: (20, 11), RAW: (20, 11)}
    assert 0 <= measure_alignment([image[FINE] for image in many]) <= 1


def test_a_remembered_image_is_at_distance_zero_and_elsewhere_is_far():
    known = images(3)
    place = SamePlace.of(known)
    for image in known:
        for distance in place.distances(image).values():
            assert float(distance.max()) == pytest.approx(0, abs=1e-6)
    turned = {name: grid.flip(1) for name, grid in known[0].items()}
    assert float(place.distances(turned)[HERE].mean()) > 0.1


def test_more_images_than_room_are_drawn_from_and_merging_stops_at_it():
    whole = SamePlace.of(images(MOST_IMAGES + 9))
    assert len(whole.fine) == len(whole.raw) == MOST_IMAGES
    few = SamePlace.of(images(5))
    merged = few.merged(SamePlace.of(images(MOST_IMAGES, seed=1, size=(4, 4))))
    assert merged.fine.shape == merged.raw.shape == (MOST_IMAGES, CHANNELS, 9, 7)
    assert torch.equal(merged.fine[:5], few.fine)
    assert torch.allclose(merged.fine.norm(dim=1), torch.ones(MOST_IMAGES, 9, 7), atol=1e-5)
    assert torch.equal(merged.merged(few).raw, merged.raw)


def test_a_token_that_is_normal_elsewhere_is_marked_where_parts_stand_still(model):
    part = [model.prepare(torch.from_numpy(board)) for board in standing(3)]
    moved = {name: grid.roll(grid.shape[1] // 2, 1) for name, grid in part[0].items()}
    adapted = model.adapt(part, seed=0)
    assert min(adapted.same_place.alignments) > 0.9
    with_places = adapted.anomaly_maps(moved)
    shares = tuple(replace(one, here=0.0, raw=0.0) for one in CONFIG.maps)
    without = FeatureModel(replace(CONFIG, maps=shares), model.backbone, model.metric)
    no_places = without.adapt(part, seed=0).anomaly_maps(moved)
    assert (with_places > 2 * no_places).all(dim=2).all(dim=1).tolist() == [True, True]


def standing(count: int) -> list[np.ndarray]:
    """(1, 3, 96, 96) photos of one board with different noise."""
    rng = np.random.default_rng(0)
    board = boards.good(0).astype(np.float32) / 255
    return [
        np.clip(board + rng.normal(0, 0.01, board.shape), 0, 1)
        .astype(np.float32)
        .transpose(2, 0, 1)[None]
        for _ in range(count)
    ]


def test_a_lone_image_is_asked_through_its_mirror_image(model):
    board = boards.good(0)
    symmetric = np.concatenate(
        [board[:, : board.shape[1] // 2], board[:, : board.shape[1] // 2][:, ::-1]], axis=1
    )

    def found(image: np.ndarray) -> float:
        adaptation = adapt_to_support(model, [image], count=1, false_alarm_rate=0.05, seed=0)
        (alignment,) = adaptation.adapted.same_place.alignments
        return alignment

    assert found(symmetric) > 0.8 > found(board)


def test_what_a_memory_does_not_hold_is_in_the_file(model):
    tokens = [prepare(model, boards.good(seed)) for seed in range(3)]
    query = prepare(model, boards.defective(9))
    for most, in_file in ((20_000, False), (200, True)):
        drawn = FeatureModel(replace(CONFIG, max_tokens=most), model.backbone, model.metric)
        adapted = drawn.adapt(tokens, seed=0)
        tensors, settings = adapted.state()
        assert ("same_place.raw" in tensors) is in_file is ("memory.raw" not in tensors)
        restored = adapted_from_state(tensors, settings)
        assert torch.equal(restored.anomaly_maps(query), adapted.anomaly_maps(query))
        if in_file:
            cut = tensors | {"same_place.raw": tensors["same_place.raw"][:1]}
            with pytest.raises(ValueError, match="same_place has shapes"):
                adapted_from_state(cut, settings)


def test_without_a_share_nothing_is_remembered(model):
    compare = FeatureModel(
        replace(CONFIG, maps=(Shares(pooled=0.6),)), model.backbone, model.metric
    )
    adapted = compare.adapt([prepare(compare, boards.good(seed)) for seed in range(2)], seed=0)
    assert adapted.same_place is None and RAW not in adapted.memory
