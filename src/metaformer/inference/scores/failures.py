"""``failures.csv``: images that were named or found and not scored, never held in memory."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self, TextIO

from metaformer.inference.scores.csv_scores import ODD_NAMES, csv_line
from metaformer.inference.scores.rows import guarded, unguarded
from metaformer.io.omissions import MISSING, NO_PERMISSION, SKIPPED, Omission
from metaformer.io.sources.naming import is_address, name_digest

LISTED = 1000
"""Failures kept in memory to be shown; the file has them all."""


class Failures:
    """Collects failures; ``failures.csv`` is replaced, or removed, when the block ends.

    Args:
        keep_earlier: those of earlier runs stay, but for images that are settled in this one and
            files that are gone.
    """

    def __init__(self, output: Path, *, keep_earlier: bool = False) -> None:
        self.path = output / "failures.csv"
        self.count = 0
        """Without what was passed over on purpose."""
        self.earlier: list[tuple[str, str]] = []
        """Of them those of earlier runs, when the block has ended."""
        self.count_earlier = 0
        self.listed: list[tuple[str, str]] = []
        self.skipped = 0
        self.listed_skipped: list[tuple[str, str]] = []
        self._partial = output / ".failures.csv.partial"
        self._file: TextIO | None = None
        self._keep_earlier = keep_earlier
        self._unsettled: set[bytes] = set()
        """Digests of the names of earlier failures that this run has said nothing of."""

    def __enter__(self) -> Self:
        self._partial.unlink(missing_ok=True)
        if self._keep_earlier:
            self._unsettled = {name_digest(failure.path) for failure in self._read()}
        return self

    def settle(self, name: str) -> None:
        """This run has looked at ``name``: an earlier failure of it holds no more."""
        self._unsettled.discard(name_digest(name))

    def add(self, omission: Omission) -> None:
        self.settle(omission.path)
        self._write(omission)

    def _read(self) -> Iterator[Omission]:
        """The failures of earlier runs; none in another program's file."""
        if not self.path.exists():
            return
        with (
            suppress(csv.Error),
            self.path.open(newline="", encoding="utf-8", errors=ODD_NAMES) as file,
        ):
            for row in csv.DictReader(file):
                if row.keys() == {"path", "reason", "category"} and None not in row.values():
                    yield Omission(
                        unguarded(row["path"]), unguarded(row["reason"]), row["category"]
                    )

    def _carry_over(self) -> None:
        for failure in self._read():
            digest = name_digest(failure.path)
            if digest not in self._unsettled or failure.category == SKIPPED or is_over(failure):
                continue
            self._unsettled.discard(digest)
            self._write(failure)
            self.count_earlier += 1
            if len(self.earlier) < LISTED:
                self.earlier.append((failure.path, failure.reason))

    def _write(self, omission: Omission) -> None:
        if self._file is None:
            self._file = self._partial.open("w", newline="", encoding="utf-8", errors=ODD_NAMES)
            self._file.write(csv_line(("path", "reason", "category")))
        self._file.write(
            csv_line((guarded(omission.path), guarded(omission.reason), omission.category))
        )
        if omission.category == SKIPPED:
            self.skipped += 1
            listed = self.listed_skipped
        else:
            self.count += 1
            listed = self.listed
        if len(listed) < LISTED:
            listed.append((omission.path, omission.reason))

    def __exit__(self, *_: object) -> None:
        if self._unsettled:
            self._carry_over()
        if self._file is None:
            self.path.unlink(missing_ok=True)
            return
        try:
            self._file.close()
            self._partial.replace(self.path)
        finally:
            self._partial.unlink(missing_ok=True)


def is_over(failure: Omission) -> bool:
    """Whether the file is gone, or a folder may be listed now that could not be before."""
    path = Path(failure.path.partition("#frame=")[0])
    if is_address(failure.path) or failure.category == MISSING:
        return False
    if failure.category == NO_PERMISSION and path.is_dir():
        return os.access(path, os.R_OK | os.X_OK)
    return path.parent.is_dir() and not path.exists()
