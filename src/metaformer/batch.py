"""Scoring many images into a folder, so that stopping at any moment loses nothing.

The folder holds ``scores.csv`` (one line an image, flushed as it is made), ``failures.csv`` (what
could not be read, and why), ``maps/`` (8-bit heat maps: 128 is the pixel threshold), ``run.json``
(which detector) and ``report.html``. Started again, it goes on after the last whole line.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from metaformer.detector import Detector
from metaformer.files import write_bytes, write_text
from metaformer.images import ImageError, read_image
from metaformer.report import ReportBuilder
from metaformer.results import Prediction

COLUMNS = (
    "path",
    "score",
    "is_anomalous",
    "p_value",
    "raw_score",
    "regions",
    "largest_region_box",
    "largest_region_area",
)
READ_AHEAD = 4
"""Images decoded ahead of the one being scored; bounds memory."""
ODD_NAMES = "surrogateescape"
"""File names need not be UTF-8; written this way they come back as they were."""


class OutputFolderError(ValueError):
    """The output folder holds results of another run."""


@dataclass(frozen=True)
class BatchResult:
    """What a run did; ``scored`` and ``anomalous`` include images of earlier runs."""

    scored: int
    anomalous: int
    resumed: int
    failures: tuple[tuple[Path, str], ...]
    interrupted: bool


def score_images(
    detector: Detector,
    images: Sequence[Path],
    output: Path,
    *,
    write_maps: bool = True,
    overwrite: bool = False,
    on_image: Callable[[Path, Prediction | str], None] = lambda path, outcome: None,
) -> BatchResult:
    """Score ``images`` into the folder ``output``; see the module's text for what it holds.

    A file that cannot be read is listed and passed over. Ctrl-C ends the run after the image at
    hand, with every finished line and the report of this run on disk.

    Raises:
        OutputFolderError: ``output`` holds the scores of another detector and ``overwrite`` is
            not set.
        OSError: the folder cannot be written to, or the disk is full.
    """
    output.mkdir(parents=True, exist_ok=True)
    done = claim_folder(output, detector, overwrite)
    todo = [path for path in images if str(path) not in done]
    report = ReportBuilder(report_settings(detector))
    for name, (score, is_anomalous, p_value) in done.items():
        report.add_scored(name, score=score, p_value=p_value, is_anomalous=is_anomalous)

    failures: list[tuple[Path, str]] = []
    anomalous = sum(flag for _, flag, _ in done.values())
    scored = len(done)
    interrupted = False
    white_level = detector.made["white_level"]
    common = common_folder(images)
    with append_rows(output / "scores.csv", COLUMNS) as write_row:
        try:
            for path, pixels in read_ahead(todo, white_level):
                if isinstance(pixels, ImageError):
                    failures.append((path, str(pixels)))
                    report.add_failure(str(path), str(pixels))
                    on_image(path, str(pixels))
                    continue
                prediction = detector.predict_pixels(pixels, str(path))
                if write_maps:
                    folder = output / "maps" / path.parent.resolve().relative_to(common)
                    write_map(folder / f"{path.name}.png", prediction)
                write_row(row(prediction))
                scored += 1
                anomalous += prediction.is_anomalous
                report.add(pixels, prediction)
                on_image(path, prediction)
        except KeyboardInterrupt:
            interrupted = True
    write_failures(output / "failures.csv", failures)
    report.write(output / "report.html")
    return BatchResult(scored, anomalous, len(done), tuple(failures), interrupted)


def claim_folder(
    output: Path, detector: Detector, overwrite: bool
) -> dict[str, tuple[float, bool, float]]:
    """Path -> (score, is_anomalous, p_value) of images scored here before by this detector."""
    run, scores = output / "run.json", output / "scores.csv"
    info = detector.info()
    fingerprint = hashlib.sha256(json.dumps(info, sort_keys=True).encode()).hexdigest()
    if overwrite:
        scores.unlink(missing_ok=True)
    elif scores.exists():
        earlier = json.loads(run.read_text())["fingerprint"] if run.exists() else None
        if earlier != fingerprint:
            raise OutputFolderError(
                f"{output}: already holds the scores of another detector. Choose another folder, "
                f"or pass --overwrite to replace them."
            )
    write_text(run, json.dumps({"fingerprint": fingerprint, "detector": info}, indent=2))
    if not scores.exists():
        return {}
    # A run that was killed may have left half a line; what follows the last newline is dropped.
    content = scores.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        write_bytes(scores, whole)
    try:
        rows = csv.DictReader(io.StringIO(whole.decode(errors=ODD_NAMES), newline=""))
        return {
            r["path"]: (float(r["score"]), r["is_anomalous"] == "true", float(r["p_value"]))
            for r in rows
        }
    except (KeyError, TypeError, ValueError) as error:
        raise OutputFolderError(
            f"{scores}: not as this program wrote it ({error!r}), so the run cannot go on. Choose "
            f"another folder, or pass --overwrite to replace it."
        ) from error


@contextmanager
def append_rows(path: Path, columns: Sequence[str]) -> Iterator[Callable[[Sequence[Any]], None]]:
    """Append CSV rows to a file, each flushed whole before the next image is scored."""
    with path.open("a", newline="", encoding="utf-8", errors=ODD_NAMES) as file:

        def write(values: Sequence[Any]) -> None:
            line = io.StringIO()
            csv.writer(line, lineterminator="\n").writerow(values)
            file.write(line.getvalue())
            file.flush()

        if file.tell() == 0:
            write(columns)
        try:
            yield write
        finally:
            os.fsync(file.fileno())


def row(prediction: Prediction) -> tuple[Any, ...]:
    """One line of ``scores.csv``, in the order of ``COLUMNS``."""
    largest = max(prediction.regions, key=lambda region: region.area, default=None)
    box = f"{largest.x} {largest.y} {largest.width} {largest.height}" if largest else ""
    return (
        prediction.path,
        f"{prediction.score:.6f}",
        "true" if prediction.is_anomalous else "false",
        f"{prediction.p_value:.4f}",
        f"{prediction.raw_score:.8g}",
        len(prediction.regions),
        box,
        largest.area if largest else 0,
    )


def read_ahead(
    paths: Sequence[Path], white_level: int
) -> Iterator[tuple[Path, NDArray[np.uint8] | ImageError]]:
    """Images in order, decoded by other threads while the last one is scored."""

    def read(path: Path) -> NDArray[np.uint8] | ImageError:
        try:
            return read_image(path, white_level=white_level)
        except ImageError as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        waiting = iter(paths)
        pending: list[tuple[Path, Future[NDArray[np.uint8] | ImageError]]] = [
            (path, pool.submit(read, path)) for path in islice(waiting, READ_AHEAD)
        ]
        try:
            while pending:
                path, future = pending.pop(0)
                yield path, future.result()
                pending += [(path, pool.submit(read, path)) for path in islice(waiting, 1)]
        finally:
            for _, future in pending:
                future.cancel()


def common_folder(images: Sequence[Path]) -> Path:
    """The deepest folder holding all the images; sub-folders of ``maps/`` are those inside it."""
    parents = {image.parent.resolve() for image in images}
    return Path(os.path.commonpath(parents)) if parents else Path()


def write_map(target: Path, prediction: Prediction) -> None:
    """The calibrated map as an 8-bit PNG."""
    target.parent.mkdir(parents=True, exist_ok=True)
    levels = np.clip(np.rint(prediction.anomaly_map * 255), 0, 255).astype(np.uint8)
    is_encoded, content = cv2.imencode(".png", levels, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    if not is_encoded:
        raise OSError(f"{target}: the map could not be encoded as PNG.")
    write_bytes(target, content.tobytes())


def write_failures(path: Path, failures: Sequence[tuple[Path, str]]) -> None:
    """List what could not be read; no file when all could."""
    if not failures:
        path.unlink(missing_ok=True)
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", "reason"))
    writer.writerows((str(failed), reason) for failed, reason in failures)
    write_text(path, text.getvalue())


def report_settings(detector: Detector) -> dict[str, Any]:
    """What the report's settings table shows."""
    info = detector.info()
    calibration = detector.calibration
    return {
        "preset": info["preset"],
        "false-alarm rate asked": f"{calibration.false_alarm_rate:.1%}",
        "threshold (raw score)": f"{calibration.threshold:.6g}",
        "what the threshold promises": info["guarantee"],
        "normal images adapted to": len(info["support"]),
        "seed": info["seed"],
        "made": info["made"],
        "versions": ", ".join(f"{k} {v}" for k, v in info["versions"].items()),
        "support_scores": [calibration.score(raw) for raw in calibration.normal_scores],
    }
