"""What a camera shows when something is wrong is never a good part, however few images there are.

For two products, both presets and 1, 4 and 10 normal images, at the settings that users get.
"""

from __future__ import annotations

import itertools
from functools import cache

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from metaformer import Detector, Metaformer
from metaformer.detection.detector_file import read_detector_file, write_detector_file
from metaformer.detection.presets import PRESETS, PresetName
from tests.helpers import boards

pytestmark = pytest.mark.filterwarnings(
    "ignore::metaformer.detection.support.support_set.OddSupportWarning"
)

Image = NDArray[np.uint8]


def board(seed: int) -> Image:
    """A cut of a real circuit board, (240, 240, 3)."""
    return boards.good(seed, "77000005", 240, 240)


def flange(seed: int) -> Image:
    """A disc with a hub and six holes, not quite in the same place and light each time,
    (192, 256, 3)."""
    rng = np.random.default_rng(seed)
    image = rng.integers(90, 110, (192, 256, 3), dtype=np.uint8)
    x, y = (int(v) for v in np.array([128, 96]) + rng.integers(-6, 7, 2))
    cv2.circle(image, (x, y), 60, (170, 150, 60), -1)
    cv2.circle(image, (x, y), 18, (60, 60, 140), -1)
    for i in range(6):
        hole = int(x + 42 * np.cos(i * np.pi / 3)), int(y + 42 * np.sin(i * np.pi / 3))
        cv2.circle(image, hole, 7, (40, 50, 45), -1)
    return (cv2.GaussianBlur(image, (0, 0), 1.2) * rng.uniform(0.9, 1)).astype(np.uint8)


PRODUCTS = {"board": board, "flange": flange}
COUNTS = (1, 4, 10)


def uniform(image: Image, level: float | NDArray[np.float64]) -> Image:
    return np.broadcast_to(np.asarray(level), image.shape).round().astype(np.uint8)


def frames(product: str) -> dict[str, Image]:
    """What goes wrong, by name."""
    image, rng = PRODUCTS[product](50), np.random.default_rng(1)
    half_lost = image.copy()
    half_lost[len(image) // 2 :] = 0
    return {
        "lens cap": np.clip(rng.normal(3, 2, image.shape), 0, 255).astype(np.uint8),
        "black": uniform(image, 0),
        "overexposed": uniform(image, 255),
        "grey": uniform(image, 128),
        "mean colour": uniform(image, image.mean((0, 1))),
        "noise": rng.integers(0, 256, image.shape, dtype=np.uint8),
        "lower half lost": half_lost,
        "another product": flange(1) if product == "board" else board(1),
    }


FRAMES = tuple(frames("board"))


@cache
def detector(product: str, preset: PresetName, count: int) -> Detector:
    images = [PRODUCTS[product](seed) for seed in range(count)]
    return Metaformer.from_pretrained(preset).adapt(images)


def test_support_images_that_differ_widely_do_not_let_an_empty_frame_pass():
    """The plain ground between the parts is among the good patches, and in the frame's statistics
    the good images differ from each other as much as from it."""
    rng = np.random.default_rng(0)

    def scattered(count: int) -> Image:
        image = rng.integers(98, 102, (192, 256, 3), dtype=np.uint8)
        for x, y in rng.integers(20, 170, (count, 2)).tolist():
            cv2.circle(image, (x, y), 14, (170, 150, 60), -1)
            cv2.circle(image, (x, y), 6, (40, 50, 45), -1)
        return np.asarray(cv2.GaussianBlur(image, (0, 0), 1.2), np.uint8)

    empty = cv2.GaussianBlur(scattered(0), (0, 0), 5)
    support = [scattered(6), scattered(60)]
    for preset in PRESETS:
        detector = Metaformer.from_pretrained(preset).adapt(support)
        assert detector.predict(empty).is_anomalous


@pytest.mark.parametrize(
    ("product", "preset", "count", "frame"),
    [*itertools.product(PRODUCTS, PRESETS, COUNTS, FRAMES)],
)
def test_it_is_flagged_at_the_default_rate(product, preset, count, frame):
    found = detector(product, preset, count).predict(frames(product)[frame])
    assert found.is_anomalous
    assert found.score > 0.5
    assert found.mask.any() and found.regions


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("product", PRODUCTS)
def test_most_good_parts_are_not_flagged(product, preset, count):
    """So that flagging everything does not pass."""
    adapted = detector(product, preset, count)
    flagged = [adapted.predict(PRODUCTS[product](60 + i)).is_anomalous for i in range(5)]
    assert sum(flagged) <= 1


STRICT_RATES = (1e-4, 1e-6)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("preset", PRESETS)
def test_a_grey_frame_is_flagged_at_every_rate(preset, count, tmp_path):
    made = detector("flange", preset, count)
    grey = frames("flange")["grey"]
    before = made.predict(grey).raw_score
    made.save(tmp_path / "flange.safetensors")
    extended = made.extended_with([flange(90), flange(91)])
    for of_path in (made, Detector.load(tmp_path / "flange.safetensors"), extended):
        for rate in STRICT_RATES:
            found = of_path.with_false_alarm_rate(rate).predict(grey)
            assert found.is_anomalous and found.score > 0.5
            assert found.mask.all()
    assert made.predict(grey).raw_score == before  # no matter which rates were asked before


@pytest.mark.parametrize("preset", PRESETS)
def test_a_file_of_an_earlier_version_with_a_lower_level_flags_it_too(preset, tmp_path):
    made = detector("flange", preset, 4)
    path = tmp_path / "flange.safetensors"
    made.save(path)
    header, tensors = read_detector_file(path)
    settings = header["settings"].get("comparison", header["settings"])
    settings["frame"]["level"] = made.calibration.threshold
    del settings["frame"]["marked_level"]
    write_detector_file(path, header, tensors)
    strict = Detector.load(path).with_false_alarm_rate(1e-6)
    assert strict.predict(frames("flange")["grey"]).is_anomalous


def test_a_rate_that_no_level_can_be_above_is_refused():
    with pytest.raises(ValueError, match=r"not below 0\.000001"):
        detector("flange", "feature", 4).with_false_alarm_rate(9e-7)
