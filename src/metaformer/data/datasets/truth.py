"""Ground truth: which scored images are known to be good or defective, and how the verdicts fare.

It comes from where an image lies (``good/``, ``test/<kind>/`` with ``ground_truth/<kind>/``, a
mask beside it), or from a table of labels. An image that neither knows has no truth.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from metaformer.data.datasets.category import Sample, masks_in
from metaformer.data.datasets.layouts import BAD_NAMES, GOOD_NAMES, MASK_NAMES
from metaformer.io.atomic_files import read_text
from metaformer.io.file_kinds import IMAGE_SUFFIXES
from metaformer.io.images import ImageError, read_mask

GOOD_LABELS = GOOD_NAMES | {"0", "false", "pass", "negative"}
"""Labels of good images; case does not matter. Any other label is a kind of defect."""
PLAIN_BAD_LABELS = BAD_NAMES | {"1", "true", "fail", "positive"}
"""Labels of defective images that name no kind of defect."""
DEFECT = "defect"
"""Kind of a defect of which nothing more is known."""
BOX_FOLDER = "boxes"
"""Masks of a set of pairs lie in this folder beside ``test/``."""


class LabelsError(ValueError):
    """A table of labels cannot be used; the message says why and what to do."""


@dataclass
class Outcomes:
    """Verdicts on images whose truth is known."""

    caught: int = 0
    missed: int = 0
    false_alarms: int = 0
    passed: int = 0

    def add(self, truth: Sample | None, is_anomalous: bool) -> None:
        """Count one verdict; an image of unknown truth changes nothing."""
        if truth is None:
            return
        if truth.is_anomalous:
            self.caught += is_anomalous
            self.missed += not is_anomalous
        else:
            self.false_alarms += is_anomalous
            self.passed += not is_anomalous

    def describe(self) -> str:
        """One sentence for people; empty if no truth is known."""
        parts = []
        if defective := self.caught + self.missed:
            parts.append(f"{self.caught} of {defective} defective images caught")
        if good := self.false_alarms + self.passed:
            parts.append(f"{self.false_alarms} of {good} good images flagged")
        return f"{', '.join(parts)} (where the truth is known)." if parts else ""


class FolderTruth:
    """Truth from where an image lies. Remembers the masks of each folder it has looked into."""

    def __init__(self) -> None:
        self._masks = cache(masks_in)
        self._is_folder = cache(Path.is_dir)

    def __call__(self, name: str) -> Sample | None:
        """Truth of the image ``name`` by its folder; None if the folder says nothing.

        The name may be that of an archive's member; masks are looked for on the disk only.
        """
        path = Path(name.replace("\\", "/"))
        folder = path.parent.name.lower()
        if folder in GOOD_NAMES:
            return Sample(path, False, (), "good")
        if folder in BAD_NAMES:
            return Sample(path, True, self._masks_of(path), path.parent.name)
        above = path.parent.parent
        if above.name == "test" and (
            self._is_folder(above.parent / "ground_truth")
            or any(self._is_folder(above / good) for good in sorted(GOOD_NAMES))
        ):
            return Sample(path, True, self._masks_of(path), path.parent.name)
        boxes = above / BOX_FOLDER
        if path.parent.name == "test" and self._is_folder(boxes):
            return by_masks(path, tuple(self._masks(boxes).get(path.stem, ())))
        beside = mask_beside(path)
        return None if beside is None else by_masks(path, (beside,))

    def _masks_of(self, path: Path) -> tuple[Path, ...]:
        """Masks of ``<kind>/<image>``: in a folder of masks beside ``<kind>/`` or above it."""
        kind = path.parent
        for place in (kind.parent, kind.parent.parent):
            for name in sorted(MASK_NAMES):
                for folder in (place / name / kind.name, place / name):
                    if self._is_folder(folder) and (found := self._masks(folder).get(path.stem)):
                        return tuple(found)
        beside = mask_beside(path)
        return () if beside is None else (beside,)


def mask_beside(path: Path) -> Path | None:
    """``<stem>_mask.<any image ending>`` in the image's own folder, if it is there."""
    for suffix in (".png", path.suffix, *sorted(IMAGE_SUFFIXES)):
        mask = path.with_name(f"{path.stem}_mask{suffix}") if path.stem else path
        if mask != path and mask.is_file():
            return mask
    return None


def by_masks(path: Path, masks: tuple[Path, ...]) -> Sample | None:
    """Defective if a mask marks a pixel, else good; None if a mask cannot be read."""
    try:
        is_defective = any(read_mask(mask).any() for mask in masks)
    except ImageError:
        return None
    return Sample(path, True, masks, DEFECT) if is_defective else Sample(path, False, (), "good")


class LabelTable:
    """Ground truth from a CSV file with the columns file, label and, optionally, mask.

    ``file`` is the path of an image in the results or the last parts of it (``line 3/001.png``,
    ``001.png``); ``mask`` is relative to the table. A header line may name the columns in any order
    and with others between them. The separator is a comma or a semicolon.

    Raises:
        LabelsError: the file is not such a table, names a file twice, or a mask is missing.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: dict[str, dict[tuple[str, ...], Sample]] = {}
        self._unused: set[tuple[str, ...]] = set()
        try:
            text = read_text(path, encoding="utf-8-sig")
        except FileNotFoundError:
            raise FileNotFoundError(f"{path}: no such table of labels. Check the path.") from None
        except UnicodeDecodeError as error:
            raise LabelsError(
                f"{path}: not UTF-8 text ({error}). Save it as CSV, UTF-8."
            ) from error
        first = text.split("\n", 1)[0]
        delimiter = ";" if first.count(";") > first.count(",") else ","
        columns: tuple[int | None, ...] = (0, 1, 2)
        lines = [*csv.reader(io.StringIO(text), delimiter=delimiter)]
        names = ["".join(cells[:1]) for cells in lines[:2]]
        is_header = len(names) == 2 and "." in names[1] and "." not in names[0]
        if is_header and columns_of(lines[0]) is None:  # files have an ending, columns none
            raise LabelsError(
                f"{path}: the first line names the columns {', '.join(lines[0])}; needed are file "
                f"and label."
            )
        for number, cells in enumerate(lines, 1):
            if number == 1 and (header := columns_of(cells)) is not None:
                columns = header
            elif any(cell.strip() for cell in cells):
                self._add(number, [cell_at(cells, column) for column in columns])
        if not self._rows:
            raise LabelsError(
                f"{path}: no labels in it. Each line holds file,label or file,label,mask."
            )

    def _add(self, number: int, cells: list[str]) -> None:
        where = f"{self.path}, line {number}"
        name, label, mask = cells
        if not name or not (label or mask):
            raise LabelsError(
                f"{where}: found {','.join(cells).rstrip(',')!r}; accepted is file,label or "
                f"file,label,mask. A label is {', '.join(sorted(GOOD_LABELS))}, or else a kind of "
                f"defect."
            )
        masks: tuple[Path, ...] = ()
        if mask:
            masks = (self.path.parent / mask,)
            if not masks[0].is_file():
                raise LabelsError(f"{where}: there is no mask {masks[0]}. Check the path.")
        sample = sample_of(Path(name), label, masks)
        if sample is None:
            raise LabelsError(f"{where}: the mask {masks[0]} cannot be read. Check the file.")
        parts = parts_of(name)
        rows = self._rows.setdefault(parts[-1], {})
        if parts in rows:
            raise LabelsError(f"{where}: {name} is there twice. Leave one line.")
        rows[parts] = sample
        self._unused.add(parts)

    def __call__(self, name: str) -> Sample | None:
        """Truth of the image ``name`` in the table; None if it has no line."""
        parts = parts_of(name)
        rows = self._rows.get(parts[-1], {}) if parts else {}
        fitting = [row for row in rows if parts[-len(row) :] == row]
        if not fitting:
            return None
        row = max(fitting, key=len)
        self._unused.discard(row)
        return rows[row]

    def describe(self) -> str:
        """Number of labels of each kind, for people."""
        kinds = Counter(sample.kind for rows in self._rows.values() for sample in rows.values())
        return f"{self.path}: labels {', '.join(f'{n} {kind}' for kind, n in kinds.items())}."

    def unused(self) -> list[str]:
        """Files of the table that have not been asked for."""
        return sorted("/".join(parts) for parts in self._unused)


def parts_of(name: str) -> tuple[str, ...]:
    """The parts of a path or address, without what says nothing (``.``, slashes at the start)."""
    return tuple(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))


def columns_of(cells: Sequence[str]) -> tuple[int | None, ...] | None:
    """Positions of file, label and mask if this line is a header; else None."""
    words = [cell.strip().lower() for cell in cells]
    if "label" not in words and "mask" not in words:
        return None
    file = next((words.index(word) for word in ("file", "path", "name") if word in words), 0)
    rest = (words.index(word) if word in words else None for word in ("label", "mask"))
    return (file, *rest)


def cell_at(cells: Sequence[str], column: int | None) -> str:
    return "" if column is None or column >= len(cells) else cells[column].strip()


def sample_of(path: Path, label: str, masks: tuple[Path, ...]) -> Sample | None:
    """The truth that a label states; with a mask alone, what the mask states."""
    word = label.lower()
    if not word:
        return by_masks(path, masks)
    if word in GOOD_LABELS:
        return Sample(path, False, (), "good")
    return Sample(path, True, masks, DEFECT if word in PLAIN_BAD_LABELS else label)


Truth = FolderTruth | LabelTable
