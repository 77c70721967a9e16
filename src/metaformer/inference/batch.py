"""Scoring any number of images into a folder, so that stopping at any moment loses nothing.

The folder holds ``scores.csv`` (one line an image, on disk as soon as it is made) or ``scores/``
(Parquet files), ``failures.csv`` (what could not be read, and why), ``maps/`` (8-bit heat maps:
128 is the pixel threshold), ``run.json`` (which detector) and ``report.html``. Started again, it
goes on after the last whole line. Memory grows by some 100 bytes an image, to know which are done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metaformer.data.datasets.truth import FolderTruth, Outcomes, Truth
from metaformer.detection.detector import Detector
from metaformer.detection.scoring.overlays import map_levels
from metaformer.detection.scoring.prediction import Prediction
from metaformer.inference.report.html import ReportBuilder
from metaformer.inference.report.settings import report_settings
from metaformer.inference.scores.csv_scores import CsvScores
from metaformer.inference.scores.failures import Failures
from metaformer.inference.scores.output_folder import ScoresFormat, claim_folder
from metaformer.inference.scores.parquet_scores import ParquetScores
from metaformer.inference.scores.rows import ScoreRow, score_row
from metaformer.io.atomic_files import write_bytes
from metaformer.io.encoding import encode_levels
from metaformer.io.images import ImageError
from metaformer.io.sources.naming import map_path, name_digest
from metaformer.io.sources.prefetch import work_ahead
from metaformer.io.sources.readers import Item, read_shard
from metaformer.io.sources.shards import Sources, common_root, count_images, shards
from metaformer.io.workers import Crew, usual_workers

REPORT_LINES = 2000
"""Most images that the report lists, the highest scores; the scores themselves have them all."""
MAP_ROWS = 256
"""Rows of a map turned into 8 bits at a time; bounds memory."""

Outcome = tuple[str, NDArray[np.uint8] | ImageError, tuple[Prediction, ScoreRow] | None]
"""Name, pixels or why there are none, what was found."""


@dataclass(frozen=True)
class BatchResult:
    """What a run did; ``scored`` and ``anomalous`` include images of earlier runs."""

    scored: int
    anomalous: int
    resumed: int
    failures: tuple[tuple[str, str], ...]
    """(name, reason) of the first thousand that could not be read; ``failures.csv`` has all."""
    interrupted: bool
    failed: int = 0
    """How many could not be read."""
    outcomes: Outcomes = field(default_factory=Outcomes)
    """Verdicts on images whose truth is known, those of earlier runs included."""


def score_images(
    detector: Detector,
    images: Sources | Iterable[Path | str],
    output: Path,
    *,
    scores_format: ScoresFormat = "csv",
    write_maps: bool = True,
    write_report: bool = True,
    overwrite: bool = False,
    workers: int | None = None,
    truth: Truth | None = None,
    on_image: Callable[[str, Prediction | str], None] = lambda name, outcome: None,
    on_step: Callable[[int, int | None], None] = lambda done, total: None,
) -> BatchResult:
    """Score ``images`` into the folder ``output``; see the module's text for what it holds.

    What cannot be read is listed and passed over; what is named twice is scored once. Ctrl-C ends
    the run, with every finished line and the report of this run on disk; the images at hand are
    scored again the next time.

    Args:
        images: paths and addresses of images, folders, archives, videos and lists (see
            ``sources``), or ``Sources``.
        workers: how many are scored at once; None for one a processor, at most four, or for one
            where an engine computes, which has threads of its own.
        truth: what is known of the images, for the report and the outcomes; what their folders
            say (``truth.FolderTruth``) if None.
        on_image: called with the name of each image of this run and the prediction, or the reason
            why there is none.
        on_step: called with (images passed, images in all if that can be told); those of earlier
            runs count as passed.

    Raises:
        OutputFolderError: ``output`` holds the scores of another detector, or in the other format,
            and ``overwrite`` is not set.
        ValueError: an address or list cannot be used, or a package for it is missing.
        OSError: a folder cannot be listed, ``output`` cannot be written to, or the disk is full.
    """
    if workers is None:
        workers = usual_workers() if detector.engine is None else 1
    sources = images if isinstance(images, Sources) else Sources(tuple(map(str, images)))
    total = count_images(sources)
    crew = Crew(min(workers, total or workers))
    root = common_root(sources)
    scores = CsvScores(output) if scores_format == "csv" else ParquetScores(output)
    claim_folder(output, detector.info(), scores, overwrite)

    report = ReportBuilder(report_settings(detector), max_lines=REPORT_LINES)
    seen: set[bytes] = set()
    anomalous = 0
    truth = truth or FolderTruth()
    outcomes = Outcomes()
    for row in scores.read():
        seen.add(name_digest(row.path))
        anomalous += row.is_anomalous
        known = truth(row.path)
        outcomes.add(known, row.is_anomalous)
        report.add_scored(
            row.path,
            score=row.score,
            p_value=row.p_value,
            is_anomalous=row.is_anomalous,
            truth=known,
        )
    resumed = scored = len(seen)
    passed = 0

    def is_wanted(name: str) -> bool:
        nonlocal passed
        digest = name_digest(name)
        passed += digest in seen
        is_new = digest not in seen
        seen.add(digest)
        return is_new

    def items() -> Iterator[Item]:
        for shard in shards(sources):
            yield from read_shard(shard, is_wanted)

    def score(item: Item, pixels: NDArray[np.uint8] | ImageError) -> Outcome:
        if isinstance(pixels, ImageError):
            return item.name, pixels, None
        scored = score_pixels(detector, pixels, item.name, output, root, write_maps)
        return item.name, pixels, scored

    def note(
        name: str,
        pixels: NDArray[np.uint8] | ImageError,
        outcome: tuple[Prediction, ScoreRow] | None,
    ) -> Prediction | str:
        nonlocal scored, anomalous
        if isinstance(pixels, ImageError) or outcome is None:
            failures.add(name, str(pixels))
            report.add_failure(name, str(pixels))
            return str(pixels)
        prediction, line = outcome
        scores.write(line)
        scored += 1
        anomalous += prediction.is_anomalous
        known = truth(name)
        outcomes.add(known, prediction.is_anomalous)
        if write_report:
            report.add(pixels, prediction, truth=known, find_good=detector.nearest_good)
        return prediction

    interrupted = False
    with scores, Failures(output) as failures, crew:
        try:
            white_level = detector.made["white_level"]
            with closing(work_ahead(items(), white_level, score, crew)) as stream:
                for outcome in stream:
                    name = outcome[0]
                    noted = note(*outcome)
                    del outcome  # nothing of a large image outlives its turn
                    passed += 1
                    on_image(name, noted)
                    on_step(passed, total)
                    del noted
                on_step(passed, passed)
        except KeyboardInterrupt:
            interrupted = True
    if write_report:
        report.write(output / "report.html")
    return BatchResult(
        scored,
        anomalous,
        resumed,
        tuple(failures.listed),
        interrupted,
        failures.count,
        outcomes,
    )


def score_pixels(
    detector: Detector,
    pixels: NDArray[np.uint8],
    name: str,
    output: Path,
    root: str,
    write_maps: bool,
) -> tuple[Prediction, ScoreRow]:
    """Score one image (H, W, 3) uint8 RGB and write its map below ``output`` if it is to have one.

    ``root`` is the folder that the places of maps are told from; see ``naming.map_path``.
    """
    prediction = detector.predict_pixels(pixels, name)
    map_file = f"maps/{map_path(name, root)}" if write_maps else ""
    if map_file:
        write_map(output / map_file, prediction)
    return prediction, score_row(prediction, detector.calibration.p_value_kind, map_file)


def write_map(target: Path, prediction: Prediction) -> None:
    """The calibrated map as an 8-bit PNG."""
    target.parent.mkdir(parents=True, exist_ok=True)
    levels = np.empty(prediction.anomaly_map.shape, np.uint8)
    for top in range(0, len(levels), MAP_ROWS):
        rows = slice(top, top + MAP_ROWS)
        levels[rows] = map_levels(prediction.anomaly_map[rows])
    write_bytes(target, encode_levels(levels))
