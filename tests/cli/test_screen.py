"""What a person at a terminal meets: usual outputs, wrong orders, endings, colours, bars."""

from __future__ import annotations

import json
import re
import shutil
import signal
import sys
import threading
import zipfile
from pathlib import Path

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from metaformer.cli import app
from metaformer.cli.shared.arguments import name_of
from metaformer.cli.shared.screen import describe_seconds
from metaformer.cli.watch import stopped_by_signals
from tests.helpers import boards, trees
from tests.helpers.terminal import run_in_terminal

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("detector") / "board.metaformer"
    boards.detector().save(path)
    return path


@pytest.fixture
def here(tmp_path, monkeypatch, made) -> Path:
    """An empty folder to run in, with photos/good, photos/new and board.metaformer."""
    boards.write_good(tmp_path / "bracket" / "good", 3)
    boards.write_mixed(tmp_path / "bracket" / "new", 4)
    shutil.copy(made, tmp_path / "board.metaformer")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


# Usual outputs


def test_a_detector_is_named_after_its_product_and_not_replaced_unasked(here):
    done = run("adapt", "bracket/good", "--resolution", 96)
    assert done.exit_code == 0 and "bracket.metaformer: adapted to 3" in done.stdout
    before = (here / "bracket.metaformer").read_bytes()
    done = run("adapt", "bracket/good", "--resolution", 64)
    assert done.exit_code == 1 and "-o bracket.metaformer" in done.stderr
    assert (here / "bracket.metaformer").read_bytes() == before
    assert (
        run("adapt", "bracket/good", "--resolution", 64, "-o", "bracket.metaformer").exit_code == 0
    )
    done = run("adapt", "bracket/new", "--add", "bracket.metaformer")
    assert done.exit_code == 0 and (here / "bracket-extended.metaformer").is_file()


def test_results_and_exports_are_named_after_the_detector(here):
    done = run("predict", "board.metaformer", "bracket/new")
    assert done.exit_code == 0 and "board-new-results/report.html" in done.stdout
    assert (here / "board-new-results" / "scores.csv").is_file()
    printed = json.loads(run("predict", "board.metaformer", "bracket/new", "--json").stdout)
    assert printed["output"] == "board-new-results" and printed["of_earlier_runs"] == 4


@pytest.mark.parametrize(
    ("argument", "name"),
    [
        ("/a/bracket/train/good", "bracket"),
        ("/a/bracket/Good/", "bracket"),
        ("/a/monday.tar.gz", "monday"),
        ("@/a/list.txt", "list"),
        ("s3://bucket/line3", "line3"),
        ("/good", "good"),
    ],
)
def test_products_are_told_from_paths(argument, name):
    assert name_of(argument) == name


# What adapt takes


def test_adapt_takes_archives_lists_and_several(here):
    with zipfile.ZipFile("good.zip", "w") as archive:
        for path in sorted(Path("bracket/good").iterdir()):
            archive.write(path)
    Path("list.txt").write_text("bracket/good/000.png\nbracket/good/001.png\n")
    for arguments, count in (
        (["good.zip"], 3),
        (["@list.txt"], 2),
        (["--list", "list.txt"], 2),
        (["bracket/good/000.png", "--list", "list.txt"], 2),
        (["bracket/good/000.png", "good.zip"], 3),  # a copy is one image
        (["bracket", "--recursive"], 7),
    ):
        done = run("adapt", *arguments, "-o", "d", "--resolution", 96, "--json")
        assert done.exit_code == 0
        assert len(json.loads(done.stdout)["support"]) == count


# Arguments in the wrong order


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            "predict bracket/new board.metaformer",
            "the detector comes first, then the images: "
            "metaformer predict board.metaformer bracket/new",
        ),
        ("watch bracket/new board.metaformer", "metaformer watch board.metaformer bracket/new"),
        ("adapt board.metaformer bracket/good", "adapt bracket/good --add board.metaformer"),
        ("adapt bracket/good new.metaformer", "metaformer adapt bracket/good -o new.metaformer"),
        ("info bracket/good", "metaformer adapt bracket/good -o bracket.metaformer"),
        ("export bracket/good", "bracket/good: a folder; a detector file is needed here"),
        ("serve bracket/good", "bracket/good: a folder; a detector file is needed here"),
        ("evaluate board.metaformer", "metaformer predict board.metaformer FOLDER --labels"),
        (
            "evaluate board.metaformer bracket",
            "metaformer predict board.metaformer bracket --labels truth.csv, to measure a preset: "
            "metaformer evaluate bracket",
        ),
    ],
)
def test_swapped_arguments_are_recognised(here, command, message):
    before = sorted(here.rglob("*"))
    done = run(*command.split())
    assert done.exit_code == 1 and message in done.stderr and done.stderr.count("\n") == 1
    assert sorted(here.rglob("*")) == before


def test_a_data_set_root_is_recognised(here):
    trees.write_mvtec(here / "mvtec" / "bottle", train=3, good=2, per_kind=1)
    done = run("adapt", "mvtec/bottle")
    assert done.exit_code == 1
    assert "its good images are in mvtec/bottle/train/good. Give that." in done.stderr
    done = run("predict", "board.metaformer", "mvtec/bottle")
    assert done.exit_code == 1 and "test images are in mvtec/bottle/test/" in done.stderr


# Endings


@pytest.mark.parametrize(
    ("command", "next_step"),
    [
        ("adapt bracket/good --resolution 96", "metaformer predict bracket.metaformer FOLDER"),
        ("predict board.metaformer bracket/new -o out", "look at out/report.html"),
        ("export board.metaformer", "score with it without PyTorch: examples/edge/"),
    ],
)
def test_every_command_ends_with_time_and_next_step(here, command, next_step):
    done = run(*command.split())
    assert done.exit_code == 0
    assert re.search(rf"^Took [0-9.]+ s\. Next: {re.escape(next_step)}", done.stdout, re.MULTILINE)
    assert run(*command.split(), "--quiet", "-o", "again").stdout == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.31, "0.3 s"), (12.4, "12 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_times_are_short(seconds, text):
    assert describe_seconds(seconds) == text


def test_info_is_a_table_on_a_terminal_and_json_elsewhere_or_if_asked(here):
    shown = CONTROL.sub("", run_in_terminal("info", "board.metaformer")).replace("\r", "")
    assert re.search(r"^normal images +3 \(image 0, image 1, image 2\)", shown, re.MULTILINE)
    assert "false-alarm rate" in shown and "{" not in shown
    assert re.search(r"^Took .* Next: metaformer predict board.metaformer", shown, re.MULTILINE)
    asked = CONTROL.sub("", run_in_terminal("info", "board.metaformer", "--json"))
    assert json.loads(asked) == json.loads(run("info", "board.metaformer").stdout)


# Help and completion


def all_commands(command=None, words=()):
    command = command or typer.main.get_command(app)
    inner = getattr(command, "commands", None)
    if inner is None:
        yield words
    for name, found in (inner or {}).items():
        yield from all_commands(found, (*words, name))


@pytest.mark.parametrize("words", list(all_commands()), ids=" ".join)
def test_every_help_has_examples_and_exit_codes(words):
    shown = run(*words, "--help").stdout
    assert f"metaformer {' '.join(words)}" in shown[shown.index("Examples:") :]
    assert "Exit codes: 0 done" in shown


def test_examples_in_help_are_commands_that_exist():
    for words in all_commands():
        shown = " ".join(run(*words, "--help").stdout.split("Examples:")[1].split())
        for option in re.findall(r"--[a-z-]+", shown):
            assert option in run(*words, "--help").stdout.split("Examples:")[0], (words, option)


def test_shells_can_complete():
    done = CliRunner().invoke(
        app,
        [],
        prog_name="metaformer",
        env={
            "_METAFORMER_COMPLETE": "complete_bash",
            "COMP_WORDS": "metaformer ad",
            "COMP_CWORD": "1",
        },
    )
    assert done.stdout.split() == ["adapt"]
    done = CliRunner().invoke(
        app,
        [],
        prog_name="metaformer",
        env={
            "_METAFORMER_COMPLETE": "complete_bash",
            "COMP_WORDS": "metaformer data fetch mvtec_l",
            "COMP_CWORD": "3",
        },
    )
    assert done.stdout.split() == ["mvtec_loco"]


# On a terminal


def test_colours_on_a_terminal_alone(here):
    shown = run_in_terminal(
        "predict", "board.metaformer", "bracket/new", "-o", "out", OMP_NUM_THREADS="1"
    )
    assert re.search("\x1b\\[31m0\\.\\d{3}\x1b\\[0m  bracket/new/00", shown)
    plain = run_in_terminal("predict", "x.metaformer", "bracket/new", NO_COLOR="1")
    assert "error: x.metaformer: no such detector file" in plain and "\x1b[31m" not in plain
    assert "\x1b" not in run("predict", "board.metaformer", "bracket/new", "-o", "out2").output


def test_a_warning_has_a_line_of_its_own_beside_a_bar(here):
    boards.write_good(here / "many", 5)
    boards.write_png(here / "many" / "strange.png", boards.good(0, "00041005"))
    shutil.copy(here / "many" / "000.png", here / "many" / "copy.png")
    shown = run_in_terminal("adapt", "many", "-o", "d", "--resolution", "96", OMP_NUM_THREADS="1")
    assert "adapting" in shown  # there was a bar
    lines = [CONTROL.sub("", line) for line in re.split("[\r\n]+", shown)]
    for kind in ("left out, because", "these normal images look unlike"):
        (line,) = [line for line in lines if kind in line]
        assert line.startswith("warning: ")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_watch_on_a_terminal_is_for_people(here):
    shown = run_in_terminal(
        "watch",
        "board.metaformer",
        "bracket/new",
        stop_when=lambda text: text.count("bracket/new") + text.count(".png") > 4,
        OMP_NUM_THREADS="1",
    )
    plain = CONTROL.sub("", shown)
    assert re.search(r"^\d\d:\d\d:\d\d  normal     0\.\d{3}  .*000\.png", plain, re.MULTILINE)
    assert re.search(r"^\d\d:\d\d:\d\d  defective  0\.\d{3}  .*001\.png", plain, re.MULTILINE)
    assert "{" not in plain and "4 images scored" in plain and "Took" in plain


def test_a_signal_while_the_lock_of_the_event_is_held_stops_the_watch():
    """``Event.wait`` holds it for a moment: a handler that sets the event itself would wait for
    its own thread for ever."""
    stop = threading.Event()
    with stopped_by_signals(stop):
        with stop._cond:
            signal.raise_signal(signal.SIGTERM)
        assert stop.wait(10)
