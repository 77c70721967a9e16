"""Going on in a folder of results: which lines still hold, and the pictures of earlier images."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metaformer.detection.detector import Detector
from metaformer.detection.scoring.calibration import Calibration
from metaformer.detection.scoring.prediction import Prediction
from metaformer.detection.scoring.regions import find_regions
from metaformer.inference.scores.csv_scores import CsvScores
from metaformer.inference.scores.parquet_scores import ParquetScores
from metaformer.inference.scores.rows import ScoreRow
from metaformer.io.images import ImageError, read_image
from metaformer.io.sources.naming import is_address, name_digest
from metaformer.io.sources.readers import decode_item, fetch, read_shard
from metaformer.io.sources.shards import Files, Sources, shards

CLOSE = 1e-6
"""Share of a threshold: raw scores this near to it are made again, as lines hold eight digits."""


def rejudged(row: ScoreRow, calibration: Calibration) -> ScoreRow | None:
    """The line with the verdict of another threshold; None if the image has to be scored again."""
    threshold = calibration.threshold
    if abs(row.raw_score - threshold) <= CLOSE * abs(threshold):
        return None
    is_anomalous = row.raw_score >= threshold
    if is_anomalous and not row.is_anomalous:
        return None  # nobody has looked for its regions
    changed = replace(
        row,
        score=calibration.score(row.raw_score),
        p_value=calibration.p_value(row.raw_score),
        p_value_kind=calibration.p_value_kind,
        is_anomalous=is_anomalous,
    )
    if is_anomalous:
        return changed
    return replace(changed, regions=0, largest_region_box="", largest_region_area=0)


def drop_replaced(scores: CsvScores | ParquetScores, again: set[bytes]) -> None:
    """Of images that have several lines, and whose name's digest is in ``again``, keep the last."""
    lines: dict[bytes, int] = {}
    for row in scores.read():
        digest = name_digest(row.path)
        if digest in again:
            lines[digest] = lines.get(digest, 0) + 1
    if not any(count > 1 for count in lines.values()):
        return

    def keep_last(row: ScoreRow) -> ScoreRow | None:
        digest = name_digest(row.path)
        if digest not in lines:
            return row
        lines[digest] -= 1
        return row if lines[digest] == 0 else None

    scores.rewrite(keep_last)


class Highest:
    """The lines with the highest scores, some places being for images that are not flagged."""

    def __init__(self, flagged: int, normal: int) -> None:
        self._places = {True: flagged, False: normal}
        self._heaps: dict[bool, list[tuple[float, int, ScoreRow]]] = {True: [], False: []}
        self._count = 0

    def add(self, row: ScoreRow) -> ScoreRow | None:
        """Add a row; returns the row that was dropped, this one or an earlier one."""
        heap = self._heaps[row.is_anomalous]
        self._count += 1
        entry = (row.score, -self._count, row)
        if len(heap) < self._places[row.is_anomalous]:
            heapq.heappush(heap, entry)
            return None
        return heapq.heappushpop(heap, entry)[2]

    def rows(self) -> dict[str, ScoreRow]:
        """By the names of the images."""
        return {row.path: row for heap in self._heaps.values() for _, _, row in heap}


def earlier_pictures(
    rows: dict[str, ScoreRow], sources: Sources, output: Path, detector: Detector
) -> Iterator[tuple[NDArray[np.uint8], Prediction]]:
    """Images scored earlier, (H, W, 3) uint8 RGB, read again, with what was found on them.

    The map comes from ``maps/``, or is made again where none was written. Images that are not
    there any more, or cannot be read, are left out.
    """
    left = dict(rows)
    local = tuple(name for name in rows if not is_address(name) and Path(name).is_file())
    places = [Files(local)] if local else []
    for shard in [*places, *([] if len(local) == len(rows) else shards(sources))]:
        for item in read_shard(shard, lambda name: name in left):
            row = left.pop(item.name, None)
            if row is None:
                continue
            pixels = decode_item(fetch(item), detector.provenance["white_level"])
            if not isinstance(pixels, ImageError):
                yield pixels, _prediction(row, pixels, output, detector)
        if not left:
            return


def _prediction(
    row: ScoreRow, pixels: NDArray[np.uint8], output: Path, detector: Detector
) -> Prediction:
    anomaly_map = _read_map(output / row.map, pixels.shape) if row.map else None
    if anomaly_map is None:
        anomaly_map = detector.predict_pixels(pixels, row.path).anomaly_map
    mask = (anomaly_map >= 0.5) & row.is_anomalous
    return Prediction(
        score=row.score,
        raw_score=row.raw_score,
        p_value=row.p_value,
        is_anomalous=row.is_anomalous,
        anomaly_map=anomaly_map,
        mask=mask,
        regions=find_regions(mask, anomaly_map),
        path=row.path,
    )


def _read_map(path: Path, shape: tuple[int, ...]) -> NDArray[np.float32] | None:
    """A calibrated map (H, W) from ``maps/``; None if it is not there, or of another size."""
    try:
        levels = read_image(path)[:, :, 0]
    except ImageError:
        return None
    if levels.shape != shape[:2]:
        return None
    return np.asarray(levels, np.float32) / np.float32(255)
