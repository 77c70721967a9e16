"""Decoding images in other threads while the last one is scored, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Condition

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from metaformer.images import MAX_PIXELS, ImageError, pixels_of
from metaformer.sources.reading import Item, decode_item, fetch

READ_AHEAD = 4
"""Images asked for ahead of the one being scored."""
DECODERS = 2
"""Threads that decode; Pillow lets go of the interpreter while it does."""
PIXEL_BUDGET = 40_000_000
"""Pixels in memory or being decoded at a time, the image being scored included; a larger image is
alone. Decoding takes 9 bytes a pixel at its peak and scoring 13 (measured), so that with 0.3 GB
for the program ``predict`` stays under 1 GB (``tests/test_scale.py``)."""

LARGE = PIXEL_BUDGET // 2
PILLOW_BLOCK = 64 * 2**20
"""Pillow allocates images in blocks. Its own size, 16 MB, is one that the allocator of the C
library keeps for each thread after use: 190 MB a thread for a photo of 48 megapixels. Blocks over
32 MB are given back. It costs a fifth of a second for such a photo, so smaller ones are spared."""

Decoded = tuple[Item, NDArray[np.uint8] | ImageError]


class PixelBudget:
    """Lets images in one after the other, in their order, as long as there is room."""

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
        """Wake whoever waits, to give up."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _wait_for(self, is_time: Callable[[], bool]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or is_time())
            if self._is_closed:
                raise InterruptedError("no more images are wanted")


def read_ahead(
    items: Iterator[Item], white_level: int, *, pixel_budget: int = PIXEL_BUDGET
) -> Generator[Decoded, None, None]:
    """Each item with its pixels (H, W, 3) uint8 RGB or why it has none, in order."""
    budget = PixelBudget(pixel_budget)

    def decode_next(turn: int) -> tuple[Decoded, int] | None:
        with budget.taking(turn):  # items come from one file at a time: an archive, a video
            item = next(items, None)
        if item is None:
            return None
        fetched = fetch(item)
        pixels = pixels_to_decode(fetched)
        budget.enter(turn, pixels)
        if pixels > LARGE:
            Image.core.set_block_size(PILLOW_BLOCK)  # type: ignore[attr-defined]
        return (item, decode_item(fetched, white_level)), pixels

    with ThreadPoolExecutor(DECODERS, thread_name_prefix="decode") as pool:
        pending = [pool.submit(decode_next, turn) for turn in range(READ_AHEAD)]
        asked = READ_AHEAD
        try:
            while (done := pending.pop(0).result()) is not None:
                pixels = done[1]
                yield done[0]
                del done
                budget.leave(pixels)
                pending.append(pool.submit(decode_next, asked))
                asked += 1
        finally:
            budget.close()
            for future in pending:
                future.cancel()


def pixels_to_decode(item: Item) -> int:
    """Height times width, without decoding; 0 for what will not be decoded."""
    pixels = 0 if isinstance(item.content, ImageError) else pixels_of(item.content)
    return pixels if pixels <= MAX_PIXELS else 0  # larger ones are refused, not decoded
