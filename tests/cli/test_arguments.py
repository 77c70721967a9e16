"""What stands on the command line: files of another kind than is needed are told apart."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from metaformer.cli import app
from tests.helpers import boards


@pytest.fixture(scope="module")
def detector_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("detector") / "board.metaformer"
    boards.detector().save(path)
    return path


def run(*arguments: object) -> Result:
    """The command in this process; anything but an expected error is raised here."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "command",
    [
        "predict PIPE photos",
        "info PIPE",
        "export PIPE",
        "serve PIPE",
        "watch PIPE photos --once",
        "adapt photos --add PIPE",
        "predict DETECTOR photos -o out --labels PIPE",
        "pretrain prior PIPE",
    ],
)
def test_a_pipe_is_refused_and_not_waited_for(detector_file, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    boards.write_good(Path("photos"), 1)
    os.mkfifo("PIPE")
    before = sorted(tmp_path.rglob("*"))
    done = run(*(detector_file if word == "DETECTOR" else word for word in command.split()))
    assert done.exit_code == 1 and done.stdout == ""
    assert done.stderr.startswith("error: PIPE: neither a file nor a link to one, but a pipe")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
@pytest.mark.timeout(60)
def test_a_pipe_is_no_data_set_to_evaluate_on_nor_a_support(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("PIPE")
    for command in ("evaluate", "adapt"):
        done = run(command, "PIPE")
        assert done.exit_code == 1 and done.stderr.startswith("error: PIPE: ")
