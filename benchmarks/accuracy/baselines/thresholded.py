"""A threshold for a baseline that has none, found as our detectors find theirs.

Each support image is scored by the baseline fitted to the others; of a lone image, changed views
are. The threshold comes from these scores by our own calibration, so that what differs at the
threshold is the method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from metaformer.detection.adaptation import VIEW_DETAIL
from metaformer.detection.augmentation import VIEWS, perturbed_views
from metaformer.detection.feature.preset import VIEW_FACTOR
from metaformer.detection.scoring.calibration import calibrate
from metaformer.evaluation.protocol import FittedMethod, Method
from metaformer.evaluation.samples import AnomalyMap, Image
from metaformer.io.images import shrink


@dataclass(frozen=True)
class Thresholded:
    """The method with a threshold."""

    method: Method
    false_alarm_rate: float = 0.05

    @property
    def name(self) -> str:
        return self.method.name

    @property
    def settings(self) -> dict[str, Any]:
        return self.method.settings | {"false_alarm_rate": self.false_alarm_rate}

    def fit(self, support: Sequence[Image], seed: int) -> FittedThresholded:
        fitted = self.method.fit(support, seed)
        alone = len(support) == 1
        if alone:
            detail = shrink(support[0], VIEW_DETAIL * self.settings["resolution"])
            views = list(perturbed_views(detail, VIEWS, seed))
            scores = [VIEW_FACTOR * score for score, _ in fitted.score(views)]
        else:
            scores = []
            for i, image in enumerate(support):
                others = [*support[:i], *support[i + 1 :]]
                scores.append(self.method.fit(others, seed).score([image])[0][0])
        calibration = calibrate(
            scores, self.false_alarm_rate, pixel_threshold=0.0, from_views=alone
        )
        return FittedThresholded(fitted, calibration.threshold)


@dataclass
class FittedThresholded:
    fitted: FittedMethod
    threshold: float

    def score(self, images: Sequence[Image]) -> list[tuple[float, AnomalyMap]]:
        return self.fitted.score(images)
