"""What a new user meets first: the notebook, the page on a package index, the container."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import hatch_build
from metaformer.cli import app

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"


# The notebook


def cells(kind: str) -> list[str]:
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == kind]


def run_cell(source: str, names: dict[str, object]) -> object:
    """What a notebook shows below the cell: the value of its last expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    if last is None:
        return None
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names)


def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    shown = [run_cell(source, names) for source in cells("code")]
    assert "<table>" in shown[1]._repr_html_()
    assert shown[2]._repr_png_().startswith(b"\x89PNG")
    assert capsys.readouterr().out.count("wall_00") >= 5
    assert (tmp_path / "worst.png").is_file() and (tmp_path / "wall.metaformer").is_file()
    compared = next(value for value in shown if isinstance(value, dict))
    assert set(compared) == {"feature", "mean colour"}
    assert all(0 <= value <= 1 for value in compared.values())


def test_the_notebook_is_stored_without_results_and_without_paths_of_a_machine():
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert content["nbformat"] == 4
    assert not any(cell.get("outputs") for cell in content["cells"])
    assert not re.search(r'"/(home|root|tmp|work|Users)/', NOTEBOOK.read_text(encoding="utf-8"))


# The page on a package index

RELATIVE = re.compile(r"\]\((?!https?://|#)")


@pytest.mark.parametrize("repository", ["", "https://example.org/metaformer/blob/main"])
def test_links_of_the_page_on_an_index_lead_somewhere(monkeypatch, repository):
    monkeypatch.setenv("METAFORMER_REPOSITORY", repository)
    monkeypatch.delenv("METAFORMER_SITE_URL", raising=False)
    metadata: dict[str, object] = {}
    hatch_build.IndexPage(str(ROOT), {}).update(metadata)
    page = metadata["readme"]["text"]
    assert metadata["readme"]["content-type"] == "text/markdown"
    assert not RELATIVE.search(re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL))
    assert page.startswith("# Metaformer") and "<!--" not in page
    assert "metaformer adapt photos/good -o bracket.metaformer" in page
    if repository:
        assert f"]({repository}/docs/your-data.md)" in page
        picture = f"({repository}/docs/images/report.png?raw=true)"
        assert (
            "![The report of the demo: images ranked by score, the defects marked]" + picture
            in page
        )
        assert metadata["urls"]["Source"] == repository
    else:
        assert "![" not in page and metadata["urls"] == {}


def test_code_and_full_addresses_are_left_alone():
    text = "[a](b.md) [c](https://d)\n```\n[e](f)\n```\n![g](h.png)[i](#j)"
    assert hatch_build.for_index(text, "") == "a [c](https://d)\n```\n[e](f)\n```\n[i](#j)"


# The container


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines]


def test_the_container_starts_the_service_with_options_that_exist():
    found = instructions()
    entry = json.loads(next(rest for word, rest in found if word == "ENTRYPOINT"))
    assert entry[:2] == ["metaformer", "serve"]
    serve = typer.main.get_command(app).commands["serve"]
    known = {option for parameter in serve.params for option in parameter.opts}
    assert {word for word in entry if word.startswith("--")} <= known
    given = dict(zip(entry[2::2], entry[3::2], strict=True))
    assert given["--folder"] == next(rest for word, rest in found if word == "VOLUME")
    assert given["--port"] == next(rest for word, rest in found if word == "EXPOSE")
    health = next(rest for word, rest in found if word == "HEALTHCHECK")
    assert f"http://127.0.0.1:{given['--port']}/health" in health
    users = [rest for word, rest in found if word == "USER"]
    assert users and users[-1] != "root"


def test_the_container_copies_what_is_there_and_not_kept_out():
    kept = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"
    }
    for word, rest in instructions():
        if word == "COPY" and not rest.startswith("--from"):
            for source in shlex.split(rest)[:-1]:
                assert (ROOT / source).exists() and source in kept


def test_the_dockerfile_is_clean():
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([linter, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
