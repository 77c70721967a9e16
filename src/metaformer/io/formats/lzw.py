"""LZW as TIFF has it (TIFF 6.0, section 13), decompressed by NumPy.

A slow decoder in the ordinary sense (a second for 12 megapixels of colour), chosen because the fast
ones do worse with damaged files: imagecodecs crashed Python, OpenCV fills missing rows without an
error, and libtiff, in Pillow, writes to the terminal.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_CLEAR, _END, _FIRST = 256, 257, 258
_MOST_CODES = 4096 - _FIRST + 1
"""Codes between two clearings of the table: there are 12 bits to name its entries."""
_WIDTHS = np.select(
    [np.arange(_MOST_CODES) <= 2**bits - 1 - _FIRST for bits in (9, 10, 11)], (9, 10, 11), 12
)
"""Bits of each code since the table was cleared."""
_ENDS = np.cumsum(_WIDTHS)
_STARTS = _ENDS - _WIDTHS


def decompress_lzw(content: bytes, size: int) -> bytes:
    """The first ``size`` bytes of what ``content`` holds; fewer if there are no more.

    Raises:
        ValueError: it is damaged.
    """
    bits = 8 * len(content)
    data = np.frombuffer(content + bytes(3), np.uint8)
    found: list[NDArray[np.uint8]] = []
    place, missing = 0, size  # in bits; in bytes
    while missing > 0:
        count = int(np.searchsorted(_ENDS, bits - place, side="right"))
        if count == 0:
            break
        at = place + _STARTS[:count]
        first = at >> 3
        window = (
            (data[first].astype(np.int32) << 16)
            | (data[first + 1].astype(np.int32) << 8)
            | data[first + 2]
        )
        width = _WIDTHS[:count]
        codes = (window >> (24 - (at & 7) - width)) & ((1 << width) - 1)
        stops = np.flatnonzero((codes == _CLEAR) | (codes == _END))
        known = int(stops[0]) if len(stops) else count
        if known:
            strings = _strings(codes[:known], missing)
            found.append(strings)
            missing -= len(strings)
        if not len(stops):
            if count == _MOST_CODES and missing > 0:
                raise ValueError("LZW: more codes than its table has room for")
            break
        if codes[known] == _END:
            break
        place += int(_ENDS[known])
    return np.concatenate(found).tobytes() if found else b""


def _strings(codes: NDArray[np.integer], most: int) -> NDArray[np.uint8]:
    """What the codes from one clearing of the table to the next stand for, one after the other.

    Code 258 + j is the string of code number j and the first byte of the one after it. Both follow
    each other in the output, so it is a copy of what stands there already, one byte longer than
    string j. Chains of copies are followed to the plain bytes they begin with, all at once.
    """
    number = np.arange(len(codes))
    is_plain = codes < 256
    copied = np.where(is_plain, number, codes - _FIRST)
    if (copied[~is_plain] >= number[~is_plain]).any():
        raise ValueError("LZW: a code that its table does not have")
    length = 1 + _steps_to_the_end(copied)
    end = np.cumsum(length)
    if end[-1] > most:
        kept = int(np.searchsorted(end, most)) + 1
        codes, copied, is_plain = codes[:kept], copied[:kept], is_plain[:kept]
        length, end = length[:kept], end[:kept]
    start = end - length
    of_code = np.repeat(np.arange(len(codes)), length)
    source = np.arange(end[-1]) - np.repeat(start - start[copied], length)
    while True:
        further = source[source]
        if np.array_equal(further, source):
            return codes[of_code[source]].astype(np.uint8)[:most]
        source = further


def _steps_to_the_end(follow: NDArray[np.integer]) -> NDArray[np.integer]:
    """How often ``follow`` leads from each place to another, until it stays."""
    steps = (follow != np.arange(len(follow))).astype(np.int64)
    while True:
        further = follow[follow]
        steps = steps + steps[follow]
        if np.array_equal(further, follow):
            return steps
        follow = further
