"""The score that few new normal images exceed, from the scores of fewer than a rank rule needs."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

RELATIVE_SPREAD = 0.02
"""Least spread assumed between normal scores, as a share of their median: two photos of one part
under one camera can score almost the same, and the next one will not."""

TYPICAL_SPREAD = 0.15
"""Standard deviation of normal out-of-sample scores as a share of their mean, typical of products
(``docs/decisions/01-threshold.md``)."""
TYPICAL_WEIGHT = 4
"""How many degrees of freedom that typical spread counts for (scaled inverse chi-squared prior)."""

LOG_SPREAD = 0.13
"""Typical standard deviation of the logarithm of one product's normal scores; counts for as many
degrees of freedom."""
BETWEEN_PRODUCTS = 0.12
"""Standard deviation of the logarithm of a product's mean score about the typical one, as the bound
allows for it."""
TYPICAL_IMAGES = 3
"""How many normal images the typical score counts for."""


def bound_by_own(scores: NDArray[np.float64], rate: float, from_views: bool) -> float:
    """Prediction bound of a Gaussian, by two or more scores and a typical spread.

    Views of one image say where normal scores lie, and nothing of how parts differ.
    """
    own = 0 if from_views else len(scores) - 1
    mean, degrees = float(scores.mean()), TYPICAL_WEIGHT + own
    typical = TYPICAL_SPREAD * max(abs(mean), 1e-6)
    squares = TYPICAL_WEIGHT * typical**2 + own * float(scores.var(ddof=1))
    least_spread = RELATIVE_SPREAD * max(abs(float(np.median(scores))), 1e-6)
    spread = max(math.sqrt(squares / degrees), least_spread)
    return mean + student_t_quantile(1 - rate, degrees) * spread * math.sqrt(1 + 1 / len(scores))


def bound_by_typical(scores: NDArray[np.float64], rate: float, typical_score: float) -> float:
    """The same of logarithms, the mean shrunk towards the typical score; none or more scores."""
    n = len(scores)
    logs = np.log(np.maximum(scores, 1e-12))
    weight = n / (n + TYPICAL_IMAGES)
    mean = (1 - weight) * math.log(typical_score) + (weight * float(logs.mean()) if n else 0.0)
    own = max(0, n - 1)
    degrees = TYPICAL_WEIGHT + own
    squares = TYPICAL_WEIGHT * LOG_SPREAD**2 + (own * float(logs.var(ddof=1)) if own else 0.0)
    variance = squares / degrees + (1 - weight) * BETWEEN_PRODUCTS**2
    return math.exp(mean + student_t_quantile(1 - rate, degrees) * math.sqrt(variance))


def student_t_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t distribution.

    SciPy comes with scikit-learn. ``scipy.stats`` calls the same function and takes 0.7 s
    more to import, so it is not asked.
    """
    from scipy.special import stdtrit

    return float(stdtrit(degrees, probability))
