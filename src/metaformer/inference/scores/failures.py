"""``failures.csv``: images that were named or found and not scored, never held in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Self, TextIO

from metaformer.inference.scores.csv_scores import ODD_NAMES, csv_line
from metaformer.inference.scores.rows import guarded
from metaformer.io.omissions import SKIPPED, Omission

LISTED = 1000
"""Failures kept in memory to be shown; the file has them all."""


class Failures:
    """Collects failures; ``failures.csv`` is replaced, or removed, when the block ends."""

    def __init__(self, output: Path) -> None:
        self.path = output / "failures.csv"
        self.count = 0
        """Without what was passed over on purpose."""
        self.listed: list[tuple[str, str]] = []
        self.skipped = 0
        self.listed_skipped: list[tuple[str, str]] = []
        self._partial = output / ".failures.csv.partial"
        self._file: TextIO | None = None

    def __enter__(self) -> Self:
        self._partial.unlink(missing_ok=True)
        return self

    def add(self, omission: Omission) -> None:
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
        if self._file is None:
            self.path.unlink(missing_ok=True)
            return
        try:
            self._file.close()
            self._partial.replace(self.path)
        finally:
            self._partial.unlink(missing_ok=True)
