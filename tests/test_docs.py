"""Every command and every piece of Python in the documentation does what the page says.

Each page has a folder with small real photos, named as the pages name them, and its blocks run
there one after another. What cannot run in a test is listed in ``NOT_RUN`` (commands) or has a
comment before it on the page (``<!-- test: skip because ... -->``), each with its reason; commands
that are not run are held to the options that exist. A block that is neither run nor listed fails.
"""

from __future__ import annotations

import importlib.util
import pkgutil
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import typer.main

from metaformer.cli import app
from tests.helpers import boards
from tests.helpers.doc_blocks import ROOT, Block, Place, blocks_of, fill, first_word

PAGES = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md")
    for path in ROOT.glob(pattern)
)

NOT_RUN = {
    r"git clone ": "there is no network",
    r"pip install ": "changes the environment that the tests run in",
    r"docker ": "needs a daemon and a network; tests/test_onboarding.py checks the Dockerfile",
    r"make ": "makes an environment of its own, for minutes",
    r"\.ci/run": "runs the tests, and so itself",
    r"pytest ": "runs other tests",
    r"apt-get ": "changes the machine",
    r"metaformer .*--backbone ": (
        "needs timm and weights; tests/networks/test_timm_backbone.py has both"
    ),
    r"metaformer .*--backbone-weights ": "likewise",
    r"\.venv/bin/": "is there after `make` only; the same is run without it",
    r"torchrun ": "trains for hours",
    r"metaformer pretrain ": "trains for hours",
    r"metaformer data fetch ": "downloads",
    r"metaformer .*s3://": "needs a store at that address",
    r"metaformer .*--(on|engine) ray": "starts a cluster; tests/inference/test_scale.py does",
    r"metaformer .*--download": "downloads",
    r"python -m benchmarks\.": "measures for minutes to hours",
    r"python score\.py": "run in tests/export/test_export.py",
    r"mkdocs ": "run in test_the_site_builds",
}
SLOW = (r"metaformer demo",)
"""Run by ``pytest -m slow`` only."""


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """What the pages speak of: photos of a good part, new ones, a labelled set, a detector."""
    folder = tmp_path_factory.mktemp("docs") / "all"
    good = [boards.good(seed) for seed in range(8)]
    new = [(boards.defective if seed % 2 else boards.good)(100 + seed) for seed in range(4)]
    for i, pixels in enumerate(good[:5]):
        boards.write_png(folder / f"photos/good/{i + 1:04d}.png", pixels)
        boards.write_png(folder / f"good/{i + 1}.png", pixels)
    for i, pixels in enumerate(new):
        boards.write_png(folder / f"photos/new/{i + 1:04d}.png", pixels)
    boards.write_png(folder / "photos/new/0017.jpg", new[1])
    boards.write_png(folder / "photo.jpg", new[1])
    boards.write_png(folder / "new/17.png", new[1])
    write_labelled(folder / "data/bottle", good, new)
    for i, pixels in enumerate(good):
        boards.write_png(folder / f"data/bracket/good/{i:03d}.png", pixels)
        boards.write_png(folder / f"data/bracket/bad/{i:03d}.png", boards.defective(200 + i))
    with zipfile.ZipFile(folder / "monday.zip", "w") as archive:
        archive.write(folder / "new/17.png", "line 3/17.png")
    (folder / "list.txt").write_text("photos/new/0001.png\nphotos/new/0017.jpg\n")
    video = cv2.VideoWriter(str(folder / "belt.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 5, (96, 96))
    for pixels in [*good, *new]:
        video.write(pixels[:, :, ::-1])
    video.release()
    boards.detector().save(folder / "bracket.metaformer")
    return folder


def write_labelled(folder: Path, good, new) -> None:
    """MVTec's layout."""
    for i, pixels in enumerate(good):
        part = "train" if i < 6 else "test"
        boards.write_png(folder / part / "good" / f"{i:03d}.png", pixels)
    mask = np.zeros(new[1].shape[:2], np.uint8)
    mask[36:60, 36:60] = 255
    for i, pixels in enumerate(new[1::2]):
        boards.write_png(folder / f"test/scratch/{i:03d}.png", pixels)
        boards.write_png(folder / f"ground_truth/scratch/{i:03d}_mask.png", mask)


def runnable(page: str) -> list[Block]:
    return [block for block in blocks_of(page) if block.language != "text" and not block.skip]


def reason_not_to_run(command: str) -> str | None:
    return next((why for start, why in NOT_RUN.items() if re.match(start, command)), None)


def is_slow(block: Block) -> bool:
    return any(re.match(start, command) for start in SLOW for command in block.commands)


@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)])
def test_the_blocks_of_a_page_run(page, photos, tmp_path, monkeypatch):
    run_page(page, photos, tmp_path, monkeypatch, slow=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(map(is_slow, runnable(page)))])
def test_the_blocks_of_a_page_run_with_slow_ones(page, photos, tmp_path, monkeypatch):
    run_page(page, photos, tmp_path, monkeypatch, slow=True)


def run_page(page, photos, tmp_path, monkeypatch, *, slow: bool) -> None:
    place = Place(fill(tmp_path / "page", photos))
    monkeypatch.chdir(place.folder)
    try:
        for block in runnable(page):
            if block.language == "python":
                place.python(block)
                continue
            for command in block.commands:
                if first_word(command) == "metaformer":
                    check_options(command)
                if reason_not_to_run(command):
                    check_what_is_named(command)
                elif slow or not is_slow(block):
                    place.shell(command)
    finally:
        place.stop()


def test_some_pages_have_blocks():
    """The search for blocks finds what is known to be there."""
    assert {block.language for block in blocks_of("README.md")} == {"shell", "python"}
    assert "text" in {block.language for block in blocks_of("docs/datasets.md")}
    assert len([page for page in PAGES if runnable(page)]) > 8


def test_what_is_skipped_on_a_page_is_there():
    """A comment whose block has gone would otherwise stay."""
    for page in PAGES:
        comments = (ROOT / page).read_text(encoding="utf-8").count("<!-- test: skip")
        skipped = [block for block in blocks_of(page) if block.skip]
        assert len(skipped) == comments, page
        assert all(block.language != "text" for block in skipped), page


def test_text_holds_no_commands():
    """A block taken for text is not one that a reader would type."""
    for page in PAGES:
        for block in blocks_of(page):
            if block.language == "text":
                assert not re.search(r"^(\$ |metaformer |pip )", block.text, re.MULTILINE), (
                    block.name
                )


def check_options(command: str) -> None:
    """The command and its options exist; placeholders are values like others."""
    words = re.sub(r"\[(-[^\]]+)\]", r"\1", command).replace("...", "X").split()
    words = words[next(i for i, word in enumerate(words) if word.endswith("metaformer")) + 1 :]
    words = [word.strip("'\"") for word in words]
    found = typer.main.get_command(app)
    while hasattr(found, "commands") and words and not words[0].startswith("-"):
        assert words[0] in found.commands, f"{command}: there is no {words[0]}"
        found = found.commands[words.pop(0)]
    if "--help" not in words:
        found.make_context("metaformer", words)  # raises a UsageError


def check_what_is_named(command: str) -> None:
    """Of a command that is not run: what it names is there."""
    words = command.split()
    if words[0] == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[1] in targets, command
    if words[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(words[2]) is not None, command
    extras = re.findall(r"metaformer-ad\[([a-z,]+)\]", command)
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra in ",".join(extras).split(","):
        assert not extra or extra in known, command


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_running_text_exist(page):
    text = re.sub(r"^ *```.*?^ *```", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    for code in re.findall(r"`([^`]+)`", text):
        command = " ".join(code.split())
        if re.match(r"metaformer [a-z]+ [^|]*[-A-Z]", command) and " COMMAND" not in command:
            check_options(command)
        if match := re.match(r"python -m (benchmarks[\w.]*)", command):
            assert importlib.util.find_spec(match[1]) is not None, command


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = re.sub(r"^ *```.*?^ *```", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    made = {"architecture.md", "changelog.md", "contributing.md"}  # by docs/site_hook.py
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path = target.partition("#")[0]
        if path and ":" not in path and path not in made:
            assert ((ROOT / page).parent / path).exists(), f"{page}: {target}"


def test_the_names_of_the_reference_are_there():
    """Also where mkdocs, which would complain, is not installed."""
    names = re.findall(r"^::: (\S+)$", (ROOT / "docs/api.md").read_text(), re.MULTILINE)
    assert len(names) > 10
    for name in names:
        assert pkgutil.resolve_name(name), name


@pytest.mark.slow
def test_the_site_builds(tmp_path):
    """Without a warning, and its pages load nothing from elsewhere."""
    for name in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(name)
    site = tmp_path / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    pages = list(site.rglob("*.html"))
    assert len(pages) > 15
    # What the search of pages opened from a disk needs.
    assert (site / "iframe-worker.js").is_file() and (site / "search/search_index.js").is_file()
    loads = re.compile(r"<(?:script|img|iframe|source|link)\b[^>]*?(?:src|href)=[\"']?(https?:)?//")
    for page in pages:
        html = page.read_text(encoding="utf-8")
        assert not loads.search(html), page
        # The theme's script would ask other servers for these two.
        assert 'class="mermaid"' not in html, page
        assert 'data-md-component="source"' not in html, page
