"""One self-contained HTML file: images ranked by score, their maps, a threshold to try out."""

from __future__ import annotations

import heapq
import warnings
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaformer.data.datasets.category import Sample
from metaformer.detection.scoring.prediction import Prediction
from metaformer.detection.support.support_thumbnails import GoodExample
from metaformer.evaluation.samples import load_mask
from metaformer.inference.report.page import THRESHOLD, Line, PageContent, as_text, render_page
from metaformer.inference.report.thumbnails import Picture, make_picture
from metaformer.io.atomic_files import write_text

NORMAL_SHARE = 10
"""One picture in ten is kept for normal images just under the threshold, however many defects."""

FindGood = Callable[[NDArray[np.uint8]], GoodExample | None]


class ReportBuilder:
    """Collects predictions, in memory that hardly grows with their number.

    Every score is kept, and every line unless ``max_lines`` limits them. Photos and maps are kept
    of ``max_images``: verdicts known to be wrong first, then the highest scores, with a tenth of
    the places for normal images just under the threshold, where doubt is greatest.

    Args:
        settings: shown as a table. Two entries are used otherwise: ``title`` is the heading, and
            ``support_scores`` (calibrated scores of the normal images, each scored without itself,
            or of views of one image) is marked in the histogram.
        max_lines: list no more images than this, the highest scores (and those with a picture);
            the page then says how many there were in all, and its histogram shows all of them.
            None lists every image.
        max_images: most pictures in the file; 200 make 10 to 25 MB.
        thumbnail: longer side of a picture in pixels; smaller images are not enlarged.

    Raises:
        ValueError: ``max_images`` is negative, ``max_lines`` under 1 or ``thumbnail`` under 16.
    """

    def __init__(
        self,
        settings: dict[str, Any],
        *,
        max_images: int = 200,
        thumbnail: int = 512,
        max_lines: int | None = None,
    ) -> None:
        if max_images < 0:
            raise ValueError(f"max_images must be 0 or more, got {max_images}.")
        if max_lines is not None and max_lines < 1:
            raise ValueError(f"max_lines must be 1 or more, or None for all, got {max_lines}.")
        if thumbnail < 16:
            raise ValueError(f"thumbnail must be 16 pixels or more, got {thumbnail}.")
        self.settings = settings
        self.max_images = max_images
        self.thumbnail = thumbnail
        self.max_lines = max_lines
        self._scores = array("d")
        self._truths = array("b")  # of each score: 1 defective, 0 good, -1 unknown
        # A heap by score, lowest first; of equal scores the later image is given up first.
        self._lines: list[tuple[float, int, Line]] = []
        # Two heaps by interest, lowest first: the one to give up when the places run out.
        self._flagged: list[tuple[float, int, Line, Picture]] = []
        self._normal: list[tuple[float, int, Line, Picture]] = []
        self._failures: list[tuple[str, str]] = []
        self._failed = 0

    def add(
        self,
        image: NDArray[np.uint8],
        prediction: Prediction,
        *,
        truth: Sample | None = None,
        find_good: FindGood = lambda image: None,
    ) -> None:
        """Add an image (H, W, 3) uint8 RGB and what was found on it.

        Args:
            truth: what is known of it. Its masks are read if the picture is kept.
            find_good: the good image to show beside it, ``Detector.nearest_good`` for example;
                called if the picture is kept.

        Raises:
            ValueError: image and map differ in size, or the score is not in [0, 1].
        """
        if image.shape[:2] != prediction.anomaly_map.shape:
            raise ValueError(
                f"image {image.shape} and map {prediction.anomaly_map.shape} differ in size."
            )

        def picture() -> Picture:
            return make_picture(
                image,
                prediction,
                self.thumbnail,
                good=find_good(image),
                true_mask=read_true_mask(truth, image.shape[:2]),
            )

        self._keep_picture(
            self._add_line(
                prediction.path or f"image {len(self._scores) + 1}",
                prediction.score,
                prediction.p_value,
                prediction.is_anomalous,
                truth,
            ),
            picture,
        )

    def add_picture(
        self,
        name: str,
        picture: Picture,
        *,
        score: float,
        p_value: float,
        is_anomalous: bool,
        truth: Sample | None = None,
    ) -> None:
        """Add an image whose picture has been made already, by ``make_picture``.

        Raises:
            ValueError: the score is not in [0, 1].
        """
        line = self._add_line(name, score, p_value, is_anomalous, truth)
        self._keep_picture(line, lambda: picture)

    def add_scored(
        self,
        name: str,
        *,
        score: float,
        p_value: float,
        is_anomalous: bool,
        truth: Sample | None = None,
    ) -> None:
        """Add an image of an earlier run, of which only the row of scores is left.

        Raises:
            ValueError: the score is not in [0, 1].
        """
        self._add_line(name, score, p_value, is_anomalous, truth)

    def _keep_picture(self, line: Line, make: Callable[[], Picture]) -> None:
        """Keep the picture of the line added last if it is among the most interesting."""
        number = len(self._scores) - 1
        rank = interest(line)

        def entry() -> tuple[float, int, Line, Picture]:
            return rank, number, line, make()

        is_flagged = line.score >= THRESHOLD or line.is_wrong
        heap = self._flagged if is_flagged else self._normal
        if len(self._flagged) + len(self._normal) < self.max_images:
            heapq.heappush(heap, entry())
            return
        places_for_normal = self.max_images // NORMAL_SHARE
        normal = len(self._normal) + (not is_flagged)
        loser = self._normal if normal > places_for_normal else self._flagged
        if loser is not heap and loser:
            heapq.heappop(loser)
            heapq.heappush(heap, entry())
        elif loser and rank > loser[0][0]:
            heapq.heapreplace(loser, entry())

    def _add_line(
        self, name: str, score: float, p_value: float, is_anomalous: bool, truth: Sample | None
    ) -> Line:
        if not 0 <= score <= 1:
            raise ValueError(f"{name}: a calibrated score lies in [0, 1], got {score}.")
        # A score read back from a file with few decimals may have been rounded over the threshold;
        # the verdict, which was not, is right.
        if is_anomalous:
            score = max(score, THRESHOLD)
        else:
            score = min(score, float(np.nextafter(THRESHOLD, 0)))
        known = None if truth is None else truth.is_anomalous
        line = Line(as_text(name), score, p_value, known, "" if truth is None else truth.kind)
        ranked = (score, -len(self._scores), line)
        self._scores.append(score)
        self._truths.append(-1 if known is None else known)
        if self.max_lines is None:
            self._lines.append(ranked)
        elif len(self._lines) < self.max_lines:
            heapq.heappush(self._lines, ranked)
        else:
            heapq.heappushpop(self._lines, ranked)
        return line

    def add_failure(self, path: str, reason: str) -> None:
        """Add a file that could not be read, and why."""
        # Messages name the file first; beside its name that would be said twice.
        reason = reason.removeprefix(f"{path}: ")
        self._failed += 1
        if self.max_lines is None or len(self._failures) < self.max_lines:
            self._failures.append((as_text(path), as_text(reason)))

    def page(self, folder: Path | None = None) -> str:
        """The report as text.

        Args:
            folder: where it will lie; images on this machine are then linked to from there.
        """
        entries = [*self._flagged, *self._normal]
        pictures = {number: picture for _, number, _, picture in entries}
        listed = {-negative: line for _, negative, line in self._lines}
        listed |= {number: line for _, number, line, _ in entries}
        ranking = sorted(listed, key=lambda number: (-listed[number].score, number))
        content = PageContent(
            settings=self.settings,
            lines=[listed[number] for number in ranking],
            pictured={
                rank: pictures[number] for rank, number in enumerate(ranking) if number in pictures
            },
            scores=np.array(self._scores, dtype=np.float64),
            truths=np.array(self._truths, dtype=np.int8),
            failures=self._failures,
            failed=self._failed,
            folder=folder,
        )
        return render_page(content)

    def write(self, path: Path | str) -> Path:
        """Write the report in one step and return its path.

        Raises:
            OSError: the folder does not exist, cannot be written to, or the disk is full.
        """
        path = Path(path)
        write_text(path, self.page(path.absolute().parent))
        return path


def interest(line: Line) -> float:
    """Priority of a picture in the report: wrong verdicts first, then high scores."""
    return 1 + abs(line.score - THRESHOLD) if line.is_wrong else line.score


def read_true_mask(truth: Sample | None, shape: tuple[int, int]) -> NDArray[np.bool_] | None:
    """True mask of an image of ``shape`` (H, W); None if it is good or has none.

    Warns where there is a mask that cannot be used.
    """
    if truth is None or not truth.is_anomalous or not truth.masks:
        return None
    try:
        return load_mask(truth, shape)
    except (ValueError, OSError) as error:
        warnings.warn(f"the true outline is left out: {error}", stacklevel=2)
        return None
