"""Anomaly maps as colours, and what was found drawn onto the image.

The colours run from near-black violet over magenta and orange to pale yellow. Equal steps of the
map are equal steps to the eye (equal distances in OKLab, Ottosson 2020), and lightness rises all
the way, so that the order survives grey print and every kind of colour blindness. The table is
computed here (ours); the report's page gets the same one.
"""

from __future__ import annotations

from functools import cache
from math import comb
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from metaformer.detection.scoring.prediction import Prediction

OKLAB_PATH = (  # control points (L, a, b) of one Bezier curve, chosen by eye, inside sRGB
    (0.17, 0.02, -0.08),
    (0.31, 0.11, -0.16),
    (0.52, 0.255, -0.02),
    (0.67, 0.16, 0.11),
    (0.86, 0.0, 0.19),
    (0.97, -0.03, 0.08),
)
OKLAB_TO_LMS = np.array(
    [
        [1, 0.3963377774, 0.2158037573],
        [1, -0.1055613458, -0.0638541728],
        [1, -0.0894841775, -1.2914855480],
    ]
)
LMS_TO_LINEAR_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)
"""Both matrices: Ottosson, "A perceptual color space for image processing", 2020."""

CLEAR_BELOW = 0.25
"""Map values up to a typical normal one are left transparent: the photo itself shows there."""
OPAQUE_FROM = 0.5
"""From the pixel threshold on, the overlay has its full opacity."""

CONTOUR = (0, 229, 255)
"""Cyan: absent from the heat colours, and told from them by colour-blind eyes too."""
HALO = (0, 0, 0)
PLATE_DEFECTIVE = (170, 60, 0)
"""Vermilion against blue, not red against green."""
PLATE_NORMAL = (0, 84, 147)
STRIP_PIXELS = 2_000_000
"""Pixels blended at once; bounds memory on images of 100 million pixels."""


def map_levels(anomaly_map: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A calibrated map (H, W) in [0, 1] as 8 bits; values at or above 0.5 become 128 or more."""
    return np.clip(np.rint(anomaly_map * 255), 0, 255).astype(np.uint8)


@cache
def heat_colours() -> NDArray[np.uint8]:
    """(256, 4) RGBA, one row for each level of ``map_levels``; alpha as for an opacity of 1."""
    along = np.linspace(0, 1, 4001)[:, None]
    degree = len(OKLAB_PATH) - 1
    weights = np.concatenate(
        [comb(degree, i) * along**i * (1 - along) ** (degree - i) for i in range(degree + 1)],
        axis=1,
    )
    curve = weights @ np.array(OKLAB_PATH)  # (4001, 3)
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(curve, axis=0), axis=1))])
    even = np.linspace(0, length[-1], 256)
    oklab = np.stack([np.interp(even, length, curve[:, i]) for i in range(3)], axis=1)
    linear = np.clip((oklab @ OKLAB_TO_LMS.T) ** 3 @ LMS_TO_LINEAR_RGB.T, 0, 1)
    rgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    ramp = np.clip((np.linspace(0, 1, 256) - CLEAR_BELOW) / (OPAQUE_FROM - CLEAR_BELOW), 0, 1)
    table = np.rint(255 * np.concatenate([rgb, ramp[:, None]], axis=1)).astype(np.uint8)
    table.flags.writeable = False
    return table


def blend_heat(
    image: NDArray[np.uint8], anomaly_map: NDArray[np.float32], *, opacity: float = 0.6
) -> NDArray[np.uint8]:
    """The image (H, W, 3) uint8 RGB under its heat map; what is normal stays clear.

    Raises:
        ValueError: the shapes differ, or ``opacity`` is not in [0, 1].
    """
    if image.shape[:2] != anomaly_map.shape:
        raise ValueError(f"image {image.shape} and map {anomaly_map.shape} differ in size.")
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must lie between 0 and 1, got {opacity}.")
    table = heat_colours().astype(np.float32)
    alpha = opacity / 255 * table[:, 3:]  # (256, 1)
    ink = table[:, :3] * alpha
    blended = np.empty_like(image)
    strip = max(1, STRIP_PIXELS // max(1, image.shape[1]))
    for top in range(0, image.shape[0], strip):
        rows = slice(top, top + strip)
        levels = map_levels(anomaly_map[rows])
        blended[rows] = np.rint(image[rows] * (1 - alpha[levels]) + ink[levels])
    return blended


def draw_contours(image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """A copy of the image (H, W, 3) with the outlines of ``mask``, holes included.

    Raises:
        ValueError: the shapes differ.
    """
    if image.shape[:2] != mask.shape:
        raise ValueError(f"image {image.shape} and mask {mask.shape} differ in size.")
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    drawn = image.copy()
    width = _line_width(image)
    # The dark line under the bright one keeps the outline visible on any background.
    cv2.drawContours(drawn, contours, -1, HALO, width + 2 * ((width + 1) // 2), cv2.LINE_AA)
    cv2.drawContours(drawn, contours, -1, CONTOUR, width, cv2.LINE_AA)
    return drawn


def draw_overlay(
    image: NDArray[np.uint8], prediction: Prediction, *, opacity: float = 0.6, caption: bool = True
) -> NDArray[np.uint8]:
    """Heat map, outlines of the defects and the verdict on a copy of the image.

    Args:
        image: (H, W, 3) uint8 RGB, the image that was predicted on.
        prediction: what was found.
        opacity: of the heat map, in [0, 1].
        caption: write verdict and score into the top left corner.

    Raises:
        ValueError: image and prediction differ in size, or ``opacity`` is not in [0, 1].
    """
    drawn = draw_contours(
        blend_heat(image, prediction.anomaly_map, opacity=opacity), prediction.mask
    )
    return _caption(drawn, prediction) if caption else drawn


def verdict(is_anomalous: bool) -> str:
    """The word used for it in overlays and reports."""
    return "Defective" if is_anomalous else "Normal"


def format_score(score: float) -> str:
    """Three decimals, rounded down: 0.500 is at the threshold or above, and 1.000 never shown.

    Rounding to nearest would print 0.4996, which is normal, like a flagged 0.500.
    """
    return f"{np.floor(score * 1000 + 1e-6) / 1000:.3f}"


def _caption(image: NDArray[np.uint8], prediction: Prediction) -> NDArray[np.uint8]:
    text = f"{verdict(prediction.is_anomalous)} {format_score(prediction.score)}"
    font = cv2.FONT_HERSHEY_SIMPLEX
    (unit_width, unit_height), _ = cv2.getTextSize(text, font, 1.0, 2)
    height, width = image.shape[:2]
    # A twentieth of the shorter side, but never wider than the image.
    scale = min(max(0.4, min(height, width) / 20 / unit_height), 0.9 * width / unit_width)
    stroke = max(1, round(2 * scale))
    (text_width, text_height), below = cv2.getTextSize(text, font, scale, stroke)
    pad = max(2, text_height // 2)
    plate = PLATE_DEFECTIVE if prediction.is_anomalous else PLATE_NORMAL
    corner = (text_width + 2 * pad, text_height + below + 2 * pad)
    cv2.rectangle(image, (0, 0), corner, plate, cv2.FILLED)
    white = (255, 255, 255)
    cv2.putText(image, text, (pad, pad + text_height), font, scale, white, stroke, cv2.LINE_AA)
    return image


def _line_width(image: NDArray[np.uint8]) -> int:
    """Visible when the whole image is shown on a screen."""
    return max(1, round(max(image.shape[:2]) / 400))
