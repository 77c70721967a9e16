"""From the scores of a few normal images to a threshold, p-values and comparable scores.

All of it uses normal images alone. Each support image is scored by a detector that has not seen
it (see ``adaptation``), and those out-of-sample scores are what a new normal image is compared
with. What n such scores can promise is limited, and ``guarantee`` says so in words:

* **Rank rule** (split-conformal, finite sample): a new normal image is equally likely to fall at
  any rank among n + 1, so the threshold at the ceil((n + 1)(1 - a))-th smallest score is exceeded
  with probability at most a. It needs n >= 1/a - 1: 19 images for 5 %.
* **Tail rule**: with fewer images no rank gives the asked rate. We then take the prediction bound
  of a Gaussian with unknown mean and variance, mean + t * s * sqrt(1 + 1/n), where s leans on what
  is typical of other products: two images say almost nothing of their own spread, and the plain
  bound would then flag nothing at all. Where it is known what good images of other products score
  (``typical_score``), the mean leans on that too, and the bound is taken of logarithms. It holds if
  normal scores are about Gaussian and the product is a typical one, which nothing here can check.

The out-of-sample scores come from detectors with slightly fewer images than the final one, and the
images serve in each other's detectors, so both rules are approximate by that much; the error is
towards fewer false alarms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from metaformer.detection.scoring.prediction_bounds import (
    RELATIVE_SPREAD,
    bound_by_own,
    bound_by_typical,
)

MAP_ROWS = 64
"""Rows of a map that are calibrated at a time; bounds memory."""

LOWEST_RATE, HIGHEST_RATE = 1e-6, 0.99
"""Rates that ``rate_at`` chooses from. None below the lowest is accepted, so that a frame without
the product can be flagged at every one."""

Rule = Literal["rank", "tail", "views"]
PValueKind = Literal["conformal", "views"]


@dataclass(frozen=True)
class Calibration:
    """A threshold and what it was made from. Scores are raw scores of the preset."""

    normal_scores: tuple[float, ...]
    """Out-of-sample scores of the support images, ascending."""
    false_alarm_rate: float
    threshold: float
    """A raw score at or above it is anomalous."""
    pixel_threshold: float
    """Raw map value at or above which a pixel of an anomalous image is marked."""
    rule: Rule
    typical_score: float | None = None
    """What a good image of a typical product scores; None if not known."""

    @property
    def center(self) -> float:
        """Median normal score, calibrated to 0.25; of one image the typical score, if known."""
        if self.rule == "views" and self.typical_score is not None:
            return self.typical_score
        return float(np.median(self.normal_scores))

    @property
    def spread(self) -> float:
        """Distance from the median to the threshold, the unit of calibrated scores."""
        return self.threshold - self.center

    def score(self, raw: float) -> float:
        """Calibrated score in (0, 1): 0.5 at the threshold, 0.25 at the median normal image.

        A soft sign of the distance to the threshold. It rises without end, so no two raw scores
        that differ clearly are made equal; in these units products can be compared.
        """
        return float(soften((raw - self.threshold) / self.spread))

    def raw(self, score: float) -> float:
        """The raw score that is calibrated to ``score``, in (0, 1).

        Raises:
            ValueError: the score is not in (0, 1).
        """
        if not 0 < score < 1:
            raise ValueError(f"a calibrated score lies in (0, 1), got {score}.")
        side = 2 * score - 1
        return self.threshold + self.spread * side / (1 - abs(side))

    def rate_at(self, score: float) -> float:
        """The false-alarm rate whose threshold is the calibrated score ``score``, or just above.

        The lowest one between 0.000001 and 0.99 whose threshold is not above it; where even that
        of the highest rate is above, the highest.

        Raises:
            ValueError: the score is not in (0, 1).
        """
        raw = self.raw(score)
        low, high = LOWEST_RATE, HIGHEST_RATE
        if self.with_false_alarm_rate(low).threshold <= raw:
            return low
        for _ in range(60):  # the threshold falls as the rate rises
            middle = math.sqrt(low * high)
            if self.with_false_alarm_rate(middle).threshold <= raw:
                high = middle
            else:
                low = middle
        return high

    def map(
        self, raw: NDArray[np.float32], out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Calibrated map, same shape: 0.5 at the pixel threshold.

        Args:
            out: the result is written here; it may be ``raw`` itself.
        """
        calibrated = np.empty(raw.shape, np.float32) if out is None else out
        spread = self.spread
        # Some rows at a time: as a whole, each step would make another array of the image's size.
        for top in range(0, len(raw), MAP_ROWS):
            rows = slice(top, top + MAP_ROWS)
            part = calibrated[rows]
            np.subtract(raw[rows], self.pixel_threshold, out=part)
            part /= spread
            soften(part, out=part)  # in place: half the time for a large photo
        return calibrated

    def p_value(self, raw: float) -> float:
        """Conformal p-value: share of n + 1 equally likely ranks at or above this score.

        Never below 1 / (n + 1): n images cannot show a rarer event. See ``p_value_kind``.
        """
        at_least = sum(score >= raw for score in self.normal_scores)
        return (1 + at_least) / (1 + len(self.normal_scores))

    @property
    def p_value_kind(self) -> PValueKind:
        """The scores that a p-value is a rank among, for people.

        ``conformal``: scores of other good images, each out of sample; a new good image gets a
        p-value of at most a with probability at most a. ``views``: changed views of the one image
        adapted to; the rank says how unusual an image is for that one part under other light and
        pose, and promises nothing about how often good parts come out so low.
        """
        return "views" if self.rule == "views" else "conformal"

    @property
    def guarantee(self) -> str:
        """What this threshold promises, for people."""
        n, rate = len(self.normal_scores), self.false_alarm_rate
        if self.rule == "rank":
            return (
                f"About {rate:.1%} of new normal images, or fewer, will be flagged, as long as "
                f"they are like the {n} shown (rank rule, no assumption on the scores)."
            )
        needed = math.ceil(1 / rate - 1)
        if self.rule == "tail":
            near = "" if self.typical_score is None else ", near those of other products"
            return (
                f"{n} normal images cannot guarantee a false-alarm rate of {rate:.1%} "
                f"({needed} could). It is an estimate: the threshold takes the scores of normal "
                f"images to be spread as a bell curve{near}. The best rate that {n} images can "
                f"guarantee is {1 / (n + 1):.1%}."
            )
        source = "shifted, turned, lightened and noisy views of it"
        if self.typical_score is not None:
            source = "what good images of other products score"
        return (
            f"One normal image shows nothing of how good parts differ. The threshold comes from "
            f"{source}, and the false-alarm rate of {rate:.1%} is a guess. {needed} images give a "
            f"guarantee."
        )

    def with_false_alarm_rate(self, rate: float) -> Calibration:
        """The same normal scores and pixel threshold, another rate."""
        return calibrate(
            self.normal_scores,
            rate,
            pixel_threshold=self.pixel_threshold,
            from_views=self.rule == "views",
            typical_score=self.typical_score,
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Calibration:
        return cls(**{**state, "normal_scores": tuple(state["normal_scores"])})


def guarantee_of(calibration: Calibration, additions: Sequence[dict[str, Any]]) -> str:
    """What a threshold promises, for people; how the detector was extended is taken into account.

    Args:
        additions: as ``Detector.info()`` has them.
    """
    text = calibration.guarantee
    if any(addition["calibration"] == "estimated" for addition in additions):
        text += " What earlier images would score now is estimated, so this holds roughly."
    return text


def check_rate(false_alarm_rate: float) -> None:
    """Raises: ValueError: the rate is below ``LOWEST_RATE``, or not below 1."""
    if not LOWEST_RATE <= false_alarm_rate < 1:
        raise ValueError(
            f"false_alarm_rate must lie strictly between 0 and 1 (0.05 is 5 %), and not below "
            f"0.000001, got {false_alarm_rate}."
        )


def calibrate(
    normal_scores: Sequence[float],
    false_alarm_rate: float,
    *,
    pixel_threshold: float,
    from_views: bool = False,
    typical_score: float | None = None,
) -> Calibration:
    """Choose the threshold for ``false_alarm_rate`` from out-of-sample scores of normal images.

    Args:
        normal_scores: n >= 2 raw scores.
        false_alarm_rate: share of normal images that may be flagged, in (0, 1).
        pixel_threshold: raw map value at which pixels are marked.
        from_views: the scores are of views of one image, so no rank rule applies.
        typical_score: what a good image of a typical product scores; None if not known.

    Raises:
        ValueError: the rate is not accepted, there are fewer than two scores, or one is not
            finite.
    """
    check_rate(false_alarm_rate)
    scores = np.sort(np.asarray(normal_scores, dtype=np.float64))
    if len(scores) < 2 or not np.isfinite(scores).all():
        raise ValueError(f"calibration needs two or more finite normal scores, got {scores}.")
    n = len(scores)
    median = float(np.median(scores))
    least_spread = RELATIVE_SPREAD * max(abs(median), 1e-6)

    # Rounding must not push a whole number up: 10 * (1 - 0.7) is 3.0000000000000004.
    rank = math.ceil((n + 1) * (1 - false_alarm_rate) - 1e-9)
    rule: Rule
    if rank <= n and not from_views:
        rule = "rank"
        # Flagging is "at or above", so the threshold is the next number after the ranked score.
        threshold = float(np.nextafter(scores[rank - 1], np.inf))
    else:
        rule = "views" if from_views else "tail"
        if typical_score is None:
            threshold = bound_by_own(scores, false_alarm_rate, from_views)
        else:
            own_scores = scores[:0] if from_views else scores
            threshold = bound_by_typical(own_scores, false_alarm_rate, typical_score)
        if not (from_views and typical_score is not None):
            threshold = max(threshold, float(np.nextafter(scores[-1], np.inf)))
    found = Calibration(
        tuple(scores.tolist()), false_alarm_rate, threshold, pixel_threshold, rule, typical_score
    )
    # Scores are measured in units of this distance; it must not vanish when normals tie.
    return replace(found, threshold=max(threshold, found.center + least_spread))


def soften(distance: Any, out: NDArray[np.float32] | None = None) -> Any:
    """Strictly increasing map of the real line onto (0, 1) with 0 -> 0.5 (half a soft sign).

    Args:
        out: the result is written here; it may be ``distance`` itself.
    """
    size = np.abs(distance) + 1
    half = np.multiply(distance, 0.5, out=out)
    half = np.divide(half, size, out=out)
    return np.add(half, 0.5, out=out)
