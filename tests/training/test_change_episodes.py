from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from metaformer.training.episodes.arrangements import arrangement
from metaformer.training.episodes.change_episodes import ChangeConfig, change_episode
from metaformer.training.episodes.episodes import Episode
from metaformer.training.episodes.frame_changes import (
    blank_frame,
    half_lost,
    inserted,
    object_change,
    removed,
)
from metaformer.training.episodes.photo_pool import PhotoPool
from metaformer.training.episodes.pose import Pose, move, move_mask

Picture = NDArray[np.uint8]
SIDE = 96
SMALL = ChangeConfig(sides=(SIDE,), shots=(1, 2), queries=8)


def surface(rng: np.random.Generator, colour: NDArray[np.int64]) -> Picture:
    grain = cv2.resize(rng.integers(-40, 40, (32, 32)).astype(np.float32), (128, 128))
    return np.clip(colour + grain[..., None], 0, 255).astype(np.uint8)


def coin(rng: np.random.Generator, colour: tuple[int, int, int]) -> Picture:
    image = np.full((120, 120, 3), 220, np.uint8)
    cv2.circle(image, (60, 60), 44, colour, -1)
    for x, y in rng.integers(35, 85, (6, 2)).tolist():
        cv2.circle(image, (x, y), 4, (20, 20, 20), -1)
    return image


def garment(rng: np.random.Generator) -> Picture:
    image = np.full((160, 120, 3), rng.integers(60, 220, 3), np.uint8)
    image[30:130, 25:95] = rng.integers(0, 255, 3)
    image[30:130:8, 25:95] = rng.integers(0, 255, 3)
    return image


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> PhotoPool:
    """Textures, coins and clothing, a few of each."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for kind in ("Brick", "Metal", "Wood"):
        colour = rng.integers(60, 200, 3)
        for photo in range(4):
            write(root / "texture" / kind / f"{photo}.png", surface(rng, colour))
    for name, tone in {"1c": (150, 90, 50), "1e": (190, 190, 190), "5c": (90, 60, 150)}.items():
        for photo in range(6):
            write(root / "coin" / name / f"{photo}.png", coin(rng, tone))
    for kind in ("hat", "shirt"):
        for photo in range(4):
            write(root / "clothing" / kind / f"{photo}.png", garment(rng))
    return PhotoPool.load(root, split="train", quiet=True)


def write(path: Path, image: Picture) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1])


@pytest.fixture(scope="module")
def episodes(pool: PhotoPool) -> list[Episode]:
    return [change_episode(pool, SMALL, 0, index) for index in range(60)]


def test_an_episode_is_a_function_of_seed_and_index(
    pool: PhotoPool, episodes: list[Episode]
) -> None:
    arrays = ("support", "query", "clean_query", "masks", "is_clean")
    for index in (3, 41):
        again = change_episode(pool, SMALL, 0, index)
        for name in arrays:
            assert np.array_equal(getattr(again, name), getattr(episodes[index], name)), name
    other = change_episode(pool, SMALL, 1, 3)
    assert not np.array_equal(other.query, episodes[3].query)


def test_every_query_is_what_its_mask_says(episodes: list[Episode]) -> None:
    for found in episodes:
        assert found.query.shape == (8, SIDE, SIDE, 3)
        assert found.query.dtype == np.uint8
        assert found.is_clean.any() and not found.is_clean.all()
        assert np.array_equal(found.is_clean, ~found.masks.any((1, 2)))
        for seen, clean, is_clean in zip(
            found.query, found.clean_query, found.is_clean, strict=True
        ):
            assert np.array_equal(seen, clean) == is_clean


def test_each_kind_of_product_and_number_of_shots_comes(episodes: list[Episode]) -> None:
    assert {found.kind for found in episodes} >= {"arrangement", "surface", "part", "views"}
    assert {len(found.support) for found in episodes} == {1, 2}


def test_areas_spread_over_their_whole_range(pool: PhotoPool) -> None:
    """About as many between 0.03 and 0.3 % as between 3 and 30 %: log-uniform."""
    config = ChangeConfig(sides=(192,), shots=(1,), blank_share=0, half_lost_share=0, novel_share=0)
    areas = []
    for index in range(40):
        found = change_episode(pool, config, 0, index)
        areas += found.masks[~found.is_clean].mean((1, 2)).tolist()
    logs = np.log10(areas)
    shares = np.histogram(logs, [-5, -2.5, -1.5, 0])[0] / len(logs)
    assert (shares > 0.15).all()
    assert max(areas) < 0.75  # two of the largest


def test_blank_and_half_lost_frames_and_other_products_are_among_the_anomalies(
    episodes: list[Episode],
) -> None:
    whole, plain, part = 0, 0, 0
    for found in episodes:
        for seen, mask in zip(found.query, found.masks, strict=True):
            whole += bool(mask.all())
            plain += bool(mask.all() and seen.std((0, 1)).max() < 1e-6)
            rows, columns = mask.all(1), mask.all(0)
            straight = mask.mean() in (rows.mean(), columns.mean())
            part += bool(mask.any() and not mask.all() and straight and mask.mean() > 0.19)
    assert whole > plain > 0
    assert part > 0


def test_blank_frames_are_of_every_sort() -> None:
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 255, (32, 32, 3)).astype(np.uint8)
    frames = [blank_frame(rng, photo) for _ in range(60)]
    assert any((frame == 0).all() for frame in frames)
    assert any((frame == 255).all() for frame in frames)
    mean = np.round(photo.mean((0, 1)))
    assert any((frame == mean).all() for frame in frames)
    assert any(frame.std() > 40 for frame in frames)


def test_a_half_lost_frame_keeps_the_rest_to_the_bit() -> None:
    rng = np.random.default_rng(0)
    photo = rng.integers(1, 255, (32, 48, 3)).astype(np.uint8)[:, :32].copy()
    sides = set()
    for _ in range(20):
        changed, lost = half_lost(rng, photo)
        assert 0.15 < lost.mean() < 0.85
        assert np.array_equal(changed[~lost], photo[~lost])
        sides.add(tuple(lost[[0, -1, 0, -1], [0, 0, -1, -1]].tolist()))
    assert len(sides) == 4


@pytest.mark.parametrize("seed", range(6))
def test_object_changes_leave_all_else_alone_and_are_noticeable(seed: int) -> None:
    rng = np.random.default_rng(seed)
    photo = surface(rng, np.array([120, 90, 60]))
    donor = coin(rng, (200, 30, 30))
    found = object_change(rng, photo, donor, None, (0.01, 0.1))
    assert found is not None
    changed, mask = found
    assert np.abs(changed[mask].astype(int) - photo[mask]).max(1).mean() >= 10
    far = ~cv2.dilate(mask.astype(np.uint8), np.ones((31, 31))).astype(bool)
    assert np.array_equal(changed[far], photo[far])


def test_nothing_noticeable_is_no_change() -> None:
    rng = np.random.default_rng(0)
    plain = np.full((64, 64, 3), 100, np.uint8)
    assert object_change(rng, plain, plain, None, (0.01, 0.1)) is None


def test_removing_takes_an_object_away_and_inserting_brings_one() -> None:
    photo = np.full((96, 96, 3), 200, np.uint8)
    cv2.circle(photo, (48, 48), 10, (20, 20, 20), -1)
    donor = np.zeros((40, 40, 3), np.uint8)
    dark = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        dark.append(int((removed(rng, photo, 2500.0, (48.0, 48.0))[0] < 100).all(2).sum()))
    before = int((photo < 100).all(2).sum())
    assert min(dark) < 0.2 * before
    more, mask = inserted(np.random.default_rng(0), photo, donor, 900.0, (20.0, 20.0))
    assert (more < 100).all(2).sum() > before
    assert mask.any()


@pytest.mark.parametrize("fault", ["missing", "other", "extra", "bitten", "turned"])
def test_faults_of_an_arrangement_change_one_place_and_mark_it(pool: PhotoPool, fault: str) -> None:
    changes = 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        made = arrangement(pool, rng, SIDE)
        good, bad, mask = made.change(rng, 0, fault)
        differs = (good != bad).any(2)
        grown = cv2.dilate(mask.astype(np.uint8), np.ones((9, 9))).astype(bool)
        assert not (differs & ~grown).any()
        changes += bool(mask.any() and differs.mean() > 0.002)
    assert changes >= 6


def test_a_good_arrangement_varies_and_has_no_fault(pool: PhotoPool) -> None:
    rng = np.random.default_rng(1)
    made = arrangement(pool, rng, SIDE)
    good, bad, mask = made.change(rng, 0, None)
    assert np.array_equal(good, bad) and not mask.any()
    assert not np.array_equal(good, made.draw(rng, 1))


def test_a_mask_moves_with_its_image() -> None:
    rng = np.random.default_rng(0)
    photo = np.zeros((SIDE, SIDE, 3), np.uint8)
    photo[30:50, 20:60] = 255
    mask = photo[..., 0] > 0
    pose = Pose(turn=30.0, scale=(0.95, 1.05), shift=0.03).draw(rng, SIDE)
    moved, moved_mask = move(photo, pose), move_mask(mask, pose)
    assert np.array_equal(moved[..., 0] > 127, moved_mask)
    assert not np.array_equal(moved_mask, mask)
    assert moved_mask.sum() == pytest.approx(mask.sum(), rel=0.15)
