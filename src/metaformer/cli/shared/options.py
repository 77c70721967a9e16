"""Shared by the commands: option types, readable errors, the progress bar."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from metaformer.cli.shared.screen import fail, warn

SOME_UNREADABLE = 3
INTERRUPTED = 130


class PresetName(StrEnum):
    feature = "feature"
    pixel = "pixel"


class ModeName(StrEnum):
    fast = "fast"
    long = "long"


class PartName(StrEnum):
    transformer = "transformer"
    response = "response"
    gap = "gap"
    adaptation = "adaptation"


class Place(StrEnum):
    local = "local"
    ray = "ray"


class ScoresFormatName(StrEnum):
    csv = "csv"
    parquet = "parquet"


class EngineOption(StrEnum):
    auto = "auto"
    torch = "torch"
    onnxruntime = "onnxruntime"
    openvino = "openvino"
    ray = "ray"


RARE = "Rarely needed"
"""Panel of the help for options that a first user passes over."""

Preset = Annotated[
    PresetName,
    typer.Option(help="feature: the usual one; pixel: the paper's own, slower and behind it."),
]
Resolution = Annotated[
    int | None,
    typer.Option(
        help="Working size in pixels, 256 if unset; more finds smaller defects, and takes longer."
    ),
]
Aligned = Annotated[
    bool,
    typer.Option(
        "--aligned", help="Parts stand in the same place on every image: compare by place."
    ),
]
Backbone = Annotated[
    str,
    typer.Option(
        help="Of the feature preset: the one inside the package, or a model of timm "
        "(docs/backbones.md).",
        rich_help_panel=RARE,
    ),
]
BackboneWeights = Annotated[
    Path | None,
    typer.Option(
        help="Safetensors file with the weights of a backbone of timm; looked for in the folder "
        "$METAFORMER_WEIGHTS and in the Hugging Face cache if not given.",
        rich_help_panel=RARE,
    ),
]
Download = Annotated[
    bool,
    typer.Option(
        "--download",
        help="Fetch the backbone's weights if they are not on the machine.",
        rich_help_panel=RARE,
    ),
]
Mode = Annotated[
    ModeName,
    typer.Option(
        help="Of the pixel preset: long trains its networks on your images, ten minutes or more.",
        rich_help_panel=RARE,
    ),
]
UniversalWeights = Annotated[
    Path | None,
    typer.Option(
        help="Of the pixel preset: folder that `metaformer pretrain universal` wrote, instead of "
        "the weights inside the package.",
        rich_help_panel=RARE,
    ),
]
FalseAlarmRate = Annotated[
    float, typer.Option(help="Share of good parts that may be flagged, from 0.000001 to below 1.")
]
WhiteLevel = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=65535,
        help="Value of 16-bit images that means white (12-bit cameras: 4095); guessed if unset.",
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of everything random.", rich_help_panel=RARE)]
Recursive = Annotated[bool, typer.Option("--recursive", help="Look into sub-folders too.")]
Lists = Annotated[
    list[Path] | None,
    typer.Option("--list", help="File with one path or address a line; may be given again."),
]
Every = Annotated[
    int, typer.Option(min=1, help="Of videos, take every Nth frame.", rich_help_panel=RARE)
]
Device = Annotated[
    str,
    typer.Option(help="What the networks compute on: cpu, cuda, cuda:1...", rich_help_panel=RARE),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars, no chatter.")]
AsJson = Annotated[bool, typer.Option("--json", help="Results as JSON on standard output.")]


@contextmanager
def clear_errors() -> Iterator[None]:
    """Expected errors end as one readable line and exit code 1, warnings as one line each.

    Whatever is a mistake of ours still shows its traceback.
    """

    shown: set[str] = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if str(message) not in shown:
            shown.add(str(message))
            warn(message)

    with warnings.catch_warnings():
        warnings.showwarning = show
        try:
            yield
        except BrokenPipeError:  # the reader of our output has gone; ``main`` knows
            raise
        except (ValueError, OSError) as error:
            fail(plain(error))
            raise typer.Exit(1) from error
        except KeyboardInterrupt:
            typer.echo("stopped.", err=True)
            raise typer.Exit(INTERRUPTED) from None


def plain(error: Exception) -> Exception | str:
    """The error, or what it says in words if it comes from the operating system."""
    if not isinstance(error, OSError) or error.errno is None or not error.filename:
        return error
    path = Path(os.fsdecode(error.filename))
    if path.name.startswith("."):  # a lock or a temporary file of ours
        path = path.parent
    reasons = {
        errno.EACCES: "no permission. Choose another place, or change its permissions.",
        errno.EEXIST: "a file with this name is in the way. Choose another name.",
        errno.ENOTDIR: "a part of this path is a file, not a folder. Choose another path.",
        errno.EROFS: "this place cannot be written to. Choose another.",
        errno.ENOSPC: "the disk is full. Make room, or choose another place.",
    }
    return f"{path}: {reasons.get(error.errno, f'{error.strerror}. Choose another place.')}"


@contextmanager
def progress_bar(label: str, quiet: bool) -> Iterator[Callable[[int, int | None], None]]:
    """A bar on standard error; yields the function that moves it to (done, total).

    A total of None is one that is not known yet.
    """
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    hidden = quiet or not console.is_terminal
    with Progress(*columns, console=console, disable=hidden, transient=True) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
