"""Heat colours, blending, contours and the caption."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaformer.detection.scoring import overlays
from metaformer.detection.scoring.overlays import (
    CONTOUR,
    blend_heat,
    draw_contours,
    draw_overlay,
    format_score,
    heat_colours,
    map_levels,
)
from metaformer.detection.scoring.prediction import Prediction
from metaformer.detection.scoring.regions import find_regions
from tests.helpers import boards

# XYZ (D65) from linear sRGB, IEC 61966-2-1.
LINEAR_RGB_TO_XYZ = np.array(
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
)
# Deuteranopia and protanopia on linear sRGB, Machado et al. 2009, severity 1.
COLOUR_BLIND = {
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
}


def linear(rgb: np.ndarray) -> np.ndarray:
    share = rgb.astype(float) / 255
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)


def lab(linear_rgb: np.ndarray) -> np.ndarray:
    """CIELAB: another colour space than the one the table was made in."""
    t = np.clip(linear_rgb, 0, None) @ LINEAR_RGB_TO_XYZ.T / LINEAR_RGB_TO_XYZ.sum(axis=1)
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack(
        [116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1
    )


def predict(anomaly_map: np.ndarray, score: float) -> Prediction:
    mask = (anomaly_map >= 0.5) & (score >= 0.5)
    regions = find_regions(mask, anomaly_map)
    return Prediction(score, score, 0.1, score >= 0.5, anomaly_map, mask, regions)


# The colours


def test_lightness_rises_with_every_level():
    lightness = lab(linear(heat_colours()[:, :3]))[:, 0]
    assert lightness[0] < 10 and lightness[-1] > 90
    assert (lightness[4:] > lightness[:-4]).all()  # four levels: 8 bits round each away a little


@pytest.mark.parametrize("kind", COLOUR_BLIND)
def test_colour_blind_eyes_see_the_same_order(kind):
    seen = linear(heat_colours()[:, :3]) @ np.array(COLOUR_BLIND[kind]).T
    lightness = lab(seen)[:, 0]
    assert (lightness[8:] > lightness[:-8]).all()


def test_equal_steps_look_equal():
    colours = linear(heat_colours()[:, :3])
    lms = np.cbrt(colours @ np.linalg.inv(overlays.LMS_TO_LINEAR_RGB).T)
    oklab = lms @ np.linalg.inv(overlays.OKLAB_TO_LMS).T
    steps = np.linalg.norm(oklab[16::16] - oklab[:-16:16], axis=1)
    assert steps.max() / steps.min() < 1.15  # jet, for comparison: over 3


def test_no_colour_was_clipped_to_fit_the_screen():
    rgb = heat_colours()[:, :3]
    assert rgb.min() > 0 and rgb.max() < 255


def test_the_contour_stands_out_from_every_colour():
    distance = lab(linear(np.array([CONTOUR]))) - lab(linear(heat_colours()[:, :3]))
    assert np.linalg.norm(distance, axis=1).min() > 40  # 2.3 is just noticeable


# Levels


@given(st.floats(0, 1, width=32))
def test_eight_bits_keep_the_pixel_threshold(value):
    level = int(map_levels(np.array([[value]], dtype=np.float32))[0, 0])
    assert abs(level / 255 - value) <= 0.5 / 255 + 1e-6
    if value >= 0.5:
        assert level >= 128
    if value < 0.498:
        assert level < 128


# Blending


def test_normal_pixels_stay_as_they_are_and_marked_ones_take_the_colour():
    image = boards.cut("test", "00041005", 0, 60, 80)
    anomaly_map = np.full((60, 80), 0.2, dtype=np.float32)
    anomaly_map[10:20, 30:40] = 0.9
    blended = blend_heat(image, anomaly_map, opacity=1)
    marked = anomaly_map > 0.5
    assert (blended[~marked] == image[~marked]).all()
    assert (blended[marked] == heat_colours()[map_levels(anomaly_map)[marked], :3]).all()
    assert (blend_heat(image, anomaly_map, opacity=0) == image).all()
    half = blend_heat(image, anomaly_map, opacity=0.5)[marked].astype(int)
    assert np.abs(2 * half - image[marked] - blended[marked]).max() <= 1


def test_blending_in_strips_changes_nothing(monkeypatch):
    image = boards.cut("test", "00041005", 0, 61, 80)
    anomaly_map = np.linspace(0, 1, 61 * 80, dtype=np.float32).reshape(61, 80)
    whole = blend_heat(image, anomaly_map)
    monkeypatch.setattr(overlays, "STRIP_PIXELS", 80 * 7)
    assert (blend_heat(image, anomaly_map) == whole).all()


def test_a_map_of_another_size_is_refused():
    image = np.zeros((4, 6, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"\(4, 6, 3\).*\(6, 4\)"):
        blend_heat(image, np.zeros((6, 4), dtype=np.float32))
    with pytest.raises(ValueError, match=r"\(4, 6, 3\).*\(6, 4\)"):
        draw_contours(image, np.zeros((6, 4), dtype=bool))
    with pytest.raises(ValueError, match=r"1\.5"):
        blend_heat(image, np.zeros((4, 6), dtype=np.float32), opacity=1.5)


# Contours and caption


def test_contours_follow_the_rim_and_the_hole():
    image = np.full((100, 120, 3), 128, dtype=np.uint8)
    mask = np.zeros((100, 120), dtype=bool)
    mask[20:80, 30:90] = True
    mask[40:60, 50:70] = False
    drawn = draw_contours(image, mask)
    cyan = np.abs(drawn.astype(int) - CONTOUR).max(axis=2) < 40  # smoothed lines are paler
    assert cyan[20, 31:89].all() and cyan[79, 31:89].all()
    assert cyan[50, 49] and cyan[50, 70]  # the hole has an outline too
    assert cyan.sum() < 2 * (4 * 60 + 4 * 22)  # thin lines, nothing filled
    assert (drawn[:15] == 128).all() and (image == 128).all()  # drawn on a copy


def test_a_normal_image_gets_no_contour():
    image = np.full((50, 50, 3), 128, dtype=np.uint8)
    assert (draw_contours(image, np.zeros((50, 50), dtype=bool)) == image).all()


@pytest.mark.parametrize("size", [(8, 8), (40, 300), (300, 40), (600, 800)])
@pytest.mark.parametrize("score", [0.31, 0.87])
def test_the_caption_fits_and_tells_the_verdict_by_colour(size, score):
    image = np.full((*size, 3), 128, dtype=np.uint8)
    prediction = predict(np.zeros(size, dtype=np.float32), score)
    drawn = draw_overlay(image, prediction)
    assert drawn.shape == image.shape
    assert (draw_overlay(image, prediction, caption=False) == image).all()
    plate = overlays.PLATE_DEFECTIVE if score >= 0.5 else overlays.PLATE_NORMAL
    assert (drawn[0, 0] == plate).all()
    if min(size) >= 40:
        assert (drawn[-1] == 128).all()  # it covers a corner, not the image
        plain = (drawn == plate).all(axis=2) | (drawn == 128).all(axis=2)
        assert drawn[~plain].mean() > drawn[0, 0].mean() + 30  # bright letters on it


@pytest.mark.parametrize(
    ("score", "shown"),
    [
        (0.5, "0.500"),
        (0.49999, "0.499"),
        (0.99999, "0.999"),
        (0.57, "0.570"),
        (0.29, "0.290"),
        (0.0004, "0.000"),
    ],
)
def test_a_shown_score_never_crosses_the_threshold(score, shown):
    assert format_score(score) == shown
