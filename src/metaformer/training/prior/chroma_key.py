"""Cutting objects out of photos by the colour of their border, with no label of any kind.

Some photos show one object on a plain backdrop: a garment on a bed sheet. There the backdrop can
be predicted from the border of the photo, and what departs from that prediction is the object.
The test is strict, because a wrong cut becomes a wrong effect photo; most photos fail it.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class KeyingConfig:
    """When is a border plain enough, and when is what stands out from it an object."""

    side: int = 160
    """Longest side, in pixels, at which the key is computed."""
    border: float = 0.04
    """Width of the border band, as a share of the shorter side."""
    max_border_residual: float = 6.0
    """90th percentile of the colour distance (CIELAB units) of the border to its own model."""
    min_distance: float = 9.0
    """A pixel nearer than this to the predicted backdrop is backdrop (CIELAB units)."""
    min_area: float = 0.08
    max_area: float = 0.75
    max_border_contact: float = 0.12
    """Share of the border band the object may cover: a cropped garment is no object."""
    min_solidity: float = 0.6
    """Area of the object over the area of its convex hull."""
    max_unsure: float = 0.12
    """Share of the pixels whose distance is near the threshold; many means a bad cut."""


def key_by_border(
    image: NDArray[np.uint8], config: KeyingConfig | None = None
) -> NDArray[np.float32] | None:
    """Matte of the one object on a plain backdrop, or None where the backdrop is not plain.

    Args:
        image: uint8 (H, W, 3) RGB.

    Returns:
        float32 (H, W) in [0, 1], 1 on the object, soft over about two pixels; or None.
    """
    config = config or KeyingConfig()
    height, width = image.shape[:2]
    scale = min(1.0, config.side / max(height, width))
    size = (max(8, round(width * scale)), max(8, round(height * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    lab = cv2.cvtColor(small.astype(np.float32) / 255.0, cv2.COLOR_RGB2LAB).astype(
        np.float32
    )  # (h, w, 3)

    border = np.ones(lab.shape[:2], bool)
    band = max(2, round(config.border * min(size)))
    border[band:-band, band:-band] = False

    distance, border_residual = _distance_to_backdrop(lab, border)
    if border_residual > config.max_border_residual:
        return None

    # Otsu's threshold between backdrop and object, never below what the border itself shows.
    capped = np.clip(distance, 0, 60) / 60 * 255
    otsu, _ = cv2.threshold(capped.astype(np.uint8), 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    threshold = max(config.min_distance, 1.5 * border_residual, 0.6 * otsu / 255 * 60)
    if np.mean(np.abs(distance - threshold) < 0.25 * threshold) > config.max_unsure:
        return None

    mask = _largest_filled(distance > threshold)
    if mask is None:
        return None
    area = float(mask.mean())
    if not config.min_area <= area <= config.max_area:
        return None
    if mask[border].mean() > config.max_border_contact:
        return None
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    outline = max(contours, key=cv2.contourArea)
    hull = cv2.contourArea(cv2.convexHull(outline))
    if cv2.contourArea(outline) < config.min_solidity * max(hull, 1.0):
        return None

    matte = cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    # The outermost pixels mix in the backdrop: draw the edge in a little.
    matte = cv2.GaussianBlur(matte, (0, 0), 1.0)
    soft: NDArray[np.float32] = np.clip((matte - 0.4) / 0.55, 0.0, 1.0).astype(np.float32)
    return soft


def _distance_to_backdrop(
    lab: NDArray[np.float32], border: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], float]:
    """Colour distance of each pixel to a quadratic surface fitted to the border's colours."""
    height, width = lab.shape[:2]
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    # Second order along each axis: light falls off from a window or a flash.
    basis = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=-1)  # (h, w, 6)
    inputs, colours = basis[border], lab[border].astype(np.float64)
    keep = np.ones(len(inputs), bool)
    for _ in range(3):  # refit without the pixels where the object crosses the border
        coefficients, *_ = np.linalg.lstsq(inputs[keep], colours[keep], rcond=None)
        residual = np.linalg.norm(inputs @ coefficients - colours, axis=1)
        keep = residual <= max(3.0, float(np.quantile(residual, 0.85)))
    departure = lab - basis @ coefficients
    departure[..., 0] *= 0.7  # a shadow changes lightness more than an edge of cloth does
    distance = np.linalg.norm(departure, axis=-1).astype(np.float32)
    distance = cv2.GaussianBlur(distance, (0, 0), 0.8)
    return distance, float(np.quantile(distance[border], 0.9))


def _largest_filled(mask: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
    """The largest connected part of ``mask`` after closing small gaps, with its holes filled."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    closed = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, kernel)
    closed = cv2.morphologyEx(closed, cv2.MORPH_OPEN, kernel)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(closed, connectivity=4)
    if count < 2:
        return None
    largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    # A garment is one piece: two pieces of similar size are something else.
    areas = np.sort(stats[1:, cv2.CC_STAT_AREA])[::-1]
    if len(areas) > 1 and areas[1] > 0.15 * areas[0]:
        return None
    contours, _ = cv2.findContours(
        (labels == largest).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    filled = np.zeros(mask.shape, np.uint8)
    cv2.drawContours(filled, contours, -1, 1, cv2.FILLED)
    return filled.astype(bool)
