"""Image files: telling the format, refusing what is too large or cut short, decoding the rest.

Pillow decodes (measured: as fast as OpenCV on PNG and JPEG, and it neither fills a truncated file
with grey nor writes to the terminal); OpenCV reads the one thing Pillow cannot keep, 16 bits in
several channels.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
import zlib
from typing import Any, BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from metaformer.io.pixels import ImageError, pixels_from_pillow, turn_upright

_TIFF_BYTES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of one value of each type of TIFF field; the types not named have one."""

_FAX = (2, 3, 4)
"""Compressions of TIFF (tag 259) for fax. Where the bits are wrong, libtiff leaves rows as they
were in memory and reports nothing: the same file then gives another image each time."""

_ACCEPTED = "accepted are PNG, JPEG, BMP, TIFF and WebP"


BIT_DEPTH_WITHIN = 32
"""Bytes at the start of a file that ``may_hold_16_bits`` looks at."""


def may_hold_16_bits(start: bytes) -> bool:
    """False if a file that starts so is an 8-bit image for certain."""
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return start[24:25] != b"\x08"  # IHDR's bit depth
    return not start.startswith((b"\xff\xd8\xff", b"BM", b"RIFF"))


def decode(name: str, stream: BinaryIO, size: int, max_pixels: int) -> NDArray[Any]:
    """Upright pixels of an encoded image, as ``pixels_from_pillow`` returns them.

    ``size`` is the length of the stream in bytes, ``name`` what messages call it.

    Raises:
        ImageError: empty, of another format, larger than ``max_pixels``, damaged or cut short.
    """
    if size == 0:
        raise ImageError(name, f"empty (0 bytes); {_ACCEPTED}. Copy or record it again.")
    opener = _opener(name, stream.read(16))
    stream.seek(0)
    # Pillow warns about harmless oddities in metadata; whether the image is good is decided here.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        try:
            # The class itself, not Image.open: that guesses among forty formats, and warns of
            # large images by a process-wide limit where ours is an argument.
            image = opener(stream)
        except Exception as error:  # decoders raise nearly anything on damaged bytes
            raise _damaged(name, str(error)) from error
        check_size(name, image.width, image.height, max_pixels)
        if isinstance(image, TiffImageFile) and image.tag_v2.get(259) in _FAX:
            raise ImageError(
                name,
                "a TIFF compressed as for fax, in which damage cannot be noticed. Save it as PNG.",
            )
        header_end = stream.tell()  # where Pillow expects to go on
        try:
            is_whole = _is_whole(image, stream)
        except Exception:  # numbers in the file that make no sense
            is_whole = False
        if not is_whole:
            raise _damaged(name, "the file ends too early")
        is_wide = _is_wide_colour(image, stream)
        stream.seek(header_end)
        pixels = load(name, image)
        if is_wide:  # Pillow has noticed any damage, quietly; OpenCV keeps all 16 bits
            stream.seek(0)
            pixels = _wide_colour_pixels(name, image, stream.read())
        return pixels


def _opener(name: str, start: bytes) -> type[ImageFile]:
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImageFile
    if start.startswith(b"\xff\xd8\xff"):
        return JpegImageFile
    if start.startswith(b"BM"):
        return BmpImageFile
    if start.startswith((b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")):
        return TiffImageFile
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return WebPImageFile
    found = "text" if start.isascii() and b"\x00" not in start else "data of another kind"
    if start.startswith(b"GIF8"):
        found = "a GIF image"
    elif start[4:8] == b"ftyp":
        found = "a HEIC or AVIF image, or a video"
    elif start.startswith(b"%PDF"):
        found = "a PDF document"
    raise ImageError(
        name, f"not an image that can be read: found {found}; {_ACCEPTED}. Convert it to PNG."
    )


def count_pixels(stream: BinaryIO) -> int:
    """Height times width by the header; 0 where there is no telling, as ``decode`` will say why.

    Leaves the stream anywhere.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        try:
            opener = _opener("", stream.read(16))
            stream.seek(0)
            image = opener(stream)
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
        raise _damaged(name, str(error)) from error
    return turn_upright(pixels_from_pillow(name, image), _orientation(image))


def _damaged(name: str, why: str) -> ImageError:
    return ImageError(
        name, f"damaged or cut short ({why.strip().rstrip('.')}). Copy or record it again."
    )


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
        return _png_is_whole(stream)
    if isinstance(image, JpegImageFile):
        return _jpeg_is_whole(stream.read())
    if isinstance(image, WebPImageFile):
        data = stream.read()
        return len(data) >= 8 + int.from_bytes(data[4:8], "little")
    if isinstance(image, TiffImageFile):
        return _tiff_is_whole(image, stream)
    return True  # BMP: Pillow refuses missing pixels, and nothing comes after them


def _png_is_whole(stream: BinaryIO) -> bool:
    stream.seek(8)
    while len(header := stream.read(8)) == 8:
        length, kind = struct.unpack(">I4s", header)
        if kind == b"IEND":
            return len(stream.read(4)) == 4
        stream.seek(length + 4, io.SEEK_CUR)  # content and checksum
    return False


def _jpeg_is_whole(data: bytes) -> bool:
    """Walk the segments to the end-of-image marker (ISO/IEC 10918-1, annex B)."""
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


def _tiff_is_whole(image: TiffImageFile, stream: BinaryIO) -> bool:
    """The first directory, the values it points to and the pixels lie inside the file.

    Layout: TIFF 6.0, section 2, and its 64-bit form. libtiff would refuse such a file too, but
    writes about it to the terminal.
    """
    end = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    start = stream.read(16)
    order = "<" if start.startswith(b"II") else ">"
    is_big = 43 in start[2:4]
    # Forms of: where the directory is, its number of entries, one entry (type, count, value).
    place, number, entry = ("8xQ", "Q", "2xHQQ") if is_big else ("4xI", "H", "2xHII")
    stream.seek(struct.unpack_from(order + place, start)[0])
    (entries,) = struct.unpack(order + number, stream.read(struct.calcsize(order + number)))
    size = struct.calcsize(order + entry)
    inline = 8 if is_big else 4  # bytes of a value that fits its entry, and of an offset
    directory = stream.read(entries * size)
    if len(directory) < entries * size or len(stream.read(inline)) < inline:
        return False
    for kind, count, value in struct.iter_unpack(order + entry, directory):
        length = _TIFF_BYTES.get(kind, 1) * count
        if length > inline and value + length > end:
            return False
    tags = image.tag_v2
    offsets, lengths = (324, 325) if 324 in tags else (273, 279)  # tiles or strips
    return all(
        offset + length <= end
        for offset, length in zip(tags.get(offsets, ()), tags.get(lengths, ()), strict=False)
    )


def _is_wide_colour(image: ImageFile, stream: BinaryIO) -> bool:
    """16 bits in several channels, of which Pillow would keep only the upper eight."""
    if isinstance(image, PngImageFile):
        stream.seek(0)
        depth, colour_type = stream.read(26)[24:26]
        return depth == 16 and colour_type != 0
    if isinstance(image, TiffImageFile):
        bits = image.tag_v2.get(258, (1,))
        return len(bits) > 1 and max(bits) == 16
    return False


def _wide_colour_pixels(name: str, image: ImageFile, data: bytes) -> NDArray[np.uint16]:
    if isinstance(image, PngImageFile):
        data = _png_without_metadata(name, data)
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        pixels = None
    if pixels is None or pixels.dtype != np.uint16:
        raise ImageError(
            name, "this kind of 16-bit colour image is not read. Save it as 16-bit RGB PNG."
        )
    if pixels.ndim == 3:  # OpenCV keeps channels as BGR(A)
        order = cv2.COLOR_BGRA2RGBA if pixels.shape[2] == 4 else cv2.COLOR_BGR2RGB
        pixels = cv2.cvtColor(pixels, order)
    # OpenCV turns a TIFF by itself.
    turned = isinstance(image, TiffImageFile)
    return np.asarray(turn_upright(pixels, 1 if turned else _orientation(image)), dtype=np.uint16)


def _png_without_metadata(name: str, data: bytes) -> bytes:
    """The same pixels without colour profiles and text, of which libpng complains on stderr.

    Raises:
        ImageError: a wrong checksum, of which it would complain too.
    """
    kept = [data[:8]]
    position = 8
    while position < len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        after = position + 12 + length
        if kind in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
            kept.append(data[position:after])
            if zlib.crc32(data[position + 4 : after - 4]).to_bytes(4) != data[after - 4 : after]:
                raise _damaged(name, "wrong checksum")
        if kind == b"IEND":
            break
        position = after
    return b"".join(kept)
