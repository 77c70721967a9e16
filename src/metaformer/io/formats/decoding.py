"""Image files: telling the format, refusing what is too large or cut short, decoding the rest.

One decoder a format: Pillow for JPEG, BMP, WebP and PNG (as fast as OpenCV, and it neither
fills a truncated file with grey nor writes to the terminal), OpenCV for PNG of 16 bits in several
channels, of which Pillow keeps eight, and ``tiff`` for TIFF.
"""

from __future__ import annotations

import re
import struct
import warnings
from typing import Any, BinaryIO

from numpy.typing import NDArray
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from metaformer.io.formats.png import (
    PNG_START,
    is_wide_colour,
    png_is_whole,
    wide_colour_pixels,
    without_metadata,
)
from metaformer.io.formats.tiff import TIFF_STARTS, damaged, decode_tiff, tiff_size
from metaformer.io.formats.tiff_segments import JPEG_FRAME
from metaformer.io.pixels import ImageError, pixels_from_pillow, turn_upright

_ACCEPTED = "accepted are PNG, JPEG, BMP, TIFF and WebP"

BIT_DEPTH_WITHIN = 32
"""Bytes at the start of a file that ``may_hold_16_bits`` looks at."""

_OPENERS: dict[bytes, type[ImageFile]] = {
    PNG_START: PngImageFile,
    b"\xff\xd8\xff": JpegImageFile,
    b"BM": BmpImageFile,
}
"""By the first bytes of a file. WebP has a place more to look at."""
_OTHERS = {
    b"GIF8": "a GIF image",
    b"%PDF": "a PDF document",
    b"\x00\x00\x00\x0cjP  ": "a JPEG 2000 image",
    b"\xff\x4f\xff\x51": "a JPEG 2000 image",
    b"\xff\x0a": "a JPEG XL image",
    b"\x00\x00\x00\x0cJXL ": "a JPEG XL image",
    b"\x76\x2f\x31\x01": "an OpenEXR image",
}
"""First bytes of what is not read."""
_JPEG_KINDS = {
    0xC3: "lossless",
    0xC7: "lossless",
    0xC9: "arithmetic-coded",
    0xCA: "arithmetic-coded",
    0xCB: "lossless arithmetic-coded",
    0xC5: "hierarchical",
    0xC6: "hierarchical",
    0xF7: "JPEG-LS",
}
"""Frames of JPEG (ISO/IEC 10918-1, table B.1) that are not read."""


def may_hold_16_bits(start: bytes) -> bool:
    """False if a file that starts so is an 8-bit image for certain."""
    if start.startswith(PNG_START):
        return start[24:25] != b"\x08"  # IHDR's bit depth
    return not start.startswith((b"\xff\xd8\xff", b"BM", b"RIFF"))


def decode(name: str, stream: BinaryIO, size: int, max_pixels: int) -> NDArray[Any]:
    """Upright pixels of an encoded image, as ``pixels_from_pillow`` returns them.

    ``size`` is the length of the stream in bytes, ``name`` what messages call it.

    Raises:
        ImageError: empty, of another format, larger than ``max_pixels``, damaged, cut short, or of
            a kind that is not read.
    """
    if size == 0:
        raise ImageError(name, f"empty (0 bytes); {_ACCEPTED}. Copy or record it again.")
    # The libraries warn about harmless oddities; whether the image is good is decided here.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(PIL|tifffile)\b")
        start = stream.read(16)
        stream.seek(0)
        if start.startswith(TIFF_STARTS):
            return decode_tiff(
                name, stream, lambda width, height: check_size(name, width, height, max_pixels)
            )
        opener = _opener(name, start)
        try:
            if opener is PngImageFile:
                stream = without_metadata(stream)
            # The class itself, not Image.open: that guesses among forty formats, and warns of
            # large images by a process-wide limit where ours is an argument.
            image = opener(stream)
        except Exception as error:  # decoders raise nearly anything on damaged bytes
            if opener is JpegImageFile:
                stream.seek(0)
                _check_jpeg_kind(name, stream.read())
            raise _damaged_or_unread(name, error) from error
        check_size(name, image.width, image.height, max_pixels)
        header_end = stream.tell()  # where Pillow expects to go on
        try:
            is_whole = _is_whole(image, stream)
        except Exception:  # numbers in the file that make no sense
            is_whole = False
        if not is_whole:
            raise damaged(name, "the file ends too early")
        if isinstance(image, PngImageFile) and is_wide_colour(stream):
            stream.seek(header_end)
            pixels = wide_colour_pixels(name, image, stream)
            return turn_upright(pixels, _orientation(image))
        stream.seek(header_end)
        return load(name, image)


def _opener(name: str, start: bytes) -> type[ImageFile]:
    for first, opener in _OPENERS.items():
        if start.startswith(first):
            return opener
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return WebPImageFile
    found = "text" if start.isascii() and b"\x00" not in start else "data of another kind"
    if start[4:8] == b"ftyp":
        found = "a HEIC or AVIF image, or a video"
    elif re.match(rb"P[1-7]\s", start):
        found = "a PNM image (PBM, PGM or PPM)"
    found = next((kind for first, kind in _OTHERS.items() if start.startswith(first)), found)
    raise ImageError(
        name, f"not an image that can be read: found {found}; {_ACCEPTED}. Convert it to PNG."
    )


def count_pixels(stream: BinaryIO) -> int:
    """Height times width by the header; 0 where there is no telling, as ``decode`` will say why.

    Leaves the stream anywhere.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(PIL|tifffile)\b")
        try:
            start = stream.read(32)
            stream.seek(0)
            if start.startswith(TIFF_STARTS):
                width, height = tiff_size(stream)
                return width * height
            if start.startswith(PNG_START):  # Pillow would read all metadata
                width, height = struct.unpack_from(">II", start, 16)
                return int(width * height)
            image = _opener("", start)(stream)
            return image.width * image.height
        except Exception:  # decoders raise nearly anything on damaged bytes
            return 0


def check_size(name: str, width: int, height: int, max_pixels: int) -> None:
    """Raises: ImageError: no pixels, or more than ``max_pixels``."""
    if width < 1 or height < 1:
        raise ImageError(name, f"found an image of {width} x {height} pixels: it has none.")
    if width * height > max_pixels:
        raise ImageError(
            name,
            f"found {width} x {height} pixels (width x height), {width * height:,} in all; "
            f"accepted are at most {max_pixels:,}. Crop it or make it smaller.",
        )


def load(name: str, image: Image.Image) -> NDArray[Any]:
    """Upright pixels of an opened Pillow image.

    Raises:
        ImageError: damaged or cut short, or of a mode that is not accepted.
    """
    try:
        image.load()
    except MemoryError:
        raise ImageError(name, "too large for the memory there is. Make it smaller.") from None
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        raise _damaged_or_unread(name, error) from error
    return turn_upright(pixels_from_pillow(name, image), _orientation(image))


def _damaged_or_unread(name: str, error: Exception) -> ImageError:
    """A decoder's error for people: the file is damaged, or of a kind that is not read."""
    why = str(error).strip().rstrip(".")
    if re.search(r"unsupported|not supported|cannot handle|unknown.*mode|no support", why, re.I):
        return ImageError(name, f"a kind of image that is not read ({why}). Save it as PNG.")
    return damaged(name, why)


def _check_jpeg_kind(name: str, data: bytes) -> None:
    """Raises: ImageError: a sound JPEG of a kind that is not read."""
    frame = JPEG_FRAME.search(data)
    if frame is None:
        return
    kind, bits = _JPEG_KINDS.get(frame[1][0], ""), frame[2][0]
    if not kind and bits == 12:
        kind = "12-bit"
    if kind:
        raise ImageError(name, f"a {kind} JPEG, which is not read. Save it as PNG.")


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 (upright) where there is none or its block is damaged."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # a damaged EXIF block does not make the pixels bad
        return 1


# A PNG or JPEG can lack its last bytes and still decode, wholly or with grey where rows are
# missing. These formats say where they end: a file that does not get there is refused.


def _is_whole(image: ImageFile, stream: BinaryIO) -> bool:
    stream.seek(0)
    if isinstance(image, PngImageFile):
        return png_is_whole(stream)
    if isinstance(image, JpegImageFile):
        return _jpeg_is_whole(stream.read())
    if isinstance(image, WebPImageFile):
        data = stream.read()
        return len(data) >= 8 + int.from_bytes(data[4:8], "little")
    return True  # BMP: Pillow refuses missing pixels, and nothing comes after them


def _jpeg_is_whole(data: bytes) -> bool:
    """Walk the segments to the end-of-image marker (ISO/IEC 10918-1, annex B)."""
    if data.endswith(b"\xff\xd9"):  # the marker, which coded data never holds
        return True  # spares the walk, which takes 10 ms a megabyte
    marker = re.compile(rb"\xff+([^\x00\xff])")
    position = 2  # after the start-of-image marker
    while found := marker.search(data, position):
        code = found[1][0]
        position = found.end()
        if code == 0xD9:
            return True
        # Restart markers (D0 to D7) and TEM (01) stand alone, all others tell their length; after
        # a start of scan the search passes over the coded data, where FF is followed by 00.
        if not (0xD0 <= code <= 0xD7 or code == 0x01):
            position += int.from_bytes(data[position : position + 2], "big")
    return False
