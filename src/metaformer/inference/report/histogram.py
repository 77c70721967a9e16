"""Geometry of the report's histogram of scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

BINS = 50
"""Bars over scores 0 to 1; the threshold, 0.5, falls between two of them."""
PLOT_HEIGHT = 120
"""Height of the highest bar, in CSS pixels; the page fits the width to the screen."""
ROW_HEIGHT = 70
"""The same where the histogram has a row for each truth."""
ROW_GAP = 28
"""CSS pixels between the rows."""
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
class Row:
    """Bars of the scores of one truth, or of all scores."""

    title: str
    """What they have in common; empty for all scores."""
    bars: tuple[Bar, ...]
    grid: tuple[Grid, ...]
    base: float
    """CSS pixels from the top to the foot of the bars."""


@dataclass(frozen=True)
class Histogram:
    rows: tuple[Row, ...]
    bar_width: float
    support: tuple[float, ...]
    """Where the normal scores that set the threshold stand."""
    height: float
    """CSS pixels from the top to the foot of the lowest row."""


def draw_histogram(groups: Mapping[str, ArrayLike], support: Sequence[float]) -> Histogram:
    """Bars of scores and marks of ``support``, all in [0, 1].

    Args:
        groups: title -> scores; one row each. The scale of the rows is one, the highest bar's.
        support: scores of the images that set the threshold.

    Heights go with the square root of the count: in a large set the few defects would vanish
    beside the normal images on a linear scale. The grid lines carry counts for that reason.
    """
    counts = {title: bin_scores(scores) for title, scores in groups.items()}
    tall = PLOT_HEIGHT if len(groups) == 1 else ROW_HEIGHT
    gap = 0 if len(groups) == 1 else ROW_GAP
    top = max((int(count.max()) for count in counts.values()), default=0)
    step = 100 / BINS
    rows = []
    foot = 0.0
    for title, row in counts.items():
        foot += tall + (14 if gap == 0 else gap)
        own = int(row.max())
        nice = sorted({round_down(own), round_down(own / 4)} - {0})
        if gap:  # low rows have no room for two lines
            nice = nice[-1:]
        bars = tuple(
            Bar(
                left=round(i * step, 2),
                height=round(max(LEAST_HEIGHT, bar_height(count, top, tall)), 1),
                count=count,
                label=f"{i / BINS:.2f} to {(i + 1) / BINS:.2f}: {count:,} scored",
            )
            for i, count in enumerate(row.tolist())
            if count
        )
        grid = tuple(Grid(round(bar_height(count, top, tall), 1), count) for count in nice)
        rows.append(Row(title, bars, grid, round(foot, 1)))
    marks = tuple(round(100 * score, 2) for score in support)
    return Histogram(tuple(rows), round(0.86 * step, 2), marks, foot)


def bin_scores(scores: ArrayLike) -> NDArray[np.intp]:
    """Counts (BINS,)."""
    # By hand: numpy's edges are rounded, and 0.5 must open the bar on its right.
    index = np.minimum((np.asarray(scores, dtype=np.float64) * BINS).astype(np.intp), BINS - 1)
    return np.bincount(index, minlength=BINS)


def bar_height(count: int, top: int, tall: int = PLOT_HEIGHT) -> float:
    return tall * float(np.sqrt(count / top))


def round_down(count: float) -> int:
    """The largest of 1, 2, 5, 10, 20, 50 ... that is not above ``count``; 0 below 1."""
    if count < 1:
        return 0
    power = 10 ** int(np.floor(np.log10(count)))
    return int(max(step * power for step in (1, 2, 5) if step * power <= count))
