"""Small pictures of the good images a detector knows, to show the nearest beside a flagged one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metaformer.io.encoding import encode_photo

MOST = 50
"""Support images of which a thumbnail is kept, the first ones."""
SIDE = 160
"""Longer side of a thumbnail in pixels; 50 of them weigh some 300 kB."""
QUALITY = 80
COMPARED_SIDE = 32
"""Pixels squared at which images are compared."""
PREFIX = "thumbnails."
"""Start of the names of their tensors in a detector file."""


class GoodExample(NamedTuple):
    """A good image as a report shows it."""

    name: str
    jpeg: bytes


def make_thumbnail(pixels: NDArray[np.uint8]) -> bytes:
    """JPEG of an image (H, W, 3) uint8 RGB, its longer side at most ``SIDE``."""
    scale = min(1.0, SIDE / max(pixels.shape[:2]))
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return encode_photo(np.asarray(small, np.uint8), QUALITY)


def nearest(
    thumbnails: tuple[bytes, ...], names: Sequence[str], pixels: NDArray[np.uint8]
) -> GoodExample | None:
    """The thumbnail most like the image (H, W, 3) uint8 RGB, both small and grey; None of none."""
    known = _vectors(thumbnails)
    if not len(known):
        return None
    distance = np.linalg.norm(known - _vector(pixels), axis=1)
    index = int(distance.argmin())
    return GoodExample(names[index], thumbnails[index])


def to_tensors(thumbnails: Sequence[bytes]) -> dict[str, Tensor]:
    """One tensor (bytes,) uint8 a thumbnail, for the detector file."""
    return {
        f"{PREFIX}{i}": torch.frombuffer(bytearray(jpeg), dtype=torch.uint8)
        for i, jpeg in enumerate(thumbnails)
    }


def take_from(tensors: dict[str, Tensor]) -> tuple[bytes, ...]:
    """Remove the thumbnails from the tensors of a detector file; empty for files without."""
    names = sorted(
        (name for name in tensors if name.startswith(PREFIX)),
        key=lambda name: int(name.removeprefix(PREFIX)),
    )
    return tuple(tensors.pop(name).numpy().tobytes() for name in names)


@lru_cache(maxsize=16)
def _vectors(thumbnails: tuple[bytes, ...]) -> NDArray[np.float32]:
    """(n, COMPARED_SIDE squared), one row a thumbnail."""
    rows = []
    for jpeg in thumbnails:
        pixels = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
        if pixels is None:  # a file changed by hand: no example is better than a wrong one
            return np.empty((0, COMPARED_SIDE**2), np.float32)
        rows.append(_vector(np.asarray(pixels, np.uint8)))
    return np.array(rows, np.float32).reshape(len(rows), COMPARED_SIDE**2)


def _vector(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    small = cv2.resize(pixels, (COMPARED_SIDE, COMPARED_SIDE), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.float32).mean(axis=2).reshape(-1)
