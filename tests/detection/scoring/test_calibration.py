from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from metaformer.detection.scoring.calibration import Calibration, calibrate
from metaformer.detection.scoring.prediction_bounds import (
    BETWEEN_PRODUCTS,
    LOG_SPREAD,
    RELATIVE_SPREAD,
    TYPICAL_IMAGES,
    TYPICAL_SPREAD,
    TYPICAL_WEIGHT,
    student_t_quantile,
)

raw_scores = st.floats(0, 1e6, allow_nan=False)
supports = st.lists(raw_scores, min_size=2, max_size=40)
rates = st.floats(0.001, 0.9)


def calibration_of(scores, rate=0.05, **options) -> Calibration:
    return calibrate(scores, rate, pixel_threshold=0.3, **options)


# The threshold


def test_rank_rule_takes_the_smallest_score_that_holds_the_rate():
    scores = np.linspace(0.1, 0.5, 19)
    assert calibration_of(scores, 0.05).rule == "rank"
    assert calibration_of(scores, 0.05).threshold == pytest.approx(0.5)
    # Two of 20 ranks may lie at or above the threshold at 10 %.
    assert calibration_of(scores, 0.10).threshold == pytest.approx(scores[-2])
    assert calibration_of(scores, 0.30).threshold == pytest.approx(scores[13])


@pytest.mark.parametrize(
    ("count", "rate", "rank"), [(9, 0.7, 3), (19, 0.95, 1), (24, 0.44, 14), (499, 0.3, 350)]
)
def test_rank_is_exact_where_floats_would_round_it_up(count, rate, rank):
    scores = np.arange(1, count + 1) / 10
    floor = np.median(scores) * (1 + RELATIVE_SPREAD)
    expected = max(np.nextafter(scores[rank - 1], np.inf), floor)
    assert calibration_of(scores, rate).threshold == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("count", "rate"), [(19, 0.05), (9, 0.1), (99, 0.01), (4, 0.2), (2, 1 / 3)]
)
def test_rank_rule_starts_at_the_number_of_images_the_text_promises(count, rate):
    enough = calibration_of(np.linspace(0.1, 0.5, count), rate)
    assert enough.rule == "rank"
    assert "no assumption" in enough.guarantee
    assert f"the {count} shown" in enough.guarantee
    if count > 2:
        short = calibration_of(np.linspace(0.1, 0.5, count - 1), rate)
        assert short.rule == "tail"
        assert f"({count} could)" in short.guarantee


def test_tail_rule_is_the_prediction_bound_with_the_typical_spread_as_prior():
    from scipy.stats import t

    scores = [0.2, 0.24, 0.21]
    mean, n, degrees = np.mean(scores), 3, TYPICAL_WEIGHT + 2
    squares = TYPICAL_WEIGHT * (TYPICAL_SPREAD * mean) ** 2 + (n - 1) * np.var(scores, ddof=1)
    expected = mean + t.ppf(0.95, degrees) * math.sqrt(squares / degrees * (1 + 1 / n))
    result = calibration_of(scores)
    assert result.rule == "tail"
    assert result.threshold == pytest.approx(expected)
    assert "cannot guarantee" in result.guarantee
    assert "25.0%" in result.guarantee  # the best that three images can


def test_views_of_one_image_say_nothing_where_a_typical_score_is_known():
    """Two lone images, one of a plain surface whose noisy views score as high as a defect."""
    plain, textured = (
        calibration_of(views, from_views=True, typical_score=15.0)
        for views in ([20.8, 21.9, 23.7], [9.2, 10.1, 11.0])
    )
    from scipy.stats import t

    spread = math.hypot(LOG_SPREAD, BETWEEN_PRODUCTS)
    expected = 15 * math.exp(t.ppf(0.95, TYPICAL_WEIGHT) * spread)
    assert plain.threshold == textured.threshold == pytest.approx(expected)
    assert plain.score(15.0) == 0.25
    assert "other products" in plain.guarantee


@given(supports, rates, st.floats(0.1, 100))
def test_a_typical_score_draws_the_threshold_towards_itself(scores, rate, typical):
    scores = [1 + score for score in scores]
    lower, higher = (
        calibration_of(scores, rate, typical_score=factor * typical) for factor in (1, 2)
    )
    if lower.rule == "rank":  # its promise needs no other product
        assert lower.threshold == higher.threshold == calibration_of(scores, rate).threshold
    else:
        assert lower.threshold <= higher.threshold
        assert min(lower.threshold, higher.threshold) > max(scores)
    assert Calibration.from_dict(json.loads(json.dumps(lower.to_dict()))) == lower


@pytest.mark.parametrize("count", [2, 4, 10])
def test_with_a_typical_score_the_bound_holds_over_products(count):
    """Each product's mean lies about the typical one, as images of a product lie about its mean."""
    rng = np.random.default_rng(count)
    alarms, runs = 0, 2000
    for _ in range(runs):
        mean = 15 * math.exp(rng.normal(0, BETWEEN_PRODUCTS))
        drawn = mean * np.exp(rng.normal(0, LOG_SPREAD, count + 1))
        found = calibration_of(drawn[:-1], 0.05, typical_score=15.0)
        alarms += drawn[-1] >= found.threshold
    assert 0.015 <= alarms / runs <= 0.065


def test_the_typical_score_counts_for_some_images():
    scores = np.full(TYPICAL_IMAGES, 10.0)
    found = calibration_of(scores, 0.5, typical_score=20.0)
    assert found.rule == "rank" or found.threshold == pytest.approx(math.sqrt(200), rel=1e-3)


def test_tail_threshold_lies_above_every_normal_score():
    assert calibration_of([0.2, 0.2, 0.2, 0.2, 0.9], 0.15).threshold > 0.9


def test_views_of_one_image_never_claim_the_rank_rule():
    result = calibration_of(np.linspace(0.1, 0.2, 50), from_views=True)
    assert result.rule == "views"
    assert "guess" in result.guarantee
    assert result.with_false_alarm_rate(0.3).rule == "views"


def test_how_views_differ_among_themselves_does_not_move_the_threshold():
    """They say where normal scores lie, and nothing of how parts differ."""
    close = calibration_of([0.20, 0.21, 0.22], from_views=True)
    apart = calibration_of([0.18, 0.21, 0.24], from_views=True)
    assert close.threshold == pytest.approx(apart.threshold)


@given(supports, rates, rates, st.booleans())
def test_threshold_falls_as_the_rate_rises(scores, first, second, from_views):
    low, high = sorted((first, second))
    strict = calibration_of(scores, low, from_views=from_views)
    lenient = calibration_of(scores, high, from_views=from_views)
    assert strict.threshold >= lenient.threshold


@given(supports, rates)
def test_with_false_alarm_rate_is_calibrating_again(scores, rate):
    first = calibration_of(scores, 0.05)
    again = first.with_false_alarm_rate(rate)
    assert again == calibration_of(scores, rate)
    assert again.with_false_alarm_rate(0.05) == first


@pytest.mark.parametrize(("count", "rate"), [(19, 0.05), (20, 0.1), (30, 0.05), (50, 0.2)])
@pytest.mark.parametrize("law", ["normal", "lognormal", "ties"])
def test_rank_rule_holds_its_rate_on_exchangeable_normals(count, rate, law):
    """Whatever the law of the scores, and without giving detection away."""
    rng = np.random.default_rng(0)
    alarms, runs = 0, 2000
    for _ in range(runs):
        if law == "normal":
            drawn = rng.normal(10, 1, count + 1)
        elif law == "lognormal":
            drawn = rng.lognormal(0, 1, count + 1)
        else:
            drawn = rng.integers(5, 12, count + 1).astype(float)
        result = calibration_of(drawn[:-1], rate)
        assert result.rule == "rank"
        alarms += drawn[-1] >= result.threshold
    error = 3 * math.sqrt(rate * (1 - rate) / runs)
    assert alarms / runs <= rate + error
    if law == "lognormal":  # no ties, and the least spread does not bind: the rate is used up
        assert alarms / runs >= rate - 1 / (count + 1) - error


@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_tail_rule_holds_about_its_rate_on_a_typical_product(count):
    """Gaussian scores whose spread is the typical one; what it cannot promise it should do."""
    rng = np.random.default_rng(count)
    alarms, runs = 0, 2000
    for _ in range(runs):
        drawn = rng.normal(1, TYPICAL_SPREAD, count + 1)
        alarms += drawn[-1] >= calibration_of(drawn[:-1], 0.05).threshold
    assert 0.015 <= alarms / runs <= 0.065


def test_tail_rule_still_flags_with_two_images():
    """The plain bound of two scores lies at 9 standard deviations and more."""
    result = calibration_of([0.20, 0.22], 0.05)
    assert result.threshold < 2 * 0.21


# Scores


def test_score_is_a_half_at_the_threshold_and_a_quarter_at_the_median():
    for scores in ([0.2, 0.21, 0.25], np.linspace(0.1, 0.5, 30), [7.0, 7.0], [3.0, 900.0, 4.0]):
        result = calibration_of(scores)
        assert result.score(result.threshold) == 0.5
        assert result.score(result.center) == 0.25


@given(supports, rates, raw_scores, raw_scores)
def test_score_keeps_the_ranking(scores, rate, first, second):
    result = calibration_of(scores, rate)
    low, high = sorted((first, second))
    assert result.score(low) <= result.score(high)
    if high - low > 1e-6 * (result.spread + abs(high)):
        assert result.score(low) < result.score(high)
    assert result.score(low) > 0 and result.score(high) < 1


@given(supports, rates, raw_scores)
def test_score_reaches_a_half_exactly_when_the_image_is_anomalous(scores, rate, raw):
    result = calibration_of(scores, rate)
    for value in (raw, *scores, result.threshold, np.nextafter(result.threshold, 0)):
        assert (result.score(value) >= 0.5) == (value >= result.threshold)


def test_score_does_not_saturate_for_huge_raw_values():
    result = calibration_of([0.2, 0.21, 0.25])
    scores = [result.score(10.0**power) for power in range(-3, 7)]
    assert all(low < high for low, high in pairwise(scores))
    assert scores[-1] < 1


@pytest.mark.parametrize("scores", [[0.0, 0.0], [0.3] * 25, [1e-30, 2e-30], [1e12, 1e12]])
def test_degenerate_normals_still_give_finite_ordered_scores(scores):
    for rate in (0.01, 0.05, 0.5):
        result = calibration_of(scores, rate)
        assert result.threshold > max(scores)
        assert result.spread > 0
        assert result.score(scores[0]) == pytest.approx(0.25, abs=0.01)
        assert 0.25 < result.score(result.threshold * 0.999999) < 0.5 < result.score(2e12)


def test_equal_normals_leave_room_for_a_slightly_different_one():
    result = calibration_of([0.5] * 30)
    assert result.score(0.5 * (1 + RELATIVE_SPREAD / 2)) < 0.5


def test_scores_are_comparable_across_products():
    """The same part seen by a detector whose raw scores are a thousand times larger."""
    scores = np.array([0.2, 0.21, 0.25, 0.22])
    small, large = calibration_of(scores), calibration_of(1000 * scores)
    for raw in (0.1, 0.22, 0.4):
        assert small.score(raw) == pytest.approx(large.score(1000 * raw))


def test_map_is_a_half_at_the_pixel_threshold_and_keeps_shape_and_order():
    result = calibration_of([0.2, 0.21, 0.25])
    raw = np.linspace(0, 2, 35, dtype=np.float32).reshape(5, 7)
    calibrated = result.map(raw)
    assert calibrated.shape == (5, 7)
    assert calibrated.dtype == np.float32
    assert (np.diff(calibrated.ravel()) > 0).all()
    assert result.map(np.full((1, 1), 0.3, np.float32)) == pytest.approx(0.5, abs=1e-6)


# p-values


def test_p_value_counts_ranks():
    result = calibration_of([0.1, 0.2, 0.3, 0.4])
    assert result.p_value(0.05) == 1
    assert result.p_value(0.25) == pytest.approx(3 / 5)
    assert result.p_value(0.3) == pytest.approx(3 / 5)  # a tie counts against the image
    assert result.p_value(99) == pytest.approx(1 / 5)


@pytest.mark.parametrize("law", ["normal", "ties"])
def test_p_values_are_valid(law):
    """P(p <= a) <= a for a new normal image, for every a."""
    rng = np.random.default_rng(1)
    runs, count = 4000, 19
    p_values = np.empty(runs)
    for i in range(runs):
        drawn = rng.normal(5, 1, count + 1)
        if law == "ties":
            drawn = np.round(drawn)
        p_values[i] = calibration_of(drawn[:-1]).p_value(drawn[-1])
    for level in np.arange(1, 20) / 20:
        rate = (p_values <= level + 1e-12).mean()
        assert rate <= level + 3 * math.sqrt(level * (1 - level) / runs)
        if law == "normal":
            assert rate >= level - 3 * math.sqrt(level * (1 - level) / runs)


@given(supports, raw_scores, raw_scores)
def test_p_value_falls_as_the_score_rises(scores, first, second):
    result = calibration_of(scores)
    low, high = sorted((first, second))
    assert 1 / (len(scores) + 1) <= result.p_value(high) <= result.p_value(low) <= 1


@given(supports, rates, raw_scores)
def test_under_the_rank_rule_the_threshold_and_the_p_value_agree(scores, rate, raw):
    result = calibration_of(scores, rate)
    assume(result.rule == "rank" and raw >= result.threshold)
    assert result.p_value(raw) <= rate + 1e-9


# Keeping and refusing


@given(supports, rates, st.booleans())
def test_round_trip_through_json_is_exact(scores, rate, from_views):
    result = calibration_of(scores, rate, from_views=from_views)
    assert Calibration.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_order_of_the_scores_does_not_matter():
    assert calibration_of([0.3, 0.1, 0.2]) == calibration_of([0.1, 0.2, 0.3])


@pytest.mark.parametrize("rate", [0, 1, -0.1, 1.5, math.nan])
def test_a_rate_outside_0_to_1_is_refused(rate):
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        calibration_of([0.1, 0.2], rate)


@pytest.mark.parametrize("scores", [[], [0.1], [0.1, math.nan], [0.1, math.inf]])
def test_too_few_or_broken_scores_are_refused(scores):
    with pytest.raises(ValueError, match="two or more finite normal scores"):
        calibration_of(scores)


def test_student_t_quantile():
    assert student_t_quantile(0.975, 10) == pytest.approx(2.228139, abs=1e-6)
    assert student_t_quantile(0.5, 3) == pytest.approx(0, abs=1e-12)
