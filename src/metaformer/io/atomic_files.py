"""Opening files that are files, and writing them so that a reader never sees half of one."""

from __future__ import annotations

import io
import os
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_READING_UMASK = threading.Lock()
"""The umask belongs to the whole process, and is read by setting it."""


class NotAFileError(OSError):
    """A folder, pipe, socket or device where a file is needed."""


def open_file(path: Path | str) -> BinaryIO:
    """A regular file, or a link to one, for reading: never a pipe, which would wait for ever.

    Raises:
        NotAFileError: it is something else.
        OSError: it is not there or cannot be read.
        ValueError: an impossible name.
    """

    def without_waiting(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    if Path(path).is_dir():
        raise NotAFileError(f"{path}: a folder, not a file.")
    file = open(path, "rb", opener=without_waiting)  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise NotAFileError(
            f"{path}: neither a file nor a link to one, but a pipe, socket or device. Write what "
            f"it gives into a file first, and give that."
        )
    return file


def read_text(path: Path | str, encoding: str = "utf-8") -> str:
    """All of a text file, its line ends as ``\\n``.

    Raises:
        UnicodeDecodeError: it is not text in this encoding.
        NotAFileError, OSError, ValueError: as ``open_file``.
    """
    with io.TextIOWrapper(open_file(path), encoding=encoding) as file:
        return file.read()


@contextmanager
def atomic_path(target: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside ``target``; move it into place when the block succeeds.

    On any exception (Ctrl-C and a full disk included) the temporary file is removed and
    ``target`` keeps its old content.

    Raises:
        FileNotFoundError: the folder of ``target`` does not exist.
        PermissionError: the folder cannot be written to.
    """
    target = Path(target)
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"{target}: its folder {target.parent} does not exist. Create it, or choose another "
            f"path."
        )
    try:
        # Part of the name only: the whole, made longer, can exceed what the file system takes.
        handle, name = tempfile.mkstemp(
            prefix=f".{target.name[:40]}.", suffix=target.suffix[:20], dir=target.parent
        )
    except PermissionError as error:
        raise PermissionError(
            f"{target}: no permission to write in {target.parent}. Choose another folder."
        ) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files readable by their owner alone; a result is an ordinary file.
        with _READING_UMASK:
            umask = os.umask(0)
            os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(target: Path | str, content: bytes) -> None:
    """Replace ``target`` by ``content`` in one step."""
    with atomic_path(target) as temporary:
        temporary.write_bytes(content)


def write_text(target: Path | str, content: str) -> None:
    """Replace ``target`` by ``content`` (UTF-8) in one step.

    File names need not be UTF-8; inside ``content`` they are written as they are on disk.
    """
    write_bytes(target, content.encode(errors="surrogateescape"))


def force_to_disk(path: Path) -> None:
    """Survive a power cut, not only the end of the program."""
    if sys.platform == "win32" and path.is_dir():
        return  # folders cannot be opened there
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
