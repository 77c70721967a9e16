"""More normal images for what is already adapted, without the earlier images.

What the earlier images left behind decides how exact this can be
(``docs/decisions/02-extension.md``):

* **recomputed**: the memory holds every token of the earlier images. They are taken from it, and
  everything is done anew; the result is that of adapting to all images at once, bit for bit,
  unless images come in many sizes: all are worked at by what the first ones said of that.
* **estimated**: it does not (it was cut to ``max_tokens``; the ``pixel`` preset, whose weights
  were fitted to the earlier images; files written before the memory said what is in it). The
  memory takes in the new images as far as its cap allows. Each new image is scored against the
  earlier memory and the other new images. Earlier images cannot be scored again; their scores are
  lowered by as much as those of the new images fall when the memory grows (``shrinkage``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from metaformer.detection.adaptation import (
    Adaptation,
    Adapted,
    Model,
    adapt_to_prepared,
    pixel_threshold_of,
    raw_maps,
    scores_of,
)
from metaformer.detection.feature.adapted import AdaptedFeature, Rows
from metaformer.detection.feature.preset import FeatureModel
from metaformer.detection.scoring.anomaly_map import smooth
from metaformer.detection.scoring.calibration import Calibration, calibrate
from metaformer.detection.support_set import judge_support, make_folds

How = Literal["recomputed", "estimated"]


@dataclass(frozen=True)
class Earlier:
    """What is left of the images adapted to before."""

    adapted: Adapted
    calibration: Calibration
    scores: tuple[float, ...]
    """Out-of-sample raw scores in the order of the support; empty with one image."""
    count: int
    """How many images."""


def extend(
    model: Model,
    earlier: Earlier,
    prepared: Sequence[Any],
    views: Sequence[Rows],
    *,
    false_alarm_rate: float,
    seed: int,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Adaptation, How]:
    """Adapt to one or more new images, as ``prepare`` gives them, on top of the earlier ones.

    Args:
        views: what ``prepare_views`` gave for each; nothing where earlier and new images are more
            than ``has_views`` allows.
        seed: that of the earlier adaptation, for the same result as from all images at once.
        on_step: called with (steps done, steps in all).

    Raises:
        ValueError: of one earlier image not enough was kept to score it, and there is one new one.
    """
    adapted = earlier.adapted
    if isinstance(model, FeatureModel) and isinstance(adapted, AdaptedFeature):
        support = adapted.support()
        if support is not None and len(support) >= earlier.count:
            # A file of an earlier version has no views, or a lone image's among the images.
            have_views = len(views) == len(prepared) and len(adapted.views) == earlier.count
            done = adapt_to_prepared(
                model,
                [*support[: earlier.count], *prepared],
                [*adapted.views, *views] if have_views else [],
                false_alarm_rate=false_alarm_rate,
                seed=seed,
                on_step=on_step,
            )
            return done, "recomputed"
    done = extend_by_estimate(model, earlier, prepared, views, false_alarm_rate, seed, on_step)
    return done, "estimated"


def extend_by_estimate(
    model: Model,
    earlier: Earlier,
    prepared: Sequence[Any],
    views: Sequence[Rows],
    false_alarm_rate: float,
    seed: int,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> Adaptation:
    """The second way: earlier scores are lowered, new images are scored out of sample."""
    if len(earlier.scores) + len(prepared) < 2:
        raise ValueError(
            "the detector was made from one image and kept too little of it to compare it with one "
            "more. Add two or more images at once, or adapt to all of them from the start."
        )
    folds = make_folds(len(prepared), model.max_folds) or [{0}]
    maps: list[Tensor] = [torch.empty(0)] * len(prepared)

    def remember(left_out: set[int], like: Adapted | None = None) -> Adapted:
        adapted, count = earlier.adapted, earlier.count
        images = [image for i, image in enumerate(prepared) if i not in left_out]
        if isinstance(adapted, AdaptedFeature):
            kept = [rows for i, rows in enumerate(views) if i not in left_out]
            assert like is None or isinstance(like, AdaptedFeature)
            return adapted.extended(images, earlier=count, seed=seed, views=kept, like=like)
        return adapted.extended(images, earlier=count, seed=seed)

    adapted = remember(set())
    on_step(1, len(folds) + 1)
    for number, fold in enumerate(folds):
        others = remember(fold, adapted)
        for i in fold:
            maps[i] = left_out_maps(model, adapted, others, prepared[i])
        on_step(number + 2, len(folds) + 1)

    new_scores = scores_of(model, maps)
    before = scores_of(model, [raw_maps(model, earlier.adapted, image) for image in prepared])
    factor = shrinkage(before, new_scores)
    scores = [*(factor * score for score in earlier.scores), *new_scores]
    # The earlier maps are gone: their threshold counts as much as they were many.
    weight = len(earlier.scores) / len(scores)
    old_threshold = factor * earlier.calibration.pixel_threshold
    pixel_threshold = weight * old_threshold + (1 - weight) * pixel_threshold_of(maps)
    calibration = calibrate(scores, false_alarm_rate, pixel_threshold=pixel_threshold)
    unscored = earlier.count - len(earlier.scores)  # a first image that was alone has no score
    judged = tuple(replace(s, index=s.index + unscored) for s in judge_support(scores))
    return Adaptation(adapted, calibration, judged)


def left_out_maps(model: Model, adapted: Adapted, others: Adapted, image: Any) -> Tensor:
    """``raw_maps`` of an image by what is remembered of others; how distances are joined, all
    images say."""
    if isinstance(adapted, AdaptedFeature) and isinstance(others, AdaptedFeature):
        return smooth(adapted.read(image, others.distances(image)), model.config.sigma)
    return raw_maps(model, others, image)


def shrinkage(before: Sequence[float], after: Sequence[float]) -> float:
    """How much out-of-sample scores of normal images fall when the memory grows; 1 at most.

    Args:
        before: of new images, against the earlier memory alone.
        after: of the same, with all other new images in the memory.

    An earlier image is as normal as a new one, so its score falls as much, or a little more: to it
    the memory grows by one image more. With a single new image the factor is 1.
    """
    ratios = np.asarray(after) / np.maximum(before, 1e-12)
    return float(min(1.0, np.median(ratios)))
