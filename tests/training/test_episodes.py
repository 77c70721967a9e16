from __future__ import annotations

import itertools
import threading

import cv2
import numpy as np
import pytest

from metaformer.data.synthetic.defects import VISIBLE
from metaformer.io.images import ImageError
from metaformer.training.episodes.camera import develop, draw_rig, draw_shot
from metaformer.training.episodes.episodes import MAKERS, Episode, EpisodeConfig, episode, prefetch
from metaformer.training.episodes.object_sampler import outline
from metaformer.training.episodes.photo_pool import PhotoPool, appearance, family, regularity
from metaformer.training.episodes.real_anomalies import mixed_task, real_anomaly_tasks

SMALL = EpisodeConfig(resolution=64, shots=(1, 2), queries=(3, 5))


def surface(rng, colour, cell) -> np.ndarray:
    """A random surface of one colour, coarse or fine."""
    grain = rng.integers(-40, 40, (128 // cell, 128 // cell, 1))
    return np.clip(
        np.array(colour) + cv2.resize(grain.astype(np.float32), (128, 128))[..., None], 0, 255
    ).astype(np.uint8)


def heap(rng, colour) -> np.ndarray:
    """Round goods on a dark ground."""
    image = np.full((120, 150, 3), 30, np.uint8)
    for x, y in rng.integers(0, 150, (60, 2)).tolist():
        cv2.circle(image, (x, y), 12, tuple(int(c) for c in rng.normal(colour, 8)), -1)
    return image


def garment(rng) -> np.ndarray:
    """A box with stripes on a plain ground."""
    image = np.full((160, 120, 3), rng.integers(60, 220, 3), np.uint8)
    image[30:130, 25:95] = rng.integers(0, 255, 3)
    image[30:130:8, 25:95] = rng.integers(0, 255, 3)
    return image


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A small copy of the layout: textures, groceries and clothing."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number, kind in enumerate(("Brick", "Gravel", "Metal", "Wood", "Wool")):
        for photo in range(6):
            # Pairs of photos that look alike, each pair of another colour and coarseness.
            pair = np.random.default_rng((number, photo // 2))
            colour = pair.integers(60, 200, 3)
            write(
                root / "texture" / kind / f"{photo}.jpg", surface(rng, colour, 2 + photo // 2 * 4)
            )
    goods = {
        "Fruit_Apple_Red": (200, 30, 30),
        "Fruit_Apple_Green": (90, 180, 40),
        "Fruit_Pear_Anjou": (180, 190, 60),
        "Fruit_Pear_Kaiser": (140, 100, 50),
    }
    for kind, colour in goods.items():
        for photo in range(6):
            write(root / "grocery" / kind / f"{photo}.jpg", heap(rng, colour))
    for kind in ("hat", "shirt", "skirt"):
        for photo in range(4):
            write(root / "clothing" / kind / f"{photo}.jpg", garment(rng))
    return root


def write(path, image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1])


@pytest.fixture(scope="module")
def pool(photos):
    return PhotoPool.load(photos, split="train", quiet=True)


def same(one: Episode, other: Episode) -> bool:
    arrays = ("support", "query", "clean_query", "masks", "is_clean")
    return (one.product, one.kind) == (other.product, other.kind) and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays
    )


# The pool


def test_splits_share_no_family_and_cover_everything(photos):
    train, validation = (
        PhotoPool.load(photos, split=split, quiet=True) for split in ("train", "validation")
    )
    assert len(train) + len(validation) == 30 + 24 + 12
    families = [
        {family(photo.kind.partition("/")[2]) for photo in pool.photos}
        for pool in (train, validation)
    ]
    assert not families[0] & families[1]
    for domain in ("material", "goods", "things"):
        assert train.of_domain[domain] and validation.of_domain[domain]


def test_split_depends_on_the_seed_and_on_nothing_else(photos):
    kinds = [
        {photo.kind for photo in PhotoPool.load(photos, seed=seed, quiet=True).photos}
        for seed in (0, 0, 1, 2, 3)
    ]
    assert kinds[0] == kinds[1]
    assert any(kinds[0] != other for other in kinds[2:])
    texture_alone = PhotoPool.load([photos / "texture"], seed=0, quiet=True)
    assert {p.kind for p in texture_alone.photos} == {k for k in kinds[0] if "texture/" in k}


def test_alike_photos_are_of_the_same_kind_and_look_alike(pool):
    linked = [(i, j) for i, photo in enumerate(pool.photos) for j in photo.alike]
    assert linked
    for i, j in linked:
        assert i != j and pool.photos[i].kind == pool.photos[j].kind
    pairs = [(i, j) for i, j in linked if pool.photos[i].domain == "material"]
    assert pairs
    for i, j in pairs:
        assert np.linalg.norm(appearance(pool.image(i)) - appearance(pool.image(j))) < 1.3


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("Fruit_Apple_Royal-Gala", "Fruit_Apple"),
        ("Packages_Soy-Milk_Alpro-Fresh", "Packages_Milk"),
        ("Vegetables_Brown-Cap-Mushroom", "Vegetables_Mushroom"),
        ("WoodFloor", "WoodFloor"),
        ("t-shirt", "t-shirt"),
    ],
)
def test_family(kind, expected):
    assert family(kind) == expected


def test_regularity_tells_bricks_from_gravel():
    y, x = np.mgrid[0:128, 0:128]
    checks = np.repeat(((x // 10 + y // 10) % 2 * 150 + 50)[..., None], 3, 2).astype(np.uint8)
    gravel = np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8)
    assert regularity(checks) > 0.6
    assert regularity(gravel) < 0.2
    assert regularity(np.full((64, 64, 3), 90, np.uint8)) == 0.0


def test_large_photos_are_shrunk_and_other_formats_read(tmp_path):
    rng = np.random.default_rng(0)
    for kind in ("a", "b"):
        write(
            tmp_path / "parts" / kind / "large.png", rng.integers(0, 255, (900, 600, 3), np.uint8)
        )
    pool = PhotoPool.load(tmp_path, quiet=True)
    assert pool.photos[0].domain == "things"
    assert pool.image(0).shape == (320, 213, 3)


def test_bad_folders_are_refused(tmp_path, photos):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        PhotoPool.load(tmp_path / "nowhere", quiet=True)
    with pytest.raises(ValueError, match="no photo of the train split"):
        PhotoPool.load(tmp_path, quiet=True)
    with pytest.raises(ValueError, match="split: found 'test'"):
        PhotoPool.load(photos, split="test", quiet=True)
    for kind in ("a", "b"):
        (tmp_path / "x" / kind).mkdir(parents=True)
        (tmp_path / "x" / kind / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        PhotoPool.load(tmp_path, quiet=True)


# Episodes


@pytest.mark.parametrize("kind", MAKERS)
def test_every_kind_keeps_the_contract(pool, kind):
    config = EpisodeConfig(
        resolution=64, shots=(1, 2, 4), queries=(3, 6), weights=((kind, 1.0),), swap_share=0.5
    )
    for index in range(12):
        task = episode(pool, config, 3, index)
        shots, queries = len(task.support), len(task.query)
        assert task.kind == kind and task.product.count("/") == 2
        assert shots in (1, 2, 4) and 3 <= queries <= 6
        assert task.support.shape == (shots, 64, 64, 3) and task.support.dtype == np.uint8
        assert task.query.shape == task.clean_query.shape == (queries, 64, 64, 3)
        assert task.masks.shape == (queries, 64, 64) and task.masks.dtype == np.bool_
        assert np.array_equal(task.is_clean, ~task.masks.any((1, 2)))
        assert not task.is_clean.all()


def test_index_and_seed_decide_everything_and_order_nothing(pool):
    forward = [episode(pool, SMALL, 7, index) for index in range(6)]
    backward = [episode(pool, SMALL, 7, index) for index in reversed(range(6))][::-1]
    assert all(itertools.starmap(same, zip(forward, backward, strict=True)))
    assert not same(forward[0], forward[1])
    assert not same(forward[0], episode(pool, SMALL, 8, 0))


@pytest.mark.parametrize("workers", [1, 3])
def test_prefetching_gives_the_same_episodes_in_order(pool, workers):
    direct = [episode(pool, SMALL, 1, index) for index in range(4, 16, 2)]
    fetched = list(prefetch(pool, SMALL, 1, start=4, stop=16, step=2, workers=workers, ahead=4))
    assert len(fetched) == len(direct)
    assert all(itertools.starmap(same, zip(direct, fetched, strict=True)))


def test_prefetching_stops_its_threads_and_passes_errors_on(pool):
    endless = prefetch(pool, SMALL, 0, workers=2)
    next(endless)
    endless.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("episodes")]
    with pytest.raises(ValueError, match="workers, ahead, step"):
        prefetch(pool, SMALL, 0, workers=0)
    with pytest.raises(ValueError, match="negative"):
        next(prefetch(pool, SMALL, -1))


def test_query_equals_its_clean_twin_away_from_the_defect(pool):
    """Light, noise and blur are the same in both, so only the defect tells them apart."""
    for index in range(20):
        task = episode(pool, SMALL, 2, index)
        for query, twin, mask in zip(task.query, task.clean_query, task.masks, strict=True):
            near = cv2.dilate(mask.astype(np.uint8), np.ones((9, 9), np.uint8)).astype(bool)
            assert np.array_equal(query[~near], twin[~near])
            if mask.any():
                change = np.abs(query.astype(int) - twin).max(2)
                assert change[mask].mean() > VISIBLE


def test_about_a_third_of_the_queries_are_clean(pool):
    tasks = [episode(pool, SMALL, 0, index) for index in range(150)]
    share = np.concatenate([task.is_clean for task in tasks]).mean()
    assert 0.22 < share < 0.35


def test_normals_vary_and_clean_queries_vary_like_supports(pool):
    """No two specimens are equal, and nuisance alone does not give defective queries away."""
    config = EpisodeConfig(resolution=64, shots=(2,), queries=(8, 8), weights=(("views", 1.0),))
    gains = {True: [], False: []}
    for index in range(40):
        task = episode(pool, config, 0, index)
        assert (task.support[0] != task.support[1]).any()
        reference = task.support.mean()
        for twin, clean in zip(task.clean_query, task.is_clean, strict=True):
            gains[bool(clean)].append(twin.mean() / reference - 1)
    spread = {clean: np.std(values) for clean, values in gains.items()}
    assert min(spread.values()) > 0.02
    assert 0.6 < spread[True] / spread[False] < 1.6


def test_grey_episodes_have_no_colour_even_in_defects(pool):
    config = EpisodeConfig(resolution=64, shots=(2,), queries=(4, 4), grey_share=1.0)
    for index in range(10):
        task = episode(pool, config, 0, index)
        for images in (task.support, task.query):
            assert (images == images[..., :1]).all()


def test_scene_supports_come_from_a_fixed_camera_and_queries_do_not(pool):
    config = EpisodeConfig(
        resolution=64, shots=(4,), queries=(4, 4), weights=(("scene", 1.0),), grey_share=1.0
    )
    within, across = [], []
    for index in range(20):
        task = episode(pool, config, 1, index)
        support = [normalised(image) for image in task.support]
        within += [np.abs(support[0] - other).mean() for other in support[1:]]
        across += [np.abs(support[0] - normalised(image)).mean() for image in task.clean_query]
    assert np.median(across) > 1.3 * np.median(within)


def normalised(image: np.ndarray) -> np.ndarray:
    light = cv2.GaussianBlur(image[..., 0].astype(np.float32), (0, 0), 1.5)
    return (light - light.mean()) / (light.std() + 1)


def test_a_pool_of_one_domain_is_enough(photos):
    for root in ("texture", "clothing"):
        pool = PhotoPool.load(photos / root, quiet=True)
        kinds = {episode(pool, SMALL, 0, index).kind for index in range(40)}
        assert kinds == set(MAKERS) - {"goods"}
    with pytest.raises(ValueError, match="photos of goods"):
        episode(pool, EpisodeConfig(weights=(("goods", 1.0),)), 0, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"resolution": 8}, "resolution: found 8"),
        ({"shots": ()}, "shots: found"),
        ({"queries": (4, 2)}, "queries: found"),
        ({"clean_share": 1.5}, "clean_share: found 1.5"),
        ({"weights": (("novel_image", 1.0),)}, "weights: found"),
        ({"weights": (("views", 0.0),)}, "weights: found"),
    ],
)
def test_config_says_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        EpisodeConfig(**arguments)


# Camera and parts


def test_one_shot_changes_two_images_alike():
    rng = np.random.default_rng(0)
    image = rng.integers(40, 200, (64, 64, 3), dtype=np.uint8)
    other = image.copy()
    other[20:30, 20:30] = 255
    for _ in range(20):
        shot = draw_shot(rng, draw_rig(rng, 64), grey=False)
        seen, seen_other = develop(image, shot, grey=False), develop(other, shot, grey=False)
        assert np.array_equal(seen[40:], seen_other[40:])
        assert seen_other[22:28, 22:28].mean() > seen[22:28, 22:28].mean()


def test_outlines_leave_part_and_background():
    rng = np.random.default_rng(0)
    shares = [(outline(rng, 64) > 0.5).mean() for _ in range(60)]
    assert min(shares) > 0.05 and max(shares) < 0.8


# Novelty


def test_novelty_tasks_are_balanced_and_deterministic(photos):
    pool = PhotoPool.load(photos, quiet=True)
    tasks = list(real_anomaly_tasks(pool, SMALL, 0, 12))
    again = list(real_anomaly_tasks(pool, SMALL, 0, 12))
    assert all(itertools.starmap(same, zip(tasks, again, strict=True)))
    assert [task.kind for task in tasks[:2]] == ["novel_region", "novel_image"]
    for task in tasks:
        assert abs(2 * task.is_clean.sum() - len(task.is_clean)) <= 1
        assert np.array_equal(task.is_clean, ~task.masks.any((1, 2)))
        for query, twin, mask in zip(task.query, task.clean_query, task.masks, strict=True):
            if not mask.any():
                assert np.array_equal(query, twin)
            elif task.kind == "novel_image":
                assert mask.all() and (query != twin).mean() > 0.5
            else:
                assert mask.mean() < 0.4
                change = np.abs(query.astype(int) - twin).max(2)
                assert change[mask].mean() > 3 * change[~mask].mean()


def test_a_share_of_the_episodes_is_novel_at_any_time(photos):
    pool = PhotoPool.load(photos, quiet=True)
    kinds = [mixed_task(pool, SMALL, 0, i, novel_share=0.5).kind for i in range(12)]
    novel = [i for i, kind in enumerate(kinds) if kind.startswith("novel")]
    assert 0 < len(novel) < 12
    expected = list(real_anomaly_tasks(pool, SMALL, 0, 12))
    for i in (novel[0], novel[-1]):
        assert same(mixed_task(pool, SMALL, 0, i, novel_share=0.5), expected[i])
    assert same(mixed_task(pool, SMALL, 0, 3, novel_share=0.0), episode(pool, SMALL, 0, 3))


def test_novelty_needs_two_kinds(tmp_path):
    rng = np.random.default_rng(0)
    for kind in ("a", "b"):
        write(tmp_path / "clothing" / kind / "0.jpg", garment(rng))
    pool = PhotoPool.load(tmp_path, quiet=True)
    with pytest.raises(ValueError, match="no two photos"):
        next(real_anomaly_tasks(pool, SMALL, 0, 1))
