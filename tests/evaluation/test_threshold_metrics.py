"""What a threshold catches, against counts made by hand and intervals from the literature."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from metaformer.evaluation.threshold_metrics import (
    by_kind,
    flag,
    images_behind_mean,
    interval,
    threshold_at,
    threshold_metrics,
)


@pytest.mark.parametrize(("good", "above"), [(1, 0), (19, 0), (20, 1), (39, 1), (40, 2), (140, 7)])
def test_at_most_five_percent_of_the_good_images_lie_above(good: int, above: int) -> None:
    scores = np.random.default_rng(good).permutation(good).astype(float)
    assert (scores > threshold_at(scores)).sum() == above


def test_ties_with_the_threshold_are_not_counted_as_caught() -> None:
    labels = [0] * 20 + [1] * 4
    scores = [*range(20), 18, 18.5, 19, 30]
    flags = flag(labels, scores, None)
    # The threshold is 18: one good image, 19, lies above it.
    assert threshold_metrics(labels, flags) == {
        "recall": None,
        "false_alarm_rate": None,
        "recall_at_5": 0.75,
    }


def test_shares_at_the_shipped_threshold_are_counted_by_class() -> None:
    labels = [0, 0, 0, 0, 1, 1]
    flags = flag(labels, [0, 1, 2, 3, 2, 4], [False, False, True, True, True, True])
    found = threshold_metrics(labels, flags)
    assert found == {"recall": 1.0, "false_alarm_rate": 0.5, "recall_at_5": 0.5}


def test_a_missing_class_gives_none() -> None:
    assert threshold_metrics([1, 1], flag([1, 1], [1, 2], [True, False])) == {
        "recall": 0.5,
        "false_alarm_rate": None,
        "recall_at_5": None,
    }
    assert threshold_metrics([0], flag([0], [1], [True]))["recall"] is None


def test_kinds_are_averaged_over_runs() -> None:
    kinds, labels = ["good", "hole", "hole"], [False, True, True]
    runs = [flag(labels, [0, 1, 2], hit) for hit in ([False, True, True], [True, False, True])]
    found = by_kind(kinds, labels, runs)
    assert list(found) == ["good", "hole"]
    assert (found["good"]["flagged"], found["good"]["is_defect"]) == (0.5, False)
    assert (found["hole"]["images"], found["hole"]["flagged"]) == (2, 0.75)
    assert found["hole"]["flagged_ci"] == interval(0.75, 2)


@pytest.mark.parametrize(("hits", "images"), [(0, 13), (5, 8), (60, 60), (17, 392)])
def test_the_interval_is_wilsons(hits: int, images: int) -> None:
    expected = binomtest(hits, images).proportion_ci(0.95, method="wilson")
    assert interval(hits / images, images) == pytest.approx([expected.low, expected.high])


def test_no_images_no_interval() -> None:
    assert interval(None, 10) is None
    assert interval(0.5, 0) is None


def test_a_mean_over_categories_is_worth_as_many_images_as_its_variance_says() -> None:
    assert images_behind_mean([10]) == 10
    assert images_behind_mean([10, 10]) == pytest.approx(20)
    assert images_behind_mean([10, 1000]) < 40  # the small category dominates the error
    assert images_behind_mean([10, 0]) == 0
