"""What Pillow does not do with PNG: finding its end, passing over metadata, 16 bits of colour."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL.ImageFile import ImageFile

from metaformer.io.formats.tiff import damaged

PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_METADATA = (b"iCCP", b"tEXt", b"zTXt", b"iTXt")
"""Chunks of PNG without influence on the pixels as they are read here; Pillow refuses files in
which they are large, and libraries complain of those that are damaged."""
_PNG_ORIENTATION = (b"Raw profile type exif\0", b"Raw profile type APP1\0", b"XML:com.adobe.xmp\0")
"""Texts of PNG that can say how the image is turned."""
_ORIENTATION_BYTES = 2**16
"""Longest of such texts that is kept; those with a turn in them have a few hundred bytes."""


def _chunks(stream: BinaryIO) -> Iterator[tuple[bytes, bytes, int]]:
    """Header, kind and length of each chunk up to the last one, ``IEND``. The stream then stands at
    its content, which a checksum of four bytes follows."""
    stream.seek(len(PNG_START))
    while len(header := stream.read(8)) == 8:
        length, kind = struct.unpack(">I4s", header)
        content = stream.tell()
        yield header, kind, length
        if kind == b"IEND":
            return
        stream.seek(content + length + 4)


def png_is_whole(stream: BinaryIO) -> bool:
    return any(kind == b"IEND" and len(stream.read(4)) == 4 for _, kind, _ in _chunks(stream))


def is_wide_colour(stream: BinaryIO) -> bool:
    """16 bits in several channels, of which Pillow would keep only the upper eight."""
    stream.seek(0)
    depth, colour_type = stream.read(26)[24:26]
    return depth == 16 and colour_type != 0


def wide_colour_pixels(name: str, image: ImageFile, stream: BinaryIO) -> NDArray[np.uint16]:
    """16 bits in three channels or, with alpha, four: (H, W, 3) or (H, W, 4), not turned.

    Raises:
        ImageError: damaged.
    """
    try:  # Pillow notices any damage, quietly
        image.load()
    except Exception as error:
        raise damaged(name, str(error)) from error
    content = _pixels_alone(stream)
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16 or pixels.ndim != 3:
        raise damaged(name, "its pixels cannot be decoded")
    order = cv2.COLOR_BGRA2RGBA if pixels.shape[2] == 4 else cv2.COLOR_BGR2RGB
    return np.asarray(cv2.cvtColor(pixels, order), dtype=np.uint16)


def without_metadata(stream: BinaryIO) -> BinaryIO:
    """The same PNG without colour profile and text; the stream itself if there are none.

    Raises:
        ValueError: a wrong checksum of what is kept.
    """
    kept = [PNG_START]
    has_metadata = False
    for header, kind, length in _chunks(stream):
        if kind in _PNG_METADATA:
            start = stream.read(min(length, 64))
            if length > _ORIENTATION_BYTES or not start.startswith(_PNG_ORIENTATION):
                has_metadata = True
                continue
            stream.seek(-len(start), io.SEEK_CUR)
        content = stream.read(length + 4)
        if zlib.crc32(kind + content[:-4]).to_bytes(4) != content[-4:] and len(content) > length:
            if not kind[:1].isupper():  # metadata: pixels do not depend on them
                has_metadata = True
                continue
            raise ValueError("wrong checksum")
        kept += [header, content]
    stream.seek(0)
    return io.BytesIO(b"".join(kept)) if has_metadata else stream


def _pixels_alone(stream: BinaryIO) -> bytes:
    """The PNG without all but its pixels: libpng complains of others on the terminal."""
    kept = [PNG_START]
    for header, kind, length in _chunks(stream):
        if kind in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
            kept += [header, stream.read(length + 4)]
    return b"".join(kept)
