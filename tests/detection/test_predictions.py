"""Predictions and detectors as a person meets them: short texts, pictures, tables."""

from __future__ import annotations

import pickle

import cv2
import numpy as np
import pytest

from metaformer import to_records
from metaformer.detection.detector import Detector
from metaformer.detection.scoring.overlays import draw_overlay
from metaformer.io.images import ImageError, read_image
from tests.helpers import boards


@pytest.fixture(scope="module")
def detector() -> Detector:
    return boards.detector()


@pytest.fixture
def photo(tmp_path):
    return boards.write_png(tmp_path / "bad.png", boards.defective(0))


def test_texts_are_one_short_line(detector, photo):
    found = repr(detector.predict(photo))
    assert found.startswith("Prediction(defective, score 0.") and found.endswith("bad.png')")
    assert "96 x 96 pixels" in found and "\n" not in found and len(found) < 200 + len(str(photo))
    assert repr(detector.predict(boards.good(100))).startswith("Prediction(normal, score 0.")
    assert repr(detector) == (
        "Detector(feature, 3 normal images, 96 pixels, false-alarm rate 5.0%)"
    )
    assert repr(boards.universal()) == "Metaformer(feature, efficientnet_lite0, 96 pixels)"


def test_the_overlay_is_of_the_file_read_again(detector, photo):
    found = detector.predict(photo)
    assert np.array_equal(found.overlay(), draw_overlay(boards.defective(0), found))
    plain = found.overlay(opacity=0, caption=False)
    away = cv2.dilate(found.mask.astype(np.uint8), np.ones((9, 9))) == 0
    assert away.any() and np.array_equal(plain[away], boards.defective(0)[away])
    assert np.array_equal(pickle.loads(pickle.dumps(found)).overlay(), found.overlay())
    photo.unlink()
    with pytest.raises(ImageError, match="no such file"):
        found.overlay()
    assert found._repr_png_() is None
    assert np.array_equal(
        found.overlay(boards.defective(0)), draw_overlay(boards.defective(0), found)
    )


def test_an_image_in_memory_is_kept_unless_it_was_only_pixels(detector):
    image = boards.defective(0)
    assert detector.predict(image).overlay().shape == image.shape
    with pytest.raises(ValueError, match=r"not kept. Give it: overlay\(image\)"):
        detector.predict_pixels(image).overlay()
    with pytest.raises(ValueError, match="differ in size"):
        detector.predict(image).overlay(image[:50])


def test_an_image_given_again_is_read_as_the_detector_read_it(tmp_path):
    def deep(image):
        return np.rint(image * (4095 / 255)).astype(np.uint16)

    twelve = boards.universal().adapt([deep(boards.good(seed)) for seed in range(2)])
    found = twelve.predict(deep(boards.defective(0)))
    assert np.array_equal(found.overlay(deep(boards.defective(0))), found.overlay())
    found.save(tmp_path / "a.png", deep(boards.defective(0)))
    assert np.array_equal(read_image(tmp_path / "a.png"), found.overlay())


@pytest.mark.parametrize("name", ["a.png", "a.JPG"])
def test_save_writes_the_overlay(detector, photo, tmp_path, name):
    found = detector.predict(photo)
    found.save(tmp_path / name)
    apart = np.abs(read_image(tmp_path / name).astype(int) - found.overlay())
    assert apart.max() == 0 if name.endswith("png") else apart.mean() < 15
    with pytest.raises(ValueError, match=r"a\.gif: pictures are written as"):
        found.save(tmp_path / "a.gif")
    assert not (tmp_path / "a.gif").exists()


def test_notebooks_show_a_picture_and_a_table(detector, photo):
    content = np.frombuffer(detector.predict(photo)._repr_png_(), np.uint8)
    assert cv2.imdecode(content, cv2.IMREAD_COLOR).shape == (96, 96, 3)
    shown = detector._repr_html_()
    assert "<table>" in shown and "3 (image 0, image 1, image 2)" in shown
    assert detector.guarantee.split(".")[0] in shown


def test_records_make_a_table(detector, photo):
    found = [detector.predict(photo), detector.predict(boards.good(100))]
    bad, good = to_records(found)
    assert bad["path"] == str(photo) and bad["is_anomalous"] and bad["score"] == found[0].score
    largest = max(found[0].regions, key=lambda region: region.area)
    assert (bad["region_x"], bad["region_area"]) == (largest.x, largest.area)
    assert good["regions"] == 0 and good["region_x"] is None and good.keys() == bad.keys()
