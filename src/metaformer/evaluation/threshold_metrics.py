"""Metrics at a threshold: defects caught and good images flagged, in all and by kind.

At two thresholds. The shipped one comes with the detector, from its support alone. The other one is
set on the good test images so that at most 5 % of them lie above it: it says what the ranking could
give if the threshold were known, so that the two show how much the choice of a threshold costs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

THRESHOLD_METRICS = ("recall", "false_alarm_rate", "recall_at_5")
"""``recall`` and ``false_alarm_rate``: share of the defective and of the good images flagged at the
shipped threshold. ``recall_at_5``: share of the defective images above ``threshold_at``."""
FALSE_ALARM_RATE = 0.05
"""Share of the good test images that may lie above the threshold of ``recall_at_5``."""
Z95 = 1.959963984540054
"""Quantile 0.975 of the standard normal distribution."""


@dataclass(frozen=True)
class Flags:
    """The flags of one run on N test images."""

    at_threshold: NDArray[np.bool_] | None
    """(N,) at the shipped threshold; None of a method that has none."""
    at_5: NDArray[np.bool_] | None
    """(N,) at ``threshold_at``; None without a good test image."""


def flag(labels: ArrayLike, scores: ArrayLike, flagged: ArrayLike | None) -> Flags:
    """The flags of one run.

    Args:
        labels: (N,), True or 1 for a defective image.
        scores: (N,), higher is more anomalous.
        flagged: (N,) bool, what the shipped threshold flags; None if there is no such threshold.
    """
    anomalous = np.asarray(labels).astype(bool)
    values = np.asarray(scores, dtype=np.float64)
    at_5 = None if anomalous.all() else values > threshold_at(values[~anomalous])
    return Flags(None if flagged is None else np.asarray(flagged).astype(bool), at_5)


def threshold_at(good_scores: ArrayLike) -> float:
    """The lowest threshold that at most 5 % of the good scores (N,), N >= 1, exceed; of fewer than
    20 the highest."""
    ordered = np.sort(np.asarray(good_scores, dtype=np.float64))
    above = math.floor(
        FALSE_ALARM_RATE * len(ordered) + 1e-9
    )  # rounding must not lose a whole image
    return float(ordered[len(ordered) - 1 - above])


def threshold_metrics(labels: ArrayLike, flags: Flags) -> dict[str, float | None]:
    """``THRESHOLD_METRICS`` of one run, each in [0, 1]; None where there is nothing to count."""
    anomalous = np.asarray(labels).astype(bool)
    return {
        "recall": share(flags.at_threshold, anomalous),
        "false_alarm_rate": share(flags.at_threshold, ~anomalous),
        "recall_at_5": share(flags.at_5, anomalous),
    }


def share(flagged: NDArray[np.bool_] | None, chosen: NDArray[np.bool_]) -> float | None:
    """Share of the chosen images that are flagged."""
    return None if flagged is None or not chosen.any() else float(flagged[chosen].mean())


def by_kind(
    kinds: Sequence[str], labels: Sequence[bool], runs: Sequence[Flags]
) -> dict[str, dict[str, Any]]:
    """For each kind of image: how many there are, and the mean over runs of what is flagged.

    Args:
        kinds: (N,), of each test image; good ones are one kind, or several.
        runs: one a support seed.

    Returns:
        Kind -> ``images``, ``is_defect``, ``flagged`` and ``flagged_at_5`` (shares of the kind's
        images, or None), and a 95 % interval of each (``flagged_ci``, ``flagged_at_5_ci``).
    """
    found = {}
    for kind in dict.fromkeys(kinds):
        chosen = np.array([each == kind for each in kinds])
        count = int(chosen.sum())
        row: dict[str, Any] = {"images": count, "is_defect": bool(np.asarray(labels)[chosen].any())}
        for name, arrays in (
            ("flagged", [run.at_threshold for run in runs]),
            ("flagged_at_5", [run.at_5 for run in runs]),
        ):
            shares = [value for each in arrays if (value := share(each, chosen)) is not None]
            row[name] = float(np.mean(shares)) if shares else None
            row[f"{name}_ci"] = interval(row[name], count)
        found[kind] = row
    return found


def interval(proportion: float | None, images: float) -> list[float] | None:
    """Wilson's 95 % interval of a proportion of so many images (Wilson 1927).

    Runs on the same images are no more images: of a mean over seeds, ``images`` is the number in
    the test set. The interval is over test images alone; that of ``recall_at_5`` takes its
    threshold as given, though few good images set it.
    """
    if proportion is None or images <= 0:
        return None
    square = Z95**2 / images
    middle = (proportion + square / 2) / (1 + square)
    spread = proportion * (1 - proportion) + square / 4
    half = Z95 * math.sqrt(spread / images) / (1 + square)
    # Exactly 0 and 1 at the ends, which rounding would miss.
    low = 0.0 if proportion == 0 else max(0.0, middle - half)
    return [low, 1.0 if proportion == 1 else min(1.0, middle + half)]


def images_behind_mean(counts: Sequence[int]) -> float:
    """Effective number of images behind a mean over categories: as many as give a
    proportion that is the same in all the variance of that mean."""
    if not counts or 0 in counts:
        return 0
    return len(counts) ** 2 / sum(1 / count for count in counts)
