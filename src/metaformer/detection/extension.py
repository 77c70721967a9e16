"""More normal images for what is already adapted, without the earlier images.

What the earlier images left behind decides how exact this can be
(``docs/decisions/02-extension.md``):

* **recomputed**: the detector keeps everything it needs of each earlier image. The result is that
  of adapting to all images at once, bit for bit; in the ``pixel`` preset with the autoencoder as it
  was fitted to the earlier images.
* **estimated**: it does not (the memory bank is at its cap). Each new image is scored against the
  earlier memory and the other new images. Earlier images cannot be scored again; their scores are
  lowered by as much as those of the new images fall when the memory grows (``shrinkage``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from metaformer.detection.adaptation import (
    Calibrated,
    calibrated,
    pixel_threshold_of,
    scores_of,
)
from metaformer.detection.preset import Adapted, How, Preset
from metaformer.detection.scoring.calibration import Calibration, calibrate
from metaformer.detection.support.support_set import judge_support


@dataclass(frozen=True)
class Earlier:
    """Scores and count of the images that the detector was adapted to before."""

    adapted: Adapted[Any]
    calibration: Calibration
    scores: tuple[float, ...]
    """Left-out raw scores in the order of the support; empty with one image."""
    count: int
    """How many images."""


def extend(
    preset: Preset[Any], earlier: Earlier, new: Sequence[Any], *, false_alarm_rate: float, seed: int
) -> tuple[Calibrated, How]:
    """Adapt to one or more new images, as ``Preset.prepare`` gives them, on top of the earlier.

    Args:
        seed: that of the earlier adaptation, for the same result as from all images at once.

    Raises:
        ValueError: of one earlier image not enough was kept to score it, and there is one new one.
    """
    support = earlier.adapted.kept_support()
    if support is not None:
        done = preset.adapt([*support, *new], seed=seed, on_step=lambda step, steps: None)
        return calibrated(done.adapted, done.left_out, false_alarm_rate), "recomputed"
    extension = earlier.adapted.extend(new, seed=seed)
    adapted, maps = extension.adapted, extension.left_out
    if extension.how == "recomputed":
        return calibrated(adapted, maps, false_alarm_rate), "recomputed"
    if len(earlier.scores) + len(new) < 2:
        raise ValueError(
            "the detector was made from one image and kept too little of it to compare it with one "
            "more. Add two or more images at once, or adapt to all of them from the start."
        )
    new_scores = scores_of(adapted, maps)
    before = scores_of(adapted, [earlier.adapted.anomaly_maps(image) for image in new])
    factor = shrinkage(before, new_scores)
    scores = [*(factor * score for score in earlier.scores), *new_scores]
    # The earlier maps are gone: their threshold counts as much as they were many.
    weight = len(earlier.scores) / len(scores)
    old_threshold = factor * earlier.calibration.pixel_threshold
    pixel_threshold = weight * old_threshold + (1 - weight) * pixel_threshold_of(maps)
    calibration = calibrate(
        scores,
        false_alarm_rate,
        pixel_threshold=pixel_threshold,
        typical_score=adapted.typical_score,
    )
    unscored = earlier.count - len(earlier.scores)  # a first image that was alone has no score
    judged = tuple(replace(s, index=s.index + unscored) for s in judge_support(scores))
    return Calibrated(adapted, calibration, judged), "estimated"


def shrinkage(before: Sequence[float], after: Sequence[float]) -> float:
    """Factor by which left-out scores of normal images fall when the memory grows; 1 at most.

    Args:
        before: of new images, against the earlier memory alone.
        after: of the same, with all other new images in the memory.

    An earlier image is as normal as a new one, so its score falls as much, or a little more: to it
    the memory grows by one image more. With a single new image the factor is 1.
    """
    ratios = np.asarray(after) / np.maximum(before, 1e-12)
    return float(min(1.0, np.median(ratios)))
