"""Products whose images come in many sizes, and memories that many images share."""

from __future__ import annotations

import dataclasses
import math

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow

from metaformer import Detector, Metaformer
from metaformer.detection.adaptation import prepare
from metaformer.detection.feature.config import FeatureConfig
from metaformer.detection.feature.preset import FeatureModel
from metaformer.detection.feature.scale import FEW, fit_to_sizes, shared_areas, usual_side
from metaformer.detection.feature.state import adapted_from_state
from metaformer.detection.nearest_neighbors import nearest_means
from metaformer.detection.preprocessing import LEAST_ENLARGED, MOST_ENLARGED, enlarged, working_size
from metaformer.io.images import pixels_of
from metaformer.networks.patch_metric import EUCLIDEAN, POOLED
from tests.helpers import boards

Image = np.ndarray
SIDES = ((96, 130), (200, 150), (260, 260), (150, 320))


@pytest.fixture(scope="module")
def universal() -> Metaformer:
    return Metaformer.from_pretrained(resolution=96)


def texture(seed: int, size: tuple[int, int]) -> Image:
    """A surface that looks alike everywhere, of one scale whatever the size of the photo."""
    rng = np.random.default_rng(seed)
    cells = rng.normal(0, 1, (-(-size[0] // 6), -(-size[1] // 6), 3))
    grain = np.kron(cells, np.ones((6, 6, 1)))[: size[0], : size[1]]
    return np.clip(128 + 30 * grain, 0, 255).astype(np.uint8)


def textures() -> list[Image]:
    return [texture(seed, size) for seed, size in enumerate(SIDES)]


# What sizes say


@given(st.lists(st.integers(64, 80), min_size=1, max_size=30))
def test_a_usual_side_lies_among_the_sides(areas):
    side = usual_side(areas)
    if side is not None:
        assert min(areas) < side**2 < max(areas)
        assert side == pytest.approx(usual_side(areas[::-1]))
    # Once more of each, and every size is another's, too.
    assert usual_side(areas * 2) is None


@pytest.mark.parametrize(
    "areas", [[], [90_000], [90_000] * 9, [4, 4, 4, 9, 9, 9, 1, 2], [4, 4, 9, 9]]
)
def test_sizes_that_images_share_say_nothing(areas):
    assert usual_side(areas) is None


@given(st.integers(8, 5000), st.integers(8, 5000), st.floats(10, 5000), st.floats(0, 1))
def test_how_much_an_image_is_enlarged(height, width, side, kept):
    times = enlarged(height, width, side, kept)
    assert LEAST_ENLARGED <= times <= MOST_ENLARGED
    assert times == enlarged(width, height, side, kept)
    assert enlarged(height, width, side, 0) == 1
    if (height * width) ** 0.5 >= side:
        assert times >= 1
    else:
        assert times <= 1


def test_at_kept_one_all_have_one_scale_within_bounds():
    model = FeatureModel.from_pretrained(FeatureConfig(usual_side=300.0, size_kept=1.0))
    assert model.working_size(300, 300) == (256, 256)
    assert model.working_size(450, 300) == (384, 256)
    assert model.working_size(225, 400) == (192, 352)  # multiples of 32
    assert model.working_size(3000, 3000) == (352, 352)
    assert model.working_size(30, 30) == (128, 128)


def test_textures_of_many_sizes_keep_some_of_their_scale(universal):
    images = textures()
    areas = [pixels_of(image) for image in images]
    fitted = fit_to_sizes(universal.model, areas, lambda i: images[i])
    assert fitted.config.usual_side == pytest.approx(usual_side(areas))
    assert 0.5 < fitted.config.size_kept <= 4 / (4 + FEW)
    small, large = (fitted.working_size(*image.shape[:2]) for image in (images[0], images[2]))
    assert np.prod(small) < np.prod(large)
    assert universal.model.config.usual_side is None  # which stays as it is


def test_a_part_that_fills_its_photos_whatever_their_size_keeps_none(universal):
    part = boards.good(0, height=240, width=320)
    images = [np.ascontiguousarray(part[:: 1 + i // 2, :: 1 + i // 2]) for i in (0, 2, 4)]
    fitted = fit_to_sizes(
        universal.model, [pixels_of(image) for image in images], lambda i: images[i]
    )
    assert fitted.config.size_kept < 0.25


def test_sizes_of_cameras_among_cuts_say_nothing():
    cuts = list(range(500, 516))
    assert shared_areas([9] * 6 + [4] * 7 + cuts[:7]) == (4, 9)
    assert shared_areas([9, 9, *cuts]) == ()  # two of eighteen by chance
    assert shared_areas([9] * 5) == (9,)
    assert shared_areas(cuts) == ()


def test_one_detector_of_parts_and_of_textures_scales_these_alone(universal):
    parts = [boards.good(seed, height=120, width=160) for seed in range(4)]
    images = [*parts, *textures()]
    fitted = fit_to_sizes(
        universal.model, [pixels_of(image) for image in images], lambda i: images[i]
    )
    alone = fit_to_sizes(
        universal.model, [pixels_of(image) for image in textures()], lambda i: textures()[i]
    )
    assert fitted.config.shared_areas == (120 * 160,)
    assert fitted.config.usual_side == alone.config.usual_side
    assert fitted.config.size_kept == alone.config.size_kept
    assert fitted.working_size(120, 160) == universal.model.working_size(120, 160)
    assert fitted.working_size(240, 320) != universal.model.working_size(240, 320)


def test_of_one_size_nothing_changes(universal):
    images = [boards.good(seed) for seed in range(3)]

    def never(i: int) -> Image:
        raise AssertionError("no image is read for it")

    for areas in ([9, 9, 9], [0, 0, 5, 6, 7], [5]):  # 0: not known
        assert fit_to_sizes(universal.model, areas, never) is universal.model
    told = universal.model.with_config(
        dataclasses.replace(universal.model.config, usual_side=9.0, size_kept=0.1)
    )
    assert fit_to_sizes(told, [5, 6, 7], never) is told
    assert universal.adapt(images).model is universal.model
    lone = universal.adapt([texture(0, SIDES[0])])
    assert lone.model.config.usual_side is None


@pytest.mark.parametrize("preset", ["pixel", "aligned"])
def test_other_ways_of_comparing_know_no_sizes(preset):
    options = {"preset": "pixel"} if preset == "pixel" else {"aligned": True}
    detector = Metaformer.from_pretrained(resolution=96, **options).adapt(textures()[:2])
    height, width = SIDES[0]
    multiple = detector.model.size_multiple
    assert detector.model.working_size(height, width) == working_size(height, width, 96, multiple)


@pytest.mark.parametrize(
    "sizes",
    [
        {"usual_side": 0.0},
        {"usual_side": math.nan},
        {"usual_side": 300.0, "size_kept": 1.5},
        {"usual_side": 300.0, "size_kept": -0.1},
        {"usual_side": 300.0, "shared_areas": (-4,)},
        {"usual_side": 300.0, "shared_areas": (4.5,)},
    ],
)
def test_sizes_that_make_no_sense_are_refused(sizes):
    with pytest.raises(ValueError, match="usual_side"):
        FeatureConfig(**sizes)


# Detectors


def test_a_detector_of_many_sizes_is_saved_and_extended(universal, tmp_path):
    images = textures()
    detector = universal.adapt(images)
    config = detector.model.config
    assert config.usual_side is not None and config.size_kept > 0.5
    detector.save(tmp_path / "d.mf")
    loaded = Detector.load(tmp_path / "d.mf")
    assert loaded.model.config == config
    query = texture(9, (333, 210))
    query[100:130, 60:110] = (250, 10, 10)
    found = loaded.predict(query)
    assert found.raw_score == detector.predict(query).raw_score
    assert found.anomaly_map.shape == (333, 210)
    marked = found.anomaly_map[100:130, 60:110].mean()
    assert marked > found.anomaly_map[200:].mean() + 0.2
    longer = loaded.extended_with([texture(5, (180, 180))])
    assert longer.model.config == config  # of the earlier images, which cannot be made anew
    assert longer.made["additions"][0]["calibration"] == "recomputed"
    assert longer.adapted.count == 5


def test_the_order_of_images_hardly_matters(universal):
    images = textures()
    one, other = universal.adapt(images).model.config, universal.adapt(images[::-1]).model.config
    assert one.usual_side == pytest.approx(other.usual_side)
    assert one.size_kept == pytest.approx(other.size_kept, abs=0.02)


def test_bytes_and_files_have_as_many_pixels_as_their_arrays(tmp_path):
    (path,) = boards.write_good(tmp_path / "in", 1).iterdir()
    expected = boards.good(0).shape[0] * boards.good(0).shape[1]
    assert pixels_of(path) == pixels_of(str(path)) == pixels_of(path.read_bytes()) == expected
    assert pixels_of(tmp_path / "missing.png") == pixels_of(b"no image") == 0
    assert pixels_of(np.zeros(3)) == 0
    assert pixels_of(Pillow.fromarray(boards.good(0))) == expected
    deep = boards.good(0)[:, :, 0].astype(np.uint16) * 256
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    assert pixels_of(tmp_path / "deep.png") == expected
    exif = Pillow.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Pillow.fromarray(boards.good(0)).save(tmp_path / "turned.jpg", exif=exif)
    assert pixels_of(tmp_path / "turned.jpg") == expected


# Means


@pytest.mark.parametrize("euclidean", [True, False])
def test_means_of_the_nearest(euclidean):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(3000, 5, generator=generator)
    centres = rows[:7].clone()
    if not euclidean:
        rows, centres = F.normalize(rows, dim=1), F.normalize(centres, dim=1)
    means = nearest_means(rows, centres, euclidean=euclidean)
    distance = torch.cdist(rows.double(), centres.double())  # of unit rows in the order of angles
    for i, mean in enumerate(means):
        own = rows[distance.argmin(1) == i]
        torch.testing.assert_close(mean, own.mean(0), atol=1e-5, rtol=1e-4)


def test_a_centre_that_nothing_is_nearest_to_stays():
    rows = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    centres = torch.tensor([[0.0, 0.0], [1.0, 0.0], [9.0, 9.0]])
    assert torch.equal(nearest_means(rows, centres, euclidean=True), centres)


def test_a_memory_cut_to_its_cap_is_compared_with_means():
    config = FeatureConfig(resolution=96, max_tokens=300, compared_tokens=50, places=0)
    model = FeatureModel.from_pretrained(config)
    tokens = [prepare(model, boards.good(seed)) for seed in range(3)]
    adapted = model.adapt(tokens, seed=0)
    plain = model.with_config(dataclasses.replace(config, means=False)).adapt(tokens, seed=0)
    for name, compared in adapted.compared.items():
        assert compared.shape == plain.compared[name].shape
        if name not in EUCLIDEAN:
            torch.testing.assert_close(compared.norm(dim=1), torch.ones(len(compared)))
    assert not torch.equal(adapted.compared[POOLED], plain.compared[POOLED])
    # Means lie in the middle of what they stand for: a normal token is nearer to one.
    memory = adapted.memory[POOLED]
    to_means = torch.cdist(memory, adapted.compared[POOLED]).amin(1).square().mean()
    to_random = torch.cdist(memory, plain.compared[POOLED]).amin(1).square().mean()
    assert to_means < to_random
    restored = adapted_from_state(*adapted.state())
    query = prepare(model, boards.defective(9))
    assert torch.equal(restored.anomaly_maps(query), adapted.anomaly_maps(query))


def test_images_left_out_are_scored_as_new_ones_are():
    """With all images the memory is cut, and without one of them it would not be."""
    tokens_of_two = 2 * (96 // 8) ** 2
    config = FeatureConfig(
        resolution=96, max_tokens=tokens_of_two + 10, compared_tokens=50, places=0
    )
    model = FeatureModel.from_pretrained(config)
    tokens = [prepare(model, boards.good(seed)) for seed in range(3)]
    means = model.adapt(tokens, seed=0).means
    assert POOLED in means
    others = model.remember(tokens[1:], seed=0, means=means)
    assert others.means == means and len(others.memory[POOLED]) < config.max_tokens
    assert model.remember(tokens[1:], seed=0).means != means
    found = model.left_out_distances(tokens, seed=0)
    assert torch.equal(found[0][POOLED], others.distances(tokens[0])[POOLED])


def test_a_whole_memory_is_compared_with_as_it_is():
    config = FeatureConfig(resolution=96, compared_tokens=50)
    model = FeatureModel.from_pretrained(config)
    tokens = [prepare(model, boards.good(seed)) for seed in range(3)]
    adapted = model.adapt(tokens, seed=0)
    rows = {row.tobytes() for row in adapted.memory[POOLED].numpy()}
    assert all(row.tobytes() in rows for row in adapted.compared[POOLED].numpy())


def test_a_file_from_before_is_read_as_it_was():
    config = FeatureConfig(resolution=96, max_tokens=300, compared_tokens=50, means=False, own=0.0)
    model = FeatureModel.from_pretrained(config)
    adapted = model.adapt([prepare(model, boards.good(seed)) for seed in range(3)], seed=0)
    tensors, settings = adapted.state()
    for name in ("means", "usual_side", "size_kept", "shared_areas", "own"):
        del settings["config"][name]
    restored = adapted_from_state(tensors, settings)
    query = prepare(model, boards.defective(9))
    assert torch.equal(restored.anomaly_maps(query), adapted.anomaly_maps(query))
