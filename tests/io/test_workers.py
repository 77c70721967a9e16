"""Several images at once: the same results, in order, and PyTorch's threads as they were."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch

from metaformer import Metaformer
from metaformer.io.workers import WorkerPool, ordered_map, usual_workers
from tests.helpers import boards, trees


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_the_order_of_the_items(workers):
    def slow_when_first(number: int) -> int:
        time.sleep(0.02 * (number % 3 == 0))
        return number * number

    assert list(ordered_map(slow_when_first, range(10), workers)) == [n * n for n in range(10)]


@pytest.mark.parametrize("workers", [1, 3])
def test_no_more_items_are_drawn_than_are_at_work(workers):
    drawn: list[int] = []

    def endless():
        while True:
            drawn.append(len(drawn))
            yield len(drawn)

    results = ordered_map(float, endless(), workers)
    for taken in range(1, 6):
        next(results)
        assert len(drawn) <= taken + workers - 1
    results.close()


def test_as_many_work_at_once_as_there_are_workers():
    together = threading.Barrier(3, timeout=10)
    assert len(list(ordered_map(lambda _: together.wait(), range(3), 3))) == 3


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_comes_at_its_turn(workers):
    results = ordered_map(lambda number: 1 / number, [2, 1, 0, 4], workers)
    assert [next(results), next(results)] == [0.5, 1.0]
    with pytest.raises(ZeroDivisionError):
        next(results)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_an_error_of_the_items_comes_after_what_was_drawn_before(workers):
    def items():
        yield from (1, 2, 3)
        raise OSError("gone")

    done: list[float] = []
    with pytest.raises(OSError, match="gone"):
        done.extend(ordered_map(float, items(), workers))
    results = ordered_map(float, items(), workers)
    assert [next(results) for _ in range(3)] == [1.0, 2.0, 3.0]
    with pytest.raises(OSError, match="gone"):
        next(results)


def test_workers_share_the_threads_which_are_as_before_afterwards():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        assert set(ordered_map(lambda _: torch.get_num_threads(), range(4), 2)) == {2}
        assert torch.get_num_threads() == 4
        with WorkerPool(9) as pool:
            assert pool.submit(torch.get_num_threads).result() == 1
        later: list[int] = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert later == [4]
        assert usual_workers() == 4
    finally:
        torch.set_num_threads(before)


def test_nobody_cannot_work():
    with pytest.raises(ValueError, match="workers: found 0"):
        list(ordered_map(float, [1], 0))


@pytest.mark.parametrize("preset", ["feature", "pixel"])
def test_scores_do_not_depend_on_the_workers(preset):
    """Nor on the order, among images of different sizes."""
    universal = Metaformer.from_pretrained(preset)
    detector = universal.adapt([boards.good(number) for number in range(3)])
    images = [boards.defective(0), trees.picture(4, 200, 50), boards.good(8), boards.good(9)] * 3
    alone = list(detector.predict_many(images))
    together = list(detector.predict_many(images, workers=2))
    backwards = list(detector.predict_many(images[::-1], workers=2))[::-1]
    for one, two, three in zip(alone, together, backwards, strict=True):
        np.testing.assert_allclose(two.raw_score, one.raw_score, rtol=1e-5)
        np.testing.assert_allclose(two.anomaly_map, one.anomaly_map, rtol=1e-4, atol=1e-5)
        assert two.raw_score == three.raw_score
        np.testing.assert_array_equal(two.anomaly_map, three.anomaly_map)
