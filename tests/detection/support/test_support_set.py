"""A support image counts once, however often and however encoded its photo is given."""

from __future__ import annotations

import io
import time
import warnings
from functools import cache

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as Pillow

from metaformer import Detector
from metaformer.detection.support.support_set import (
    DuplicateSupportWarning,
    Signatures,
    SupportRecord,
    signature_of,
)
from metaformer.io.images import list_images, read_image
from tests.helpers import boards

pytestmark = pytest.mark.filterwarnings(
    "ignore::metaformer.detection.support.support_set.OddSupportWarning"
)

Image = NDArray[np.uint8]


@cache
def photos() -> tuple[Image, ...]:
    """Different photos of good parts: twelve of one board, at slightly other places and in other
    light, and the whole of eight boards."""
    specimens = [boards.good(seed, "77000005", 320, 240) for seed in range(12)]
    return (*specimens, *(read_image(path) for path in list_images(boards.BOARDS / "template")))


def walls() -> list[Image]:
    folder = boards.BOARDS.parent / "wall_covering"
    return [read_image(path) for kind in ("good", "test") for path in list_images(folder / kind)]


def as_jpeg(image: Image, quality: int) -> Image:
    buffer = io.BytesIO()
    Pillow.fromarray(image).save(buffer, "JPEG", quality=quality)
    return read_image(buffer.getvalue())


def half(image: Image) -> Image:
    height, width = image.shape[:2]
    return np.asarray(
        cv2.resize(image, (width // 2, height // 2), interpolation=cv2.INTER_AREA), np.uint8
    )


COPIES = {
    "exact": lambda image: image.copy(),
    "jpeg 95": lambda image: as_jpeg(image, 95),
    "jpeg 60": lambda image: as_jpeg(image, 60),
    "half the size": half,
}
every_copy = pytest.mark.parametrize("copy", COPIES.values(), ids=list(COPIES))


# The record


@every_copy
def test_a_copy_of_any_photo_is_not_taken_in_and_named(copy):
    record = SupportRecord()
    for i, image in enumerate(photos()):
        assert record.take_in(f"{i}.png", image)
    for i, image in enumerate(photos()):
        assert not record.take_in(f"copy of {i}", copy(image))
    assert len(record.images) == len(photos())
    assert record.copies == [f"copy of {i} (a copy of {i}.png)" for i in range(len(photos()))]


OF_SURFACES = [name for name in COPIES if name != "jpeg 60"]


@pytest.mark.parametrize("copy", [COPIES[name] for name in OF_SURFACES], ids=OF_SURFACES)
def test_of_a_surface_without_parts_too(copy):
    record = SupportRecord()
    for i, image in enumerate(walls()):
        assert record.take_in(f"{i}", image)
        assert not record.take_in(f"copy of {i}", copy(image))


def test_different_photos_are_all_taken_in():
    record = SupportRecord()
    assert all(record.take_in(str(i), image) for i, image in enumerate(photos()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        record.warn()


def test_dark_photos_of_different_parts_are_no_copies():
    record = SupportRecord()
    dark = [(boards.good(seed) * 0.1).round().astype(np.uint8) for seed in range(12)]
    assert all(record.take_in(str(i), pixels) for i, pixels in enumerate(dark))
    assert not record.take_in("again", dark[3].copy())


def test_a_copy_counts_as_one_of_what_was_recorded_before():
    first = SupportRecord()
    first.take_in("a", photos()[0])
    later = SupportRecord(first.images)
    assert not later.take_in("b", as_jpeg(photos()[0], 80))
    assert later.take_in("c", photos()[1])
    assert [image["name"] for image in first.images] == ["a"]  # itself unchanged


def test_of_files_without_signatures_exact_copies_are_known():
    """Earlier versions recorded the SHA-256 alone."""
    record = SupportRecord()
    record.take_in("a", photos()[0])
    old = SupportRecord([{k: v for k, v in record.images[0].items() if k != "signature"}])
    assert not old.take_in("b", photos()[0])
    assert old.take_in("c", as_jpeg(photos()[0], 60))


def test_a_signature_is_of_brightness_not_of_size():
    bright = signature_of(np.full((32, 64, 3), 200, np.uint8))
    assert bright.shape == (256,) and float(bright.mean()) == pytest.approx(200, abs=0.5)
    known = Signatures()
    assert known.copy_of(bright) is None
    known.add(signature_of(np.full((900, 70, 3), 200, np.uint8)).round(), "tall")
    assert known.copy_of(bright) == "tall"
    assert known.copy_of(bright + 1) is None
    one_cell = bright + 2.6 * (np.arange(256) == 37)  # a small part is missing
    assert known.copy_of(one_cell) is None


def test_thousands_are_compared_quickly_and_none_is_overlooked():
    """Four thousand photos of one part in one light, told apart by noise alone."""
    rng = np.random.default_rng(0)
    drawn = 100 + rng.normal(0, 1, (4_000, 256)).astype(np.float32)
    known = Signatures()
    started = time.process_time()
    for i, signature in enumerate(drawn):
        assert known.copy_of(signature) is None
        known.add(signature.round(), str(i))
    seconds = time.process_time() - started
    assert all(known.copy_of(drawn[i] + 0.1) == str(i) for i in range(0, 4_000, 100))
    assert seconds < 2  # about 0.3; one by one it takes a minute


# Adapting and extending


def with_copies(images: list[Image], copy) -> list[Image]:
    """Each image and its copy."""
    return [each for image in images for each in (image, copy(image))]


@every_copy
def test_adapting_counts_each_photo_once(copy):
    images = list(photos()[:3])
    expected = boards.universal().adapt(images)
    with pytest.warns(DuplicateSupportWarning) as caught:
        detector = boards.universal().adapt(with_copies(images, copy))
    (warning,) = (w for w in caught if w.category is DuplicateSupportWarning)
    for i in range(3):
        assert f"image {2 * i + 1} (a copy of image {2 * i})" in str(warning.message)
    assert warning.filename == __file__  # points at the caller's line
    assert len(detector.provenance["support"]) == len(detector.provenance["support_scores"]) == 3
    assert detector.calibration == expected.calibration
    assert detector.guarantee == expected.guarantee
    bad = boards.defective(50)
    assert detector.predict(bad).raw_score == expected.predict(bad).raw_score


def test_copies_do_not_buy_a_guarantee():
    """Nineteen different images can promise one false alarm in twenty; ten, doubled, cannot."""
    images = list(photos()[:10])
    with pytest.warns(DuplicateSupportWarning):
        doubled = boards.universal().adapt([*images, *images])
    nineteen = boards.universal().adapt(list(photos()[:19]))
    assert nineteen.calibration.rule == "rank"
    assert doubled.calibration.rule == "tail"
    assert len(doubled.calibration.normal_scores) == 10
    assert doubled.guarantee != nineteen.guarantee


def test_a_photo_and_its_copies_are_a_support_of_one():
    """Left out, a copy would be compared with itself, and the threshold would be near zero."""
    image = photos()[0]
    expected = boards.universal().adapt([image])
    with pytest.warns(DuplicateSupportWarning):
        detector = boards.universal().adapt([image, as_jpeg(image, 80), image])
    assert detector.provenance["support_scores"] == []
    assert detector.calibration.rule == expected.calibration.rule == "views"
    assert detector.calibration == expected.calibration


@every_copy
def test_extending_counts_each_photo_once(copy):
    images = list(photos()[:5])
    detector = boards.universal().adapt(images[:3])
    expected = detector.extended_with(images[3:])
    with pytest.warns(DuplicateSupportWarning, match=r"\(a copy of image 1\)"):
        extended = detector.extended_with([copy(images[1]), *with_copies(images[3:], copy)])
    assert len(extended.provenance["support"]) == 5
    assert extended.provenance["additions"][0]["count"] == 2
    assert extended.calibration == expected.calibration
    assert extended.guarantee == expected.guarantee


@every_copy
def test_nothing_but_copies_is_nothing_to_add(copy, tmp_path):
    images = list(photos()[:3])
    boards.universal().adapt(images).save(tmp_path / "d")
    with pytest.raises(ValueError, match="of the 3 images given, none is new"):
        Detector.load(tmp_path / "d").extended_with([copy(image) for image in images])


def test_different_photos_of_a_good_part_are_all_kept():
    images = [boards.good(seed, "77000005", 200, 200) for seed in range(12)]
    with warnings.catch_warnings():
        warnings.simplefilter("error", DuplicateSupportWarning)
        detector = boards.universal().adapt(images[:9])
        extended = detector.extended_with(images[9:])
    assert len(detector.provenance["support"]) == 9
    assert len(extended.provenance["support"]) == len(extended.calibration.normal_scores) == 12


def test_a_folder_names_the_files_left_out(tmp_path):
    for i in range(2):
        boards.write_png(tmp_path / f"{i}.png", photos()[i])
    Pillow.fromarray(photos()[0]).save(tmp_path / "again.jpg", quality=90)
    with pytest.warns(DuplicateSupportWarning, match=r"again\.jpg \(a copy of 0\.png\)"):
        detector = boards.universal().adapt(tmp_path)
    assert len(detector.provenance["support"]) == 2
