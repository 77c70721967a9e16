"""The frames and the changes are what they are called, and both scripts write what they measure."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is not in the package

from benchmarks.robustness import blank_frames, camera

Image = NDArray[np.uint8]


def product(seed: int, ground: int = 60) -> Image:
    """A textured plate on a plain ground, 64 x 96; its place and light differ by the seed."""
    rng = np.random.default_rng(seed)
    image = np.full((64, 96, 3), ground, np.uint8)
    x, y = rng.integers(12, 24, 2)
    image[y : y + 28, x : x + 44] = rng.integers(120, 200, (28, 44, 3)) * rng.uniform(0.9, 1.1)
    return np.asarray(cv2.GaussianBlur(image, (0, 0), 1.0), np.uint8)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name, ground in (("plate", 60), ("other", 220)):
        for kind, first in (("train/good", 0), ("test/good", 10), ("test/hole", 20)):
            (tmp_path / name / kind).mkdir(parents=True)
            for i in range(3):
                image = product(first + i, ground)
                if kind == "test/hole":
                    cv2.circle(image, (40, 32), 9, (255, 0, 0), -1)
                cv2.imwrite(str(tmp_path / name / kind / f"{i}.png"), image)
    return tmp_path


@pytest.mark.parametrize("change", camera.CHANGES)
def test_every_change_keeps_form_and_all_but_one_change_the_image(change: str) -> None:
    image = np.asarray(cv2.resize(product(3), (384, 256)), np.uint8)
    before = image.copy()
    changed = camera.CHANGES[change](image)
    assert changed.shape == image.shape and changed.dtype == np.uint8
    assert np.array_equal(image, before)  # the image itself stays as it was
    assert np.array_equal(changed, image) == (change == camera.UNCHANGED)


def test_changes_have_the_strength_they_are_called_by() -> None:
    flat = np.full((128, 128, 3), 100, np.uint8)
    assert np.all(camera.CHANGES["gain +20 %"](flat) == 120)
    assert np.all(camera.CHANGES["gain -5 %"](flat) == 95)
    assert camera.CHANGES["white balance +10 %"](flat)[0, 0].tolist() == [110, 100, 91]
    assert camera.CHANGES["gamma 0.8"](flat)[0, 0, 0] == round(255 * (100 / 255) ** 0.8)
    assert camera.CHANGES["noise 8"](flat).astype(float).std() == pytest.approx(8, rel=0.05)
    line = np.zeros((256, 256, 3), np.uint8)
    line[:, 128] = 255
    profile = camera.CHANGES["defocus 2 px"](line)[128, :, 0].astype(float)
    places = np.arange(256) - 128
    assert np.sqrt((profile * places**2).sum() / profile.sum()) == pytest.approx(2, rel=0.05)
    moved = camera.CHANGES["shift 2 %"](line)[128, :, 0]
    assert abs(int(moved.argmax()) - 128 - 0.02 * 256) <= 1


def test_frames_do_not_show_the_product() -> None:
    image = product(0)
    lost = blank_frames.half_lost(image)
    assert np.array_equal(lost[:32], image[:32]) and not lost[32:].any()
    empty = blank_frames.background(image)
    assert np.abs(empty.astype(int) - 60).max() <= 2  # the ground's colour everywhere


def test_both_scripts_write_json_and_tables(data: Path, tmp_path: Path) -> None:
    common = [str(data), "--sets", "plate", "other", "--shots", "1", "3", "--limit", "2"]
    output = tmp_path / "blank.json"
    blank_frames.main([*common, "--methods", "feature", "--output", str(output)])
    content = json.loads(output.read_text())
    assert {"date", "machine", "versions", "seeds"} <= content.keys()
    assert {row["frame"] for row in content["rows"]} == set(blank_frames.FRAMES)
    assert len(content["rows"]) == 2 * 2 * len(blank_frames.FRAMES)
    for row in content["rows"]:
        assert (row["flagged"] == 1) == (row["smallest_score"] >= 0.5)
    assert "| feature | plate | 3 |" in output.with_suffix(".md").read_text()

    output = tmp_path / "camera.json"
    camera.main([*common, "--methods", "nearest-patch", "patchcore-256", "--output", str(output)])
    rows = json.loads(output.read_text())["rows"]
    assert len(rows) == 2 * 2 * 2 * len(camera.CHANGES)
    assert all(row["good"] == row["defective"] == 1 for row in rows)
    table = output.with_suffix(".md").read_text()
    assert "| change | nearest-patch | patchcore-256 |" in table and "| plate |" in table
