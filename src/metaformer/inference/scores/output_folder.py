"""The output folder of a run: whose results it holds, and clearing it of an earlier run's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from metaformer.inference.scores.csv_scores import CsvScores
from metaformer.inference.scores.parquet_scores import ParquetScores
from metaformer.inference.scores.rows import OutputFolderError, ScoreRow
from metaformer.io.atomic_files import write_text
from metaformer.io.locking import one_writer

ScoresFormat = Literal["csv", "parquet"]


@contextmanager
def claim_folder(
    output: Path,
    detector_info: dict[str, Any],
    scores: CsvScores | ParquetScores,
    overwrite: bool,
    rejudge: Callable[[ScoreRow], ScoreRow | None],
) -> Iterator[None]:
    """Make ``output`` the folder of this detector's run while the block lasts, or refuse.

    Mends what a kill has torn. Scores of the same detector at another false-alarm rate get the
    verdicts of this one by ``rejudge``, or are left out, to be made again, where it returns None.

    Raises:
        OutputFolderError: another process writes to it, or it holds the scores of another detector
            or in another format, and ``overwrite`` is not set.
        OSError: it cannot be written to.
    """
    output.mkdir(parents=True, exist_ok=True)
    busy = OutputFolderError(
        f"{output}: another process is writing to it. Wait for it, or choose another folder."
    )
    with one_writer(output / ".lock", busy):
        _prepare(output, detector_info, scores, overwrite, rejudge)
        yield


def _prepare(
    output: Path,
    detector_info: dict[str, Any],
    scores: CsvScores | ParquetScores,
    overwrite: bool,
    rejudge: Callable[[ScoreRow], ScoreRow | None],
) -> None:
    run = output / "run.json"
    either: tuple[CsvScores, ParquetScores] = (CsvScores(output), ParquetScores(output))
    if overwrite:
        (output / "failures.csv").unlink(missing_ok=True)
        for earlier in either:
            remove_results(output, earlier)
        found: dict[str, Any] | None = None
    elif any(earlier.exist() for earlier in either):
        found = _read_run(run)
        if found is None or fingerprint(found) != fingerprint(detector_info):
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
    else:
        found = None
    scores.mend()
    # The scores first: killed in between, the next run does it again.
    if found is not None and found["calibration"] != detector_info["calibration"]:
        scores.rewrite(rejudge)
    record = {"fingerprint": fingerprint(detector_info), "detector": detector_info}
    write_text(run, json.dumps(record, indent=2))


def _read_run(path: Path) -> dict[str, Any] | None:
    """What ``detector.info`` gave in the earlier run; None where there is no record.

    Raises:
        OutputFolderError: the record is damaged.
    """
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["detector"]
        fingerprint(found)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OutputFolderError(
            f"{path}: damaged, or not written by this program ({error!r}). Choose another folder, "
            f"or pass --overwrite to replace what is in it."
        ) from error
    return found


def fingerprint(detector_info: dict[str, Any]) -> str:
    """Digest of everything that raw scores depend on; the threshold is not part of it."""
    info = {key: value for key, value in detector_info.items() if key != "guarantee"}
    threshold = ("false_alarm_rate", "threshold", "rule")
    info["calibration"] = {
        key: value for key, value in detector_info["calibration"].items() if key not in threshold
    }
    return hashlib.sha256(json.dumps(info, sort_keys=True).encode()).hexdigest()


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
