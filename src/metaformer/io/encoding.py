"""Maps and photos as the contents of PNG and JPEG files."""

from __future__ import annotations

import base64
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

FOR_MAPS = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
"""Maps are smooth and repeat nothing: looking for runs alone gives a file 9 to 11 % larger than the
strongest compression, in a thirtieth of the time."""


def encode_levels(levels: NDArray[np.uint8]) -> bytes:
    """A map (H, W) in 8 bits, as ``overlays.map_levels`` has it, as PNG."""
    return _encode(".png", levels, FOR_MAPS)


JPEG_SIDE = 65_500
"""Longest side that encoders of JPEG take; scans of webs and wires are longer."""


def encode_photo(photo: NDArray[np.uint8], quality: int) -> bytes:
    """(H, W, 3) RGB as JPEG of ``quality``, 0 to 100; scaled down if larger than JPEG allows."""
    longest = max(photo.shape[:2])
    if longest > JPEG_SIDE:
        height, width = (max(1, side * JPEG_SIDE // longest) for side in photo.shape[:2])
        photo = np.asarray(
            cv2.resize(photo, (width, height), interpolation=cv2.INTER_AREA), np.uint8
        )
    return _encode(".jpg", photo[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])


def encode_picture(picture: NDArray[np.uint8]) -> bytes:
    """(H, W, 3) RGB as PNG."""
    return _encode(".png", picture[:, :, ::-1], [])


def data_address(content: bytes, kind: Literal["jpeg", "png"]) -> str:
    """``content`` as an address that carries it."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _encode(suffix: str, pixels: NDArray[np.uint8], flags: list[int]) -> bytes:
    is_encoded, content = cv2.imencode(suffix, np.ascontiguousarray(pixels), flags)
    if not is_encoded:
        raise OSError(f"a picture of shape {pixels.shape} could not be encoded as {suffix}.")
    return content.tobytes()
