"""Several images at once, each by a thread of its own.

The layers of a small image are too short for two threads to share well: with two images at
once, one thread each, each takes longer but the pair takes less (``docs/scale.md``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

MOST_WORKERS = 4
"""Every worker holds an image and its feature maps."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class WorkerPool(ThreadPoolExecutor):
    """Worker threads that share PyTorch's threads among them.

    Sums are made in another order by another number of threads, so scores differ by a few
    millionths with ``workers``; they do not with the order of images.

    Args:
        workers: at least 1.
    """

    def __init__(self, workers: int) -> None:
        if workers < 1:
            raise ValueError(f"workers: found {workers}; accepted are 1 and more.")
        self.workers = workers
        self.threads_before = torch.get_num_threads()
        super().__init__(
            workers,
            thread_name_prefix="score",
            initializer=torch.set_num_threads,
            initargs=(max(1, self.threads_before // workers),),
        )

    def __exit__(self, *error: object) -> None:
        try:
            self.shutdown(cancel_futures=True)
        finally:
            # Each thread has its own number; those started from now on have the one set last.
            torch.set_num_threads(self.threads_before)


def ordered_map(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Generator[Result, None, None]:
    """``work`` on ``workers`` of the items at a time: results in the order of ``items``, of which
    no more are drawn than are at work. With one worker that is the caller's own thread. An error,
    of ``work`` or of ``items``, comes at its turn."""
    if workers == 1:
        yield from map(work, items)
        return
    with WorkerPool(workers) as pool:
        working: deque[Future[Result]] = deque()
        drawn, failure = iter(items), None
        while True:
            try:
                working.append(pool.submit(work, next(drawn)))
            except StopIteration:
                break
            except Exception as error:
                failure = error
                break
            if len(working) == workers:
                yield working.popleft().result()
        while working:
            yield working.popleft().result()
        if failure is not None:
            raise failure


def usual_workers() -> int:
    """As many as PyTorch has threads, within reason."""
    return min(MOST_WORKERS, torch.get_num_threads())
