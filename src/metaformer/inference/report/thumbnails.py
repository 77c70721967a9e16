"""Pictures of an image in the report: small photo, small map, regions at full size."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from metaformer.detection.scoring.overlays import map_levels
from metaformer.detection.scoring.prediction import Prediction, Region
from metaformer.detection.support.support_thumbnails import GoodExample
from metaformer.io.encoding import encode_levels, encode_photo
from metaformer.io.images import resize_image

JPEG_QUALITY = 80
MAP_SHARE = 2
"""A map is stored at half the side of its photo: it is smooth, and weighs as much at full size."""
LISTED_REGIONS = 20
"""Regions of one image in the page; the rest is counted."""
CROPPED_REGIONS = 4
"""Regions of one image with a crop of the original pixels, the highest peaks."""
CROP_SIDE = 240
"""Longer side of a crop in pixels; a larger region is made smaller to fit."""
CROP_MARGIN = 0.5
"""Surroundings on each side of a region in its crop, as a share of the region."""
CROP_QUALITY = 90
OUTLINE_POINTS = 600
"""Corners of the true outline of one image in the page, about."""

Outline = tuple[tuple[int, ...], ...]
"""Closed polygons, each x, y, x, y ... in pixels of the image."""


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
    crops: tuple[bytes, ...] = ()
    """JPEGs of the first regions, from the original pixels."""
    good: GoodExample | None = None
    """The good image most like it."""
    outline: Outline = ()
    """Where it is truly defective, if that is known."""


def make_picture(
    image: NDArray[np.uint8],
    prediction: Prediction,
    side: int,
    *,
    good: GoodExample | None = None,
    true_mask: NDArray[np.bool_] | None = None,
) -> Picture:
    """The picture of an image (H, W, 3) uint8 RGB, its longer side at most ``side`` pixels.

    Args:
        good: the good image to show beside it.
        true_mask: where it is truly defective, (h, w) with the image's proportions.
    """
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
        crops=tuple(crop_region(image, r) for r in prediction.regions[:CROPPED_REGIONS]),
        good=good,
        outline=() if true_mask is None else trace_outline(true_mask, width, height),
    )


def crop_region(image: NDArray[np.uint8], region: Region) -> bytes:
    """JPEG of a region and its surroundings, pixel for pixel unless it is larger than a crop."""
    margin = max(24, round(CROP_MARGIN * max(region.width, region.height)))
    left, top = max(0, region.x - margin), max(0, region.y - margin)
    right, bottom = region.x + region.width + margin, region.y + region.height + margin
    crop = image[top:bottom, left:right]
    width, height = fit(crop.shape[1], crop.shape[0], CROP_SIDE)
    return encode_photo(resize_image(crop, (height, width)), CROP_QUALITY)


def trace_outline(mask: NDArray[np.bool_], width: int, height: int) -> Outline:
    """Outlines of a mask (h, w), holes included, in pixels of an image of ``width`` x ``height``.

    Corners are left out, the least telling ones first, until about ``OUTLINE_POINTS`` are left.
    """
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    tolerance = max(mask.shape) / 1024
    while sum(len(contour) for contour in contours) > OUTLINE_POINTS and tolerance < 64:
        contours = [cv2.approxPolyDP(contour, tolerance, True) for contour in contours]
        tolerance *= 2
    # Contours run through pixel centres; half a pixel more is where those are in the image.
    scale = np.array([width / mask.shape[1], height / mask.shape[0]])
    scaled = [np.rint((contour.reshape(-1, 2) + 0.5) * scale).astype(int) for contour in contours]
    largest = sorted(scaled, key=len, reverse=True)[:OUTLINE_POINTS]
    return tuple(tuple(points.ravel().tolist()) for points in largest)


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
