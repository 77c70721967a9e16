"""Reviewers' marks of photos, good or defective, with a note. Kept on disk beside the detector.

One JSON file a detector, replaced in one step and forced to the disk with every change. A photo is
known by the digest of its bytes, so a mark is found again when the same photo is sent again.
"""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from metaformer.inference.scores.csv_scores import csv_line
from metaformer.inference.scores.rows import guarded
from metaformer.io.atomic_files import force_to_disk, write_text
from metaformer.serve.http.review_schemas import Mark, MarkRequest

MOST_MARKS = 20_000
"""Marks of one detector."""
CSV_COLUMNS = ("file", "label", "note", "score", "marked", "sha256")
"""``metaformer predict --labels`` reads such a file."""


class MarksFullError(ValueError):
    """A detector has as many marks as it may."""


class MarksFileError(ValueError):
    """A file of marks cannot be read; the message says why and what to do."""


class MarkStore:
    """Marks of all detectors of the folder. Safe to use from several threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()

    def all(self, id: str) -> list[Mark]:
        """Marks of the detector ``id``, newest first.

        Raises:
            MarksFileError: the file is damaged.
        """
        with self._lock:
            return sorted(self._read(id).values(), key=lambda mark: mark.marked, reverse=True)

    def put(self, id: str, sha256: str, request: MarkRequest) -> Mark:
        """Set the mark of one photo; when this returns it is on the disk.

        Raises:
            MarksFullError: there are as many marks as there may be.
            MarksFileError: the file is damaged.
            OSError: it cannot be written.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        mark = Mark(sha256=sha256, marked=now, **request.model_dump())
        with self._lock:
            marks = self._read(id)
            if sha256 not in marks and len(marks) >= MOST_MARKS:
                raise MarksFullError(f"the detector has {MOST_MARKS} marks. Remove some first.")
            self._write(id, {**marks, sha256: mark})
        return mark

    def remove(self, id: str, sha256: str) -> bool:
        """Take back a mark; False if there was none. Raises: as ``put``."""
        with self._lock:
            marks = self._read(id)
            if sha256 not in marks:
                return False
            del marks[sha256]
            self._write(id, marks)
            return True

    def forget(self, id: str) -> None:
        """Remove all marks of a detector that is deleted."""
        with self._lock:
            self._path(id).unlink(missing_ok=True)

    def as_csv(self, id: str) -> str:
        """All marks as a table, newest first. Raises: as ``all``."""
        lines = [csv_line(CSV_COLUMNS)]
        for mark in self.all(id):
            score = "" if mark.score is None else f"{mark.score:.6f}"
            row = (mark.name, mark.verdict, mark.note, score, mark.marked, mark.sha256)
            lines.append(csv_line(tuple(map(guarded, row))))
        return "".join(lines)

    def _path(self, id: str) -> Path:
        return self.folder / f"{id}.marks.json"

    def _read(self, id: str) -> dict[str, Mark]:
        try:
            entries = json.loads(self._path(id).read_text(encoding="utf-8"))
            return {entry["sha256"]: Mark.model_validate(entry) for entry in entries}
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError, KeyError, ValidationError) as error:
            raise MarksFileError(
                f"{self._path(id).name}: not a readable file of marks "
                f"({type(error).__name__}). Repair it, or move it out of the folder."
            ) from error

    def _write(self, id: str, marks: dict[str, Mark]) -> None:
        entries = [mark.model_dump() for mark in marks.values()]
        write_text(self._path(id), json.dumps(entries, ensure_ascii=False, indent=1))
        force_to_disk(self._path(id))
        force_to_disk(self.folder)
