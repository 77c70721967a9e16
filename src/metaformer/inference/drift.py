"""Have the scores changed? A sequential test without any assumption on how scores are distributed.

**What is tested.** That scores come as if shuffled (are *exchangeable*): good parts and a steady
share of defective ones in random order, under one camera and light. A lamp that fades, a lens that
fouls, another batch of material, or a rise in defects breaks that.

**How.** Each score is ranked among all before it. If scores are exchangeable the ranks, turned
into p-values with ties broken at random, are independent and uniform, whatever the scores'
distribution (Vovk, Gammerman and Shafer, *Algorithmic Learning in a Random World*, 2nd edition
2022). A player who starts with one coin and bets on high or low p-values at fair odds (``BETS``,
mixed by Vovk's "simple jumper") then has a fortune that is expected to stay what it was: a
conformal test martingale. The statistic is the Shiryaev-Roberts sum: what the players hold of whom
one starts, with a coin, at each image.

**The false-alarm rate.** Under exchangeability that sum minus the number of images is a
martingale, so the image at which it first reaches 1 / rate is, on average, number 1 / rate or
later: at most one false warning in 1 / rate images on average. The bound is exact and needs no
reference set that is known to be good.

Bets are bounded: one image multiplies the fortune by 1.75 at most, however extreme its score, so a
few defects in a row seldom raise a warning, and a run of twenty does.
"""

from __future__ import annotations

import math
import random
from array import array
from bisect import bisect_left, bisect_right, insort
from dataclasses import dataclass
from statistics import median
from typing import Literal

BETS = (-1.5, -0.75, 0.0, 0.75, 1.5)
"""A bet e multiplies the fortune by 1 + e (p - 1/2): fair if p is uniform. Negative ones win on low
p-values, that is, on rising scores. Chosen by simulation (ours)."""
JUMP = 0.01
"""Share of each bet's fortune that is spread over all bets before each image (Vovk's value)."""
SHOWN = 500
"""Scores before and after the change whose medians are told."""


@dataclass(frozen=True)
class Drift:
    """A warning."""

    images: int
    """How many images the test has seen since it began or began anew."""
    since: int
    """How many images ago the change is likely to have come."""
    direction: Literal["up", "down"]
    before: float
    """Median raw score of up to ``SHOWN`` images before the change."""
    after: float
    """And after it."""


class Walk:
    """Logarithm of the capital of one bet that always leans the same way.

    It falls steadily while nothing changes and rises after a change that way, so the change came
    about where it was lowest.
    """

    def __init__(self, bet: float) -> None:
        self.bet = bet
        self.images = 0
        self.lowest_at = 0
        """After how many images it was lowest."""
        self._fortune = self._lowest = 0.0

    def update(self, p: float) -> None:
        self.images += 1
        self._fortune += math.log(1 + self.bet * (p - 0.5))
        if self._fortune <= self._lowest:
            self._lowest, self.lowest_at = self._fortune, self.images


class DriftTest:
    """Sequential test for a change in the scores. Feed them one by one and read ``drift``.

    Args:
        rate: mean number of false warnings per image, at most, in (0, 1); 1e-4 is one in 10,000.
        seed: breaks ties between equal scores.

    Raises:
        ValueError: the rate is not in (0, 1).
    """

    def __init__(self, rate: float, *, seed: int = 0) -> None:
        if not 0 < rate < 1:
            raise ValueError(
                f"the drift rate must lie strictly between 0 and 1, got {rate}. 0.0001 is at most "
                f"one false warning in 10,000 images on average."
            )
        self.rate = rate
        self._random = random.Random(seed)
        self.restart()

    def restart(self) -> None:
        """Forget all scores and take the next ones as the new reference."""
        self._scores = array("d")  # as they came; 16 bytes an image with the next line
        self._sorted = array("d")
        self._shares = [1 / len(BETS)] * len(BETS)
        self._rising, self._falling = Walk(min(BETS)), Walk(max(BETS))
        self.statistic = 0.0
        """The Shiryaev-Roberts sum; 1 / rate raises a warning."""

    def update(self, score: float) -> None:
        """Take in the raw score of the next image."""
        first, last = bisect_left(self._sorted, score), bisect_right(self._sorted, score)
        higher, equal = len(self._sorted) - last, last - first
        p = (higher + self._random.random() * (equal + 1)) / (len(self._sorted) + 1)
        insort(self._sorted, score)
        self._scores.append(score)

        staked = [(1 - JUMP) * share + JUMP / len(BETS) for share in self._shares]
        won = [share * (1 + bet * (p - 0.5)) for share, bet in zip(staked, BETS, strict=True)]
        factor = sum(won)
        self._shares = [share / factor for share in won]
        self.statistic = (1 + self.statistic) * factor
        self._rising.update(p)
        self._falling.update(p)

    @property
    def drift(self) -> Drift | None:
        """The warning, once the statistic has reached 1 / rate; None before."""
        if self.statistic < 1 / self.rate:
            return None
        count = len(self._scores)
        high = sum(s for s, bet in zip(self._shares, BETS, strict=True) if bet < 0)
        low = sum(s for s, bet in zip(self._shares, BETS, strict=True) if bet > 0)
        start = min((self._rising if high >= low else self._falling).lowest_at, count - 1)
        before = self._scores[max(0, start - SHOWN) : start] or self._scores[:1]
        after = self._scores[start:][:SHOWN]
        return Drift(
            images=count,
            since=count - start,
            direction="up" if high >= low else "down",
            before=median(before),
            after=median(after),
        )
