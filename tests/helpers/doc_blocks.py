"""The blocks of code in the documentation, and a place in which they can be run."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from metaformer.cli import app

ROOT = Path(__file__).parents[2]
SHELL_WORDS = {"console", "sh", "bash"}
RUN = {"metaformer", "python", "curl", "ls", "cat", "head", "mkdir", "cp"}
"""What tests run. Whatever else a page tells a reader to run has to be listed as not run."""
COMMANDS = RUN | {
    "pip",
    "git",
    "make",
    "torchrun",
    "docker",
    "mkdocs",
    "pytest",
    "apt-get",
    "export",
}
"""A block without a language is a shell block if a line of it begins with one of these."""
FENCE = re.compile(r"^ *```")
SKIP = re.compile(r"<!-- test: skip because (.+?) -->")


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    page: str
    line: int
    language: str
    """``shell``, ``python`` or ``text``."""
    text: str
    skip: str | None
    """The reason, if a comment before the block says that it is not to be run."""

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """Of a shell block: its lines, joined where they go on, without comments and prompts."""
        lines = self.text.replace("\\\n", " ").splitlines()
        kept = (re.sub(r"\s+#\s.*", "", line.strip().removeprefix("$ ")) for line in lines)
        return [line for line in kept if line and not line.startswith("#")]


def blocks_of(page: str) -> list[Block]:
    """All blocks of a page, in order."""
    found: list[Block] = []
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    at, skip = 0, None
    while at < len(lines):
        line = lines[at]
        if FENCE.match(line):
            end = next(i for i in range(at + 1, len(lines)) if FENCE.match(lines[i]))
            indent = len(line) - len(line.lstrip())
            text = "\n".join(inner[indent:] for inner in lines[at + 1 : end])
            language = language_of(line.strip().removeprefix("```").strip(), text, f"{page}:{at}")
            found.append(Block(page, at + 1, language, text, skip))
            at, skip = end, None
        elif match := SKIP.search(line):
            skip = match[1]
        elif line.strip():
            skip = None  # the comment stands directly before its block
        at += 1
    return found


def language_of(word: str, text: str, where: str) -> str:
    if word in SHELL_WORDS:
        return "shell"
    if word == "python":
        return "python"
    if word in {"json", "yaml", "text", "toml", "html", "css", "csv"}:
        return "text"
    assert word == "", f"{where}: no rule for blocks of {word!r}"
    return "shell" if any(first_word(line) in COMMANDS for line in text.splitlines()) else "text"


def first_word(line: str) -> str:
    """The program of a command line, without settings of the environment before it."""
    words = [word for word in line.removeprefix("$ ").split() if not re.match(r"[A-Z_]+=", word)]
    return words[0].removeprefix(".venv/bin/") if words else ""


@dataclass
class Place:
    """A folder in which the blocks of one page run, one after another, as a reader would."""

    folder: Path
    names: dict[str, Any] = field(default_factory=lambda: {"__name__": "documentation"})
    """What the page's Python blocks have defined."""
    ids: dict[str, str] = field(default_factory=dict)
    """JOB and DETECTOR, as the service answered."""
    background: subprocess.Popen[bytes] | None = None
    address: str = ""
    """Of the server in the background, instead of the one in the text."""

    def python(self, block: Block) -> None:
        """Runs in this process; the current folder is the place's."""
        code = self.with_address(block.text)
        # Lines are counted as on the page, so that a traceback leads there.
        exec(compile("\n" * block.line + code, ROOT / block.page, "exec"), self.names)

    def shell(self, command: str) -> None:
        words = shlex.split(command)
        assert first_word(command) in RUN, f"neither run nor listed as not run: {command}"
        if first_word(command) == "metaformer" and ("serve" in words or "watch" in words):
            self.start(words)
        elif first_word(command) == "curl":
            self.curl(command)
        elif words[0] == "metaformer" and not set("|>&;$") & set(command):
            done = CliRunner().invoke(app, words[1:])
            assert done.exit_code == 0, f"{command}\n{done.output}\n{done.exception!r}"
        else:
            self.run(command)

    def run(self, command: str) -> str:
        """In a shell in which ``metaformer`` and ``python`` are those of the tests."""
        tools = self.folder / ".tools"
        tools.mkdir(exist_ok=True)
        for name, call in {"metaformer": " -m metaformer.cli", "python": ""}.items():
            (tools / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{call} "$@"\n')
            (tools / name).chmod(0o755)
        path = f"{tools}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-ec", command],
            cwd=self.folder,
            env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def start(self, words: list[str]) -> None:
        """Starts what does not end by itself; a server until it answers, on a port of its own."""
        self.stop()
        settings = dict(word.split("=", 1) for word in words[: words.index("metaformer")])
        options = words[words.index("metaformer") + 1 :]
        if "serve" in options:
            options = [option.replace("0.0.0.0", "127.0.0.1") for option in options]
            options += ["--port", "0"]
        log = self.folder / "background.log"
        with log.open("wb") as stream:
            self.background = subprocess.Popen(
                [sys.executable, "-m", "metaformer.cli", *options],
                cwd=self.folder,
                env={**os.environ, **settings},
                stdout=stream,
                stderr=stream,
            )
        ends = time.monotonic() + 90
        while not log.stat().st_size or ("serve" in options and not self.answers(log)):
            assert self.background.poll() is None, f"{words} ended: {log.read_text()}"
            assert time.monotonic() < ends, f"{words} said nothing: {log.read_text()}"
            time.sleep(0.1)

    def answers(self, log: Path) -> bool:
        import httpx

        match = re.search(r"http://[\w.]+:\d+", log.read_text())
        if match is None:
            return False
        self.address = match[0]
        try:
            return httpx.get(f"{self.address}/health").status_code == 200
        except httpx.TransportError:
            return False

    def curl(self, command: str) -> None:
        """Keeps the ids that the service gives; asks for a job until it is over."""
        for name, value in self.ids.items():
            command = command.replace(name, value)
        command = self.with_address(command).replace("curl ", "curl --fail-with-body -sS ", 1)
        ends = time.monotonic() + 90
        while True:
            answer = self.run(command)
            found = json.loads(answer) if answer.startswith("{") else {}
            state = found.get("state")
            if "job" in found:
                self.ids["JOB"] = found["job"]["id"]
            if state not in ("waiting", "running"):
                break
            assert time.monotonic() < ends, answer
            time.sleep(0.2)
        if state is not None:
            assert state == "done", answer
            self.ids["DETECTOR"] = found["detector"]["id"]

    def with_address(self, text: str) -> str:
        return re.sub(r"http://[\w.-]+:8000", self.address or "http://127.0.0.1:8000", text)

    def stop(self) -> None:
        """Ctrl-C, as a reader would; it must end in good order."""
        if self.background is not None:
            background, self.background = self.background, None
            background.send_signal(signal.SIGINT)
            try:
                code = background.wait(timeout=60)
            finally:
                background.kill()
            assert code in (0, 130), (self.folder / "background.log").read_text()


def fill(folder: Path, source: Path) -> Path:
    """A page's own copy of what its commands speak of."""
    return Path(shutil.copytree(source, folder))
