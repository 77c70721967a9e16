"""Geometry of the report's histogram of scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

BINS = 50
"""Bars over scores 0 to 1; the threshold, 0.5, falls between two of them."""
PLOT_HEIGHT = 120
"""Height of the highest bar, in CSS pixels; the page fits the width to the screen."""
LEAST_HEIGHT = 3
"""One image among a hundred thousand still shows."""


@dataclass(frozen=True)
class Bar:
    left: float
    """Per cent of the width, as all horizontal measures here."""
    height: float
    """CSS pixels."""
    count: int
    label: str


@dataclass(frozen=True)
class Grid:
    height: float
    count: int


@dataclass(frozen=True)
class Histogram:
    bars: tuple[Bar, ...]
    bar_width: float
    grid: tuple[Grid, ...]
    support: tuple[float, ...]
    """Where the normal scores that set the threshold stand."""
    plot_height: int = PLOT_HEIGHT


def draw_histogram(scores: ArrayLike, support: Sequence[float]) -> Histogram:
    """Bars of ``scores`` and marks of ``support``, all in [0, 1].

    Heights go with the square root of the count: in a large set the few defects would vanish
    beside the normal images on a linear scale. The grid lines carry counts for that reason.
    """
    # Binned by hand: numpy's edges are rounded, and 0.5 must open the bar on its right.
    index = np.minimum((np.asarray(scores, dtype=np.float64) * BINS).astype(np.intp), BINS - 1)
    counts = np.bincount(index, minlength=BINS)
    top = int(counts.max())
    step = 100 / BINS
    bars = tuple(
        Bar(
            left=round(i * step, 2),
            height=round(max(LEAST_HEIGHT, bar_height(count, top)), 1),
            count=count,
            label=f"{i / BINS:.2f} to {(i + 1) / BINS:.2f}: {count:,} scored",
        )
        for i, count in enumerate(counts.tolist())
        if count
    )
    nice = sorted({round_down(top), round_down(top / 4)} - {0})
    grid = tuple(Grid(round(bar_height(count, top), 1), count) for count in nice)
    marks = tuple(round(100 * score, 2) for score in support)
    return Histogram(bars, round(0.86 * step, 2), grid, marks)


def bar_height(count: int, top: int) -> float:
    return PLOT_HEIGHT * float(np.sqrt(count / top))


def round_down(count: float) -> int:
    """The largest of 1, 2, 5, 10, 20, 50 ... that is not above ``count``; 0 below 1."""
    if count < 1:
        return 0
    power = 10 ** int(np.floor(np.log10(count)))
    return int(max(step * power for step in (1, 2, 5) if step * power <= count))
