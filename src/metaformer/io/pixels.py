"""Pixel values: what arrays and decoded images may hold, and how they become 8-bit RGB."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from metaformer.io.omissions import UNREADABLE

COPIED_ROWS = 256
"""Rows that leave Pillow at a time; bounds memory."""


class ImageError(ValueError):
    """An image that cannot be used. The message says what was found and what to do.

    Attributes:
        path: the file, or a description of the array or bytes.
        reason: the message without the path.
        category: what kind of failure it is, as ``failures.csv`` names it (``omissions``).
    """

    def __init__(self, path: str, reason: str, category: str = UNREADABLE) -> None:
        super().__init__(path, reason, category)
        self.path = path
        self.reason = reason
        self.category = category

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def check_white_level(white_level: int) -> None:
    """Raises: ValueError: not a whole number in 1..65535."""
    if isinstance(white_level, bool) or not isinstance(white_level, (int, np.integer)):
        raise ValueError(f"white_level is {white_level!r}; it must be a whole number, 1 to 65535.")
    if not 1 <= white_level <= 65535:
        raise ValueError(f"white_level is {white_level}; it must lie between 1 and 65535.")


def pixels_from_array(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """Check an array given by a caller; returns uint8 or uint16, (H, W), (H, W, 3) or (H, W, 4).

    Raises:
        ImageError: another shape, type or range of values.
    """
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]  # (H, W, 1) -> (H, W)
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        hint = "Convert it."
        if array.ndim == 3 and array.shape[0] in (1, 3, 4):
            hint = "Channels come last: use array.transpose(1, 2, 0)."
        elif array.ndim == 4:
            hint = "Give the images of a batch one by one."
        raise ImageError(
            name, f"accepted shapes are (H, W), (H, W, 1), (H, W, 3) and (H, W, 4). {hint}"
        )
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype in (np.uint8, np.uint16):
        return array.astype(array.dtype.type, copy=False)  # native byte order
    if array.dtype.kind == "f":
        return pixels_from_floats(name, array)
    raise ImageError(
        name,
        f"found values of type {array.dtype}; accepted are uint8, uint16, bool, and float in "
        "[0, 1]. Convert it, for example by array.astype(np.uint8).",
    )


def pixels_from_pillow(name: str, image: Image.Image) -> NDArray[Any]:
    """Values of a loaded Pillow image: uint8 or uint16, (H, W), (H, W, 3) or (H, W, 4).

    Raises:
        ImageError: a mode or range of values that is not accepted.
    """
    mode = image.mode
    see_through = "transparency" in image.info and mode in ("1", "L", "P", "RGB")
    if see_through or mode in ("LA", "La", "PA", "RGBa"):
        # La and RGBa (premultiplied) convert only by way of their plain forms.
        plain = {"La": "LA", "RGBa": "RGBA"}.get(mode)
        return np.asarray((image.convert(plain) if plain else image).convert("RGBA"))
    if mode in ("L", "RGB", "RGBA"):
        return _copy_by_rows(image)
    if mode == "1":
        return np.asarray(image.convert("L"))
    if mode in ("P", "CMYK", "YCbCr", "HSV", "RGBX"):
        return np.asarray(image.convert("RGB"))
    if mode.startswith("I;16"):
        tags = getattr(image, "tag_v2", {})
        if tags.get(262) == 0:
            raise ImageError(
                name, "a 16-bit TIFF stored with white as zero. Save it with black as zero."
            )
        return np.asarray(image).astype(np.uint16)
    if mode == "I":
        values = np.asarray(image)
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 65535:
            raise ImageError(
                name,
                f"found 32-bit values from {low} to {high}; accepted are 8 and 16 bits (0 to "
                "65535). Scale it to 16 bits.",
            )
        return values.astype(np.uint16)
    if mode == "F":
        return pixels_from_floats(name, np.asarray(image))
    raise ImageError(
        name,
        f"found colour mode {mode}; accepted are grey, RGB, RGBA, palette and CMYK. Save it "
        "as RGB.",
    )


def _copy_by_rows(image: Image.Image) -> NDArray[np.uint8]:
    """``np.asarray`` of an 8-bit image, with one copy of its pixels on the way instead of three."""
    if image.height <= COPIED_ROWS:
        return np.asarray(image)
    channels = len(image.getbands())
    shape = (image.height, image.width) if channels == 1 else (image.height, image.width, channels)
    pixels = np.empty(shape, np.uint8)
    for top in range(0, image.height, COPIED_ROWS):
        bottom = min(top + COPIED_ROWS, image.height)
        pixels[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)))
    return pixels


def pixels_from_floats(name: str, values: NDArray[Any]) -> NDArray[np.uint8]:
    """Decimals in [0, 1] of any shape as 0 to 255. Raises: ImageError: others than those."""
    if not np.isfinite(values).all():
        raise ImageError(name, "found NaN or infinite values. Replace them by numbers in [0, 1].")
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 1:
        raise ImageError(
            name,
            f"found decimal values from {low:g} to {high:g}; accepted is [0, 1]. Divide by the "
            "value that means white, or use uint8 or uint16.",
        )
    return np.asarray(np.rint(values * 255), dtype=np.uint8)


def turn_upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Undo EXIF ``orientation`` (1 to 8, CIPA DC-008 tag 274); other values leave it alone."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def to_rgb(pixels: NDArray[Any], white_level: int) -> NDArray[np.uint8]:
    """(H, W), (H, W, 3) or (H, W, 4), uint8 or uint16 -> (H, W, 3) uint8, alpha over black.

    ``white_level`` is the uint16 value that becomes 255; alpha always runs to 65535. An alpha of
    zero everywhere is no transparency: programs that store four bytes a pixel leave it there.
    """
    if pixels.ndim == 3 and pixels.shape[2] == 4 and not pixels[:, :, 3].any():
        pixels = pixels[:, :, :3]
    if pixels.dtype == np.uint16:
        values = np.arange(65536, dtype=np.int64)
        grey_of = np.minimum((values * 255 + white_level // 2) // white_level, 255).astype(np.uint8)
        narrow: NDArray[np.uint8] = grey_of[pixels]
        if pixels.ndim == 3 and pixels.shape[2] == 4:
            narrow[:, :, 3] = pixels[:, :, 3] // 257
        pixels = narrow
    # Pillow hands out read-only arrays, of which torch.from_numpy would complain.
    pixels = np.require(pixels, requirements=["C_CONTIGUOUS", "WRITEABLE"])
    if pixels.ndim == 2:
        return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB), dtype=np.uint8)
    if pixels.shape[2] == 3:
        return pixels
    rgb = cv2.cvtColor(pixels, cv2.COLOR_RGBA2RGB)
    alpha = cv2.cvtColor(np.ascontiguousarray(pixels[:, :, 3]), cv2.COLOR_GRAY2RGB)
    return np.asarray(cv2.multiply(rgb, alpha, scale=1 / 255), dtype=np.uint8)
