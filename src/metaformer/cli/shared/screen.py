"""Output of the commands: colours where they are wanted, and the closing line."""

from __future__ import annotations

import os
import re
import shlex
import sys
import time
from collections.abc import Sequence

import typer

COLOUR_CODE = re.compile(r"\x1b\[[0-9;]*m")


def coloured(text: str, colour: str, *, bold: bool = False) -> str:
    """``text`` in a colour, unless NO_COLOR is set; ``typer.echo`` leaves it out of files."""
    return text if os.environ.get("NO_COLOR") else typer.style(text, fg=colour, bold=bold or None)


def tell(text: str) -> None:
    """A line on standard error, above the progress bar if there is one: a bar stands in for
    ``sys.stderr`` while it is shown, which ``typer.echo`` passes by."""
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    print(text if is_terminal else COLOUR_CODE.sub("", text), file=sys.stderr, flush=True)


def warn(text: object) -> None:
    tell(f"{coloured('warning:', 'yellow')} {text}")


def fail(text: object) -> None:
    tell(f"{coloured('error:', 'red', bold=True)} {text}")


def flag(text: str, is_anomalous: bool) -> str:
    """Red for what is defective, green for what is not."""
    return coloured(text, "red" if is_anomalous else "green")


class Ending:
    """The last line of a command: how long it took since this was made, and what to do next."""

    def __init__(self) -> None:
        self.start = time.monotonic()

    def say(self, *next_steps: str, err: bool = False) -> None:
        took = coloured(f"Took {describe_seconds(time.monotonic() - self.start)}.", "bright_black")
        typer.echo(" ".join([took, *(f"Next: {step}" for step in next_steps[:1])]), err=err)
        for step in next_steps[1:]:
            typer.echo(f"Or: {step}", err=err)


def describe_seconds(seconds: float) -> str:
    """``0.3 s``, ``12 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes = whole // 60
    return (
        f"{minutes} min {whole % 60} s"
        if minutes < 120
        else f"{minutes // 60} h {minutes % 60} min"
    )


def command_line(*words: object) -> str:
    """A command to copy, ``metaformer`` first; names with spaces quoted."""
    return " ".join(["metaformer", *(shlex.quote(str(word)) for word in words)])


def show_table(rows: Sequence[tuple[str, str]]) -> None:
    """Names and texts in two columns, folded to the width of the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(name, text)
    Console(highlight=False, markup=False).print(table)
