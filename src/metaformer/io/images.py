"""Images in: any accepted source becomes a checked (H, W, 3) uint8 RGB array, or an ImageError.

Every way an image can be bad is found here (files in ``decoding``, values in ``pixels``), so that
the rest of the package may trust its input.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from metaformer.io.atomic_files import NotAFileError, open_file
from metaformer.io.file_kinds import IMAGE_SUFFIXES
from metaformer.io.folders import list_images
from metaformer.io.formats.decoding import (
    BIT_DEPTH_WITHIN,
    check_size,
    count_pixels,
    decode,
    load,
    may_hold_16_bits,
)
from metaformer.io.omissions import MISSING, NO_PERMISSION, NOT_A_FILE
from metaformer.io.pixels import ImageError, check_white_level, pixels_from_array, to_rgb
from metaformer.io.tensors import TensorLike, array_of_tensor

Image = NDArray[np.uint8]

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "MIN_SIDE",
    "ImageError",
    "WhiteLevelWarning",
    "guess_white_level",
    "list_images",
    "pixels_of",
    "read_image",
    "read_mask",
    "resize_image",
    "resize_map",
]

Source = Path | str | bytes | NDArray[Any] | PillowImage.Image | TensorLike

MAX_PIXELS = 100_000_000
"""Largest height times width read, checked in the header before any pixel is decoded (ours)."""
MIN_SIDE = 8
"""Smallest height and width: below it there is no texture to judge (ours)."""
WHITE_LEVELS = (255, 1023, 4095, 16383, 65535)
"""Full scale of 8, 10, 12, 14 and 16 bit cameras."""


UNKNOWN_WHITE_LEVEL = (
    "a 16-bit image, of which it is not known which value is white: the detector was adapted to "
    "8-bit images. 65535 is taken; images of a 10 or 12 bit camera are nearly black then. Adapt to "
    "16-bit images, or adapt again with --white-level (white_level=) 1023, 4095, 16383 or 65535."
)


class WhiteLevelWarning(UserWarning):
    """A 16-bit image was read without knowing which value means white."""


def read_image(
    source: Source, *, white_level: int | None = 65535, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Read one image as (H, W, 3) uint8 RGB.

    Files (or their bytes) may be PNG, JPEG, BMP, TIFF or WebP, told by their content and not by
    their name: 1, 8 or 16 bits, or float TIFF with values in [0, 1]; grey, RGB, palette, CMYK
    (plain conversion, colour profiles are not applied). EXIF orientation is honoured. Transparent
    pixels are laid over black: dropping alpha would show whatever colour the editor left hidden,
    and most editors leave black there. Of several pages or frames the first is read. A file cut
    short is refused; wrong bits inside JPEG data, which has no checksum, cannot be noticed.

    Arrays may be uint8, uint16, bool or float in [0, 1], shaped (H, W), (H, W, 1), (H, W, 3) RGB
    or (H, W, 4) RGBA; a uint8 RGB array is not copied where that can be helped. PyTorch tensors
    have the same types and may also be (C, H, W), as torchvision gives them.

    Args:
        source: path, encoded bytes, array, tensor or Pillow image.
        white_level: value of a 16-bit image that means white; brighter values become 255. Has
            no effect on 8-bit images. 12-bit cameras: 4095, or see ``guess_white_level``. None
            if it is not known: a 16-bit image is read with 65535 then, and warns if no pixel gets
            far enough to show that this is right.
        max_pixels: refuse larger images, before decoding them.

    Raises:
        ImageError: the source is missing, unreadable, damaged, cut short, too small
            (``MIN_SIDE``), too large, or of a type or value range that is not accepted.
        ValueError: ``white_level`` is not in 1..65535.
    """
    if white_level is not None:
        check_white_level(white_level)
    name, pixels = _read_pixels(source, max_pixels)
    height, width = pixels.shape[:2]
    if min(height, width) < MIN_SIDE:
        raise ImageError(
            name,
            f"found an image of {width} x {height} pixels (width x height); accepted is at least "
            f"{MIN_SIDE} on each side. Use a larger image.",
        )
    if white_level is None:
        white_level = WHITE_LEVELS[-1]
        # Brighter than 14 bits can be: then it is white at 65535.
        if pixels.dtype == np.uint16 and _bright(_colour(pixels)) <= WHITE_LEVELS[-2]:
            warnings.warn(UNKNOWN_WHITE_LEVEL, WhiteLevelWarning, stacklevel=2)
    return to_rgb(pixels, white_level)


def read_mask(path: Path | str) -> NDArray[np.bool_]:
    """Read a defect mask, (H, W) bool: True where the brightest channel is above 127 of 255.

    A mask in a lossless format in which no value gets that far holds class numbers (0 and 1, or
    0, 1, 2... as in the raw form of VisA); there True means above 0.

    Raises:
        ImageError: as ``read_image``, without the minimum size.
    """
    _, pixels = _read_pixels(path, MAX_PIXELS)
    mask = np.asarray(to_rgb(pixels, 65535).max(axis=2) > 127)
    if not mask.any() and Path(path).suffix.lower() not in {".jpg", ".jpeg"}:
        colour = pixels[:, :, :3] if pixels.ndim == 3 else pixels[:, :, None]
        mask = np.asarray((colour > 0).any(axis=2))
    return mask


def guess_white_level(images: Iterable[Source]) -> int | None:
    """Full scale of a set of 16-bit images: the smallest of ``WHITE_LEVELS`` covering most of them.

    The brightest thousandth of an image's pixels does not count, nor, of five images or more, the
    brightest tenth of the images: a hot pixel, or one image of another camera, decides nothing.

    Returns None when none of them is 16-bit: unknown. A guess from a few dark images can be too
    low: know your camera, or use many images. Files whose first bytes rule out 16 bits (most) are
    not decoded for it, nor checked.

    Raises:
        ImageError: as ``read_image``.
    """
    brightness = []
    for source in images:
        if not _may_be_16_bit(source):
            continue
        _, pixels = _read_pixels(source, MAX_PIXELS)
        if pixels.dtype == np.uint16:
            brightness.append(_bright(_colour(pixels)))
    if not brightness:
        return None
    left_out = 0 if len(brightness) < 5 else -(-len(brightness) // 10)
    brightest = sorted(brightness)[-1 - left_out]
    return next(level for level in WHITE_LEVELS if level >= brightest)


def _colour(pixels: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Without alpha."""
    return pixels[:, :, :3] if pixels.ndim == 3 else pixels


def _bright(values: NDArray[np.uint16]) -> int:
    """The level that all pixels but one in a thousand, and at least one, do not exceed."""
    rank = min(values.size - 1 - values.size // 1000, max(0, values.size - 2))
    return int(np.partition(values, rank, axis=None)[rank])


def pixels_of(source: Source) -> int:
    """Height times width by the header, nothing decoded; 0 where ``read_image`` will say why."""
    if isinstance(source, TensorLike):
        return pixels_of(array_of_tensor(source))
    if isinstance(source, np.ndarray):
        return source.shape[0] * source.shape[1] if source.ndim >= 2 else 0
    if isinstance(source, PillowImage.Image):
        return source.width * source.height
    if isinstance(source, bytes):
        return count_pixels(io.BytesIO(source))
    try:
        with open_file(source) as stream:
            return count_pixels(stream)
    except (OSError, ValueError, TypeError):  # no file, an impossible name, not a name
        return 0


def resize_image(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize (H, W, 3) uint8 to ``size`` = (height, width): by area down, bilinear up."""
    return np.asarray(_resize(image, size), dtype=np.uint8)


def resize_map(anomaly_map: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Resize (H, W) float32 to ``size`` = (height, width): by area down, bilinear up."""
    return np.asarray(_resize(anomaly_map, size), dtype=np.float32)


def _resize(array: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    height, width = size
    if (height, width) == array.shape[:2]:
        return array
    shrinks = height <= array.shape[0] and width <= array.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized: NDArray[Any] = cv2.resize(array, (width, height), interpolation=method)
    return resized


def _may_be_16_bit(source: Source) -> bool:
    """Told by the first bytes; True where only decoding can tell, or the source is no image."""
    if isinstance(source, (str, Path)):
        try:
            with open_file(source) as stream:
                start = stream.read(BIT_DEPTH_WITHIN)
        except (OSError, ValueError):
            return True
    elif isinstance(source, bytes):
        start = source[:BIT_DEPTH_WITHIN]
    else:
        return True
    return may_hold_16_bits(start)


def _read_pixels(source: Source, max_pixels: int) -> tuple[str, NDArray[Any]]:
    """Name of the source for messages, and its upright pixels as stored.

    The pixels are uint8 or uint16, (H, W), (H, W, 3) RGB or (H, W, 4) RGBA.
    """
    if isinstance(source, TensorLike):
        name = f"tensor of shape {tuple(source.shape)}"
        return name, pixels_from_array(name, array_of_tensor(source))
    if isinstance(source, np.ndarray):
        name = f"array of shape {source.shape}"
        if source.ndim >= 2:
            check_size(name, source.shape[1], source.shape[0], max_pixels)
        return name, pixels_from_array(name, source)
    if isinstance(source, PillowImage.Image):
        name = str(getattr(source, "filename", "")) or "Pillow image"
        check_size(name, source.width, source.height, max_pixels)
        return name, load(name, source)
    if isinstance(source, bytes):
        name = getattr(source, "name", f"bytes ({len(source)} of them)")
        return name, decode(name, io.BytesIO(source), len(source), max_pixels)
    if not isinstance(source, (str, Path)):
        raise ImageError(
            type(source).__name__,
            "not an image source; accepted are a path, bytes, a numpy array (H, W, 3), a tensor "
            "or a Pillow image. Convert it to one of them.",
        )
    name = str(source)
    try:
        if Path(source).is_dir():
            raise ImageError(
                name, "a folder, not an image. Give an image file inside it.", NOT_A_FILE
            )
        with open_file(source) as stream:
            size = os.fstat(stream.fileno()).st_size
            return name, decode(name, stream, size, max_pixels)
    except NotAFileError:
        raise ImageError(
            name, "neither a file nor a link to one. Give an image file.", NOT_A_FILE
        ) from None
    except FileNotFoundError:
        raise ImageError(name, "no such file. Check the path.", MISSING) from None
    except PermissionError:
        raise ImageError(
            name, "no permission to read it. Change its permissions.", NO_PERMISSION
        ) from None
    except ImageError:
        raise
    except (OSError, ValueError) as error:  # a bad disk, an impossible file name
        raise ImageError(name, f"cannot be read ({error}). Check the path and the disk.") from error


def shrink(image: Image, resolution: int) -> Image:
    """``image`` at ``resolution``^2 pixels in area if it is larger, aspect kept."""
    height, width = image.shape[:2]
    scale = resolution / (height * width) ** 0.5
    if scale >= 1:
        return image
    return resize_image(image, (max(1, round(height * scale)), max(1, round(width * scale))))
