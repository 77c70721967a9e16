"""More normal images for what is already adapted, without the earlier images.

What the earlier images left behind decides how exact this can be
(``docs/decisions/0003-extension.md``):

* **recomputed**: the memory holds every token of the earlier images. They are taken from it, and
  everything is done anew; the result is that of adapting to all images at once, bit for bit.
* **kept**: it does not (it was cut to ``max_tokens``; the ``pixel`` preset, whose weights were
  fitted to the earlier images; files written before the memory said what is in it). The memory
  takes in the new images as far as its cap allows. Each new image is scored against the earlier
  memory and the other new images; scores of earlier images stay as they were, which errs towards
  fewer false alarms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from metaformer.adaptation import (
    Adaptation,
    Adapted,
    Model,
    adapt_to_prepared,
    judge_support,
    make_folds,
    pixel_threshold_of,
    raw_map,
    scores_of,
)
from metaformer.calibration import Calibration, calibrate
from metaformer.feature_model import AdaptedFeature, FeatureModel

How = Literal["recomputed", "kept"]


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
    *,
    false_alarm_rate: float,
    seed: int,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Adaptation, How]:
    """Adapt to one or more new images, as ``prepare`` gives them, on top of the earlier ones.

    Args:
        seed: that of the earlier adaptation, for the same result as from all images at once.
        on_step: called with (steps done, steps in all).

    Raises:
        ValueError: of one earlier image not enough was kept to score it, and there is one new one.
    """
    adapted = earlier.adapted
    if isinstance(model, FeatureModel) and isinstance(adapted, AdaptedFeature):
        support = adapted.support()
        if support is not None and len(support) == earlier.count:
            done = adapt_to_prepared(
                model,
                [*support, *prepared],
                false_alarm_rate=false_alarm_rate,
                seed=seed,
                on_step=on_step,
            )
            return done, "recomputed"
    return extend_kept(model, earlier, prepared, false_alarm_rate, seed, on_step), "kept"


def extend_kept(
    model: Model,
    earlier: Earlier,
    prepared: Sequence[Any],
    false_alarm_rate: float,
    seed: int,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> Adaptation:
    """The second way: earlier scores are kept, new images are scored out of sample."""
    if len(earlier.scores) + len(prepared) < 2:
        raise ValueError(
            "the detector was made from one image and kept too little of it to compare it with one "
            "more. Add two or more images at once, or adapt to all of them from the start."
        )
    folds = make_folds(len(prepared), model.max_folds) or [{0}]
    maps: list[Tensor] = [torch.empty(0)] * len(prepared)

    def remember(images: Sequence[Any]) -> Adapted:
        return earlier.adapted.extended(images, earlier=earlier.count, seed=seed)

    for number, fold in enumerate(folds):
        others = remember([p for i, p in enumerate(prepared) if i not in fold])
        for i in fold:
            maps[i] = raw_map(model, others, prepared[i])
        on_step(number + 1, len(folds) + 1)
    adapted = remember(prepared)
    on_step(len(folds) + 1, len(folds) + 1)

    scores = [*earlier.scores, *scores_of(model, maps)]
    # The earlier maps are gone: their threshold counts as much as they were many.
    weight = len(earlier.scores) / len(scores)
    pixel_threshold = weight * earlier.calibration.pixel_threshold + (
        1 - weight
    ) * pixel_threshold_of(maps)
    calibration = calibrate(scores, false_alarm_rate, pixel_threshold=pixel_threshold)
    unscored = earlier.count - len(earlier.scores)  # a first image that was alone has no score
    judged = tuple(replace(s, index=s.index + unscored) for s in judge_support(scores))
    return Adaptation(adapted, calibration, judged)
