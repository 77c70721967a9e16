"""Scoring one shard in a process of its own: its results are one Parquet file, written in one step.

The file is named after the images of the shard, so a task that is run again, since its worker died
or the job was started anew, replaces its own file: no image can be in the results twice.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from metaformer.data.datasets.truth import FolderTruth
from metaformer.detection.detector import Detector
from metaformer.inference.allocator import keep_freed_memory
from metaformer.inference.batch import score_pixels
from metaformer.inference.scores.parquet_scores import ParquetScores, read_part, write_part
from metaformer.inference.scores.rows import is_current, with_truth
from metaformer.io.images import ImageError
from metaformer.io.omissions import Omission
from metaformer.io.sources.naming import UNKNOWN, Version, version_of
from metaformer.io.sources.prefetch import read_ahead
from metaformer.io.sources.readers import read_shard
from metaformer.io.sources.shards import Shard, container_of, shard_digest


@dataclass(frozen=True)
class Job:
    """Settings that all tasks of a run share."""

    folder: str
    """Where the job was started: relative paths are read from there."""
    output: str
    root: str
    false_alarm_rate: float | None
    write_maps: bool


def score_shard(job: Job, detector_content: bytes, shard: Shard, done: frozenset[str]) -> int:
    """The task: score what of ``shard`` is not done and write its file; how many images that was.

    What an earlier run scored of it is kept; what that run could not read is tried again.
    """
    keep_freed_memory()
    os.chdir(job.folder)
    output = Path(job.output)
    target = shard_file(ParquetScores(output), shard)
    container = container_of(shard)

    def version(name: str) -> Version:
        return version_of(name if container is None else container)

    rows = (
        [row for row in read_part(target) if is_current(row, version(row.path))]
        if target.exists()
        else []
    )
    earlier = len(rows)
    known = set(done).union(row.path for row in rows)

    def is_wanted(name: str) -> bool:
        is_new = name not in known
        known.add(name)  # an archive may hold a name twice
        if is_new:
            versions[name] = version(name)
        return is_new

    detector = load_detector(detector_content, job.false_alarm_rate)
    failures: list[Omission] = []
    versions: dict[str, Version] = {}
    items = read_shard(shard, is_wanted)
    truth = FolderTruth()
    with closing(read_ahead(items, detector.provenance["white_level"])) as stream:
        for item, pixels in stream:
            if isinstance(pixels, ImageError):
                failures.append(Omission(item.name, str(pixels), pixels.category))
            else:
                _, line = score_pixels(
                    detector,
                    pixels,
                    item.name,
                    output,
                    job.root,
                    job.write_maps,
                    versions.pop(item.name, UNKNOWN),
                )
                rows.append(with_truth(line, truth(item.name)))
            del item, pixels  # a large image is not kept while the next one is decoded
    if rows or failures:
        write_part(target, rows, failures)
    return len(rows) - earlier + len(failures)


@lru_cache(maxsize=1)
def load_detector(content: bytes, false_alarm_rate: float | None) -> Detector:
    """The detector of a detector file's content, read once in each worker."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "detector.metaformer")
        path.write_bytes(content)
        detector = Detector.load(path)
    if false_alarm_rate is None:
        return detector
    return detector.with_false_alarm_rate(false_alarm_rate)


def shard_file(scores: ParquetScores, shard: Shard) -> Path:
    return scores.folder / f"shard-{shard_digest(shard)}.parquet"
