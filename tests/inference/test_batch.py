from __future__ import annotations

import csv
import json
import os
import resource
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from metaformer.detection.detector import Detector
from metaformer.inference.batch import BatchResult, score_images
from metaformer.inference.scores.rows import COLUMNS, OutputFolderError
from metaformer.io.images import list_images
from tests.helpers import boards, trees


@pytest.fixture(scope="module")
def detector() -> Detector:
    return boards.detector()


@pytest.fixture
def photos(tmp_path) -> list[Path]:
    return list_images(boards.write_mixed(tmp_path / "photos", 6))


@pytest.fixture
def output(tmp_path) -> Path:
    return tmp_path / "out"


def rows(output: Path) -> list[dict[str, str]]:
    text = (output / "scores.csv").read_bytes().decode(errors="surrogateescape")
    assert text.endswith("\n")
    table = list(csv.reader(text.splitlines(keepends=True), strict=True))
    assert tuple(table[0]) == COLUMNS
    assert all(len(line) == len(COLUMNS) for line in table)
    return [dict(zip(COLUMNS, line, strict=True)) for line in table[1:]]


def stop_after(count: int):
    """What Ctrl-C does: a KeyboardInterrupt between two images."""
    seen = []

    def on_image(path, outcome) -> None:
        seen.append(path)
        if len(seen) == count:
            raise KeyboardInterrupt

    return on_image


# What is written


def test_one_line_an_image_with_what_the_detector_says(detector, photos, output):
    result = score_images(detector, photos, output, workers=1)
    lines = rows(output)
    assert [line["path"] for line in lines] == [str(path) for path in photos]
    for line, path in zip(lines, photos, strict=True):
        expected = detector.predict(path)
        assert float(line["score"]) == pytest.approx(expected.score, abs=1e-6)
        assert float(line["raw_score"]) == pytest.approx(expected.raw_score, rel=1e-7)
        assert float(line["p_value"]) == pytest.approx(expected.p_value, abs=1e-4)
        assert line["is_anomalous"] == str(expected.is_anomalous).lower()
        assert int(line["regions"]) == len(expected.regions)
        areas = {region.area: region for region in expected.regions}
        if areas:
            largest = areas[max(areas)]
            assert int(line["largest_region_area"]) == largest.area
            box = f"{largest.x} {largest.y} {largest.width} {largest.height}"
            assert line["largest_region_box"] == box
        else:
            assert line["largest_region_box"] == ""
    flags = [line["is_anomalous"] for line in lines]
    assert flags == ["false", "true"] * 3
    assert result == BatchResult(scored=6, anomalous=3, resumed=0, failures=(), interrupted=False)


def test_the_folder_holds_what_the_documentation_says_and_nothing_else(detector, photos, output):
    score_images(detector, photos, output)
    names = sorted(path.name for path in output.iterdir())
    assert names == ["maps", "report.html", "run.json", "scores.csv"]
    run = json.loads((output / "run.json").read_text())
    assert run["detector"] == json.loads(json.dumps(detector.info()))
    assert "<html" in (output / "report.html").read_text()[:500].lower()


def test_maps_are_of_the_images_size_and_128_is_the_pixel_threshold(detector, tmp_path, output):
    path = boards.write_png(tmp_path / "x.png", boards.defective(1, height=60, width=90))
    score_images(detector, [path], output)
    levels = cv2.imread(str(output / "maps" / "x.png.png"), cv2.IMREAD_UNCHANGED)
    found = detector.predict(path)
    assert levels.shape == (60, 90) and levels.dtype == np.uint8
    assert np.array_equal(levels >= 128, found.mask)
    assert np.abs(levels / 255 - found.anomaly_map).max() <= 0.5 / 255 + 1e-6


def test_maps_can_be_left_out(detector, photos, output):
    score_images(detector, photos, output, write_maps=False)
    assert not (output / "maps").exists()
    assert len(rows(output)) == 6


def test_images_of_the_same_name_get_a_map_each(detector, tmp_path, output, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("a", "b/c"):
        boards.write_png(tmp_path / folder / "x.png", boards.good(0))
    boards.write_png(tmp_path / "a" / "y.png", boards.good(0))
    # The first and the last are of one folder; one path is relative, one goes up and down again.
    paths = [tmp_path / "a" / "x.png", Path("b/../b/c/x.png"), tmp_path / "a" / "y.png"]
    score_images(detector, paths, output)
    maps = sorted(str(p.relative_to(output / "maps")) for p in (output / "maps").rglob("*.png"))
    assert maps == ["a/x.png.png", "a/y.png.png", "b/c/x.png.png"]


def test_scores_do_not_depend_on_the_other_images(detector, photos, tmp_path):
    score_images(detector, photos, tmp_path / "all")
    score_images(detector, photos[3:4], tmp_path / "one")
    score_images(detector, photos[::-1], tmp_path / "back")
    forward = rows(tmp_path / "all")
    assert rows(tmp_path / "one") == forward[3:4]
    assert rows(tmp_path / "back") == forward[::-1]


def test_no_images_at_all_is_no_error_here(detector, output):
    assert score_images(detector, [], output).scored == 0
    assert rows(output) == []


@pytest.mark.parametrize("name", ["a,b.png", 'say "x".png', "two\nlines.png", "été.png"])
def test_any_file_name_survives(detector, tmp_path, output, name):
    path = boards.write_png(tmp_path / "photos" / name, boards.good(0))
    score_images(detector, [path], output)
    assert score_images(detector, [path], output).resumed == 1
    with (output / "scores.csv").open(newline="", encoding="utf-8") as file:
        assert [line["path"] for line in csv.DictReader(file)] == [str(path)]


def test_a_file_name_that_is_not_utf8_survives(detector, tmp_path, output):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    bad = Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xe9.png"))
    try:
        shutil.copy(boards.write_png(tmp_path / "x.png", boards.good(0)), path)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    result = score_images(detector, [path, bad], output)
    assert [failed for failed, _ in result.failures] == [str(bad)]
    assert rows(output)[0]["path"] == str(path)
    assert score_images(detector, [path, bad], output).resumed == 1


def test_each_line_is_on_disk_before_the_next_image(detector, photos, output):
    on_disk: list[int] = []
    score_images(detector, photos, output, on_image=lambda *_: on_disk.append(len(rows(output))))
    assert on_disk == [1, 2, 3, 4, 5, 6]


# What cannot be read


def test_the_bad_folder(detector, tmp_path, output):
    images = list_images(trees.write_bad_folder(tmp_path / "photos"))
    outcomes: dict[str, object] = {}
    result = score_images(
        detector,
        images,
        output,
        on_image=lambda path, outcome: outcomes.update({Path(path).name: outcome}),
    )
    assert [Path(line["path"]).name for line in rows(output)] == ["1_good.png", "6_grey16.png"]
    with (output / "failures.csv").open(newline="") as file:
        failures = {Path(line["path"]).name: line["reason"] for line in csv.DictReader(file)}
    assert list(failures) == ["2_truncated.png", "3_text.png", "4_one_pixel.png", "5_huge.png"]
    assert [(Path(path).name, reason) for path, reason in result.failures] == list(failures.items())
    for name, reason in failures.items():
        assert name in reason and outcomes[name] == reason
    assert "1 x 1" in failures["4_one_pixel.png"]
    assert "20000 x 20000" in failures["5_huge.png"]
    assert result.scored == 2 and not result.interrupted
    for name in failures:  # the report lists them too
        assert name in (output / "report.html").read_text()


def test_an_image_mended_later_is_scored_then(detector, photos, output):
    content = photos[2].read_bytes()
    photos[2].write_bytes(content[:100])
    first = score_images(detector, photos, output)
    assert len(first.failures) == 1 and first.scored == 5
    photos[2].write_bytes(content)
    second = score_images(detector, photos, output)
    assert second == BatchResult(scored=6, anomalous=3, resumed=5, failures=(), interrupted=False)
    assert not (output / "failures.csv").exists()
    assert rows(output)[-1]["path"] == str(photos[2])


# Stopping and going on


@pytest.mark.parametrize("count", [1, 3, 6])
def test_stopped_by_ctrl_c_and_run_again_gives_the_same_file(detector, photos, tmp_path, count):
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    score_images(detector, photos, whole)
    first = score_images(detector, photos, pieces, on_image=stop_after(count))
    assert first.interrupted and first.scored == count
    assert len(rows(pieces)) == count
    assert (pieces / "report.html").exists()
    scored: list[str] = []
    second = score_images(detector, photos, pieces, on_image=lambda path, _: scored.append(path))
    assert scored == [str(path) for path in photos[count:]]
    assert not second.interrupted
    assert second.scored == 6 and second.resumed == count and second.anomalous == 3
    assert (pieces / "scores.csv").read_bytes() == (whole / "scores.csv").read_bytes()
    for path in photos:
        assert path.name in (pieces / "report.html").read_text()


def test_a_run_killed_at_any_byte_of_the_file_goes_on(detector, photos, output):
    photos = photos[:3]
    score_images(detector, photos, output, write_maps=False)
    content = (output / "scores.csv").read_bytes()
    for length in [0, 1, 20, *range(60, len(content), 37), len(content) - 1]:
        (output / "scores.csv").write_bytes(content[:length])
        result = score_images(detector, photos, output, write_maps=False)
        assert (output / "scores.csv").read_bytes() == content, f"cut at byte {length}"
        assert result.resumed == max(0, content[:length].count(b"\n") - 1)


def test_more_images_can_be_added_to_a_folder(detector, photos, output):
    score_images(detector, photos[:2], output)
    result = score_images(detector, photos, output)
    assert result.resumed == 2 and result.scored == 6
    assert [line["path"] for line in rows(output)] == [str(path) for path in photos]


def test_the_same_detector_read_from_its_file_goes_on(detector, photos, output, tmp_path):
    score_images(detector, photos[:2], output)
    detector.save(tmp_path / "d.metaformer")
    again = score_images(Detector.load(tmp_path / "d.metaformer"), photos, output)
    assert again.resumed == 2


def test_another_detector_is_refused_unless_told_to_overwrite(detector, photos, output):
    score_images(detector, photos[:3], output)
    before = (output / "scores.csv").read_bytes()
    other = boards.universal().adapt([boards.good(9), boards.good(8)])
    with pytest.raises(OutputFolderError, match=r"out: already holds .*--overwrite"):
        score_images(other, photos, output)
    assert (output / "scores.csv").read_bytes() == before
    result = score_images(other, photos[3:], output, overwrite=True)
    assert result.scored == 3 and result.resumed == 0
    assert [line["path"] for line in rows(output)] == [str(path) for path in photos[3:]]
    with pytest.raises(OutputFolderError):
        score_images(detector, photos, output)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"detector": 1}'])
def test_a_damaged_record_of_the_run_is_named(detector, photos, output, content):
    score_images(detector, photos[:1], output)
    (output / "run.json").write_text(content)
    with pytest.raises(OutputFolderError, match=r"run\.json: damaged.*--overwrite"):
        score_images(detector, photos, output)
    assert score_images(detector, photos[:1], output, overwrite=True).scored == 1


def test_somebody_elses_scores_are_not_touched(detector, photos, output):
    output.mkdir()
    (output / "scores.csv").write_text("name;points\nAda;10\n")
    with pytest.raises(OutputFolderError, match="already holds"):
        score_images(detector, photos, output)
    assert (output / "scores.csv").read_text() == "name;points\nAda;10\n"


@pytest.mark.parametrize("change", [("0.", "0,"), ("path,", "file,")])
def test_scores_changed_by_another_program_are_refused_by_name(detector, photos, output, change):
    score_images(detector, photos, output)
    scores = output / "scores.csv"
    scores.write_text(scores.read_text().replace(*change))
    with pytest.raises(OutputFolderError, match=r"scores\.csv: not as this program wrote it"):
        score_images(detector, photos, output)


def test_a_disk_that_fills_up_loses_no_finished_line(detector, photos, output):
    """By way of the limit on file sizes: the report, the largest file, does not fit."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, old[1]))
    try:
        with pytest.raises(OSError):
            score_images(detector, photos, output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert len(rows(output)) == 6
    assert sorted(path.name for path in output.iterdir()) == ["maps", "run.json", "scores.csv"]
    assert score_images(detector, photos, output).resumed == 6
    assert (output / "report.html").exists()


def test_a_folder_that_cannot_be_made_is_an_os_error(detector, photos, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        score_images(detector, photos, tmp_path / "file" / "out")
