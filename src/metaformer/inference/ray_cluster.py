"""``predict`` on a Ray cluster: every image scored exactly once, whatever dies (extra ``ray``).

The sources are cut into shards (``sources.shards``), each scored by a task that writes one file
(``ray_task``). The driver hands out a few at a time, and holds some 100 bytes for each image.

Plain tasks rather than Ray Data: its writers name files by run and attempt, so that a job started
again after a stop would neither know what is done nor replace what was half done.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from metaformer.inference.batch import BatchResult
from metaformer.inference.ray_task import Job, load_detector, score_shard, shard_file
from metaformer.inference.resuming import rejudged
from metaformer.inference.scores.failures import Failures
from metaformer.inference.scores.output_folder import claim_folder
from metaformer.inference.scores.parquet_scores import (
    ParquetScores,
    read_failures,
    read_omissions,
    read_part,
    write_part,
)
from metaformer.inference.scores.rows import is_current
from metaformer.io.omissions import UNREADABLE, Omission
from metaformer.io.sources.naming import Version, absolute, member_name, name_digest, version_of
from metaformer.io.sources.shards import (
    SHARD_IMAGES,
    Files,
    NotScored,
    Shard,
    Sources,
    TarArchive,
    Video,
    ZipMembers,
    common_root,
    container_of,
    count_images,
    shards,
)

ATTEMPTS = 4
"""Times a shard is tried before it is listed as failed: workers die for reasons of their own."""
SHARDS_AHEAD = 2
"""Shards handed out for each processor of the cluster, so that none waits for the driver."""
EXTRA = "pip install 'metaformer-ad[ray]'"


def score_on_ray(
    detector_file: Path,
    sources: Sources,
    output: Path,
    *,
    false_alarm_rate: float | None = None,
    write_maps: bool = True,
    overwrite: bool = False,
    shard_images: int = SHARD_IMAGES,
    on_step: Callable[[int, int | None], None] = lambda done, total: None,
) -> BatchResult:
    """Score ``sources`` on the Ray cluster of ``RAY_ADDRESS``, or on one started on this machine.

    Sources and ``output`` must be readable, and ``output`` writable, under the same path on all
    machines. No report is written. Ctrl-C ends the job; shards that are done stay.

    Args:
        shard_images: most images of one task; what a worker that dies loses.
        on_step: called with (images passed, images in all if that can be told).

    Raises:
        OutputFolderError: ``output`` holds the scores of another detector, or as CSV.
        ValueError: Ray or pyarrow is not installed, or as ``score_images``.
        OSError: as ``score_images``.
    """
    ray = start_ray()
    try:
        detector = load_detector(detector_file.read_bytes(), false_alarm_rate)
        scores = ParquetScores(output)
        with claim_folder(
            output,
            detector.info(),
            scores,
            overwrite,
            lambda row: rejudged(row, detector.calibration),
        ):
            scores.folder.mkdir(exist_ok=True)
            resumed = sum(1 for _ in scores.read())
            total = count_images(sources)
            job = Job(
                str(Path.cwd()),
                absolute(str(output)),
                common_root(sources),
                false_alarm_rate,
                write_maps,
            )
            lost, interrupted = run_tasks(
                ray,
                job,
                detector_file.read_bytes(),
                work_left(sources, scores, shard_images),
                lambda passed: on_step(passed, total),
                resumed,
            )
            scores.mend()
            if not interrupted and total is not None:
                on_step(total, total)
            return summarise(output, scores, resumed, lost, interrupted)
    finally:
        ray.shutdown()


def start_ray() -> Any:
    """Ray, connected to a cluster.

    Raises:
        ValueError: Ray is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere unasked
    # A cluster started here: Ray's own choice, 15, gets next to nothing on a busy machine.
    os.environ.setdefault("RAY_worker_niceness", "0")
    try:
        import ray
    except ImportError:
        raise ValueError(f"a Ray job needs the package ray. Install it: {EXTRA}.") from None
    ray.init(log_to_driver=False, logging_level=logging.ERROR, ignore_reinit_error=True)
    return ray


def work_left(
    sources: Sources, scores: ParquetScores, size: int
) -> Iterator[tuple[Shard, frozenset[str]]]:
    """Shards still to be scored, each with names in it that are not.

    Usually a shard's file says that it is done. Where the sources have changed since, the images
    in files of shards that are no more are left out by name.
    """
    planned: set[Path] = set()
    containers: dict[str, Version] = {}
    for shard in distinct(shards(sources, size)):
        planned.add(shard_file(scores, shard))
        if (container := container_of(shard)) is not None:
            containers[container] = version_of(container)
    done: set[str] = set()
    for part in scores.parts():
        if part not in planned:
            done.update(drop_outdated(part, containers))
    for shard in distinct(shards(sources, size)):
        target = shard_file(scores, shard)
        if target.exists() and not read_failures(target) and is_all_current(target, shard):
            continue
        match shard:
            case Files(paths=paths) if done:
                shard = Files(tuple(path for path in paths if path not in done))
                if shard.paths:
                    yield shard, frozenset()
            case ZipMembers(archive=path) | TarArchive(archive=path) | Video(path=path) if done:
                yield shard, frozenset(name for name in done if name.startswith(path))
            case _:
                yield shard, frozenset()


def drop_outdated(part: Path, containers: Mapping[str, Version]) -> list[str]:
    """Remove the rows of images that have changed since, and give the names of the others.

    Args:
        part: a file of scores.
        containers: archives and videos, with their present version.
    """
    rows = [*read_part(part)]
    current = []
    for row in rows:
        inside = [path for path in containers if row.path.startswith((f"{path}/", f"{path}#"))]
        version = containers[max(inside, key=len)] if inside else version_of(row.path)
        if is_current(row, version):
            current.append(row)
    if len(current) < len(rows):
        write_part(part, current, read_omissions(part))
    return [row.path for row in current]


def is_all_current(part: Path, shard: Shard) -> bool:
    """No image of the shard has changed since it was scored."""
    container = container_of(shard)
    if container is not None:
        version = version_of(container)
        return all(is_current(row, version) for row in read_part(part))
    return all(is_current(row, version_of(row.path)) for row in read_part(part))


def distinct(found: Iterator[Shard]) -> Iterator[Shard]:
    """The shards without images that were in an earlier one: named twice is scored once."""
    seen: set[bytes] = set()

    def is_new(name: str) -> bool:
        digest = name_digest(name)
        if digest in seen:
            return False
        seen.add(digest)
        return True

    for shard in found:
        match shard:
            case Files(paths=paths):
                kept = Files(tuple(path for path in paths if is_new(path)))
                if kept.paths:
                    yield kept
            case ZipMembers(archive=archive, members=members):
                left = tuple(name for name in members if is_new(member_name(archive, name)))
                if left or not members:
                    yield ZipMembers(archive, left)
            case TarArchive(archive=path) | Video(path=path):
                if is_new(path):
                    yield shard
            case NotScored():
                yield shard


def run_tasks(
    ray: Any,
    job: Job,
    detector: bytes,
    work: Iterator[tuple[Shard, frozenset[str]]],
    on_passed: Callable[[int], None],
    passed: int,
) -> tuple[list[Omission], bool]:
    """Have the cluster score the shards; (shards given up with the reason, was it interrupted)."""
    task = ray.remote(num_cpus=1, max_retries=ATTEMPTS - 1)(score_shard)
    shared = ray.put(detector)
    most = SHARDS_AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
    running: dict[Any, Shard] = {}
    lost: list[Omission] = []
    try:
        while True:
            while len(running) < most and (left := next(work, None)) is not None:
                running[task.remote(job, shared, *left)] = left[0]
            if not running:
                return lost, False
            (done,), _ = ray.wait(list(running), num_returns=1)
            shard = running.pop(done)
            try:
                passed += ray.get(done)
            except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
                reason = f"{ATTEMPTS} workers died scoring these images ({type(error).__name__})"
                why = f"{reason}. Look for one too large for the memory."
                lost.append(Omission(describe(shard), why, UNREADABLE))
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            on_passed(passed)
    except KeyboardInterrupt:
        for reference in running:
            ray.cancel(reference, force=True)
        return lost, True


def describe(shard: Shard) -> str:
    """A shard for people."""
    match shard:
        case Files(paths=paths):
            return f"{paths[0]} to {paths[-1]}"
        case ZipMembers(archive=archive, members=members):
            return f"{archive}/{members[0]} to {members[-1]}" if members else archive
        case TarArchive(archive=path) | Video(path=path):
            return path
        case NotScored(omissions=omissions):
            return omissions[0].path


def summarise(
    output: Path,
    scores: ParquetScores,
    resumed: int,
    lost: list[Omission],
    interrupted: bool,
) -> BatchResult:
    """Count what is on disk, and list what could not be read."""
    scored = anomalous = 0
    with Failures(output) as failures:
        for part in scores.parts():
            for row in read_part(part):
                scored += 1
                anomalous += row.is_anomalous
            for omission in read_omissions(part):
                failures.add(omission)
        for omission in lost:
            failures.add(omission)
    return BatchResult(
        scored,
        anomalous,
        resumed,
        tuple(failures.listed),
        interrupted,
        failures.count,
        failures.skipped,
        tuple(failures.listed_skipped),
    )
