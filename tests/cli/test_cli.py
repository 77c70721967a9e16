from __future__ import annotations

import csv
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from metaformer.cli import app
from tests.helpers import boards, trees

COMMANDS = ["adapt", "predict", "evaluate", "info", "demo", "data fetch", "data list"]


@pytest.fixture(scope="module")
def detector_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("detector") / "board.metaformer"
    boards.detector().save(path)
    return path


@pytest.fixture
def good(tmp_path) -> Path:
    return boards.write_good(tmp_path / "good", 3)


@pytest.fixture
def photos(tmp_path) -> Path:
    return boards.write_mixed(tmp_path / "photos", 4)


def run(*arguments: object) -> Result:
    """The command in this process; anything but an expected error is raised here."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def start(*arguments: object, **options) -> subprocess.Popen[str]:
    """The command as users start it, in a process of its own that heeds Ctrl-C."""
    return subprocess.Popen(
        [sys.executable, "-m", "metaformer.cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        **options,
    )


def scored(output: Path) -> list[str]:
    with (output / "scores.csv").open(newline="") as file:
        return [line["path"] for line in csv.DictReader(file)]


# adapt


def test_adapt_writes_a_detector_and_says_what_it_promises(good, tmp_path):
    done = run("adapt", good, "-o", tmp_path / "d.metaformer", "--resolution", 96)
    assert done.exit_code == 0
    assert "adapted to 3 normal images" in done.stdout
    assert "cannot guarantee a false-alarm rate of 5.0%" in done.stdout
    assert done.stderr == ""
    info = json.loads(run("info", tmp_path / "d.metaformer", "--json").stdout)
    assert [image["name"] for image in info["support"]] == ["000.png", "001.png", "002.png"]
    assert info["settings"]["config"]["resolution"] == 96


def test_adapt_as_json_and_quietly(good, tmp_path):
    target = tmp_path / "d.metaformer"
    options = ["--resolution", 96, "--false-alarm-rate", 0.2, "--seed", 3]
    printed = json.loads(run("adapt", good, "-o", target, *options, "--json").stdout)
    assert printed["detector"] == str(target)
    assert printed["calibration"]["false_alarm_rate"] == 0.2 and printed["seed"] == 3
    assert {
        "detector": str(target),
        "omitted": [],
        **json.loads(run("info", target, "--json").stdout),
    } == printed
    quiet = run("adapt", good, "-o", target, *options, "--quiet")
    assert quiet.exit_code == 0 and quiet.output == ""


def test_adapt_to_parts_that_stand_in_place(photos, tmp_path):
    good = boards.write_good(tmp_path / "good", 6)
    target = tmp_path / "d.metaformer"
    assert run("adapt", good, "-o", target, "--resolution", 96, "--aligned").exit_code == 0
    assert json.loads(run("info", target, "--json").stdout)["settings"]["config"]["aligned"] is True
    done = run("predict", target, photos, "-o", tmp_path / "out")
    assert done.exit_code == 0 and "4 images scored, 2 anomalous." in done.stdout
    done = run("adapt", good, "-o", target, "--aligned", "--preset", "pixel", "--mode", "long")
    assert done.exit_code == 1 and "works only in the fast mode" in done.stderr


def test_adapt_warns_in_one_line_about_odd_images(tmp_path):
    folder = boards.write_good(tmp_path / "good", 5)
    boards.write_png(folder / "strange.png", boards.good(0, "00041005"))
    done = run("adapt", folder, "-o", tmp_path / "d", "--resolution", 96, "--quiet")
    assert done.exit_code == 0 and done.stdout == ""
    assert done.stderr.startswith("warning: these normal images look unlike the rest")
    assert "strange.png" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"folder": "nowhere"}, "nowhere: no such file"),
        ({"folder": "empty"}, "empty: no images in this folder"),
        ({"output": "nowhere/d"}, "nowhere does not exist"),
        ({"output": "good"}, "good: a folder. Give a file"),
        ({"rate": 0}, "strictly between 0 and 1"),
        ({"resolution": 10}, "between 64 and 2048"),
    ],
)
def test_adapt_errors_are_one_line_and_exit_code_1(good, tmp_path, change, message):
    (tmp_path / "empty").mkdir()
    given = {"folder": "good", "output": "d", "rate": 0.05, "resolution": 96} | change
    before = sorted(tmp_path.rglob("*"))
    done = run(
        "adapt", tmp_path / given["folder"], "-o", tmp_path / given["output"],
        "--false-alarm-rate", given["rate"], "--resolution", given["resolution"],
    )  # fmt: skip
    assert done.exit_code == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert message in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_a_bad_image_in_the_support_is_named(good, tmp_path):
    trees.write_truncated_png(good / "half.png")
    done = run("adapt", good, "-o", tmp_path / "d")
    assert done.exit_code == 1 and "half.png" in done.stderr
    assert not (tmp_path / "d").exists()


# predict


def test_predict_scores_a_folder(detector_file, photos, tmp_path):
    done = run("predict", detector_file, photos, "-o", tmp_path / "out")
    assert done.exit_code == 0
    assert "4 images scored, 2 anomalous." in done.stdout
    assert str(tmp_path / "out" / "report.html") in done.stdout
    assert done.stderr == ""
    assert scored(tmp_path / "out") == [str(path) for path in sorted(photos.iterdir())]
    assert len(list((tmp_path / "out" / "maps").iterdir())) == 4


def test_predict_names_the_flagged_images_highest_score_first(detector_file, photos, tmp_path):
    done = run("predict", detector_file, photos, "-o", tmp_path / "out")
    named = [line.split(maxsplit=1) for line in done.stdout.splitlines() if line.startswith("  ")]
    assert {Path(name).name for _, name in named} == {"001.png", "003.png"}
    assert [score for score, _ in named] == sorted((score for score, _ in named), reverse=True)
    again = run("predict", detector_file, photos, "-o", tmp_path / "out")
    assert "\n  " not in again.stdout  # none of this run


def test_only_so_many_flagged_images_are_named(detector_file, tmp_path):
    for i in range(12):
        boards.write_png(tmp_path / "photos" / f"{i:02d}.png", boards.defective(0))
    done = run("predict", detector_file, tmp_path / "photos", "-o", tmp_path / "out")
    assert done.stdout.count("\n  ") == 11 and "\n  and 2 more\n" in done.stdout


def test_predict_quietly_without_maps(detector_file, photos, tmp_path):
    done = run("predict", detector_file, photos, "-o", tmp_path / "out", "--quiet", "--no-maps")
    assert done.exit_code == 0 and done.output == ""
    assert len(scored(tmp_path / "out")) == 4
    assert not (tmp_path / "out" / "maps").exists()


def test_predict_as_json(detector_file, photos, tmp_path):
    trees.write_text_named_png(photos / "notes.png")
    done = run("predict", detector_file, photos, "-o", tmp_path / "out", "--json")
    assert done.exit_code == 3
    printed = json.loads(done.stdout)
    assert printed["scored"] == 4 and printed["anomalous"] == 2
    assert printed["of_earlier_runs"] == 0 and printed["interrupted"] is False
    assert [Path(item["path"]).name for item in printed["failures"]] == ["notes.png"]
    flags = [prediction["is_anomalous"] for prediction in printed["predictions"]]
    assert flags == [False, True, False, True]
    assert printed["predictions"][1]["regions"][0]["area"] > 0
    again = json.loads(
        run("predict", detector_file, photos, "-o", tmp_path / "out", "--json").stdout
    )
    assert again["of_earlier_runs"] == again["scored"] == 4 and again["predictions"] == []


def test_predict_on_the_bad_folder_exits_with_3(detector_file, tmp_path):
    folder = trees.write_bad_folder(tmp_path / "photos")
    done = run("predict", detector_file, folder, "-o", tmp_path / "out")
    assert done.exit_code == 3
    assert "2 images scored" in done.stdout
    assert [Path(p).name for p in scored(tmp_path / "out")] == ["1_good.png", "6_grey16.png"]
    lines = done.stderr.splitlines()
    bad = ("2_truncated.png", "3_text.png", "4_one_pixel.png", "5_huge.png")
    assert len(lines) == 4
    with (tmp_path / "out" / "failures.csv").open(newline="") as file:
        listed = list(csv.DictReader(file))
    for line, name, row in zip(lines, bad, listed, strict=True):
        assert line.startswith("not scored: ") and name in line
        assert row["path"].endswith(name) and len(row["reason"]) > len(row["path"]) + 10
    quiet = run("predict", detector_file, folder, "-o", tmp_path / "out", "--quiet")
    assert quiet.exit_code == 3 and quiet.stdout == "" and len(quiet.stderr.splitlines()) == 4


def test_a_second_run_into_the_same_folder_still_tells_the_failures_of_the_first(
    detector_file, photos, tmp_path
):
    bad = trees.write_text_named_png(tmp_path / "bad.png")
    one, two = sorted(photos.iterdir())[:2]
    out = ("-o", tmp_path / "out")
    assert run("predict", detector_file, one, bad, *out).exit_code == 3
    done = run("predict", detector_file, two, *out)
    assert done.exit_code == 3 and "1 not scored (1 of them before)." in done.stdout
    assert f"not scored: {bad}" in done.stderr
    told = json.loads(run("predict", detector_file, two, *out, "--json").stdout)
    assert (told["failed"], told["failed_in_earlier_runs"]) == (1, 1)


def test_predict_exits_with_1_when_nothing_could_be_scored(detector_file, tmp_path):
    folder = tmp_path / "photos"
    trees.write_text_named_png(folder / "a.png")
    done = run("predict", detector_file, folder, "-o", tmp_path / "out")
    assert done.exit_code == 1 and "a.png" in done.stderr
    done = run("predict", detector_file, tmp_path / "nowhere", "-o", tmp_path / "other")
    assert done.exit_code == 1 and "nowhere: no such file" in done.stderr
    assert not (tmp_path / "other").exists()
    done = run("predict", detector_file, folder, tmp_path / "nowhere", "-o", tmp_path / "out")
    assert done.exit_code == 1 and "nowhere: no such file" in done.stderr and "a.png" in done.stderr


def test_predict_on_an_empty_folder_says_so(detector_file, tmp_path):
    boards.write_png(tmp_path / "photos" / "monday" / "x.png", boards.good(0))
    done = run("predict", detector_file, tmp_path / "photos", "-o", tmp_path / "out")
    assert done.exit_code == 1
    assert "photos: no images in this folder" in done.stderr and "--recursive" in done.stderr
    assert not (tmp_path / "out").exists()
    done = run("predict", detector_file, tmp_path / "photos", "-o", tmp_path / "out", "--recursive")
    assert done.exit_code == 0 and len(scored(tmp_path / "out")) == 1


def test_images_of_a_kind_that_is_not_read_are_not_passed_over_in_silence(detector_file, tmp_path):
    folder, out = tmp_path / "photos", tmp_path / "out"
    boards.write_png(folder / "001.png", boards.good(0))
    for name in ("IMG_1.HEIC", "IMG_2.heic", ".hidden.heic", "notes.txt", "in/IMG_3.dng"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    said = "2 .heic files cannot be read here; convert"
    done = run("predict", detector_file, folder, "-o", out)
    assert done.exit_code == 3 and "1 image scored, 0 anomalous, 2 not scored." in done.stdout
    assert done.stderr.count(".heic files cannot be read here; convert") == 2
    assert "1 sub-folder not looked into (in). Add --recursive." in done.stderr
    done = run("predict", detector_file, folder, "-o", out, "--recursive")
    assert done.exit_code == 3 and "IMG_3.dng: .dng files cannot be read" in done.stderr
    with (out / "failures.csv").open(newline="") as file:
        failures = {Path(row["path"]).name: row["category"] for row in csv.DictReader(file)}
    assert failures == dict.fromkeys(("IMG_1.HEIC", "IMG_2.heic", "IMG_3.dng"), "not read")
    done = run("adapt", folder, "-o", tmp_path / "d", "--resolution", 64)
    assert done.exit_code == 3 and f"{folder}: {said}" in done.stderr
    assert "2 files not used: IMG_1.HEIC, IMG_2.heic.\n" in done.stderr
    for i in range(3, 8):
        (folder / f"IMG_{i}.heic").write_bytes(b"x")
    done = run("adapt", folder, "-o", tmp_path / "d", "--resolution", 64)
    assert "7 files not used: IMG_1.HEIC, " in done.stderr
    assert "IMG_5.heic and 2 more.\n" in done.stderr and "IMG_6" not in done.stderr
    done = run("adapt", folder, "-o", tmp_path / "d", "--resolution", 64, "--json")
    omitted = json.loads(done.stdout)["omitted"]
    assert done.exit_code == 3 and len(omitted) == 7
    assert omitted[0]["path"] == str(folder / "IMG_1.HEIC")
    assert "convert to PNG" in omitted[0]["reason"] and omitted[0]["category"] == "not read"
    for path in [folder / "001.png", *folder.glob("IMG_[3-7].heic")]:
        path.unlink()
    for command in (
        ["predict", detector_file, folder, "-o", out],
        ["adapt", folder, "-o", tmp_path / "e"],
    ):
        done = run(*command)
        assert done.exit_code == 1 and done.stderr.count("\n") == 1 and said in done.stderr


def test_an_image_named_twice_is_scored_once(detector_file, photos, tmp_path):
    one = photos / "001.png"
    run("predict", detector_file, one, photos, one, "-o", tmp_path / "out")
    assert [Path(path).name for path in scored(tmp_path / "out")] == [
        "001.png",
        "000.png",
        "002.png",
        "003.png",
    ]


def test_maps_of_an_earlier_run_are_not_scored(detector_file, photos):
    output = photos / "results"
    for _ in range(2):
        done = run("predict", detector_file, photos, "-o", output, "--recursive")
        assert done.exit_code == 0
    assert "4 images scored (4 of them before)" in done.stdout
    assert len(scored(output)) == 4


def test_predict_with_another_rate(detector_file, photos, tmp_path):
    done = run("predict", detector_file, photos, "-o", tmp_path / "a", "--false-alarm-rate", 0.3)
    assert done.exit_code == 0
    record = json.loads((tmp_path / "a" / "run.json").read_text())
    assert record["detector"]["calibration"]["false_alarm_rate"] == 0.3
    done = run("predict", detector_file, photos, "-o", tmp_path / "b", "--false-alarm-rate", 3)
    assert done.exit_code == 1 and "strictly between" in done.stderr


def test_another_detector_in_the_same_folder_is_refused(detector_file, photos, tmp_path, good):
    other = tmp_path / "other.metaformer"
    run("adapt", good, "-o", other, "--resolution", 64)
    run("predict", detector_file, photos, "-o", tmp_path / "out")
    before = (tmp_path / "out" / "scores.csv").read_bytes()
    done = run("predict", other, photos, "-o", tmp_path / "out")
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1 and "--overwrite" in done.stderr
    assert (tmp_path / "out" / "scores.csv").read_bytes() == before
    done = run("predict", other, photos, "-o", tmp_path / "out", "--overwrite")
    assert done.exit_code == 0 and "4 images scored, " in done.stdout


def test_an_output_that_cannot_be_written_to(detector_file, photos, tmp_path):
    (tmp_path / "file").write_text("mine")
    for output in (tmp_path / "file", tmp_path / "file" / "out"):
        done = run("predict", detector_file, photos, "-o", output)
        assert done.exit_code == 1
        assert done.stderr.startswith("error: ") and str(tmp_path / "file") in done.stderr
    assert (tmp_path / "file").read_text() == "mine"
    if os.geteuid() != 0:
        (tmp_path / "locked").mkdir(mode=0o500)
        done = run("predict", detector_file, photos, "-o", tmp_path / "locked" / "out")
        assert done.exit_code == 1 and "locked" in done.stderr


@pytest.mark.parametrize("command", ["predict", "info"])
def test_what_is_not_a_detector_is_refused_in_one_line(photos, tmp_path, command):
    rest = [photos, "-o", tmp_path / "out"] if command == "predict" else []
    for path in (tmp_path / "none.metaformer", photos / "000.png"):
        done = run(command, path, *rest)
        assert done.exit_code == 1
        assert done.stderr.startswith(f"error: {path}: ") and done.stderr.count("\n") == 1


def test_predict_tells_how_the_verdicts_fare_where_the_truth_is_known(detector_file, tmp_path):
    boards.write_good(tmp_path / "lot" / "good", 2, seed=60)
    boards.write_png(tmp_path / "lot" / "bad" / "a.png", boards.defective(3))
    done = run("predict", detector_file, tmp_path / "lot", "--recursive", "-o", tmp_path / "out")
    assert "1 of 1 defective images caught, " in done.stdout
    assert " of 2 good images flagged (where the truth is known)." in done.stdout
    told = run(
        "predict", detector_file, tmp_path / "lot", "--recursive", "-o", tmp_path / "out", "--json"
    )  # nothing new to score: the truth of an earlier run is told all the same
    with (tmp_path / "out" / "scores.csv").open(newline="") as file:
        written = {Path(row["path"]).name: row["truth"] for row in csv.DictReader(file)}
    assert written == {"000.png": "good", "001.png": "good", "a.png": "bad"}
    truth = json.loads(told.stdout)["truth"]
    assert (truth["caught"], truth["false_alarms"] + truth["passed"]) == (1, 2)


def test_predict_takes_labels_and_names_those_of_no_image(detector_file, photos, tmp_path):
    labels = tmp_path / "labels.csv"
    names = sorted(path.name for path in photos.iterdir())
    labels.write_text(f"file,label\n{names[0]},good\n{names[1]},scratch\nother.png,good\n")
    done = run("predict", detector_file, photos, "-o", tmp_path / "out", "--labels", labels)
    assert f"{labels}: labels 2 good, 1 scratch." in done.stdout
    assert "of 1 defective images caught" in done.stdout
    assert "of no image scored, 1: other.png" in done.stderr
    told = run(
        "predict", detector_file, photos, "-o", tmp_path / "out", "--labels", labels, "--json"
    )
    assert told.exit_code == 0 and json.loads(told.stdout)["labels_of_no_image"] == ["other.png"]
    assert "truly defective: scratch" in (tmp_path / "out" / "report.html").read_text()
    labels.write_text("nonsense\n")
    wrong = run("predict", detector_file, photos, "-o", tmp_path / "out", "--labels", labels)
    assert wrong.exit_code == 1 and f"{labels}, line 1: found 'nonsense'" in wrong.stderr


# evaluate, data


def test_evaluate_writes_a_report_of_one_seed_with_the_truth(tmp_path):
    data = trees.write_mvtec(tmp_path / "bracket", train=3, good=2, per_kind=1)
    report = tmp_path / "r.html"
    options = ["--shots", 2, "--seeds", "4,1", "--resolution", 64, "--report", report]
    done = run("evaluate", data, *options)
    assert done.exit_code == 0 and f"report: {report}" in done.stdout.replace("\n", "")
    page = report.read_text()
    content = json.loads(page.split('id="data">', 1)[1].split("</script>", 1)[0])
    tested = sorted(str(path) for path in (data / "test").rglob("*.png"))
    assert sorted(content["names"]) == tested
    assert content["truths"].count(False) == 2
    assert any(card.get("truth") for card in content["cards"].values())
    assert "Evaluation: bracket" in page and "image_auroc" in page
    lost = run("evaluate", data, "--report", tmp_path / "nowhere" / "r.html")
    assert lost.exit_code == 1 and "does not exist" in lost.stderr


def test_evaluate_prints_and_writes_the_same_results(tmp_path):
    data = trees.write_mvtec(tmp_path / "bracket", train=3, good=2, per_kind=1)
    target = tmp_path / "results.json"
    options = ["--shots", 2, "--seeds", "0,1", "--resolution", 64, "--output", target]
    done = run("evaluate", data, *options, "--json")
    assert done.exit_code == 0
    results = json.loads(done.stdout)
    assert results == json.loads(target.read_text())
    assert results["preset"] == "feature" and results["shots"] == 2
    assert [seed["seed"] for seed in results["per_seed"]] == [0, 1]
    assert 0 <= results["mean"]["image_auroc"] <= 1
    table = run("evaluate", data, "--shots", 1, "--seeds", 0, "--resolution", 64)
    assert table.exit_code == 0 and "AUROC" in table.stdout


@pytest.mark.parametrize(
    "options", [["--shots", "none"], ["--shots", "0"], ["--seeds", "a,b"], ["--preset", "sift"]]
)
def test_evaluate_options_that_make_no_sense_are_usage_errors(tmp_path, options):
    done = run("evaluate", tmp_path, *options)
    assert done.exit_code == 2 and done.stdout == ""
    assert options[0] in done.stderr


def test_evaluate_says_which_white_level_was_taken(tmp_path):
    for place in ("train/good/0", "train/good/1", "test/good/2", "test/dent/3"):
        trees.write_grey16_png(tmp_path / "set" / f"{place}.png", white_level=4095)
    options = ["--shots", 1, "--seeds", 0, "--resolution", 64]
    assert "White of 16-bit images: 4095." in run("evaluate", tmp_path / "set", *options).stdout
    done = run("evaluate", tmp_path / "set", *options, "--white-level", 16383, "--json")
    assert json.loads(done.stdout)["white_level"] == 16383


def test_evaluate_on_a_folder_that_is_no_data_set(tmp_path):
    done = run("evaluate", tmp_path / "nowhere")
    assert done.exit_code == 1 and "nowhere" in done.stderr


def test_version():
    done = run("--version")
    assert done.exit_code == 0
    assert done.stdout == f"metaformer-ad {importlib.metadata.version('metaformer-ad')}\n"


def test_help_at_80_columns_shows_every_option_in_full():
    for name, command in typer.main.get_command(app).commands.items():
        shown = run(name, "--help").stdout
        for parameter in command.params:
            for option in (*parameter.opts, *parameter.secondary_opts):
                assert not option.startswith("--") or option in shown, (name, option)


def test_data_list_names_the_sets():
    done = run("data", "list")
    assert done.exit_code == 0
    assert "mvtec" in done.stdout.lower()
    assert done.stdout.splitlines()[-1].endswith(" Next: metaformer data fetch NAME")


@pytest.mark.slow
def test_demo_ends_with_the_path_of_the_report(tmp_path):
    done = run("demo", "-o", tmp_path / "demo", "--quiet")
    assert done.exit_code == 0
    assert str(tmp_path / "demo" / "report.html") in done.stdout
    assert (tmp_path / "demo" / "report.html").stat().st_size > 50_000


# The command line itself


def test_adapt_tells_its_exit_codes():
    assert "3 done, but some files were not used" in " ".join(run("adapt", "-h").stdout.split())


def test_evaluate_takes_one_folder(tmp_path):
    done = run("evaluate", tmp_path, tmp_path)
    assert done.exit_code == 2 and "one labelled set" in done.stderr


@pytest.mark.parametrize("arguments", [[], ["adapt"], ["nonsense"], ["adapt", "x", "--sede", "1"]])
def test_a_wrong_command_line_exits_with_2(arguments):
    assert run(*arguments).exit_code == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command):
    done = run(*command.split(), "--help")
    assert done.exit_code == 0
    assert "Usage" in done.stdout and done.stderr == ""


HEAVY = ("torch", "cv2", "sklearn", "scipy", "jinja2", "pandas", "matplotlib", "safetensors")


def loaded_by(code: str) -> set[str]:
    """Top-level modules loaded after running ``code`` in a new process."""
    script = (
        f"import sys\ntry:\n {code}\nexcept SystemExit:\n pass\n"
        "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(done.stderr.split())


def test_help_loads_nothing_heavy():
    loaded = loaded_by("sys.argv[1:] = ['--help']; from metaformer.cli import main; main()")
    assert "typer" in loaded
    assert not loaded & {*HEAVY, "numpy", "PIL"}


def test_the_package_loads_nothing_heavy_until_asked():
    assert not loaded_by("import metaformer; metaformer.__all__") & {*HEAVY, "numpy", "PIL"}
    assert not loaded_by("from metaformer import Prediction, Region") & set(HEAVY)
    assert "torch" not in loaded_by("from metaformer import ImageError")
    assert "torch" in loaded_by("from metaformer import Detector")


def test_every_public_name_is_there():
    import metaformer

    assert {"PassedOverWarning", "WhiteLevelWarning"} <= set(metaformer.__all__)
    assert all(getattr(metaformer, name) for name in metaformer.__all__)


def test_help_answers_in_under_a_second():
    """Of processor time, which other work on the machine does not lengthen; nothing here waits."""
    before = os.times()
    command = [sys.executable, "-m", "metaformer.cli", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    after = os.times()
    used = after.children_user - before.children_user
    assert used + after.children_system - before.children_system < 1
    assert "adapt" in done.stdout and done.stderr == ""


def test_a_closed_pipe_is_no_error(detector_file):
    """As in ``metaformer info x | head -n 0``."""
    process = start("info", detector_file, "--json")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    process.wait(60)
    assert process.stderr.read() == ""


# Stopping a real process


def wait_for_lines(output: Path, count: int, process: subprocess.Popen[str]) -> None:
    began = time.monotonic()
    while time.monotonic() - began < 60:
        if process.poll() is not None:
            pytest.fail(f"ended before it could be stopped: {process.communicate()}")
        scores = output / "scores.csv"
        if scores.exists() and scores.read_bytes().count(b"\n") > count:
            return
        time.sleep(0.002)
    process.kill()
    pytest.fail("scored nothing within a minute")


@pytest.fixture
def many(tmp_path) -> Path:
    """150 copies: seconds of scoring."""
    folder = tmp_path / "many"
    content = boards.write_png(folder / "000.png", boards.defective(0)).read_bytes()
    for i in range(1, 150):
        (folder / f"{i:03d}.png").write_bytes(content)
    return folder


def test_ctrl_c_leaves_a_valid_file_and_the_next_run_finishes_it(detector_file, many, tmp_path):
    output = tmp_path / "out"
    process = start("predict", detector_file, many, "-o", output)
    wait_for_lines(output, 5, process)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "stopped; run the same command again to go on.\n"
    assert f"{len(scored(output))} images scored" in printed
    before = (output / "scores.csv").read_bytes()
    first = scored(output)
    assert before.endswith(b"\n")
    paths = [str(path) for path in sorted(many.iterdir())]
    assert 5 <= len(first) < 150 and first == paths[: len(first)]
    assert (output / "report.html").exists()
    assert not list(output.rglob(".*"))  # no temporary files

    done = run("predict", detector_file, many, "-o", output)
    assert done.exit_code == 0
    assert f"150 images scored ({len(first)} of them before), 150 anomalous." in done.stdout
    assert (output / "scores.csv").read_bytes().startswith(before)
    assert scored(output) == paths


def test_a_killed_run_goes_on_too(detector_file, many, tmp_path):
    output = tmp_path / "out"
    process = start("predict", detector_file, many, "-o", output, "--no-maps", "--quiet")
    wait_for_lines(output, 50, process)
    process.kill()
    process.communicate(timeout=60)
    killed = len(scored(output))
    assert 50 <= killed < 150
    with (output / "scores.csv").open("a") as file:
        file.write(f"{many / '149.png'},0.93")  # the half line that a kill can leave
    done = run("predict", detector_file, many, "-o", output, "--no-maps", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["of_earlier_runs"] == killed
    assert scored(output) == [str(path) for path in sorted(many.iterdir())]


def test_ctrl_c_while_adapting_leaves_nothing(tmp_path):
    folder = boards.write_good(tmp_path / "good", 40)
    target = tmp_path / "d.metaformer"
    process = start("adapt", folder, "-o", target, "--resolution", 1024)
    libraries = Path(f"/proc/{process.pid}/maps")
    for _ in range(600):  # until the last large library is loaded, and a second more
        if not libraries.exists() or "cv2" in libraries.read_text():
            break
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors == "stopped.\n"
    assert [path.name for path in tmp_path.iterdir()] == ["good"]


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
def test_names_that_the_console_cannot_show_have_escapes(detector_file, tmp_path, encoding):
    photo = boards.write_png(tmp_path / "in" / "零件.png", boards.defective(3))
    (photo.parent / "坏.png").write_bytes(b"no image")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "metaformer.cli", "predict"),
            *(detector_file, photo.parent, "-o", tmp_path / "out"),
        ],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3, done.stderr
    assert r"\u96f6\u4ef6.png" in done.stdout and r"\u574f.png" in done.stderr
    assert "Traceback" not in done.stderr
    assert [Path(name).name for name in scored(tmp_path / "out")] == ["零件.png"]
