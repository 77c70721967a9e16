"""TIFF files as pixels: tifffile reads what the file says of itself, ``tiff_segments`` the pixels.

One way for every kind. Pillow alone reads half of what cameras and editors write (not planes of 16
bits, packed 10 and 12 bits, extra channels), and OpenCV reads some of it wrongly without an error.
"""

from __future__ import annotations

import io
import logging
import struct
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from metaformer.io.formats.tiff_segments import JPEG, READ, read_samples
from metaformer.io.pixels import ImageError, pixels_from_floats, turn_upright

if TYPE_CHECKING:  # importing it takes a tenth of a second, which only TIFF files need
    from tifffile import TiffFile, TiffPage

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # Python would print its warnings

TIFF_STARTS = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")

_FIELD_BYTES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of one value of each type of TIFF field; the types not named have one."""
_PIXEL_TAGS = frozenset(
    {256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 338, 339}
    | {347, 530}
)
"""Tags that say what the pixels are; tifffile replaces a damaged one by its usual value."""
_MOST_CHANNELS = 64
"""More is no photo, or a damaged number."""

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _SEPARATED, _YCBCR = 0, 1, 2, 3, 5, 6
_UNREADABLE_COLOURS = {
    4: "a transparency mask",
    8: "CIELab",
    9: "ICCLab",
    10: "ITULab",
    32803: "raw sensor data (a colour filter array)",
    32844: "LogL",
    32845: "LogLuv",
    34892: "raw sensor data",
    51177: "a depth map",
}
"""PhotometricInterpretation (tag 262)."""
_FAX = (2, 3, 4)
"""Compressions for fax (tag 259): they have no checksum, and damage makes another image."""
_COMPRESSIONS = {
    6: "old-style JPEG",
    34712: "JPEG 2000",
    34887: "LERC",
    34892: "lossy JPEG of DNG",
    33003: "JPEG 2000",
    33004: "JPEG 2000",
    33005: "JPEG 2000",
    33007: "JPEG",
    34933: "PNG",
    34934: "JPEG XR",
    22610: "JPEG XR",
    50000: "Zstandard",
    50001: "WebP",
    50002: "JPEG XL",
    52546: "JPEG XL",
}
_ASSOCIATED, _UNASSOCIATED = 1, 2
"""ExtraSamples (tag 338): alpha with the colours multiplied by it, and plain alpha."""


def decode_tiff(name: str, stream: BinaryIO, check_pixels: Any) -> NDArray[Any]:
    """Upright pixels of the first page: uint8 or uint16, (H, W), (H, W, 3) or (H, W, 4) RGBA.

    Packed samples of other depths than 8 and 16 bits come as uint8, scaled by their depth. Channels
    beyond grey or RGB are dropped unless ``ExtraSamples`` calls them alpha.

    Args:
        check_pixels: called with (width, height) before anything is decoded; may raise.

    Raises:
        ImageError: damaged, cut short, or of a kind that is not read, which is named.
    """
    try:
        is_whole = _directory_is_whole(stream)
        stream.seek(0)
        with _opened(stream) as file:
            page = _first_full_page(file)
            check_pixels(page.imagewidth, page.imagelength)
            _check_kind(name, page)
            if not is_whole:
                raise damaged(name, "the file ends too early")
            pixels = _to_pixels(name, page, read_samples(page, stream))
            return turn_upright(pixels, _orientation(page))
    except ImageError:
        raise
    except MemoryError:
        raise ImageError(name, "too large for the memory there is. Make it smaller.") from None
    except NotImplementedError as error:
        raise _unread(name, f"a TIFF of a kind that is not read ({error})") from error
    except Exception as error:  # numbers in the file that make no sense
        raise damaged(name, str(error)) from error


def tiff_size(stream: BinaryIO) -> tuple[int, int]:
    """Width and height by the header. Raises nearly anything for a damaged file."""
    with _opened(stream) as file:
        page = _first_full_page(file)
        return page.imagewidth, page.imagelength


def damaged(name: str, why: str) -> ImageError:
    why = why.strip().rstrip(".") or "its data make no sense"
    return ImageError(name, f"damaged or cut short ({why}). Copy or record it again.")


def _unread(name: str, what: str) -> ImageError:
    return ImageError(name, f"{what}. Save it as PNG, or as an uncompressed TIFF of 8 or 16 bits.")


def _opened(stream: BinaryIO) -> TiffFile:
    from tifffile import TiffFile

    return TiffFile(stream, name="image")


def _first_full_page(file: TiffFile) -> TiffPage:
    """The first page that is not a small preview (bit 0 of tag 254) or a mask (bit 2)."""
    from tifffile import TiffPage

    first = file.pages.first
    if first.subfiletype & 5:
        for page in file.pages:
            if isinstance(page, TiffPage) and not page.subfiletype & 5:
                return page
    return first


def _orientation(page: TiffPage) -> int:
    value = page.tags.valueof(274, 1)
    return value if isinstance(value, int) else 1


def _check_kind(name: str, page: TiffPage) -> None:
    """Raises: ImageError: a kind of TIFF that is not read, or sizes that make no sense."""
    if int(page.compression) in _FAX:
        raise ImageError(
            name, "a TIFF compressed as for fax, in which damage cannot be noticed. Save it as PNG."
        )
    if kind := _unread_kind(page):
        raise _unread(name, f"{kind}, which is not read")
    if page.is_tiled and page.tilewidth * page.tilelength > 4 * max(
        page.imagewidth * page.imagelength, 2**22
    ):
        raise damaged(name, f"a tile of {page.tilewidth} x {page.tilelength} pixels")


def _unread_kind(page: TiffPage) -> str:
    """What is not read about a TIFF; empty if nothing."""
    bits: Any = page.bitspersample  # a tuple where channels differ
    colour, compression = int(page.photometric), int(page.compression)
    if compression not in READ:
        return f"{_COMPRESSIONS.get(compression, f'compression {compression}')} inside TIFF"
    if colour in _UNREADABLE_COLOURS:
        return f"a TIFF of {_UNREADABLE_COLOURS[colour]}"
    if page.imagedepth != 1:
        return f"a TIFF volume of {page.imagedepth} slices"
    if isinstance(bits, tuple):
        return f"a TIFF with channels of {', '.join(map(str, bits))} bits"
    if page.sampleformat in (5, 6):
        return "a TIFF of complex numbers"
    if page.sampleformat == 2 and bits < 16:
        return f"a TIFF of signed {bits}-bit values"
    if not 1 <= page.samplesperpixel <= _MOST_CHANNELS:
        return f"a TIFF of {page.samplesperpixel} channels"
    expected = {_RGB: 3, _YCBCR: 3, _SEPARATED: 4}.get(colour, 1)
    extra = page.samplesperpixel - expected
    if extra < 0 or (expected == 1 and extra > 1) or (colour == _SEPARATED and extra):
        kinds = {_RGB: "RGB", _YCBCR: "YCbCr", _SEPARATED: "CMYK", _PALETTE: "palette"}
        return f"a TIFF of {page.samplesperpixel} channels marked as {kinds.get(colour, 'grey')}"
    if colour in (_SEPARATED, _YCBCR) and bits != 8:
        return f"a {bits}-bit {'CMYK' if colour == _SEPARATED else 'YCbCr'} TIFF"
    return f"a TIFF of {bits}-bit values" if page.dtype is None else ""


def _directory_is_whole(stream: BinaryIO) -> bool:
    """The first directory, and the values it points to that pixels depend on, lie in the file.

    Layout: TIFF 6.0, section 2, and its 64-bit form.
    """
    end = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    start = stream.read(16)
    order = "<" if start.startswith(b"II") else ">"
    is_big = 43 in start[2:4]
    # Forms of: where the directory is, its number of entries, one entry (tag, type, count, value).
    place, number, entry = ("8xQ", "Q", "HHQQ") if is_big else ("4xI", "H", "HHII")
    stream.seek(struct.unpack_from(order + place, start)[0])
    (entries,) = struct.unpack(order + number, stream.read(struct.calcsize(order + number)))
    size = struct.calcsize(order + entry)
    inline = 8 if is_big else 4  # bytes of a value that fits its entry, and of an offset
    directory = stream.read(min(entries, 65535) * size)
    if len(directory) < entries * size:
        return False
    for tag, kind, count, value in struct.iter_unpack(order + entry, directory):
        length = _FIELD_BYTES.get(kind, 1) * count
        if tag in _PIXEL_TAGS and length > inline and value + length > end:
            return False
    return True


def _to_pixels(name: str, page: TiffPage, samples: NDArray[Any]) -> NDArray[Any]:
    """``samples`` (H, W, S) as ``decode_tiff`` returns them, not turned."""
    colour, bits = int(page.photometric), page.bitspersample
    if colour == _PALETTE:
        return _from_palette(name, page, samples[:, :, 0])
    if colour == _SEPARATED:
        cmyk = Image.fromarray(np.ascontiguousarray(samples, dtype=np.uint8), "CMYK")
        if page.tags.valueof(332, 1) != 1:
            raise _unread(name, "a TIFF of other inks than CMYK, which is not read")
        return np.asarray(cmyk.convert("RGB"))
    if colour == _YCBCR and int(page.compression) != JPEG:
        ycbcr = Image.fromarray(np.ascontiguousarray(samples[:, :, :3], dtype=np.uint8), "YCbCr")
        return np.asarray(ycbcr.convert("RGB"))
    samples = _as_unsigned(name, bits, samples)
    colours = 3 if colour in (_RGB, _YCBCR) else 1
    if colour == _WHITE_IS_ZERO:
        if samples.dtype == np.uint16:
            raise ImageError(
                name, "a 16-bit TIFF stored with white as zero. Save it with black as zero."
            )
        samples = np.concatenate([255 - samples[:, :, :1], samples[:, :, 1:]], axis=2)
    alpha = [
        samples[:, :, colours + i]
        for i, kind in enumerate(page.extrasamples[: samples.shape[2] - colours])
        if kind == _UNASSOCIATED  # colours multiplied by alpha lie over black already
    ]
    if not alpha:
        return samples[:, :, 0] if colours == 1 else samples[:, :, :3]
    rgb = np.broadcast_to(samples[:, :, :colours], (*samples.shape[:2], 3))
    return np.concatenate([rgb, alpha[0][:, :, None]], axis=2)


def _as_unsigned(name: str, bits: int, samples: NDArray[Any]) -> NDArray[Any]:
    """Samples of any type as uint8 or uint16."""
    if samples.dtype.kind == "f":
        return pixels_from_floats(name, samples)
    if samples.dtype == np.bool_:
        return samples.astype(np.uint8) * np.uint8(255)
    if samples.dtype in (np.uint8, np.uint16) and bits in (8, 16):
        return samples
    if samples.dtype.kind == "u" and bits < 16:
        white = 2**bits - 1
        levels = (np.arange(white + 1) * 255 + white // 2) // white
        return levels.astype(np.uint8)[samples]
    low, high = int(samples.min()), int(samples.max())
    if low < 0 or high > 65535:
        sign = "signed " if samples.dtype.kind == "i" else ""
        raise ImageError(
            name,
            f"found {sign}{bits}-bit values from {low} to {high}; accepted are 8 and 16 bits (0 to "
            "65535). Scale it to 16 bits.",
        )
    return samples.astype(np.uint16)


def _from_palette(name: str, page: TiffPage, indices: NDArray[Any]) -> NDArray[np.uint8]:
    """(H, W) places in the palette, whose colours have 16 bits, as (H, W, 3) uint8."""
    palette: NDArray[Any] | None = page.colormap  # (3, colours)
    if palette is None or palette.ndim != 2 or int(indices.max()) >= palette.shape[1]:
        raise damaged(name, "its palette lacks colours")
    if palette.max() > 255:
        palette = palette >> 8  # some writers, wrongly, store 8 bits
    return np.ascontiguousarray(palette.T.astype(np.uint8)[indices])
