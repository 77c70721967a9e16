"""Strips and tiles of a TIFF: decompressed, unpredicted and put in their places.

Nothing is decompressed beyond the bytes that are missing, and damage raises an error.
"""

from __future__ import annotations

import io
import lzma
import re
import zlib
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL.JpegImagePlugin import JpegImageFile

from metaformer.io.formats.lzw import decompress_lzw

if TYPE_CHECKING:  # importing it takes a tenth of a second, which only TIFF files need
    from tifffile import TiffPage

NONE, LZW, JPEG, DEFLATE, PACKBITS, OLD_DEFLATE, LZMA = 1, 5, 7, 8, 32773, 32946, 34925
READ = (NONE, LZW, JPEG, DEFLATE, PACKBITS, OLD_DEFLATE, LZMA)
"""Compressions (tag 259) that are read. Decoders of most others write to the terminal, decompress
whatever size the data say, or crashed on damaged files (imagecodecs)."""

_YCBCR = 6

JPEG_FRAME = re.compile(rb"\xff([\xc0-\xc3\xc5-\xc7\xc9-\xcb\xf7])..(.)(..)(..)", re.DOTALL)
"""The start of a frame (ISO/IEC 10918-1, B.2.2): kind, bits, height and width."""

_TURNED_BITS = np.packbits(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)[:, ::-1])
"""Each byte with its bits the other way round (FillOrder 2)."""
_BITS_AT_ONCE = 2**24
"""Packed bits turned into numbers at a time; bounds memory."""


def read_samples(page: TiffPage, stream: BinaryIO) -> NDArray[Any]:
    """(H, W, samples) as stored, in the machine's byte order; packed integers as uint8 or uint16.

    JPEG inside YCbCr comes as RGB.

    Raises:
        ValueError: a strip or tile is missing, cut short or damaged. Decoders raise other errors.
    """
    height, width, samples = page.imagelength, page.imagewidth, page.samplesperpixel
    planes = samples if page.planarconfig == 2 else 1
    rows, columns = (
        (page.tilelength, page.tilewidth)
        if page.is_tiled
        else (min(page.rowsperstrip, height), width)
    )
    if rows < 1 or columns < 1:
        raise ValueError("strips or tiles without pixels")
    channels = samples // planes
    count = planes * -(-height // rows) * -(-width // columns)
    if min(len(page.dataoffsets), len(page.databytecounts)) < count:
        raise ValueError("strips or tiles are missing")
    places = [
        (plane, top, left)
        for plane in range(planes)
        for top in range(0, height, rows)
        for left in range(0, width, columns)
    ]
    result: NDArray[Any] | None = None
    for (plane, top, left), offset, length in zip(
        places, page.dataoffsets, page.databytecounts, strict=False
    ):
        stream.seek(offset)
        content = stream.read(length)
        if not content or len(content) < length:
            raise ValueError("the file ends too early")
        there = rows if page.is_tiled else min(rows, height - top)
        if page.compression == JPEG:
            segment = _from_jpeg(page, content, (there, columns, channels))
        else:
            segment = _from_bytes(page, content, (there, columns, channels))
        if result is None:
            result = np.empty((height, width, samples), segment.dtype)
        bottom, right = min(top + rows, height), min(left + columns, width)
        result[top:bottom, left:right, plane : plane + channels] = segment[
            : bottom - top, : right - left
        ]
    if result is None:
        raise ValueError("no strip or tile")
    return result


def _from_bytes(page: TiffPage, content: bytes, shape: tuple[int, int, int]) -> NDArray[Any]:
    """A segment (H, W, channels) of any compression but JPEG."""
    rows, columns, channels = shape
    bits = int(page.bitspersample)
    row_bytes = (columns * channels * bits + 7) // 8
    if page.fillorder == 2:
        content = _TURNED_BITS[np.frombuffer(content, np.uint8)].tobytes()
    data = _decompress(int(page.compression), content, rows * row_bytes)
    if len(data) < rows * row_bytes:
        raise ValueError("a strip or tile holds too few pixels")
    packed = np.frombuffer(data, np.uint8, rows * row_bytes).reshape(rows, row_bytes)
    if bits not in (8, 16, 32, 64):
        if page.predictor != 1:
            raise NotImplementedError(f"{bits}-bit values with a predictor")
        return _unpack(packed, bits, columns * channels).reshape(shape)
    kind = np.dtype(page.dtype)
    if page.predictor == 3:
        return _undo_float_predictor(packed, kind, shape)
    values = packed.view(kind.newbyteorder(page.parent.byteorder)).astype(kind).reshape(shape)
    if page.predictor == 2:
        whole = values.view(f"u{kind.itemsize}")
        np.add.accumulate(whole, axis=1, out=whole)
    elif page.predictor != 1:
        raise NotImplementedError(f"predictor {int(page.predictor)}")
    return values


def _decompress(compression: int, content: bytes, size: int) -> bytes:
    """``size`` bytes at most; fewer if there are no more."""
    if compression == NONE:
        return content
    if compression in (DEFLATE, OLD_DEFLATE):
        return zlib.decompressobj().decompress(content, size)
    if compression == LZMA:
        return lzma.LZMADecompressor().decompress(content, size)
    if compression == PACKBITS:
        return _undo_packbits(content, size)
    return decompress_lzw(content, size)


def _undo_packbits(content: bytes, size: int) -> bytes:
    """TIFF 6.0, section 9."""
    data = bytearray()
    at = 0
    while at < len(content) and len(data) < size:
        count = content[at]
        if count < 128:
            data += content[at + 1 : at + 2 + count]
            at += count + 2
        else:
            if count > 128:
                data += content[at + 1 : at + 2] * (257 - count)
            at += 2 if count > 128 else 1
    return bytes(data[:size])


def _from_jpeg(page: TiffPage, content: bytes, shape: tuple[int, int, int]) -> NDArray[Any]:
    """A segment (H, W, channels) of JPEG; YCbCr becomes RGB."""
    frame = JPEG_FRAME.search(content)
    if frame is None:
        raise ValueError("a JPEG without a frame")
    height, width = int.from_bytes(frame[3]), int.from_bytes(frame[4])
    if width < shape[1] or height < shape[0]:
        if page.is_tiled or width < shape[1]:
            raise ValueError("a JPEG that is smaller than its place")
        raise ValueError("a JPEG strip holds too few rows")
    if width * height > 4 * max(shape[0] * shape[1], 2**16):  # it would be decoded whole
        raise ValueError("a JPEG that is larger than its place")
    tables = (page.jpegtables or b"\xff\xd8\xff\xd9")[2:-2]
    # Adobe's marker says how to take three channels; without it decoders guess.
    marker = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"
    if shape[2] == 3:
        tables += marker + (b"\x01" if page.photometric == _YCBCR else b"\x00")
    image = JpegImageFile(io.BytesIO(content[:2] + tables + content[2:]))
    image.load()
    decoded = np.asarray(image).reshape(height, width, -1)[: shape[0], : shape[1]]
    if decoded.shape != shape:
        raise ValueError("a JPEG with another number of channels")
    return decoded


def _unpack(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8 | np.uint16]:
    """(rows, bytes) -> (rows, count) integers of ``bits`` each, 1 to 15."""
    kind = np.uint8 if bits <= 8 else np.uint16
    result = np.empty((len(packed), count), kind)
    weights: NDArray[Any] = (1 << np.arange(bits - 1, -1, -1)).astype(kind)
    step = max(1, _BITS_AT_ONCE // max(1, count * bits))
    for top in range(0, len(packed), step):
        single = np.unpackbits(packed[top : top + step], axis=1)[:, : count * bits]
        result[top : top + step] = np.dot(single.reshape(-1, count, bits), weights)
    return result


def _undo_float_predictor(
    packed: NDArray[np.uint8], kind: np.dtype[Any], shape: tuple[int, int, int]
) -> NDArray[Any]:
    """Predictor 3 (Adobe, TIFF technical note 3): bytes of decimals, sorted by their weight."""
    rows, columns, channels = shape
    summed = np.add.accumulate(packed.reshape(rows, -1, channels), axis=1, dtype=np.uint8)
    by_weight = summed.reshape(rows, kind.itemsize, columns * channels)
    values = np.ascontiguousarray(by_weight.swapaxes(1, 2)).view(kind.newbyteorder(">"))
    return values.astype(kind).reshape(shape)
