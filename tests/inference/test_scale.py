from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow.dataset
import pyarrow.parquet
import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from metaformer.cli import app
from metaformer.detection.detector import Detector
from metaformer.inference import batch
from metaformer.inference.batch import score_images
from metaformer.inference.ray_cluster import work_left
from metaformer.inference.ray_task import Job, score_shard, shard_file
from metaformer.inference.scores import parquet_scores
from metaformer.inference.scores.parquet_scores import ParquetScores, read_failures, write_part
from metaformer.inference.scores.rows import COLUMNS, OutputFolderError
from metaformer.io.images import list_images
from metaformer.io.sources.shards import Files, Sources
from tests.helpers import boards
from tests.io.test_sources import write_tar, write_video, write_zip

GIGABYTE = 10**9


@pytest.fixture(scope="module")
def detector() -> Detector:
    return boards.detector()


@pytest.fixture
def photos(tmp_path) -> list[Path]:
    return list_images(boards.write_mixed(tmp_path / "photos", 6))


@pytest.fixture
def output(tmp_path) -> Path:
    return tmp_path / "out"


def table(output: Path) -> list[dict[str, object]]:
    return pyarrow.dataset.dataset(output / "scores").to_table().to_pylist()


def csv_rows(output: Path) -> list[dict[str, str]]:
    with (output / "scores.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# Parquet


def test_parquet_holds_what_csv_holds(detector, photos, tmp_path):
    score_images(detector, photos, tmp_path / "csv")
    score_images(detector, photos, tmp_path / "parquet", scores_format="parquet")
    lines, found = csv_rows(tmp_path / "csv"), table(tmp_path / "parquet")
    assert [tuple(row) for row in found] == [COLUMNS] * 6
    for line, row in zip(lines, found, strict=True):
        assert [line["path"], line["map"], line["largest_region_box"], line["p_value_kind"]] == [
            row["path"], row["map"], row["largest_region_box"], row["p_value_kind"]
        ]  # fmt: skip
        assert float(line["score"]) == pytest.approx(row["score"], abs=1e-6)
        assert line["is_anomalous"] == str(row["is_anomalous"]).lower()
        assert int(line["regions"]) == row["regions"]
    assert not (tmp_path / "parquet" / "scores.csv").exists()


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_parquet_parts_are_added_to_after_ctrl_c(detector, photos, output, monkeypatch, stop):
    monkeypatch.setattr(parquet_scores, "PART_ROWS", 2)
    seen: list[str] = []

    def on_image(name: str, _: object) -> None:
        seen.append(name)
        if len(seen) == stop:
            raise KeyboardInterrupt

    first = score_images(detector, photos, output, scores_format="parquet", on_image=on_image)
    assert first.interrupted and first.scored == len(table(output)) == stop
    second = score_images(detector, photos, output, scores_format="parquet")
    assert (second.resumed, second.scored, second.anomalous) == (stop, 6, 3)
    assert [row["path"] for row in table(output)] == [str(path) for path in photos]
    names = sorted(path.name for path in (output / "scores").iterdir())
    assert names == [f"part-{i:06d}.parquet" for i in range(len(names))]


def test_a_killed_parquet_run_goes_on(photos, tmp_path, output):
    """kill -9 in the middle; each image is its own part, so that some are on disk."""
    boards.detector().save(tmp_path / "d.metaformer")
    program = (
        "import sys; from pathlib import Path; "
        "import metaformer.inference.scores.parquet_scores as files\n"
        "files.PART_ROWS = 1\n"
        "from metaformer.inference.batch import score_images; "
        "from metaformer.detection.detector import Detector\n"
        "detector, images, output = sys.argv[1:]\n"
        "score_images(Detector.load(detector), [images], Path(output), scores_format='parquet',\n"
        "    write_maps=False, write_report=False)\n"
    )
    folder = boards.write_mixed(tmp_path / "many", 60)
    arguments = [str(tmp_path / "d.metaformer"), str(folder), str(output)]
    process = subprocess.Popen([sys.executable, "-c", program, *arguments])
    deadline = time.monotonic() + 120
    while len(list((output / "scores").glob("part-*"))) < 5 and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.wait()
    (output / "scores" / ".part-000999.x.parquet").write_bytes(b"torn")  # what a kill can leave
    done = len(table(output))
    assert 5 <= done < 60
    result = score_images(
        Detector.load(tmp_path / "d.metaformer"), [folder], output, scores_format="parquet",
        write_maps=False,
    )  # fmt: skip
    assert (result.resumed, result.scored) == (done, 60)
    assert sorted(row["path"] for row in table(output)) == sorted(map(str, folder.iterdir()))
    assert not list((output / "scores").glob(".*"))


def test_formats_do_not_mix_in_a_folder(detector, photos, output):
    score_images(detector, photos[:1], output)
    with pytest.raises(OutputFolderError, match=r"already holds scores as CSV.*--format csv"):
        score_images(detector, photos, output, scores_format="parquet")
    score_images(detector, photos, output, scores_format="parquet", overwrite=True)
    assert not (output / "scores.csv").exists() and len(table(output)) == 6
    with pytest.raises(OutputFolderError, match="as Parquet"):
        score_images(detector, photos, output)


def test_a_damaged_part_is_refused_by_name(detector, photos, output):
    score_images(detector, photos, output, scores_format="parquet")
    (output / "scores" / "part-000000.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(OutputFolderError, match=r"part-000000\.parquet: not as this program"):
        score_images(detector, photos, output, scores_format="parquet")


def test_names_that_are_no_text_are_escaped_and_known_again(detector, tmp_path, output):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    boards.write_png(tmp_path / "x.png", boards.good(0)).rename(path)
    for resumed in (0, 1):
        result = score_images(detector, [path], output, scores_format="parquet")
        assert result.resumed == resumed
    assert table(output)[0]["path"] == f"{tmp_path}/caf\\udce9.png"


# Sources of all kinds in one run


@pytest.mark.parametrize("scores_format", ["csv", "parquet"])
def test_archives_and_videos_are_scored_resumed_and_mapped(detector, tmp_path, scores_format):
    content = boards.write_png(tmp_path / "a.png", boards.defective(0)).read_bytes()
    sources = Sources(
        (
            str(write_zip(tmp_path / "z.zip", {"in/1.png": content, "in/2.png": content})),
            str(write_tar(tmp_path / "t.tar.gz", {"1.png": content}, "w:gz")),
            str(write_video(tmp_path / "v.avi", 4)),
            str(tmp_path / "a.png"),
        ),
        every=3,
    )
    output = tmp_path / "out"
    result = score_images(detector, sources, output, scores_format=scores_format)
    assert (result.scored, result.failed) == (6, 0)
    rows = csv_rows(output) if scores_format == "csv" else table(output)
    names = ["z.zip/in/1.png", "z.zip/in/2.png", "t.tar.gz/1.png", "v.avi#frame=0", "v.avi#frame=3"]
    assert [row["path"] for row in rows] == [f"{tmp_path}/{name}" for name in [*names, "a.png"]]
    assert len({str(row["score"]) for row in (*rows[:3], rows[5])}) == 1
    for row in rows:
        assert (output / str(row["map"])).is_file()
    again = score_images(detector, sources, output, scores_format=scores_format)
    assert (again.resumed, again.scored) == (6, 6)


def test_what_is_named_twice_is_scored_once(detector, photos, output):
    result = score_images(detector, [photos[1], photos[0].parent, photos[1]], output)
    assert result.scored == 6 and len(csv_rows(output)) == 6


# Overwriting


def test_overwriting_removes_the_maps_of_the_earlier_run_and_nothing_else(detector, photos, output):
    score_images(detector, photos, output)
    (output / "maps" / "mine.png").write_bytes(b"mine")
    (output / "note.txt").write_text("mine")
    outside = boards.write_png(output.parent / "outside.png", boards.good(0))
    rows = (output / "scores.csv").read_text()
    (output / "scores.csv").write_text(rows.replace("maps/005.png.png", "maps/../../outside.png"))
    score_images(detector, photos[:2], output, overwrite=True)
    maps = sorted(path.name for path in (output / "maps").iterdir())
    assert maps == ["000.png.png", "001.png.png", "005.png.png", "mine.png"]
    assert (output / "note.txt").exists() and outside.exists()


def test_overwriting_without_maps_or_report_leaves_none(detector, photos, output):
    score_images(detector, photos, output)
    score_images(detector, photos, output, overwrite=True, write_maps=False, write_report=False)
    assert sorted(path.name for path in output.iterdir()) == ["run.json", "scores.csv"]
    assert {row["map"] for row in csv_rows(output)} == {""}


# What a run says


def test_progress_counts_what_was_done_before_and_ends_full(detector, photos, output):
    score_images(detector, photos[:4], output)
    steps: list[tuple[int, int | None]] = []
    score_images(detector, photos, output, on_step=lambda *step: steps.append(step))
    assert steps == [(5, 6), (6, 6), (6, 6)]
    steps.clear()
    score_images(detector, photos, output, on_step=lambda *step: steps.append(step))
    assert steps == [(6, 6)]


def test_p_values_of_one_image_are_marked(photos, tmp_path):
    one = boards.universal().adapt([boards.good(0)])
    several = boards.detector()
    for name, detector, kind in (("one", one, "views"), ("several", several, "conformal")):
        score_images(detector, photos[:1], tmp_path / name)
        assert [row["p_value_kind"] for row in csv_rows(tmp_path / name)] == [kind]
    assert "no promise for other parts" in (tmp_path / "one" / "report.html").read_text()


def test_the_report_of_many_images_is_limited(detector, photos, output, monkeypatch):
    monkeypatch.setattr(batch, "REPORT_LINES", 4)
    score_images(detector, photos[:5], output, write_maps=False)
    for path in photos[:5]:
        path.unlink()  # no pictures of them any more
    score_images(detector, photos[5:], output, write_maps=False)
    assert "In all 6 images were scored and 3 flagged" in (output / "report.html").read_text()


def test_a_name_with_newlines_cut_in_its_middle_is_scored_again(detector, tmp_path, output):
    path = boards.write_png(tmp_path / "a\nb\nc.png", boards.good(0))
    score_images(detector, [path], output)
    content = (output / "scores.csv").read_bytes()
    for length in range(len(",".join(COLUMNS)) + 1, len(content)):
        (output / "scores.csv").write_bytes(content[:length])
        with batch.CsvScores(output) as scores:
            scores.mend()
        assert not list(scores.read())
    assert score_images(detector, [path], output).resumed == 0
    assert (output / "scores.csv").read_bytes() == content


# Shards


def test_a_shard_scored_again_replaces_its_own_file(detector, photos, output, tmp_path):
    detector.save(tmp_path / "d.metaformer")
    content = (tmp_path / "d.metaformer").read_bytes()
    job = Job(str(Path.cwd()), str(output), str(photos[0].parent), None, True)
    (output / "scores").mkdir(parents=True)
    whole = photos[2].read_bytes()
    photos[2].write_bytes(whole[:50])
    shard = Files(tuple(map(str, photos)))
    target = shard_file(ParquetScores(output), shard)
    assert score_shard(job, content, shard, frozenset()) == 6
    assert [name for name, _ in read_failures(target)] == [str(photos[2])]
    photos[2].write_bytes(whole)
    assert score_shard(job, content, shard, frozenset()) == 1  # the mended one only
    assert read_failures(target) == []
    assert sorted(row["path"] for row in table(output)) == [str(path) for path in photos]
    assert list((output / "scores").iterdir()) == [target]
    score_images(detector, photos, tmp_path / "local", scores_format="parquet", workers=1)
    assert sorted(table(output), key=lambda row: row["path"]) == table(tmp_path / "local")


def test_an_image_that_changed_is_scored_again_when_the_shards_have_shifted(
    detector, photos, output, tmp_path
):
    detector.save(tmp_path / "d.metaformer")
    content = (tmp_path / "d.metaformer").read_bytes()
    job = Job(str(Path.cwd()), str(output), str(photos[0].parent), None, False)
    scores = ParquetScores(output)
    scores.folder.mkdir(parents=True)
    folder = Sources((str(photos[0].parent),))
    for shard, done in work_left(folder, scores, 3):
        score_shard(job, content, shard, done)
    assert list(work_left(folder, scores, 3)) == []
    photos[1].write_bytes(photos[5].read_bytes() + b" ")
    first = boards.write_png(photos[0].parent / "0000.png", boards.good(7))
    left = [path for shard, _ in work_left(folder, scores, 3) for path in shard.paths]
    assert sorted(left) == sorted(map(str, [first, photos[1]]))
    for shard, done in work_left(folder, scores, 3):
        score_shard(job, content, shard, done)
    assert sorted(row["path"] for row in table(output)) == sorted(map(str, [first, *photos]))


def test_a_local_run_goes_on_with_shards(detector, photos, output):
    score_images(detector, photos[:3], output, scores_format="parquet")
    (part,) = (output / "scores").iterdir()
    rows = list(ParquetScores(output).read())
    write_part(output / "scores" / "shard-0123.parquet", [replace(row, map="") for row in rows])
    part.unlink()
    result = score_images(detector, photos, output, scores_format="parquet")
    assert (result.resumed, result.scored) == (3, 6)


def worker_processes(job: int) -> list[int]:
    """Processes below ``job`` that are scoring a shard."""
    parents, scoring = {}, []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
            if b"ray::score_shard" in (status.parent / "cmdline").read_bytes():
                scoring.append(int(status.parent.name))
        except OSError:
            continue

    def is_below(process: int) -> bool:
        while process in parents and process != job:
            process = parents[process]
        return process == job

    return [process for process in scoring if is_below(process)]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_worker_killed_in_a_ray_job_costs_nothing_but_time(tmp_path):
    """Two workers; kill -9 of one that is in the middle of a shard."""
    pytest.importorskip("ray")
    boards.detector().save(tmp_path / "d.metaformer")
    folder = boards.write_mixed(tmp_path / "many", 120)
    boards.write_png(folder / "bad.png", boards.good(0)).write_bytes(b"no image")
    program = (
        "import sys, json, ray; from pathlib import Path; "
        "from metaformer.inference.ray_cluster import *\n"
        "ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)\n"
        "result = score_on_ray(Path(sys.argv[1]), Sources((sys.argv[2],)), Path(sys.argv[3]),\n"
        "    shard_images=20)\n"
        "print(result.scored, result.failed)\n"
    )
    output = tmp_path / "ray"
    arguments = [str(tmp_path / "d.metaformer"), str(folder), str(output)]
    environment = os.environ | {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True,
    )  # fmt: skip
    killed = []
    while process.poll() is None:
        started = list((output / "maps").glob("*.png")) if output.exists() else []
        scoring = worker_processes(process.pid)
        if not killed and len(started) > 25 and len(scoring) == 2:
            os.kill(scoring[0], signal.SIGKILL)
            killed.append(scoring[0])
        time.sleep(0.05)
    printed, _ = process.communicate()
    assert killed and process.returncode == 0
    assert printed.splitlines()[-1].split() == ["120", "1"]  # Ray has its own say before
    shards = list((output / "scores").iterdir())
    assert len(shards) == 7 and all(path.name.startswith("shard-") for path in shards)

    torch.set_num_threads(1)  # as a worker has
    detector = Detector.load(tmp_path / "d.metaformer")
    score_images(detector, [folder], tmp_path / "local", scores_format="parquet")
    found = sorted(table(output), key=lambda row: str(row["path"]))
    assert found == sorted(table(tmp_path / "local"), key=lambda row: str(row["path"]))
    assert [Path(str(row["path"])).name for row in found] == [f"{i:03d}.png" for i in range(120)]
    listed = [(path / "failures.csv").read_text() for path in (output, tmp_path / "local")]
    assert listed[0] == listed[1]


# Memory


def peak_memory(detector_file: Path, folder: Path, output: Path) -> int:
    """Bytes resident at most of ``metaformer predict`` in a process of its own."""
    program = (
        "import resource, sys; from metaformer.cli import app\n"
        "app(sys.argv[1:], standalone_mode=False)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    command = ["predict", str(detector_file), str(folder), "-o", str(output), "--quiet"]
    command += ["--workers", "4"]  # as on a machine of more processors
    done = subprocess.run(
        [sys.executable, "-c", program, *command], capture_output=True, text=True, check=True
    )
    return 1024 * int(done.stdout.split()[-1])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("width", "height"), [(8000, 6000), (5640, 4000), (4000, 3000)])
def test_predict_stays_under_a_gigabyte_with_large_photos(tmp_path, width, height):
    """Photos of 48, 22 and 12 megapixels that are nothing but defects, the worst case."""
    metaformer = boards.Metaformer.from_pretrained()  # at 256 pixels, as users do
    metaformer.adapt([boards.good(seed) for seed in range(3)]).save(tmp_path / "d.metaformer")
    noise = np.random.default_rng(0).integers(0, 255, (height // 8, width // 8, 3), np.uint8)
    photo = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    content = cv2.imencode(".jpg", photo)[1].tobytes()
    (tmp_path / "photos").mkdir()
    for i in range(6):
        (tmp_path / "photos" / f"{i}.jpg").write_bytes(content)
    peak = peak_memory(tmp_path / "d.metaformer", tmp_path / "photos", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "run.json").read_text())
    assert peak < GIGABYTE


# On the command line


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_the_command_takes_archives_lists_and_addresses(detector, photos, tmp_path):
    target, output = tmp_path / "d.metaformer", tmp_path / "out"
    detector.save(target)
    archive = write_zip(tmp_path / "z.zip", {"1.png": photos[1].read_bytes()})
    (tmp_path / "list.txt").write_text(f"{photos[0]}\nfile://{photos[1]}\n")
    command = ["predict", target, archive, "--list", tmp_path / "list.txt", "-o", output]
    done = run(*command, "--format", "parquet", "--no-report", "--no-maps")
    assert done.exit_code == 0 and "3 images scored, 2 anomalous." in done.stdout
    assert f"scores: {output / 'scores'}" in done.stdout
    assert sorted(path.name for path in output.iterdir()) == ["run.json", "scores"]
    paths = [f"{archive}/1.png", str(photos[0]), f"file://{photos[1]}"]
    assert [row["path"] for row in table(output)] == paths
    assert run(*command).exit_code == 1  # as CSV now


@pytest.mark.parametrize("place", [["--on", "ray"], ["--engine", "ray"]])
def test_options_that_a_cluster_does_not_have(photos, tmp_path, place):
    for option in (["--format", "csv"], ["--json"]):
        done = run("predict", tmp_path / "d", photos[0], "-o", tmp_path / "o", *place, *option)
        assert done.exit_code == 1 and "a Ray job" in done.stderr and option[0] in done.stderr


def test_nothing_to_score(tmp_path):
    done = run("predict", tmp_path / "d.metaformer", "-o", tmp_path / "out")
    assert done.exit_code == 1 and "nothing to score" in done.stderr
