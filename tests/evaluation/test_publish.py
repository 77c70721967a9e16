"""Several numbers of normal images in one evaluation, and tables for a README or a paper."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from metaformer.cli import app
from metaformer.evaluation.publish import as_latex, as_markdown, write_table
from tests.helpers import trees


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    for name in ("metal_nut", "screw"):
        trees.write_mvtec(folder / name, train=3, good=2, per_kind=1)
    return folder


def evaluate(*arguments):
    options = ["--seeds", "0,1", "--resolution", "64", "--quiet"]
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments), *options])


def test_several_numbers_of_images_in_one_run(data, tmp_path):
    target, table = tmp_path / "results.json", tmp_path / "table.md"
    done = evaluate(data, "--shots", "1,2", "-o", target, "--table", table)
    assert done.exit_code == 0, done.output
    runs = json.loads(target.read_text())["runs"]
    assert [run["shots"] for run in runs] == [1, 2]
    alone = tmp_path / "one.json"
    assert evaluate(data, "--shots", "2", "-o", alone).exit_code == 0
    assert json.loads(alone.read_text())["mean"] == runs[1]["mean"]
    lines = table.read_text().splitlines()
    assert lines[0].startswith("| category | normal images | image AUROC |")
    assert [line.split(" | ")[:2] for line in lines[2:]] == [
        ["| metal_nut", "1"],
        ["| screw", "1"],
        ["| mean", "1"],
        ["| metal_nut", "2"],
        ["| screw", "2"],
        ["| mean", "2"],
    ]
    assert len({line.count(" | ") for line in lines}) == 1
    mean = runs[1]["mean"]["image_auroc"]
    assert lines[-1].split(" | ")[2].startswith(f"{100 * mean:.1f}")
    latex = as_latex(runs)
    assert r"metal\_nut & 1 & " in latex and r" $\pm$ " in latex and "±" not in latex
    assert latex.count(r" \\") == 7 and latex.startswith(r"\begin{tabular}{lr")
    assert as_markdown(runs) + "\n" == table.read_text()


def test_results_and_tables_name_what_was_left_out(data, tmp_path):
    target, table = tmp_path / "results.json", tmp_path / "table.md"
    parts = ["--without", "transformer", "--without", "gap"]
    done = evaluate(data, "--shots", 1, *parts, "-o", target, "--table", table)
    assert done.exit_code == 0, done.output
    results = json.loads(target.read_text())
    assert results["preset"] == "feature without transformer and gap"
    assert results["settings"]["without"] == ["transformer", "gap"]
    assert table.read_text().startswith("| category (without transformer and gap) |")
    missing = evaluate(data, "--without", "response")
    assert missing.exit_code == 1
    assert "transformer and gap" in missing.output


@pytest.mark.parametrize("shots", ["", "1,", "0,1", "1,many"])
def test_numbers_that_make_no_sense(data, shots):
    done = evaluate(data, "--shots", shots)
    assert done.exit_code == 2 and "--shots takes numbers" in done.output


def test_another_ending_is_refused_before_the_work(data, tmp_path):
    done = evaluate(data, "--table", tmp_path / "table.html")
    assert done.exit_code == 1 and ".md (Markdown) or .tex (LaTeX)" in done.output
    with pytest.raises(ValueError, match="LaTeX"):
        write_table([], tmp_path / "table.csv")
