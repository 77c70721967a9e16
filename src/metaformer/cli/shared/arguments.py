"""Default names of outputs, and messages for arguments in the wrong order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import typer

from metaformer.cli.shared.screen import command_line
from metaformer.io.atomic_files import open_file
from metaformer.io.omissions import not_a_file

DETECTOR_SUFFIX = ".metaformer"
UNTELLING = frozenset({"good", "ok", "normal", "normals", "train", "test", "images", "photos"})
"""Names of folders that say nothing of the product; the folder above may."""
HEADER_BYTES = 4096
"""A detector file names its kind so early."""


def is_detector(path: Path | str) -> bool:
    """Whether a file is a detector, by its first bytes."""
    try:
        with open_file(path) as file:
            return b"metaformer-detector" in file.read(HEADER_BYTES)
    except (OSError, ValueError):
        return False


def refuse_pipe(path: Path) -> None:
    """Raises: NotAFileError: there is a pipe, socket or device, which might be waited for for
    ever."""
    if not_a_file(str(path)) is not None:
        open_file(path).close()


def name_of(argument: str) -> str:
    """The product's name, taken from the path of its images, for the names of outputs."""
    if "://" in argument:
        name = PurePosixPath(argument).name
    else:
        path = Path(argument.removeprefix("@")).resolve()
        while path.name.lower() in UNTELLING and path.parent.name:
            path = path.parent
        name = path.name
    known = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".txt", ".csv", ".png", ".jpg", ".mp4")
    while PurePosixPath(name).suffix.lower() in known:
        name = PurePosixPath(name).stem
    return name or "product"


def usual_detector(images: Sequence[str], add: Path | None) -> Path:
    """The detector file that ``adapt`` writes unless told otherwise, in the folder it runs in.

    Raises:
        FileExistsError: it is there already; an old detector is not replaced unasked.
    """
    name = f"{add.stem}-extended" if add is not None else name_of(images[0])
    path = Path(f"{name}{DETECTOR_SUFFIX}")
    if path.exists():
        raise FileExistsError(
            f"{path}: exists already. To replace it, say so: -o {path}. Or give another name."
        )
    return path


def usual_results(detector: Path, images: Sequence[str]) -> Path:
    """The folder that ``predict`` writes to unless told otherwise."""
    return Path(f"{detector.stem}-{name_of(images[0])}-results")


def usual_export(detector: Path, suffix: str) -> Path:
    """The file that ``export`` writes unless told otherwise."""
    return Path(f"{detector.stem}{suffix}")


def check_support_arguments(images: Sequence[str]) -> None:
    """Raises: ValueError: a detector is among the images to adapt to."""
    for name in images:
        others = [other for other in images if other != name] or ["FOLDER"]
        if is_detector(name):
            raise ValueError(
                f"{name}: a detector, not an image. To extend it: "
                f"{command_line('adapt', *others, '--add', name)}. To make one, give normal images."
            )
        if name.endswith(DETECTOR_SUFFIX) and not Path(name).exists():
            raise ValueError(
                f"{name}: no such image. To write a detector of this name: "
                f"{command_line('adapt', *others, '-o', name)}."
            )


def check_detector_argument(command: str, detector: Path, others: Sequence[Path | str]) -> None:
    """Refuse what stands for the detector.

    Raises:
        ValueError: it is none, and another argument is one, or it is a folder.
        NotAFileError: it is a pipe, socket or device.
    """
    if is_detector(detector):
        return
    for other in others:
        if is_detector(other):
            rest = [detector, *(name for name in others if name != other)]
            raise ValueError(
                f"the detector comes first, then the images: {command_line(command, other, *rest)}"
            )
    if detector.is_dir():
        made = f"{name_of(str(detector))}{DETECTOR_SUFFIX}"
        raise ValueError(
            f"{detector}: a folder; a detector file is needed here. Of a folder of normal images "
            f"make one: {command_line('adapt', detector, '-o', made)}, then "
            f"{command_line(command, made, *others)}"
        )
    refuse_pipe(detector)


def check_arguments(arguments: list[str]) -> None:
    """Refuse a run whose every path is mistyped, before it makes a folder of results.

    A missing file among others is a failure to list, like one that cannot be read.

    Raises:
        FileNotFoundError: nothing that was named is there.
    """
    missing = [
        name
        for name in arguments
        if "://" not in name and not Path(name).exists() and not name.startswith("@")
    ]
    if len(missing) == len(arguments):
        raise FileNotFoundError(f"{', '.join(missing)}: no such file or folder. Check the path.")


def note_sub_folders(arguments: list[str]) -> None:
    """Say which folders inside those named are not looked into."""
    from metaformer.io.folders import is_results, list_folders, why_skipped

    for name in arguments:
        if "://" in name or not Path(name).is_dir():
            continue
        left = [
            path.name
            for path in list_folders(name)
            if not why_skipped(path.name, str(path), name, is_results)
        ]
        if left:
            listed = ", ".join(left[:3]) + (", ..." if len(left) > 3 else "")
            count = f"{len(left)} sub-folder{'' if len(left) == 1 else 's'}"
            typer.echo(
                f"note: {name}: {count} not looked into ({listed}). Add --recursive.", err=True
            )
