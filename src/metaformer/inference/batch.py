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
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metaformer.data.datasets.category import Sample
from metaformer.data.datasets.truth import FolderTruth, Outcomes, Truth
from metaformer.detection.detector import Detector
from metaformer.detection.scoring.overlays import map_levels
from metaformer.detection.scoring.prediction import Prediction
from metaformer.inference.report.html import NORMAL_SHARE, ReportBuilder
from metaformer.inference.report.settings import report_settings
from metaformer.inference.resuming import Highest, drop_replaced, earlier_pictures, rejudged
from metaformer.inference.scores.csv_scores import CsvScores
from metaformer.inference.scores.failures import Failures
from metaformer.inference.scores.output_folder import ScoresFormat, claim_folder
from metaformer.inference.scores.parquet_scores import ParquetScores
from metaformer.inference.scores.rows import ScoreRow, row_digest, score_row, truth_of, with_truth
from metaformer.io.atomic_files import write_bytes
from metaformer.io.encoding import encode_levels
from metaformer.io.images import ImageError
from metaformer.io.omissions import SKIPPED, UNREADABLE, Omission
from metaformer.io.sources.naming import (
    UNKNOWN,
    Version,
    map_path,
    name_digest,
    version_digest,
    version_of,
)
from metaformer.io.sources.prefetch import work_ahead
from metaformer.io.sources.readers import Item, read_shard
from metaformer.io.sources.shards import Sources, common_root, container_of, count_images, shards
from metaformer.io.workers import WorkerPool, usual_workers

REPORT_LINES = 2000
"""Most images that the report lists, the highest scores; the scores themselves have them all."""
MAP_ROWS = 256
"""Rows of a map turned into 8 bits at a time; bounds memory."""

Outcome = tuple[str, NDArray[np.uint8] | ImageError, tuple[Prediction, ScoreRow] | None]
"""Name, pixels or why there are none, what was found."""


@dataclass(frozen=True)
class BatchResult:
    """Counts of a run; ``scored`` and ``anomalous`` include images of earlier runs."""

    scored: int
    anomalous: int
    resumed: int
    failures: tuple[tuple[str, str], ...]
    """(name, reason) of the first thousand that were named or found and are not scored;
    ``failures.csv`` has all, with a category."""
    interrupted: bool
    failed: int = 0
    """How many those are."""
    skipped: int = 0
    """Folders and files passed over on purpose: results, recycle bins, masks; no failures."""
    skipped_listed: tuple[tuple[str, str], ...] = ()
    """(name, reason) of the first thousand of them."""
    failed_before: int = 0
    """How many of the failures are of earlier runs, of images that this one had not to score."""
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

    What cannot be read is listed and passed over; what is named twice is scored once, a file that
    has changed since it was scored, by its size or time, again. Scores of an earlier run at another
    false-alarm rate get the verdicts of this one. The report shows earlier images, too. Ctrl-C ends
    the run, with every finished line and the report on disk; the images at hand are
    scored again the next time.

    Args:
        images: paths and addresses of images, folders, archives, videos and lists (see
            ``sources``), or ``Sources``.
        workers: how many are scored at once; None for one a processor, at most four.
        truth: what is known of the images, for the report and the outcomes; what their folders
            say (``truth.FolderTruth``) if None.
        on_image: called with the name of each image of this run and the prediction, or the reason
            why there is none.
        on_step: called with (images passed, images in all if that can be told); those of earlier
            runs count as passed.

    Raises:
        OutputFolderError: another process writes to ``output``, or it holds the scores of another
            detector, or in the other format, and ``overwrite`` is not set.
        ValueError: an address or list cannot be used, or a package for it is missing.
        OSError: a folder cannot be listed, ``output`` cannot be written to, or the disk is full.
    """
    if workers is None:
        workers = usual_workers()
    sources = images if isinstance(images, Sources) else Sources(tuple(map(str, images)))
    total = count_images(sources)
    pool = WorkerPool(min(workers, total or workers))
    root = common_root(sources)
    scores = CsvScores(output) if scores_format == "csv" else ParquetScores(output)
    with claim_folder(
        output,
        detector.info(),
        scores,
        overwrite,
        lambda row: rejudged(row, detector.calibration),
    ):
        run = _Run(detector, sources, output, root, scores, write_maps, write_report, truth)
        return run.score(pool, total, on_image, on_step)


class _Run:
    """Scoring into a folder that has been claimed."""

    def __init__(
        self,
        detector: Detector,
        sources: Sources,
        output: Path,
        root: str,
        scores: CsvScores | ParquetScores,
        write_maps: bool,
        write_report: bool,
        truth: Truth | None,
    ) -> None:
        self.truth = truth or FolderTruth()
        self.outcomes = Outcomes()
        self.detector, self.sources = detector, sources
        self.output, self.root, self.scores = output, root, scores
        self.write_maps, self.write_report = write_maps, write_report
        self.report = ReportBuilder(report_settings(detector), max_lines=REPORT_LINES)
        self._passed = 0
        self._known: set[bytes] = set()
        """Versions of images that have a line, or their turn in this run."""
        is_told_more = False
        for row in scores.read():
            self._known.add(row_digest(row))
            is_told_more |= self._with_truth(row) != row
        if is_told_more:
            scores.rewrite(self._with_truth)
        self._is_resumed = bool(self._known)
        self._scored_now: set[bytes] = set()
        """Names, where there are lines of earlier runs."""
        self._versions: dict[str, Version] = {}
        """Of the images at hand."""

    def _with_truth(self, row: ScoreRow) -> ScoreRow:
        return with_truth(row, self.truth(row.path))

    def _truth_of(self, row: ScoreRow) -> Sample | None:
        """What is known of an image, masks included, else what an earlier run knew."""
        return self.truth(row.path) or truth_of(row)

    def score(
        self,
        pool: WorkerPool,
        total: int | None,
        on_image: Callable[[str, Prediction | str], None],
        on_step: Callable[[int, int | None], None],
    ) -> BatchResult:
        interrupted = False
        with self.scores, Failures(self.output, keep_earlier=True) as failures, pool:
            try:
                white_level = self.detector.provenance["white_level"]
                with closing(
                    work_ahead(self._items(failures), white_level, self._work, pool)
                ) as stream:
                    for outcome in stream:
                        name = outcome[0]
                        noted = self._note(failures, *outcome)
                        del outcome  # nothing of a large image outlives its turn
                        self._passed += 1
                        on_image(name, noted)
                        on_step(self._passed, total)
                        del noted
                    on_step(self._passed, self._passed)
            except KeyboardInterrupt:
                interrupted = True
        for name, reason in failures.earlier:
            self.report.add_failure(name, reason)
        if self._is_resumed:
            drop_replaced(self.scores, self._scored_now)
        scored, anomalous, resumed = self._count()
        if self.write_report:
            self.report.write(self.output / "report.html")
        return BatchResult(
            scored,
            anomalous,
            resumed,
            tuple(failures.listed),
            interrupted,
            failures.count,
            failures.skipped,
            tuple(failures.listed_skipped),
            failures.count_earlier,
            self.outcomes,
        )

    def _items(self, failures: Failures) -> Iterator[Item]:
        for shard in shards(self.sources):
            container = container_of(shard)
            version = None if container is None else version_of(container)
            if container is not None:
                failures.settle(container)  # what may be wrong with it is said again
            yield from read_shard(shard, partial(self._is_wanted, version=version))

    def _is_wanted(self, name: str, version: Version | None) -> bool:
        """Whether this image has no line yet, or has changed since; told before it is read."""
        version = version_of(name) if version is None else version
        digests = {version_digest(name, *version), version_digest(name, *UNKNOWN)}
        is_known = not self._known.isdisjoint(digests)
        self._passed += is_known
        if not is_known:
            self._known.add(version_digest(name, *version))
            self._versions[name] = version
        return not is_known

    def _work(self, item: Item, pixels: NDArray[np.uint8] | ImageError) -> Outcome:
        version = self._versions.pop(item.name, UNKNOWN)
        if isinstance(pixels, ImageError):
            return item.name, pixels, None
        scored = score_pixels(
            self.detector, pixels, item.name, self.output, self.root, self.write_maps, version
        )
        return item.name, pixels, scored

    def _note(
        self,
        failures: Failures,
        name: str,
        pixels: NDArray[np.uint8] | ImageError,
        outcome: tuple[Prediction, ScoreRow] | None,
    ) -> Prediction | str:
        if isinstance(pixels, ImageError) or outcome is None:
            category = pixels.category if isinstance(pixels, ImageError) else UNREADABLE
            failures.add(Omission(name, str(pixels), category))
            if category != SKIPPED:
                self.report.add_failure(name, str(pixels))
            return str(pixels)
        failures.settle(name)
        prediction, line = outcome
        known = self.truth(name)
        self.scores.write(with_truth(line, known))
        if self._is_resumed:
            self._scored_now.add(name_digest(name))
        if self.write_report:
            self.report.add(pixels, prediction, truth=known, find_good=self.detector.nearest_good)
        return prediction

    def _count(self) -> tuple[int, int, int]:
        """Lines in all, anomalous ones and those of earlier runs, which go into the report, too."""
        scored = anomalous = resumed = 0
        pictured = Highest(self.report.max_images, self.report.max_images // NORMAL_SHARE)
        for row in self.scores.read():
            scored += 1
            anomalous += row.is_anomalous
            self.outcomes.add(self._truth_of(row), row.is_anomalous)
            if not self._is_resumed or name_digest(row.path) in self._scored_now:
                continue
            resumed += 1
            without = pictured.add(row) if self.write_report else row
            if without is not None:
                self._add_line(without)
        rows = pictured.rows()
        for pixels, prediction in earlier_pictures(rows, self.sources, self.output, self.detector):
            self.report.add(
                pixels,
                prediction,
                truth=self._truth_of(rows.pop(prediction.path or "")),
                find_good=self.detector.nearest_good,
            )
        for row in rows.values():
            self._add_line(row)
        return scored, anomalous, resumed

    def _add_line(self, row: ScoreRow) -> None:
        self.report.add_scored(
            row.path,
            score=row.score,
            p_value=row.p_value,
            is_anomalous=row.is_anomalous,
            truth=self._truth_of(row),
        )


def score_pixels(
    detector: Detector,
    pixels: NDArray[np.uint8],
    name: str,
    output: Path,
    root: str,
    write_maps: bool,
    version: Version = UNKNOWN,
) -> tuple[Prediction, ScoreRow]:
    """Score one image (H, W, 3) uint8 RGB and write its map below ``output`` if it is to have one.

    ``root`` is the folder that the places of maps are told from; see ``naming.map_path``.
    ``version`` is what the file was known by before it was read.
    """
    prediction = detector.predict_pixels(pixels, name)
    map_file = f"maps/{map_path(name, root)}" if write_maps else ""
    if map_file:
        write_map(output / map_file, prediction)
    return prediction, score_row(prediction, detector.calibration.p_value_kind, map_file, version)


def write_map(target: Path, prediction: Prediction) -> None:
    """The calibrated map as an 8-bit PNG."""
    target.parent.mkdir(parents=True, exist_ok=True)
    levels = np.empty(prediction.anomaly_map.shape, np.uint8)
    for top in range(0, len(levels), MAP_ROWS):
        rows = slice(top, top + MAP_ROWS)
        levels[rows] = map_levels(prediction.anomaly_map[rows])
    write_bytes(target, encode_levels(levels))
