from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from metaformer.detection.adaptation import (
    PIXEL_FALSE_ALARM_RATE,
    Calibrated,
    adapt_to_support,
    prepare,
    views_of,
)
from metaformer.detection.augmentation import VIEWS, perturbed_views
from metaformer.detection.scoring.anomaly_map import image_score
from metaformer.detection.support.support_set import MIN_IMAGES_TO_DOUBT, judge_support
from metaformer.io.images import Image, shrink
from tests.helpers import boards, trees


def adapt(images, rate=0.05, seed=0, model=None, **options) -> Calibrated:
    return adapt_to_support(
        model or boards.universal().model,
        iter(images),
        count=len(images),
        false_alarm_rate=rate,
        seed=seed,
        **options,
    )


def support(count: int, **options) -> list[np.ndarray]:
    return [boards.good(seed, **options) for seed in range(count)]


def maps_by_the_others(model, images) -> list[torch.Tensor]:
    """Of each image by a model that was adapted to all others."""
    prepared = [prepare(model, image, support_size=len(images)) for image in images]
    maps = []
    for i, image in enumerate(prepared):
        others = [other for j, other in enumerate(prepared) if j != i]
        adapted = model.adapt(others, seed=0, on_step=lambda done, total: None).adapted
        adapted.frame = None  # a support image does show the product
        maps.append(adapted.anomaly_maps(image))
    return maps


# Adapting


@pytest.mark.parametrize(
    ("count", "rule"), [(1, "views"), (2, "tail"), (3, "tail"), (10, "tail"), (19, "rank")]
)
def test_from_any_number_of_images_defects_score_higher(count, rule):
    model = boards.universal().model
    result = adapt(support(count))
    calibration = result.calibration
    assert calibration.rule == rule
    assert len(calibration.normal_scores) == (VIEWS if count == 1 else count)
    assert calibration.threshold > calibration.center > 0

    def raw(image) -> float:
        grid = result.adapted.anomaly_maps(prepare(model, image))[0]
        return image_score(grid, model.config.score_share)

    good = [raw(boards.good(seed)) for seed in range(100, 104)]
    bad = [raw(boards.defective(seed)) for seed in range(100, 104)]
    assert min(bad) > max(*good, calibration.threshold)
    assert np.median(good) < calibration.threshold


def score_of_itself(result: Calibrated, image: Image) -> float:
    model = boards.universal().model
    maps = result.adapted.anomaly_maps(prepare(model, image))
    return image_score(maps[0], model.config.score_share)


def test_normal_scores_come_from_models_that_did_not_see_the_image():
    images = support(4)
    model = boards.roomy().model
    share = model.config.score_share
    expected = [image_score(grids[0], share) for grids in maps_by_the_others(model, images)]
    result = adapt(images, model=model)
    found = [score.raw_score for score in result.support_scores]
    # What the transformer standardises by is of all support images; the rest is left out.
    assert found == pytest.approx(expected, rel=0.02)
    assert found != pytest.approx([score_of_itself(result, image) for image in images], rel=0.1)
    assert result.calibration.normal_scores == tuple(sorted(found))


def test_few_normal_pixels_lie_above_the_pixel_threshold():
    images = support(5)
    result = adapt(images)
    above, count = 0, 0
    model = boards.universal().model
    prepared = [prepare(model, image, support_size=len(images)) for image in images]
    for grids in model.adapt(prepared, seed=0, on_step=lambda done, total: None).left_out:
        above += int((grids[-1] > result.calibration.pixel_threshold).sum())
        count += grids[-1].numel()
    assert 0 <= above <= math.ceil(PIXEL_FALSE_ALARM_RATE * count)


def test_one_image_says_that_views_stand_in_and_doubts_nothing():
    result = adapt(support(1))
    assert result.support_scores == ()
    assert "what good images of other products score" in result.calibration.guarantee


def test_the_same_seed_gives_the_same_result():
    for count in (1, 3):
        first, again = adapt(support(count), seed=5), adapt(support(count), seed=5)
        assert first.calibration == again.calibration
        assert first.support_scores == again.support_scores
    assert adapt(support(1), seed=5).calibration != adapt(support(1), seed=6).calibration


def test_images_of_different_shapes_make_one_support():
    images = [boards.good(0), boards.good(1, height=64, width=128), boards.good(2, height=120)]
    result = adapt(images)
    assert len(result.support_scores) == 3
    assert math.isfinite(result.calibration.threshold)


def test_identical_images_still_give_a_threshold():
    result = adapt([boards.good(0)] * 3)
    assert result.calibration.threshold > max(result.calibration.normal_scores)
    assert result.calibration.score(0.0) < 0.5


def test_images_of_one_colour_still_give_a_threshold():
    result = adapt([np.full((64, 64, 3), grey, np.uint8) for grey in (90, 90, 120)])
    assert math.isfinite(result.calibration.threshold)
    assert result.calibration.spread > 0


def test_the_support_is_not_changed():
    images = support(2)
    copies = [image.copy() for image in images]
    adapt(images)
    adapt(images[:1])
    assert all(np.array_equal(a, b) for a, b in zip(images, copies, strict=True))


@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_progress_rises_to_its_total(count):
    steps: list[tuple[int, int]] = []
    adapt(support(count), on_step=lambda done, total: steps.append((done, total)))
    done = [step for step, _ in steps]
    totals = {total for _, total in steps}
    assert done == sorted(set(done))
    assert totals == {done[-1]}


def test_an_empty_support_is_refused():
    with pytest.raises(ValueError, match="at least one normal image"):
        adapt([])


@pytest.mark.parametrize("rate", [0, 1, -1, 5])
def test_a_bad_rate_is_refused_before_any_work(rate):
    steps: list[int] = []
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        adapt(support(2), rate=rate, on_step=lambda done, total: steps.append(done))
    assert steps == []


# Doubts about the support


def test_a_strange_image_among_the_normals_is_odd():
    images = [*support(5), boards.good(9, board="00041005")]
    odd = [score.index for score in adapt(images).support_scores if score.is_odd]
    assert odd == [5]


def test_a_defect_among_the_normals_is_odd():
    images = [boards.defective(9), *support(5)]
    odd = [score.index for score in adapt(images).support_scores if score.is_odd]
    assert odd == [0]


def test_with_few_images_nobody_can_say_which_is_odd():
    few = [0.1] * (MIN_IMAGES_TO_DOUBT - 2) + [9.0]
    assert not any(score.is_odd for score in judge_support(few))
    assert judge_support([0.1, *few])[-1].is_odd


def test_a_tight_support_has_no_odd_image():
    scores = [0.100, 0.1001, 0.1002, 0.1001, 0.1, 0.115]
    assert not any(score.is_odd for score in judge_support(scores))


# Views of a lone image


def test_views_differ_from_the_image_and_from_each_other_but_not_much():
    image = boards.good(0, height=80, width=120)
    views = list(perturbed_views(image, 8, seed=0))
    assert len(views) == 8
    for view in views:
        assert view.shape == image.shape and view.dtype == np.uint8
        correlation = np.corrcoef(view.ravel(), image.ravel())[0, 1]
        assert 0.5 < correlation < 0.999
    assert len({view.tobytes() for view in views}) == 8
    again = list(perturbed_views(image, 8, seed=0))
    assert all(np.array_equal(a, b) for a, b in zip(views, again, strict=True))
    assert not np.array_equal(next(perturbed_views(image, 1, seed=1)), views[0])


def test_still_parts_are_moved_less():
    image = boards.good(0)
    still = next(perturbed_views(image, 1, seed=0, moves=0))
    slightly = next(perturbed_views(image, 1, seed=0, moves=0.1))
    fully = next(perturbed_views(image, 1, seed=0))

    def likeness(view) -> float:
        return float(np.corrcoef(view.ravel(), image.ravel())[0, 1])

    assert likeness(still) > likeness(slightly) > likeness(fully)
    assert likeness(still) > 0.99


def test_shrink_keeps_small_images_and_aspect():
    small = boards.good(0)
    assert shrink(small, 96) is small
    assert shrink(boards.good(0, height=200, width=100), 50).shape == (71, 35, 3)
    assert shrink(np.zeros((8, 9000, 3), np.uint8), 20).shape == (1, 671, 3)


def test_views_do_not_wrap_brightness_around():
    white = perturbed_views(np.full((32, 32, 3), 255, np.uint8), 16, seed=0)
    assert min(int(view.min()) for view in white) > 150


def test_views_of_a_lone_image_are_worked_at_its_own_size():
    """Views of a large photo are made smaller first, which must not change their working size."""
    model = boards.universal().model
    image = trees.picture(0, 700, 1100)
    views = views_of(model, image, seed=0)
    assert len(views) == VIEWS
    sides = {tuple(view.features[8].shape[2:]) for view in views}
    assert sides == {tuple(prepare(model, image).features[8].shape[2:])}
    assert all(view.mirrored == {} for view in views)


def test_a_threshold_from_views_leaves_room_for_other_parts():
    """A changed view of an image differs from it by less than another part does."""
    model = boards.universal().model
    result = adapt(support(1))
    share = model.config.score_share
    views = views_of(model, boards.good(0), 0)
    result.adapted.frame = None
    raw = [image_score(result.adapted.anomaly_maps(view)[0], share) for view in views]
    scaled = sorted(model.view_factor * each for each in raw)
    assert list(result.calibration.normal_scores) == pytest.approx(scaled, rel=1e-5)
    assert model.view_factor > 1
