"""A record that survives anything: JSON lines, each on disk before the next is begun."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, Self

from metaformer.inference.scores.rows import OutputFolderError
from metaformer.io.locking import one_writer


class Record(Protocol):
    """A file of JSON lines that entries are appended to."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def read(self) -> Iterator[dict[str, Any]]:
        """Entries of earlier runs."""

    def write(self, entry: dict[str, Any]) -> None: ...


class JsonLines:
    """Appends to the file ``path``; a context manager, which one process can be in at a time.

    Raises (on entering):
        OutputFolderError: another process writes to the file, or it holds something else.
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Self:
        if self.path.exists() and not self.path.is_file():
            raise OutputFolderError(
                f"{self.path}: not a file. Give a file, or - for standard output."
            )
        if not self.path.parent.is_dir():
            raise FileNotFoundError(
                f"{self.path}: its folder {self.path.parent} does not exist. Create it first."
            )
        with ExitStack() as stack:
            stack.enter_context(
                one_writer(self.path.with_name(f".{self.path.name}.lock"), self._busy())
            )
            self._file = stack.enter_context(self.path.open("a+b", buffering=0))
            self._mend()
            self._opened = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def _busy(self) -> OutputFolderError:
        return OutputFolderError(
            f"{self.path}: another process is writing to it. Stop that one, or choose another file."
        )

    def size(self) -> int:
        """Bytes that are there; 0 without a file."""
        return self.path.stat().st_size if self.path.exists() else 0

    def read(self) -> Iterator[dict[str, Any]]:
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    entry = json.loads(line)
                    if not isinstance(entry["event"], str):
                        raise TypeError
                except (ValueError, TypeError, KeyError):
                    raise OutputFolderError(
                        f"{self.path}: line {number} is not as this program writes it. Choose "
                        f"another file, or remove that line."
                    ) from None
                yield entry

    def write(self, entry: dict[str, Any]) -> None:
        """Returns when the line is on disk; on an error nothing of it stays in the file."""
        line = memoryview(json.dumps(entry).encode() + b"\n")
        start = self._file.seek(0, os.SEEK_END)
        try:
            while line:
                line = line[self._file.write(line) :]
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(start)
            raise

    def _mend(self) -> None:
        """Cut off the half line that a killed run may have left."""
        end = size = self._file.seek(0, os.SEEK_END)
        while end > 0:  # from the end backwards, to the last newline
            start = max(0, end - 65536)
            self._file.seek(start)
            found = self._file.read(end - start).rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
            end = start
        if end < size:
            self._file.truncate(end)


class StandardOutput:
    """Entries as lines on standard output. Nothing is remembered."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read(self) -> Iterator[dict[str, Any]]:
        return iter(())

    def write(self, entry: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(entry) + "\n")
        sys.stdout.flush()


class Nowhere:
    """For results that are posted only."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read(self) -> Iterator[dict[str, Any]]:
        return iter(())

    def write(self, entry: dict[str, Any]) -> None:
        pass
