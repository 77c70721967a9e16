"""Lists of images, ``@FILE``: one path a line, from a file or a pipe."""

from __future__ import annotations

import io
import os
import select
from collections.abc import Iterator
from pathlib import Path

from metaformer.io.atomic_files import NotAFileError, open_file

PIPE_SECONDS = 10.0
"""For the first line of a list from a pipe."""


def is_list(argument: str) -> bool:
    """``@FILE``, unless a file is called so."""
    return argument.startswith("@") and not Path(argument).exists()


def lines_of(path: Path) -> Iterator[str]:
    """The lines of a list that are not blank."""
    try:
        with open_file(path) as binary:
            for line in io.TextIOWrapper(binary, encoding="utf-8-sig", newline=None):
                if name := line.rstrip("\r\n"):
                    yield name
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such list. Check the path.") from None
    except NotAFileError:
        raise ValueError(f"{path}: a folder, not a list of images. Give a file.") from None
    except UnicodeDecodeError as error:
        raise not_utf8(path, error) from error


def lines_of_pipe(path: Path) -> list[str]:
    """The lines of a list that another program writes, as ``<(find ...)`` in a shell.

    Raises:
        ValueError: it is no pipe, nothing comes out of it, or it is not UTF-8 text.
    """
    refusal = f"{path}: neither a file nor a pipe that a list of images comes out of. "
    if not path.is_fifo():
        raise ValueError(refusal + "Write the list to a file.")
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(handle, "rb") as file:
        if not select.select([handle], [], [], PIPE_SECONDS)[0]:
            raise ValueError(refusal + "Nothing has been written to it.")
        os.set_blocking(handle, True)
        content = file.read()
    try:
        return [line for line in content.decode("utf-8-sig").splitlines() if line]
    except UnicodeDecodeError as error:
        raise not_utf8(path, error) from error


def not_utf8(path: Path, error: UnicodeDecodeError) -> ValueError:
    return ValueError(
        f"{path}: not a list of images: the text is not UTF-8 ({error}). Write one path or "
        f"address on each line."
    )
