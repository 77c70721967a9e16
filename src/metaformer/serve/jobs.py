"""Adapting in the background: one job at a time, a few waiting, the last ones remembered."""

from __future__ import annotations

import shutil
import threading
import traceback
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from metaformer.detection.detector import Detector
from metaformer.detection.metaformer import Metaformer
from metaformer.detection.support.support_set import SupportRecord
from metaformer.io.images import ImageError, read_image
from metaformer.serve.http.limits import Limits
from metaformer.serve.http.schemas import AdaptRequest, DetectorSummary, Job
from metaformer.serve.http.uploads import Upload
from metaformer.serve.store import DetectorStore, NoSuchDetectorError, StoreFullError, new_id

REMEMBERED = 200
"""Jobs that can still be asked for; the oldest finished ones are forgotten."""

STOP_SECONDS = 5
"""What a running job has to come to its next step when the server stops."""


OnStep = Callable[[int, int], None]


class TooManyJobsError(RuntimeError):
    """The queue of adaptations is full."""


class NothingToAddError(ValueError):
    """The images add nothing to the detector; the message says why."""


class Stopped(Exception):
    """The server stops while a job runs."""


@dataclass(frozen=True)
class Addition:
    """More good images for a detector."""

    detector: str
    """Its id."""
    white_level: int | None = None


class Adaptations:
    """Turns uploads into detectors in the store."""

    def __init__(self, store: DetectorStore, limits: Limits) -> None:
        self.store = store
        self.limits = limits
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._todo: SimpleQueue[Callable[[], None]] = SimpleQueue()
        # Not of a pool: those are waited for when the program ends, and one step of a job at a high
        # resolution can take minutes.
        self._thread = threading.Thread(target=self._work, name="adapt", daemon=True)
        self._thread.start()

    def stop(self, seconds: float = STOP_SECONDS) -> bool:
        """Waiting jobs are dropped, a running one ends at its next step.

        Returns:
            Whether none is running any more; False if its step takes longer than ``seconds``.
        """
        self._stopping.set()
        self._todo.put(lambda: None)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while not self._stopping.is_set():
            self._todo.get()()

    def get(self, id: str) -> Job | None:
        """A job as it stands now."""
        with self._lock:
            job = self._jobs.get(id)
            return job.model_copy() if job else None

    def counts(self) -> dict[str, int]:
        """Remembered jobs by state."""
        with self._lock:
            states = [job.state for job in self._jobs.values()]
        return {state: states.count(state) for state in ("waiting", "running", "done", "failed")}

    def check_room(self) -> None:
        """Raises: TooManyJobsError: as many jobs wait as may."""
        waiting = self.counts()["waiting"]
        if waiting >= self.limits.jobs:
            raise TooManyJobsError(f"{waiting} adaptations are waiting. Try again later.")

    def submit(self, request: AdaptRequest | Addition, uploads: Sequence[Upload]) -> Job:
        """Check the images and take the job on. Called from a worker thread.

        Args:
            request: what to adapt, or which detector to extend with the images.

        Raises:
            TooManyJobsError: as many jobs wait as may.
            ImageError: an image cannot be read; its path is the name of the upload.
            OSError: the images cannot be stored.
        """
        self.check_room()
        folder = self.store.upload_folder()
        try:
            paths = [folder / f"{i:04d}" for i in range(len(uploads))]
            for path, upload in zip(paths, uploads, strict=True):
                path.write_bytes(upload.read())
                try:
                    read_image(path, max_pixels=self.limits.pixels)
                except ImageError as error:
                    raise ImageError(upload.name, error.reason) from None
            job = Job(id=new_id(), state="waiting", done=0, total=0)
            if isinstance(request, Addition):
                job.kind = "extend"
            with self._lock:
                self._jobs[job.id] = job
                self._forget()
            names = [upload.name for upload in uploads]
            self._todo.put(partial(self._run, job, request, folder, paths, names))
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return job.model_copy()

    def _run(
        self,
        job: Job,
        request: AdaptRequest | Addition,
        folder: Path,
        paths: list[Path],
        names: list[str],
    ) -> None:
        def on_step(done: int, total: int) -> None:
            if self._stopping.is_set():
                raise Stopped
            self._update(job, done=done, total=total)

        try:
            self._update(job, state="running")
            if isinstance(request, Addition):
                warnings, summary = self._extend(request, paths, names, on_step)
            else:
                warnings, summary = self._adapt(request, paths, names, on_step)
            self._update(job, state="done", detector=summary, warnings=warnings)
        except Stopped:
            self._update(job, state="failed", error="the server was stopped.")
        except (StoreFullError, NoSuchDetectorError, NothingToAddError) as error:
            self._update(job, state="failed", error=str(error))
        except OSError as error:
            self._update(job, state="failed", error=f"cannot be stored ({error.strerror}).")
        except Exception as error:
            # A job has no caller to raise to: the client is told, the log has the whole.
            traceback.print_exc()
            self._update(job, state="failed", error=f"{type(error).__name__} while adapting.")
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _adapt(
        self, request: AdaptRequest, paths: list[Path], names: list[str], on_step: OnStep
    ) -> tuple[list[str], DetectorSummary]:
        universal = Metaformer.from_pretrained(
            request.preset, resolution=request.resolution, aligned=request.aligned
        )
        detector = universal.adapt(
            paths,
            false_alarm_rate=request.false_alarm_rate,
            white_level=request.white_level,
            on_step=on_step,
        )
        left_out = name_support(detector, 0, paths, names)
        return [*left_out, *doubts(detector)], self.store.add(detector, request.name)

    def _extend(
        self, request: Addition, paths: list[Path], names: list[str], on_step: OnStep
    ) -> tuple[list[str], DetectorSummary]:
        id = request.detector
        before = self.store.get(id)
        try:
            detector = before.extended_with(paths, white_level=request.white_level, on_step=on_step)
        except ValueError as error:  # all are known already, or the white level is another
            raise NothingToAddError(str(error)) from error
        left_out = name_support(detector, len(before.provenance["support"]), paths, names)

        def at_the_present_rate(now: Detector) -> Detector:  # it may have been changed meanwhile
            rate = now.calibration.false_alarm_rate
            if rate == detector.calibration.false_alarm_rate:
                return detector
            return detector.with_false_alarm_rate(rate)

        summary = self.store.change(id, at_the_present_rate)
        return [*left_out, *doubts(self.store.get(id))], summary

    def _update(self, job: Job, **changes: Any) -> None:
        with self._lock:
            for field, value in changes.items():
                setattr(job, field, value)

    def _forget(self) -> None:
        finished = [id for id, job in self._jobs.items() if job.state in ("done", "failed")]
        for id in finished[: max(0, len(self._jobs) - REMEMBERED)]:
            del self._jobs[id]


def name_support(detector: Detector, first: int, paths: list[Path], names: list[str]) -> list[str]:
    """Call the support images from ``first`` on by the names of their uploads, not of their files.

    Returns:
        A warning that names the uploads left out as copies, if there are any.
    """
    support = detector.provenance["support"]
    taken = set()
    for image in support[first:]:
        index = int(image["name"])  # the files of uploads are named by number
        taken.add(index)
        image["name"] = names[index]
    # Python's warning about copies has the names of the files, and is of all threads.
    record = SupportRecord(support)
    for index in sorted(set(range(len(paths))) - taken):
        pixels = read_image(paths[index], white_level=detector.provenance["white_level"])
        record.take_in(names[index], pixels)
    if not record.copies:
        return []
    return [
        f"Left out, because the same photo is among the good ones already: "
        f"{', '.join(record.copies)}. Copies say nothing about other parts."
    ]


def doubts(detector: Detector) -> list[str]:
    """Warnings for the user: outliers among the support images, an uncertain threshold."""
    scores = detector.provenance["support_scores"]
    names = [support["name"] for support in detector.provenance["support"]]
    odd = [
        f"{names[score['index']]} looks unlike the other images. Look at it; adapt again without "
        f"it if it shows a defect or another product."
        for score in scores
        if score["is_odd"]
    ]
    if detector.calibration.rule != "rank":
        odd.append(detector.guarantee)
    return odd
