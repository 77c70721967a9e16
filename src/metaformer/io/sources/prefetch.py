"""Decoding images in other threads while the last one is scored, in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from threading import Condition
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from metaformer.io.images import MAX_PIXELS, ImageError, pixels_of
from metaformer.io.sources.readers import Item, decode_item, fetch
from metaformer.io.workers import WorkerPool

READ_AHEAD = 4
"""Images asked for ahead of the one being scored."""
DECODERS = 2
"""Threads that decode; Pillow lets go of the interpreter while it does."""
PIXEL_BUDGET = 40_000_000
"""Pixels in memory or being decoded at a time, the image being scored included; a larger image is
alone. Decoding takes 9 bytes a pixel at its peak and scoring 13 (measured), so that with 0.3 GB
for the program ``predict`` stays under 1 GB (``tests/inference/test_scale.py``)."""

LARGE = PIXEL_BUDGET // 2
PILLOW_BLOCK = 64 * 2**20
"""Pillow allocates images in blocks. Its own size, 16 MB, is one that the allocator of the C
library keeps for each thread after use: 190 MB a thread for a photo of 48 megapixels. Blocks over
32 MB are given back. It costs a fifth of a second for such a photo, so smaller ones are spared."""

Decoded = tuple[Item, NDArray[np.uint8] | ImageError]
Held = tuple[Decoded, int]
"""With the pixels that it counts as."""
Result = TypeVar("Result")


class PixelBudget:
    """A budget of decoded pixels in memory; images are admitted in order while there is room."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._held = 0
        self._taken = 0
        self._entered = 0
        self._is_closed = False
        self._changed = Condition()

    @contextmanager
    def taking(self, turn: int) -> Iterator[None]:
        """The right to take the next item, once those of earlier turns are taken.

        Turns count from 0. Raises: InterruptedError: the budget was closed.
        """
        self._wait_for(lambda: self._taken == turn)
        try:
            yield
        finally:
            with self._changed:
                self._taken += 1
                self._changed.notify_all()

    def enter(self, turn: int, pixels: int) -> None:
        """Wait until earlier turns have entered and there is room.

        Raises:
            InterruptedError: the budget was closed.
        """

        def may_enter() -> bool:
            has_room = not self._held or self._held + pixels <= self.limit
            return self._entered == turn and has_room

        self._wait_for(may_enter)
        with self._changed:
            self._held += pixels
            self._entered += 1
            self._changed.notify_all()

    def leave(self, pixels: int) -> None:
        with self._changed:
            self._held -= pixels
            self._changed.notify_all()

    def close(self) -> None:
        """Wake all waiting threads so that they stop."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _wait_for(self, is_time: Callable[[], bool]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or is_time())
            if self._is_closed:
                raise InterruptedError("no more images are wanted")


class Decoding:
    """Items as they are decoded, a few ahead of the one asked for."""

    def __init__(self, items: Iterator[Item], white_level: int | None, pixel_budget: int) -> None:
        self._items = items
        self._white_level = white_level
        self._budget = PixelBudget(pixel_budget)
        self._pool = ThreadPoolExecutor(DECODERS, thread_name_prefix="decode")
        self._pending = deque(self._pool.submit(self._next, turn) for turn in range(READ_AHEAD))
        self._asked = READ_AHEAD

    @property
    def next(self) -> Future[Held | None]:
        """The next item as a future."""
        return self._pending[0]

    def take(self) -> Held | None:
        """The next item and the pixels it holds until ``leave``; None after the last."""
        held = self._pending[0].result()
        if held is not None:
            self._pending.popleft()
            self._pending.append(self._pool.submit(self._next, self._asked))
            self._asked += 1
        return held

    def leave(self, pixels: int) -> None:
        """Make room for others."""
        self._budget.leave(pixels)

    def close(self) -> None:
        self._budget.close()
        self._pool.shutdown(cancel_futures=True)

    def _next(self, turn: int) -> Held | None:
        with self._budget.taking(turn):  # items come from one file at a time: an archive, a video
            item = next(self._items, None)
        if item is None:
            return None
        fetched = fetch(item)
        pixels = pixels_to_decode(fetched)
        self._budget.enter(turn, pixels)
        if pixels > LARGE:
            Image.core.set_block_size(PILLOW_BLOCK)  # type: ignore[attr-defined]
        return (item, decode_item(fetched, self._white_level)), pixels


def read_ahead(
    items: Iterator[Item], white_level: int | None, *, pixel_budget: int = PIXEL_BUDGET
) -> Generator[Decoded, None, None]:
    """Each item with its pixels (H, W, 3) uint8 RGB or why it has none, in order."""
    with closing(Decoding(items, white_level, pixel_budget)) as decoding:
        while (held := decoding.take()) is not None:
            decoded, pixels = held
            del held
            yield decoded
            del decoded
            decoding.leave(pixels)


def work_ahead(
    items: Iterator[Item],
    white_level: int | None,
    work: Callable[[Item, NDArray[np.uint8] | ImageError], Result],
    pool: WorkerPool,
    *,
    pixel_budget: int = PIXEL_BUDGET,
) -> Generator[Result, None, None]:
    """Results of ``work`` on each item, computed by ``pool``, in order.

    An image counts against the budget until its result has been used.
    """
    working: deque[tuple[Future[Result], int]] = deque()
    is_over = False
    with closing(Decoding(items, white_level, pixel_budget)) as decoding:
        while working or not is_over:
            is_free = not is_over and len(working) < pool.workers
            # Either may have to wait for the other: room for the next is made by using the first.
            awaited: list[Future[Any]] = [working[0][0]] if working else []
            wait([*awaited, *([decoding.next] if is_free else [])], return_when=FIRST_COMPLETED)
            if working and working[0][0].done():
                future, pixels = working.popleft()
                del awaited
                yield future.result()
                del future
                decoding.leave(pixels)
            elif working and decoding.next.exception() is not None:
                is_over = True  # those before it come first
            elif (held := decoding.take()) is None:
                is_over = True
            else:
                working.append((pool.submit(work, *held[0]), held[1]))
                del held
        decoding.take()  # raises what ended the items, if it was an error


def pixels_to_decode(item: Item) -> int:
    """Height times width, without decoding; 0 for what will not be decoded."""
    pixels = 0 if isinstance(item.content, ImageError) else pixels_of(item.content)
    return pixels if pixels <= MAX_PIXELS else 0  # larger ones are refused, not decoded
