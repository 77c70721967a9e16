"""The bar of a training, and what is said of a wrong configuration."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from metaformer.cli import app
from metaformer.training.config_file import read_config
from metaformer.training.universal.config import MetaConfig
from tests.helpers import boards
from tests.helpers.terminal import run_in_terminal

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass
class Example:
    data: str
    steps: int = 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: a\nstesp: 3", r"unknown key 'stesp'\. Did you mean 'steps'\? Known: data, steps"),
        ("data: a\nqqq: 3", r"unknown key 'qqq'\. Known: data, steps"),
        ("steps: 3", "key 'data' is missing"),
        ("data: a\nsteps: many", r"steps: found 'many'\. Input should be a valid integer"),
        ("- data", "expected keys and values, found list"),
        ("data: [", "not readable as YAML"),
    ],
)
def test_what_is_wrong_with_a_configuration_is_named(tmp_path, text, message):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_config(path, Example)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_missing_configuration_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"c\.yaml: no such file"):
        read_config(tmp_path / "c.yaml", Example)


def test_keys_of_parts_are_named_too(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("data: a\noutput: b\nlosses: {lokate: 3}\n")
    with pytest.raises(ValueError, match=r"losses: unknown key 'lokate'\. Did you mean 'locate'"):
        MetaConfig.from_yaml(path)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("prior", "prior"),
        ("autoencoder", "pretrain_autoencoder"),
        ("universal", "universal_pixel"),
        ("transformer", "gap_transformer"),
    ],
)
def test_each_training_takes_a_device_and_refuses_one_that_is_not_known(
    name, config, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    path = Path(__file__).parents[2] / "configs" / f"{config}.yaml"
    done = CliRunner().invoke(app, ["pretrain", name, str(path), "--device", "gpu"])
    assert done.exit_code == 1 and "device 'gpu': not known; accepted are cpu, cuda" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_bar_shows_the_loss_and_the_time_left(tmp_path):
    boards.write_png(tmp_path / "photos" / "a.png", boards.whole("template", "00041025"))
    path = tmp_path / "c.yaml"
    path.write_text(
        f"data: {tmp_path / 'photos'}\noutput: {tmp_path / 'run'}\n"
        "steps: 4\nproducts: 1\nviews: 2\nlog_every: 1\n"
    )
    shown = run_in_terminal("pretrain", "autoencoder", path, OMP_NUM_THREADS="1")
    plain = CONTROL.sub("", shown)
    bar = r"training the autoencoder .*4/4 loss \d\.\d+ \d:\d\d:\d\d left 0:00:00"
    assert re.search(bar, plain)
    assert Path(tmp_path / "run" / "autoencoder.safetensors").is_file()
    assert "autoencoder.safetensors" in plain and "Took" in plain
