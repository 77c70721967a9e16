"""What the report embeds of an image: a small photo, a small map, its regions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metaformer.detection.scoring.overlays import map_levels
from metaformer.detection.scoring.prediction import Prediction, Region
from metaformer.io.encoding import encode_levels, encode_photo
from metaformer.io.images import resize_image

JPEG_QUALITY = 80
MAP_SHARE = 2
"""A map is stored at half the side of its photo: it is smooth, and weighs as much at full size."""
LISTED_REGIONS = 20
"""Regions of one image in the page; the rest is counted."""


@dataclass(frozen=True, slots=True)
class Picture:
    """Encoded, so that a few hundred take little memory."""

    photo: bytes
    """JPEG."""
    heat: bytes
    """Calibrated map as an 8-bit PNG: 128 and more is at or above the pixel threshold."""
    thumbnail: tuple[int, int]
    """(width, height) of the photo as stored."""
    size: tuple[int, int]
    """(width, height) of the image; regions are in its pixels."""
    regions: tuple[Region, ...]
    region_count: int


def make_picture(image: NDArray[np.uint8], prediction: Prediction, side: int) -> Picture:
    """The picture of an image (H, W, 3) uint8 RGB, its longer side at most ``side`` pixels."""
    height, width = image.shape[:2]
    thumbnail = fit(width, height, side)
    photo = resize_image(image, (thumbnail[1], thumbnail[0]))
    map_size = fit(width, height, max(1, side // MAP_SHARE))
    levels = map_levels(shrink_by_maximum(prediction.anomaly_map, *map_size))
    return Picture(
        photo=encode_photo(photo, JPEG_QUALITY),
        heat=encode_levels(levels),
        thumbnail=thumbnail,
        size=(width, height),
        regions=prediction.regions[:LISTED_REGIONS],
        region_count=len(prediction.regions),
    )


def fit(width: int, height: int, side: int) -> tuple[int, int]:
    """(width, height) with the longer one at most ``side``, same aspect, at least one pixel."""
    scale = min(1.0, side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def shrink_by_maximum(
    anomaly_map: NDArray[np.float32], width: int, height: int
) -> NDArray[np.float32]:
    """The map (H, W) at (height, width), each pixel the highest of those it stands for.

    Averaging would pull a small defect under the threshold, and the page would not outline it.
    """
    rows = np.arange(height) * anomaly_map.shape[0] // height
    columns = np.arange(width) * anomaly_map.shape[1] // width
    return np.maximum.reduceat(np.maximum.reduceat(anomaly_map, rows, axis=0), columns, axis=1)
