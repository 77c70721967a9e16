"""The output folder of a run: whose results it holds, and clearing it of an earlier run's."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from metaformer.inference.scores.csv_scores import CsvScores
from metaformer.inference.scores.parquet_scores import ParquetScores
from metaformer.inference.scores.rows import OutputFolderError
from metaformer.io.atomic_files import write_text

ScoresFormat = Literal["csv", "parquet"]


def claim_folder(
    output: Path, detector_info: dict[str, Any], scores: CsvScores | ParquetScores, overwrite: bool
) -> None:
    """Make ``output`` the folder of this detector's run, or refuse; mends what a kill has torn.

    Raises:
        OutputFolderError: it holds the scores of another detector or in another format, and
            ``overwrite`` is not set.
        OSError: it cannot be written to.
    """
    output.mkdir(parents=True, exist_ok=True)
    run = output / "run.json"
    fingerprint = hashlib.sha256(json.dumps(detector_info, sort_keys=True).encode()).hexdigest()
    either: tuple[CsvScores, ParquetScores] = (CsvScores(output), ParquetScores(output))
    if overwrite:
        for earlier in either:
            remove_results(output, earlier)
    elif any(earlier.exist() for earlier in either):
        found = json.loads(run.read_text())["fingerprint"] if run.exists() else None
        if found != fingerprint:
            raise OutputFolderError(
                f"{output}: already holds the scores of another detector. Choose another folder, "
                f"or pass --overwrite to replace them."
            )
        if not scores.exist():
            form = "CSV" if either[0].exist() else "Parquet"
            raise OutputFolderError(
                f"{output}: already holds scores as {form}. Go on with --format {form.lower()}, "
                f"choose another folder, or pass --overwrite to replace them."
            )
    write_text(run, json.dumps({"fingerprint": fingerprint, "detector": detector_info}, indent=2))
    scores.mend()


def remove_results(output: Path, scores: CsvScores | ParquetScores) -> None:
    """Remove scores, and the heat maps that they name; nothing else in the folder is touched."""
    if not scores.exist():
        return
    maps = (output / "maps").resolve()
    folders: set[Path] = set()
    try:
        for row in scores.read():
            # The file may have been changed since: nothing outside maps/ is ever removed.
            path = output / row.map
            if row.map and path.resolve().is_relative_to(maps) and path.suffix == ".png":
                path.unlink(missing_ok=True)
                folders.add(path.parent)
    except OutputFolderError:
        pass  # another program's file: it names no maps of ours
    for folder in sorted(folders, reverse=True):  # the deepest of each branch first
        remove_empty(folder, output)
    for name in ("failures.csv", "report.html"):
        (output / name).unlink(missing_ok=True)
    scores.remove()


def remove_empty(folder: Path, output: Path) -> None:
    """Remove ``folder`` and those above it, up to ``output``, as far as nothing is in them."""
    while folder != output and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent
