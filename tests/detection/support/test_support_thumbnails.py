"""Thumbnails of the good images inside a detector file."""

from __future__ import annotations

import cv2
import numpy as np

from metaformer.detection.detector import Detector
from metaformer.detection.support import support_thumbnails
from tests.helpers import boards

PLACES = ["00041005", "00041025", "77000005", "77000015"]


def test_the_nearest_good_image_is_the_one_of_the_same_place(tmp_path):
    detector = boards.universal().adapt([boards.good(0, board) for board in PLACES])
    path = tmp_path / "d.metaformer"
    detector.save(path)
    loaded = Detector.load(path)
    assert loaded.thumbnails == detector.thumbnails and len(loaded.thumbnails) == 4
    for index, board in enumerate(PLACES):
        for each in (detector, loaded, loaded.with_false_alarm_rate(0.2)):
            found = each.nearest_good(boards.defective(7, board))
            assert found and found.name == f"image {index}"
    pixels = cv2.imdecode(np.frombuffer(found.jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert pixels.shape == (boards.SIDE, boards.SIDE, 3)


def test_added_images_have_thumbnails_too():
    extended = boards.detector(2).extended_with([boards.good(30, "77000005")])
    assert len(extended.thumbnails) == 3
    found = extended.nearest_good(boards.defective(31, "77000005"))
    assert found and found.jpeg == extended.thumbnails[2]


def test_a_file_of_an_earlier_version_has_none():
    detector = boards.detector(2)
    old = Detector(detector.model, detector.adapted, detector.calibration, detector.provenance)
    assert old.nearest_good(boards.good(0)) is None
    # Thumbnails of later images would stand beside the names of the first ones.
    assert old.extended_with([boards.good(40)]).thumbnails == ()


def test_large_images_become_small_and_only_the_first_are_kept(monkeypatch):
    jpeg = support_thumbnails.make_thumbnail(np.zeros((100, 640, 3), np.uint8))
    assert cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR).shape == (25, 160, 3)
    monkeypatch.setattr("metaformer.detection.support.support_set.MOST_THUMBNAILS", 2)
    assert len(boards.universal().adapt([boards.good(i) for i in range(3)]).thumbnails) == 2
