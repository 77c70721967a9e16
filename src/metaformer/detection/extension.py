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
from dataclasses import replace

import numpy as np

from metaformer.detection.adaptation import Calibrated, calibrated, pixel_threshold_of, scores_of
from metaformer.detection.preset import Adapted, How, P, Preset
from metaformer.detection.scoring.calibration import calibrate
from metaformer.detection.support.support_set import judge_support


def extend(
    preset: Preset[P],
    earlier: Adapted[P],
    new: Sequence[P],
    *,
    scores: Sequence[float],
    count: int,
    pixel_threshold: float,
    false_alarm_rate: float,
    seed: int,
) -> tuple[Calibrated, How]:
    """Adapt to one or more new images, as ``Preset.prepare`` gives them, on top of the earlier.

    Args:
        scores: left-out raw scores of the earlier images; none if there is one image.
        count: how many earlier images there are.
        pixel_threshold: the earlier one.
        seed: that of the earlier adaptation, for the same result as from all images at once.

    Raises:
        ValueError: of one earlier image not enough was kept to score it, and there is one new one.
    """
    support = earlier.kept_support()
    if support is None:
        done = earlier.extend(new, seed=seed)
    else:
        done = preset.adapt([*support, *new], seed=seed, on_step=lambda step, steps: None)
    adapted, maps = done.adapted, done.left_out
    if done.how == "recomputed":
        return calibrated(adapted, maps, false_alarm_rate), "recomputed"
    if len(scores) + len(new) < 2:
        raise ValueError(
            "the detector was made from one image and kept too little of it to compare it with one "
            "more. Add two or more images at once, or adapt to all of them from the start."
        )
    new_scores = scores_of(adapted, maps)
    before = scores_of(adapted, [earlier.anomaly_maps(image) for image in new])
    factor = shrinkage(before, new_scores)
    all_scores = [*(factor * score for score in scores), *new_scores]
    # The earlier maps are gone: their threshold counts as much as they were many.
    weight = len(scores) / len(all_scores)
    calibration = calibrate(
        all_scores,
        false_alarm_rate,
        pixel_threshold=weight * (factor * pixel_threshold)
        + (1 - weight) * pixel_threshold_of(maps),
        typical_score=adapted.typical_score,
    )
    unscored = count - len(scores)  # a first image that was alone has no score
    judged = tuple(replace(s, index=s.index + unscored) for s in judge_support(all_scores))
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
