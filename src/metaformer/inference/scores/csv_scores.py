"""Scores as ``scores.csv``: each line is on disk before the next image is scored."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

from metaformer.inference.scores.rows import (
    COLUMNS,
    COUNTS,
    OutputFolderError,
    ScoreRow,
    from_text,
    to_text,
)
from metaformer.io.atomic_files import atomic_path


def csv_line(values: tuple[object, ...]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue()


HEADERS = tuple(csv_line(COLUMNS[:count]).encode() for count in COUNTS)

ODD_NAMES = "surrogateescape"
"""File names need not be UTF-8; written this way they come back as they were."""


class CsvScores:
    """Appends to ``scores.csv`` in the folder ``output``; a context manager."""

    def __init__(self, output: Path) -> None:
        self.path = output / "scores.csv"

    def exist(self) -> bool:
        return self.path.exists()

    def read(self) -> Iterator[ScoreRow]:
        """Complete rows, one in memory at a time; an incomplete last line is skipped.

        Raises:
            OutputFolderError: the file is not as this program writes it.
        """
        yield from (row for row, _ in self._read())

    def mend(self) -> None:
        """Cut off the half line that a killed run may have left, and add columns that are new.

        Raises: as ``read``.
        """
        if not self.path.exists():
            return
        whole = header = header_length(self.path)
        for _, end in self._read():
            whole = end
        if whole < self.path.stat().st_size:
            os.truncate(self.path, whole)
        if header not in (0, len(HEADERS[0])):
            self.rewrite(lambda row: row)

    def rewrite(self, change: Callable[[ScoreRow], ScoreRow | None]) -> None:
        """Replace every line by what ``change`` makes of it, None being none, in one step.

        Raises: as ``read``.
        """
        with (
            atomic_path(self.path) as temporary,
            temporary.open("w", newline="", encoding="utf-8", errors=ODD_NAMES) as file,
        ):
            file.write(csv_line(COLUMNS))
            for row in self.read():
                changed = change(row)
                if changed is not None:
                    file.write(csv_line(to_text(changed)))

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        self._file = self.path.open("a", newline="", encoding="utf-8", errors=ODD_NAMES)
        if self._file.tell() == 0:
            self._file.write(csv_line(COLUMNS))
            self._file.flush()
        return self

    def write(self, row: ScoreRow) -> None:
        self._file.write(csv_line(to_text(row)))
        self._file.flush()

    def __exit__(self, *_: object) -> None:
        try:
            os.fsync(self._file.fileno())
        finally:
            self._file.close()

    def _read(self) -> Iterator[tuple[ScoreRow, int]]:
        """Each whole line and the byte of the file where it ends."""
        if not self.path.exists() or not header_length(self.path):
            return
        end = 0
        ends_line = True

        def lines() -> Iterator[str]:
            nonlocal end, ends_line
            with self.path.open("rb") as file:
                for line in file:
                    end += len(line)
                    ends_line = line.endswith(b"\n")
                    yield line.decode(errors=ODD_NAMES)

        reader = csv.reader(lines(), strict=True)
        next(reader)
        size = self.path.stat().st_size
        while True:
            try:
                values = next(reader, None)
                # Torn: no newline, or a name that holds newlines was cut at one of them.
                if values is None or (end == size and not ends_line):
                    return
                row = from_text(values)
            except (csv.Error, ValueError) as error:
                if end == size and isinstance(error, csv.Error):
                    return
                raise not_ours(self.path, repr(error)) from error
            yield row, end


def header_length(path: Path) -> int:
    """Bytes of the first line; 0 if it is not whole.

    Raises:
        OutputFolderError: it is another line than ours.
    """
    with path.open("rb") as file:
        found = file.readline(len(HEADERS[0]))
    if found in HEADERS:
        return len(found)
    if HEADERS[0].startswith(found):
        return 0
    raise not_ours(path, "its columns are others")


def not_ours(path: Path, why: str) -> OutputFolderError:
    return OutputFolderError(
        f"{path}: not as this program wrote it ({why}), so the run cannot go on. Choose another "
        f"folder, or pass --overwrite to replace it."
    )
