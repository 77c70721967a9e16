"""A folder of results has one writer, knows its files, and gets no poorer."""

from __future__ import annotations

import csv
import os
import shutil
import threading
import zipfile
from pathlib import Path

import pytest

from metaformer.data.datasets.truth import LabelTable
from metaformer.inference.batch import score_images
from metaformer.inference.scores.csv_scores import CsvScores
from metaformer.inference.scores.failures import Failures
from metaformer.inference.scores.json_lines import JsonLines
from metaformer.inference.scores.parquet_scores import ParquetScores
from metaformer.inference.scores.rows import COLUMNS, OutputFolderError, guarded, unguarded
from metaformer.io.folders import list_images
from tests.helpers import boards


@pytest.fixture(scope="module")
def detector():
    return boards.detector()


@pytest.fixture
def photos(tmp_path) -> list[Path]:
    return list_images(boards.write_mixed(tmp_path / "photos", 6))


def rows(output: Path) -> list[dict[str, str]]:
    with (output / "scores.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def pictures(output: Path) -> int:
    return (output / "report.html").read_text().count('class="map"')


def test_a_second_run_is_refused_while_the_first_goes_on(detector, photos, tmp_path):
    refused: list[str] = []

    def start_another(name: str, outcome: object) -> None:
        with pytest.raises(OutputFolderError, match="another process is writing to it") as error:
            score_images(detector, photos, tmp_path / "out")
        refused.append(str(error.value))

    result = score_images(detector, photos, tmp_path / "out", on_image=start_another)
    assert result.scored == len(refused) == len(rows(tmp_path / "out")) == 6
    assert score_images(detector, photos, tmp_path / "out").resumed == 6
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "maps",
        "report.html",
        "run.json",
        "scores.csv",
    ]


def test_a_record_has_one_writer_and_leaves_nothing_behind(tmp_path):
    with (
        JsonLines(tmp_path / "r.jsonl"),
        pytest.raises(OutputFolderError, match="another process"),
        JsonLines(tmp_path / "r.jsonl"),
    ):
        pass
    with JsonLines(tmp_path / "r.jsonl") as record:
        record.write({"event": "start"})
    assert [path.name for path in tmp_path.iterdir()] == ["r.jsonl"]


def test_a_lock_is_held_by_one_of_many(tmp_path):
    """However those who come and go meet: never two at once."""
    inside, most, lock = 0, 0, threading.Lock()

    def come_and_go() -> None:
        nonlocal inside, most
        for _ in range(100):
            try:
                with JsonLines(tmp_path / "r.jsonl"):
                    with lock:
                        inside += 1
                        most = max(most, inside)
                    with lock:
                        inside -= 1
            except OutputFolderError:
                continue

    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


@pytest.mark.parametrize("scores_format", ["csv", "parquet"])
def test_a_file_that_has_changed_is_scored_again(detector, photos, tmp_path, scores_format):
    output, options = tmp_path / "out", {"scores_format": scores_format}
    first = score_images(detector, photos, output, **options)
    assert first.anomalous == 3
    boards.write_png(photos[0], boards.defective(77))
    seen: list[str] = []
    again = score_images(
        detector, photos, output, on_image=lambda name, _: seen.append(name), **options
    )
    assert seen == [str(photos[0])]
    assert again.scored == 6 and again.resumed == 5 and again.anomalous == 4
    if scores_format == "csv":
        assert sorted(line["path"] for line in rows(output)) == sorted(map(str, photos))
    assert score_images(detector, photos, output, **options).resumed == 6


def test_a_time_that_has_changed_is_enough_and_another_name_too(detector, photos, tmp_path):
    score_images(detector, photos[:2], tmp_path / "out")
    status = photos[0].stat()
    os.utime(photos[0], ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
    assert score_images(detector, photos[:2], tmp_path / "out").resumed == 1


def test_an_archive_that_has_changed_is_scored_again(detector, photos, tmp_path):
    import zipfile

    def pack(images: list[Path]) -> None:
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            for i, path in enumerate(images):
                archive.write(path, f"{i}.png")

    pack(photos[:2])
    score_images(detector, [tmp_path / "a.zip"], tmp_path / "out")
    pack(photos[3:5])
    result = score_images(detector, [tmp_path / "a.zip"], tmp_path / "out")
    assert result.scored == 2 and result.resumed == 0 and len(rows(tmp_path / "out")) == 2


@pytest.mark.parametrize("rates", [(0.05, 0.4), (0.4, 0.05)])
@pytest.mark.parametrize("maps", [False, True])
def test_another_false_alarm_rate_mixes_no_verdicts(photos, tmp_path, rates, maps):
    detector = boards.detector()
    first, second = (detector.with_false_alarm_rate(rate) for rate in rates)
    score_images(first, photos[:4], tmp_path / "mixed", write_maps=maps)
    mixed = score_images(second, photos, tmp_path / "mixed", write_maps=maps)
    whole = score_images(second, photos, tmp_path / "whole", write_maps=maps)
    assert (mixed.scored, mixed.anomalous) == (whole.scored, whole.anomalous)
    of_mixed = {line["path"]: line for line in rows(tmp_path / "mixed")}
    for line in rows(tmp_path / "whole"):
        for column in ("is_anomalous", "p_value", "raw_score", "regions", "largest_region_box"):
            assert of_mixed[line["path"]][column] == line[column], column
        assert abs(float(of_mixed[line["path"]]["score"]) - float(line["score"])) < 1e-5


@pytest.mark.parametrize("maps", [False, True])
def test_the_report_of_a_second_run_has_the_pictures_of_the_first(detector, photos, tmp_path, maps):
    score_images(detector, photos[:5], tmp_path / "out", write_maps=maps)
    before = pictures(tmp_path / "out")
    assert before >= 5
    score_images(detector, photos, tmp_path / "out", write_maps=maps)
    assert pictures(tmp_path / "out") == before + 1
    photos[0].unlink()  # then its line is all that is left
    score_images(detector, photos[1:], tmp_path / "out", write_maps=maps)
    assert pictures(tmp_path / "out") == before
    assert photos[0].name in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("columns", [10, 12])
def test_a_folder_of_an_earlier_release_goes_on(detector, photos, tmp_path, columns):
    """Its lines have no truth, or no size and time either."""
    score_images(detector, photos[:3], tmp_path / "out")
    scores = tmp_path / "out" / "scores.csv"
    lines = [",".join(line.split(",")[:columns]) for line in scores.read_text().splitlines()]
    scores.write_text("\n".join(lines) + "\n")
    result = score_images(detector, photos, tmp_path / "out")
    assert result.resumed == 3 and result.scored == 6
    assert scores.read_text().splitlines()[0] == ",".join(COLUMNS)
    assert [line["size"] != "0" for line in rows(tmp_path / "out")] == [columns == 12] * 3 + [
        True
    ] * 3


@pytest.mark.parametrize("scores_format", ["csv", "parquet"])
def test_scores_hold_the_truth_where_it_is_known_and_keep_it(
    detector, photos, tmp_path, scores_format
):
    """What a later run knows is added; what it does not know stays, in the report, too."""

    def run(labels: str) -> dict[str, str]:
        table = None
        if labels:
            (tmp_path / "labels.csv").write_text(labels)
            table = LabelTable(tmp_path / "labels.csv")
        output = tmp_path / "out"
        result = score_images(detector, images, output, scores_format=scores_format, truth=table)
        outcomes.append(result.outcomes.describe())
        scores = CsvScores(output) if scores_format == "csv" else ParquetScores(output)
        return {Path(row.path).name: row.truth for row in scores.read()}

    (tmp_path / "good").mkdir()
    shutil.copy(photos[0], tmp_path / "good" / "0.png")
    images = [tmp_path / "good" / "0.png", *photos[1:4]]
    names, outcomes = [path.name for path in images], []
    assert run("") == dict.fromkeys(names, "") | {"0.png": "good"}
    told = {"0.png": "good", names[1]: "", names[2]: "=1", names[3]: "defect"}
    assert run(f"{names[2]},=1\n{names[3]},bad\n") == told
    assert run("") == told and outcomes[1] == outcomes[2]
    assert "truly defective: =1" in (tmp_path / "out" / "report.html").read_text()


# Names that a spreadsheet would run


@pytest.mark.parametrize("name", ["=1+1.png", "+1.png", "-1.png", "@x.png", "\t=1.png", "'=1.png"])
def test_a_name_is_text_in_a_spreadsheet_and_known_to_the_next_run(
    detector, photos, tmp_path, monkeypatch, name
):
    (tmp_path / "in").mkdir()
    shutil.copy(photos[0], tmp_path / "in" / name)
    monkeypatch.chdir(tmp_path / "in")
    score_images(detector, [name], tmp_path / "out")
    assert rows(tmp_path / "out")[0]["path"] == f"'{name}"
    assert [row.path for row in CsvScores(tmp_path / "out").read()] == [name]
    assert score_images(detector, [name], tmp_path / "out").resumed == 1
    with Failures(tmp_path / "out") as failures:
        failures.add(boards_omission(name))
    with (tmp_path / "out" / "failures.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["path"] == f"'{name}"


def failures_in(output: Path) -> list[str]:
    if not (output / "failures.csv").exists():
        return []
    with (output / "failures.csv").open(newline="") as file:
        return [row["path"] for row in csv.DictReader(file)]


def test_failures_of_an_earlier_run_with_other_sources_stay(detector, photos, tmp_path):
    output = tmp_path / "out"
    mended, gone, packed = photos[0], photos[1], tmp_path / "monday.zip"
    good = mended.read_bytes()
    for path in (mended, gone):
        path.write_bytes(b"junk")
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.png", b"junk")
        archive.writestr("b.png", good)
    missing = tmp_path / "no.png"
    bad = [str(mended), str(gone), f"{packed}/a.png", str(missing)]
    first = score_images(detector, [*photos[:3], packed, missing], output)
    assert (first.scored, first.failed, failures_in(output)) == (2, 4, bad)

    second = score_images(detector, photos[3:5], output)
    assert (second.scored, second.failed, second.failed_before) == (4, 4, 4)
    assert failures_in(output) == bad and [name for name, _ in second.failures] == bad
    assert all(name in (output / "report.html").read_text() for name in bad)

    gone.unlink()  # what is not there any more is no failure
    mended.write_bytes(good)
    photos[5].write_bytes(b"junk")
    third = score_images(detector, [mended, photos[5]], output)
    assert (third.scored, third.failed, third.failed_before) == (5, 3, 2)
    assert failures_in(output) == [str(photos[5]), *bad[2:]]
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.png", good)
    score_images(detector, [packed], output)
    assert failures_in(output) == [str(photos[5]), str(missing)]
    assert score_images(detector, photos[2:4], output, overwrite=True).failed == 0
    assert failures_in(output) == []


def test_an_archive_that_was_cut_short_and_is_whole_now_is_no_failure(detector, photos, tmp_path):
    packed = tmp_path / "monday.zip"
    packed.write_bytes(b"PK")
    assert score_images(detector, [packed], tmp_path / "out").failed == 1
    with zipfile.ZipFile(packed, "w") as archive:
        archive.write(photos[0], "a.png")
    assert score_images(detector, [packed], tmp_path / "out").failed == 0
    assert failures_in(tmp_path / "out") == []


def boards_omission(name: str):
    from metaformer.io.omissions import UNREADABLE, Omission

    return Omission(name, "damaged", UNREADABLE)


@pytest.mark.parametrize("text", ["", "a", "'a", "''", "=", "'=", "''=", "'+", "\r", "a=b"])
def test_the_guard_can_be_taken_away(text):
    assert unguarded(guarded(text)) == text
    assert not guarded(text).startswith(("=", "+", "-", "@", "\t", "\r"))
