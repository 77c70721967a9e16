"""What the documentation site takes from elsewhere in the repository, for ``mkdocs build``.

* Pages from files at the root: architecture, changes, contributing.
* ``<!-- table: NAME -->`` becomes a table made from ``benchmarks/results``; none is typed by hand.
* ``<!-- readme: HEADING -->`` becomes that section of the README.
* ``<!-- commands -->`` becomes the help of every command.
* Links that lead out of ``docs`` lead to the page made from their file, or to the repository if
  METAFORMER_REPOSITORY gives its address; otherwise they become the file's name.
"""

from __future__ import annotations

import json
import posixpath
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
sys.path.insert(0, str(ROOT))  # mkdocs puts only the hook's own folder there

from benchmarks import readme_tables  # noqa: E402

ROOT_PAGES = {
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
SHIM, OWN_SHIM = "https://unpkg.com/iframe-worker/shim", "iframe-worker.js"
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
MARKER = re.compile(r"^<!-- (table|readme|commands)(?:: ([^>]+?))? -->$", re.MULTILINE)
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def on_config(config: Any) -> Any:
    """Name every decision in the navigation: each is a file of its own, and more will come."""
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    for section in config.nav:
        for entries in section.values():
            for entry in entries:
                if entry.get("Decisions") == "decisions/":
                    entry["Decisions"] = [f"decisions/{page.name}" for page in pages]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages whose source is at the root of the repository."""
    for source, page in ROOT_PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Fill in tables and sections, then repair links."""
    uri = page.file.src_uri
    sources = {name: source for source, name in ROOT_PAGES.items()}
    folder = "" if uri in sources else posixpath.dirname(f"docs/{uri}")
    markdown = MARKER.sub(lambda match: filled(match[1], match[2] or ""), markdown)
    parts, end = [], 0
    for fence in FENCE.finditer(markdown):  # code is left as it is
        parts += [with_links(markdown[end : fence.start()], folder, uri, config), fence[0]]
        end = fence.end()
    return "".join([*parts, with_links(markdown[end:], folder, uri, config)])


def on_post_page(output: str, page: Any, config: Any) -> str:
    """The theme takes what its search needs on a disk from another server; here it is beside."""
    return output.replace(SHIM, posixpath.relpath(OWN_SHIM, posixpath.dirname(page.url) or "."))


def on_post_template(output: str, template_name: str, config: Any) -> str:
    """The same for the page that stands for missing ones."""
    return output.replace(SHIM, f"/{OWN_SHIM}")


def with_links(text: str, folder: str, uri: str, config: Any) -> str:
    """``text`` of page ``uri``, whose source is in ``folder``, with links the site can follow."""

    def repaired(match: re.Match[str]) -> str:
        image, words, target = match.groups()
        path, mark, anchor = target.partition("#")
        if image or not path or ":" in path:
            return match[0]
        place = posixpath.normpath(posixpath.join(folder, path))
        if place in ROOT_PAGES:
            page: str | None = ROOT_PAGES[place]
        elif place.startswith("benchmarks/results/"):
            page = "benchmarks.md"
        else:
            page = place.removeprefix("docs/") if place.startswith("docs/") else None
        if page is not None and not (ROOT / place).is_dir():
            relative = posixpath.relpath(page, posixpath.dirname(uri) or ".")
            return f"[{words}]({relative}{mark}{anchor})"
        if not (ROOT / place).exists():
            return match[0]  # mkdocs will complain
        repository = config.extra.get("repository")
        if repository:
            return f"[{words}]({repository}/{place})"
        return words if place in words else f"{words} (`{place}` in the repository)"

    return LINK.sub(repaired, text)


def filled(kind: str, name: str) -> str:
    if kind == "readme":
        return readme_section(name)
    if kind == "commands":
        return commands()
    file, make, command = TABLES[name]
    if not (RESULTS / file).is_file():
        return f"*Not measured yet. `{command}` writes `benchmarks/results/{file}`.*"
    return f"{make()}\n\n*From `benchmarks/results/{file}`, written by `{command}`.*"


def readme_section(heading: str) -> str:
    """What stands under ``## heading`` in the README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(
        rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL
    )
    if found is None:
        raise ValueError(f'README.md has no section "{heading}".')
    return re.sub(r"\]\(docs/", "](", found[1].strip())


def result(file: str) -> Any:
    return json.loads((RESULTS / file).read_text(encoding="utf-8"))


def written(file: str) -> str:
    """A Markdown table that a benchmark wrote beside its JSON, its headings two levels down."""
    text = (RESULTS / file).read_text(encoding="utf-8")
    return re.sub(r"^#+(?= )", lambda match: f"##{match[0]}", text, flags=re.MULTILINE).strip()


def fuzz() -> str:
    """What was sent, and what came of it."""
    found = result("fuzz.json")
    service, openapi = found["service"], found["openapi"]
    answers = ", ".join(f"{count} x {status}" for status, count in service["statuses"].items())
    rows = [
        ("files given to `predict`", found["predict"]["files"]),
        (
            "of these scored / refused",
            f"{found['predict']['scored']} / {found['predict']['refused']}",
        ),
        ("files sent to the service", service["files"]),
        ("its answers", answers),
        ("its slowest answer", f"{service['slowest_seconds']} s"),
        ("requests made from its description", openapi["requests"]),
        ("answers that break it", len(openapi["failures"])),
        ("tracebacks in the server's log", found["tracebacks_in_server_log"]),
    ]
    return as_table(rows)


def load() -> str:
    """What many clients at once saw."""
    found = result("load.json")
    memory = found["resident_megabytes"]
    answers = ", ".join(f"{count} x {status}" for status, count in found["statuses"].items())
    rows = [
        ("engine", found["engine"]),
        ("clients, seconds", f"{found['clients']}, {found['seconds']:.0f}"),
        ("machine", f"{found['machine']['processor']}, {found['machine']['cpus']} processors"),
        ("requests", found["requests"]),
        ("answers", answers),
        ("requests without an answer", sum(found["broken"].values())),
        ("images a second", found["images_per_second"]),
        ("seconds to an answer, median", found["seconds_p50"]),
        ("99 in 100 came within", f"{found['seconds_p99']} s"),
        ("the slowest", f"{found['seconds_most']} s"),
        ("memory at the start, at most, at the end", megabytes(memory)),
        ("last third of the run over the second", f"{found['memory_growth']:+.1%}"),
        ("load average before (other programs)", found["load_average_before"]),
    ]
    return as_table(rows)


def megabytes(memory: list[float]) -> str:
    return f"{memory[0]:.0f}, {max(memory):.0f}, {memory[-1]:.0f} MB"


def as_table(rows: list[tuple[str, Any]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {words} | {value} |" for words, value in rows)])


TABLES: dict[str, tuple[str, Callable[[], str], str]] = {
    "accuracy": (
        "few_shot.json",
        lambda: readme_tables.accuracy(),
        "python -m benchmarks.accuracy.few_shot",
    ),
    "few shot": (
        "few_shot.md",
        lambda: written("few_shot.md"),
        "python -m benchmarks.accuracy.few_shot",
    ),
    "false alarms": (
        "false_alarms.json",
        lambda: readme_tables.false_alarms(),
        "python -m benchmarks.calibration.false_alarms",
    ),
    "blank frames": (
        "blank_frames.md",
        lambda: written("blank_frames.md"),
        "python -m benchmarks.robustness.blank_frames",
    ),
    "camera": (
        "camera.md",
        lambda: written("camera.md"),
        "python -m benchmarks.robustness.camera",
    ),
    "engines": ("engines.md", lambda: written("engines.md"), "python -m benchmarks.speed.engines"),
    "peers speed": (
        "peers_speed.md",
        lambda: written("peers_speed.md"),
        "python -m benchmarks.speed.peers",
    ),
    "load": ("load.json", load, "python -m benchmarks.robustness.load --clients 32 --seconds 300"),
    "precision": (
        "precision.md",
        lambda: written("precision.md"),
        "python -m benchmarks.speed.precision",
    ),
    "fuzz": ("fuzz.json", fuzz, "python -m benchmarks.robustness.fuzz"),
}


def commands() -> str:
    """What every command takes, from the commands themselves."""
    import typer

    from metaformer.cli import app

    parts: list[str] = []

    def describe(command: Any, name: str) -> None:
        inner = getattr(command, "commands", None)
        if inner is not None:
            for word, found in inner.items():
                describe(found, f"{name} {word}")
        else:
            parts.append(f"## {name}\n\n{command.help}\n\n{parameters(command)}")

    describe(typer.main.get_command(app), "metaformer")
    return "\n\n".join(parts)


def parameters(command: Any) -> str:
    """A table of a command's arguments and options."""
    lines = ["| argument or option | | default |", "|---|---|---|"]
    for parameter in command.params:
        is_option = parameter.param_type_name == "option"
        names = [*parameter.opts, *parameter.secondary_opts] if is_option else [parameter.name]
        shown = ", ".join(f"`{name if is_option else name.upper()}`" for name in names)
        default = getattr(parameter.default, "value", parameter.default)  # of a choice: its word
        known = default not in (None, False, True, ..., ()) and not parameter.required
        words = (getattr(parameter, "help", "") or "").replace("|", "\\|")
        lines.append(f"| {shown} | {words} | {f'`{default}`' if known else ''} |")
    return "\n".join(lines)
