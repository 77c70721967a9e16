"""A folder watched for new images: each is scored once, when it has stopped growing.

Entries, one JSON object each, by their ``event`` (``docs/watch.md`` has all fields):

* ``start``: a watch began, with which detector;
* ``score``: an image and its verdict;
* ``unreadable``: a file that was no image even after the time of grace;
* ``drift``: the scores have changed (``inference/drift.py``).

The record is all the state there is: it says what has been scored and what the drift test has seen.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from metaformer.data.datasets.truth import FolderTruth
from metaformer.detection.detector import Detector
from metaformer.inference.drift import DriftTest
from metaformer.inference.folder_poller import FileVersion, FolderPoller, current_version
from metaformer.inference.scores.json_lines import Record
from metaformer.inference.scores.rows import OutputFolderError
from metaformer.inference.webhook import Webhook
from metaformer.io.images import ImageError, read_image
from metaformer.io.omissions import SKIPPED, Omission
from metaformer.io.sources.naming import version_digest

LOOKING_SHARE = 0.2
"""Looking at a folder of very many files takes this share of the time at most."""

Entry = dict[str, Any]


@dataclass
class Watched:
    """Counts of a watch, of this run alone."""

    scored: int = 0
    anomalous: int = 0
    unreadable: int = 0
    drifts: int = 0
    known: int = 0
    """Images of earlier runs, in the record."""
    interrupted: bool = False


class Watch:
    """Scores what arrives in ``folder``.

    Args:
        record: where entries are written, and read from at the start.
        webhook: gets every entry but ``start``, too.
        recursive: sub-folders too.
        poll: seconds from one look to the next, at least.
        grace: seconds that a file may be unreadable before that is recorded.
        drift_rate: false drift warnings an image, on average at most; None for no test.
        on_entry: called with each entry when it has been recorded.
        tell: called with a line when the folder cannot be listed, and when it can again; and when
            the record is of another detector.

    Raises:
        ValueError: a time is not positive, or the rate is not in (0, 1).
    """

    def __init__(
        self,
        detector: Detector,
        folder: Path,
        record: Record,
        *,
        webhook: Webhook | None = None,
        recursive: bool = False,
        poll: float = 1.0,
        grace: float = 10.0,
        drift_rate: float | None = 1e-4,
        on_entry: Callable[[Entry], None] = lambda entry: None,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        if not poll > 0 or not grace >= 0:
            raise ValueError(
                f"poll must be above 0 seconds and grace not below, got {poll}, {grace}."
            )
        self.detector = detector
        self.folder = folder
        self.poll, self.grace = poll, grace
        self.result = Watched()
        self._record, self._webhook = record, webhook
        self._test = None if drift_rate is None else DriftTest(drift_rate)
        self._known: set[bytes] = set()  # about 80 bytes an image
        self._unreadable_since: dict[FileVersion, float] = {}
        self._poller = FolderPoller(folder, recursive, lambda a: a.digest in self._known)
        self._on_entry, self._tell = on_entry, tell
        self._truth = FolderTruth()

    def run(self, stop: threading.Event, *, once: bool = False) -> Watched:
        """Watch until ``stop`` is set, or with ``once`` until what is there has been scored.

        Raises:
            OutputFolderError: the record cannot be used.
            OSError: it cannot be written to; or the folder cannot be listed at the first look.
        """
        with self._record as record:
            self._replay()
            start = {"event": "start", "detector": fingerprint(self.detector), "time": now()}
            record.write(start)
            self._on_entry(start)
            self._warn_of_drift()  # a kill may have come between a score and its warning
            is_first, is_listed = True, True
            while not stop.is_set():
                began = time.monotonic()
                settled = []
                try:
                    settled = self._poller.poll()
                    if not is_listed:
                        self._tell(f"{self.folder}: there again.")
                    is_listed = True
                except OSError as error:
                    if is_first or once:
                        raise
                    if is_listed:
                        self._tell(f"{error} Trying again.")
                    is_listed = False
                is_first = False
                there = self._unreadable_since.keys() & set(settled)
                self._unreadable_since = {a: self._unreadable_since[a] for a in there}
                pause = max(self.poll, (time.monotonic() - began) / LOOKING_SHARE)
                unfinished = self._poller.unsettled
                for version in settled:
                    if stop.is_set():
                        break
                    unfinished += not self._score(version)
                if once and not unfinished and not stop.is_set():
                    return self.result
                stop.wait(pause)
        self.result.interrupted = True
        return self.result

    def _replay(self) -> None:
        """Take up what earlier runs have recorded."""
        detector: Any = None
        for entry in self._record.read():
            try:
                detector = self._replay_entry(entry, detector)
            except (KeyError, TypeError) as error:
                raise OutputFolderError(
                    f"the record has a line that this program did not write, {json.dumps(entry)} "
                    f"({error!r}). Choose another file, or remove that line."
                ) from error
        if detector in (None, fingerprint(self.detector)):
            return
        if self._test is not None:
            self._test.restart()
        if self.result.known:
            self._tell(
                f"the record is of another detector: its {self.result.known} images are not scored "
                f"again. Choose another file to score them by this one."
            )

    def _replay_entry(self, entry: dict[str, Any], detector: Any) -> Any:
        """Take up one entry; the detector of the run that it belongs to."""
        if entry["event"] in ("score", "unreadable"):
            self._known.add(version_digest(entry["path"], entry["size"], entry["mtime_ns"]))
            self.result.known += 1
        if entry["event"] == "start":
            if self._test is not None and detector not in (None, entry["detector"]):
                self._test.restart()  # scores of two detectors cannot be compared
            return entry["detector"]
        if self._test is not None and entry["event"] == "score":
            self._test.update(entry["raw_score"])
        elif self._test is not None and entry["event"] == "drift":
            self._test.restart()
        return detector

    def _score(self, version: FileVersion) -> bool:
        """Score one settled file; False if it is left for another look."""
        if version.omission is not None:
            self._omit(version, version.omission)
            return True
        try:
            pixels = read_image(version.path, white_level=self.detector.provenance["white_level"])
        except ImageError as error:
            if current_version(version.path, version.name) != version:
                return False  # gone, or still being written
            since = self._unreadable_since.setdefault(version, time.monotonic())
            if time.monotonic() - since < self.grace:
                return False
            self.result.unreadable += 1
            self._finish(version, {"event": "unreadable", "reason": error.reason})
            return True
        if current_version(version.path, version.name) != version:
            return False  # what was read may be half of one version and half of another
        prediction = self.detector.predict_pixels(pixels, version.name)
        truth = self._truth(version.path)
        self.result.scored += 1
        self.result.anomalous += prediction.is_anomalous
        kind = self.detector.calibration.p_value_kind
        entry = {"event": "score", **prediction.to_dict(), "p_value_kind": kind}
        self._finish(version, entry | ({} if truth is None else {"truth": truth.kind}))
        if self._test is not None:
            self._test.update(prediction.raw_score)
            self._warn_of_drift()
        return True

    def _omit(self, version: FileVersion, omission: Omission) -> None:
        if omission.category == SKIPPED:
            self._known.add(version.digest)
            self._tell(f"skipped: {version.name}: {omission.reason}")
            return
        self.result.unreadable += 1
        self._finish(version, {"event": "unreadable", "reason": omission.reason})

    def _finish(self, version: FileVersion, entry: Entry) -> None:
        identity = {"path": version.name, "size": version.size, "mtime_ns": version.mtime_ns}
        self._write({"event": entry["event"], **identity, "time": now(), **entry})
        self._known.add(version.digest)

    def _warn_of_drift(self) -> None:
        if self._test is None or (drift := self._test.drift) is None:
            return
        move = "risen" if drift.direction == "up" else "fallen"
        message = (
            f"the scores have {move}, about {drift.since} images ago: median raw score "
            f"{drift.before:.4g} before, {drift.after:.4g} since. Look at light, lens, camera and "
            f"material; the threshold may not hold any more."
        )
        self._test.restart()
        self.result.drifts += 1
        self._write(
            {
                "event": "drift",
                "time": now(),
                "rate": self._test.rate,
                "direction": drift.direction,
                "images": drift.images,
                "since": drift.since,
                "median_before": drift.before,
                "median_after": drift.after,
                "message": message,
            }
        )

    def _write(self, entry: Entry) -> None:
        self._record.write(entry)
        if self._webhook is not None:
            self._webhook.post(entry)
        self._on_entry(entry)


def fingerprint(detector: Detector) -> str:
    """Digest of what raw scores depend on: the detector's provenance, without its threshold."""
    _, settings = detector.adapted.state()
    return hashlib.sha256(
        json.dumps([detector.provenance, settings], sort_keys=True).encode()
    ).hexdigest()


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
