"""The drift test keeps its false-alarm rate whatever the scores' distribution, and finds shifts."""

from __future__ import annotations

import random
import subprocess
import sys
from statistics import mean, median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaformer.inference.drift import BETS, JUMP, DriftTest

SCORES = {
    "gauss": lambda r: r.gauss(0, 1),
    "heavy tail": lambda r: r.paretovariate(1.1),
    "coarse": lambda r: float(r.randrange(4)),  # mostly ties
    "constant": lambda r: 1.0,
    "with defects": lambda r: r.gauss(0, 1) + 20 * (r.random() < 0.05),
}


def until_warned(test: DriftTest, draw, most: int) -> int:
    for count in range(1, most + 1):
        test.update(draw())
        if test.drift:
            return count
    return most


@pytest.mark.parametrize("kind", SCORES)
def test_false_warnings_are_as_rare_as_stated(kind):
    """At most one in 1 / rate images, counted over many runs that begin anew after each."""
    rate, images, runs = 1 / 100, 2000, 25
    warnings = []
    for seed in range(runs):
        r = random.Random(f"{kind} {seed}")
        test, count = DriftTest(rate, seed=seed), 0
        for _ in range(images):
            test.update(SCORES[kind](r))
            if test.drift:
                count += 1
                test.restart()
        warnings.append(count)
    # Expected at most 20 a run; of the mean's standard error (about 0.6) three are allowed.
    assert mean(warnings) <= rate * images + 2
    assert sum(warnings) > 0  # a test that never warns keeps every rate


def test_the_first_false_warning_comes_on_average_no_earlier_than_stated():
    rate, most = 1 / 50, 2000
    waits = []
    for seed in range(400):
        r = random.Random(f"scores {seed}")  # not the stream that breaks ties
        waits.append(until_warned(DriftTest(rate, seed=seed), lambda: r.random(), most))  # noqa: B023
    # Cutting waits at ``most`` only shortens the mean.
    assert mean(waits) >= 50
    assert mean(waits) < 50 * 4  # and the bound is not empty


@pytest.mark.parametrize(
    ("shift", "within"), [(1.0, 60), (-1.0, 60), (2.0, 30), (-2.0, 30), (0.5, 220)]
)
def test_a_shift_is_found_soon(shift, within):
    """At one false warning in 10,000, after 200 images, in 95 % of runs."""
    waits, directions, sinces = [], set(), []
    for seed in range(60):
        r = random.Random(f"scores {seed}")  # not the stream that breaks ties
        test = DriftTest(1e-4, seed=seed)
        for _ in range(200):
            test.update(r.gauss(0, 1))
        assert test.drift is None
        waits.append(until_warned(test, lambda: r.gauss(shift, 1), 1000))  # noqa: B023
        drift = test.drift
        if drift is None:  # a small shift may become the reference before it is found
            continue
        directions.add(drift.direction)
        sinces.append(drift.since - waits[-1])
        assert (drift.after > drift.before) == (shift > 0)
    # A run without a warning counts as the longest wait; only the smallest shift may have one.
    assert sorted(waits)[int(0.95 * len(waits))] <= within, sorted(waits)
    assert abs(shift) < 1 or max(waits) < 1000
    assert directions == {"up" if shift > 0 else "down"}
    assert abs(median(sinces)) <= 15  # when the change came is told to within some images


def test_a_slow_change_is_found():
    r = random.Random(0)
    test = DriftTest(1e-4)
    step = iter(range(10_000))
    # Up by one standard deviation in 500 images.
    assert until_warned(test, lambda: r.gauss(next(step) / 500, 1), 2000) < 1000


def test_a_few_defects_in_a_row_do_not_warn_and_many_do():
    few, many = 0, 0
    for seed in range(40):
        r = random.Random(f"scores {seed}")  # not the stream that breaks ties
        test = DriftTest(1e-4, seed=seed)
        for _ in range(500):
            test.update(r.gauss(0, 1))
        for _ in range(6):
            test.update(1e9)
        few += test.drift is not None
        for _ in range(19):
            test.update(1e9)
        many += test.drift is not None
    assert few <= 2 and many == 40


def test_after_a_warning_the_new_level_is_the_reference():
    false, back = 0, 0
    for seed in range(20):
        r = random.Random(f"scores {seed}")
        test = DriftTest(1e-4, seed=seed)
        for _ in range(200):
            test.update(r.gauss(0, 1))
        until_warned(test, lambda: r.gauss(3, 1), 100)  # noqa: B023
        test.restart()
        assert test.drift is None and test.statistic == 0
        false += until_warned(test, lambda: r.gauss(3, 1), 500) < 500  # noqa: B023
        test.restart()
        for _ in range(200):
            test.update(r.gauss(3, 1))
        back += until_warned(test, lambda: r.gauss(0, 1), 30) < 30  # noqa: B023
    assert false <= 3 and back == 20


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=60), st.integers(0, 9))
def test_only_ranks_count(scores, seed):
    """Any rising function of the scores gives the same statistic; so does the same run again."""
    first, again, cubed = (DriftTest(1e-4, seed=seed) for _ in range(3))
    ranks = {score: rank for rank, score in enumerate(sorted(set(scores)))}
    for score in scores:
        first.update(score)
        again.update(score)
        cubed.update(float(ranks[score]) ** 3 - 5)
    assert first.statistic == again.statistic == cubed.statistic


@given(st.lists(st.floats(0, 1), min_size=1, max_size=200), st.integers(0, 9))
def test_one_image_multiplies_what_is_held_by_no_more_than_a_bounded_bet(scores, seed):
    test = DriftTest(0.4, seed=seed)
    most = 1 + max(BETS) / 2
    for score in scores:
        before = test.statistic
        test.update(score)
        assert 0 < test.statistic <= (1 + before) * most + 1e-9


def test_bets_are_fair_and_solvent():
    """The mean over p of 1 + e (p - 1/2) is 1, and it is above 0 for all p."""
    assert all(abs(bet) < 2 for bet in BETS) and sorted(-b for b in BETS) == sorted(BETS)
    assert 0 < JUMP < 1


def test_many_images_are_quick():
    r = random.Random(0)
    test = DriftTest(1e-9)
    for _ in range(100_000):
        test.update(r.random())
    assert test.drift is None and test.statistic > 0


@pytest.mark.parametrize("rate", [0, 1, -0.1, float("nan")])
def test_rates_outside_are_refused(rate):
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        DriftTest(rate)


def test_the_module_is_light():
    code = (
        "import sys, metaformer.inference.drift, metaformer.inference.webhook; print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert not {"numpy", "torch"} & set(loaded.split())
