"""Detectors kept in a folder: one file each, whole or not there, whatever ends the program.

A file is written beside its place, forced to the disk, then renamed. What a killed program left
half-written is removed at the next start. The folder belongs to one server at a time.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import secrets
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Literal

from safetensors import SafetensorError, safe_open

from metaformer.detection.detector import Detector
from metaformer.detection.detector_file import DetectorFileError
from metaformer.detection.scoring.calibration import Calibration, guarantee_of
from metaformer.io.atomic_files import force_to_disk
from metaformer.io.locking import one_writer
from metaformer.serve.http.schemas import DetectorSummary

ServeEngine = Literal["auto", "torch", "onnxruntime"]
ID = re.compile(r"[0-9a-f]{32}")
SUFFIX = ".metaformer"
INCOMING = ".incoming-"
"""Start of the names of all that is not finished; swept at start."""
LOCK = ".lock"


class StoreError(ValueError):
    """The folder cannot be used; the message says why and what to do."""


class NoSuchDetectorError(LookupError):
    """No detector has this id."""


class StoreFullError(ValueError):
    """The store holds as many detectors as it may."""


def new_id() -> str:
    """32 random hex digits: the only names that files in the store get."""
    return secrets.token_hex(16)


class DetectorStore:
    """The folder, an index of what is in it, and the detectors used last in memory.

    Safe to use from several threads; detectors are never changed once made.

    Args:
        folder: made if it is not there; nothing else should be kept in it.
        most: detectors the folder may hold.
        loaded: detectors held in memory.
        engine: what computes; see ``computed_by``.

    Raises:
        StoreError: another server uses the folder.
        OSError: the folder cannot be made or written to.
    """

    def __init__(
        self, folder: Path, *, most: int, loaded: int, engine: ServeEngine = "auto"
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.most = most
        self.loaded = loaded
        self.engine = engine
        self.unreadable: list[str] = []
        """Files in the folder that are no detectors, with the reason."""
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self._changing = threading.Lock()
        self._index: dict[str, DetectorSummary] = {}
        self._memory: OrderedDict[str, Detector] = OrderedDict()
        self._claim = ExitStack()
        self._claim.enter_context(
            one_writer(
                folder / LOCK,
                StoreError(
                    f"{folder}: another server uses this folder. Stop it, or choose another folder."
                ),
            )
        )
        self._sweep()
        self._read_folder()

    def close(self) -> None:
        """Let another server use the folder."""
        self._claim.close()

    def _sweep(self) -> None:
        # The second kind is what the atomic writing of one of the first leaves when killed, the
        # third what that of a file of marks leaves.
        for pattern in (f"{INCOMING}*", f".{INCOMING}*", ".*.marks.*"):
            for left in self.folder.glob(pattern):
                if left.is_dir() and not left.is_symlink():
                    shutil.rmtree(left)
                else:
                    left.unlink()

    def _read_folder(self) -> None:
        for path in self.folder.glob(f"*{SUFFIX}"):
            if not ID.fullmatch(path.stem):
                continue
            try:
                self._index[path.stem] = read_summary(path)
            except (DetectorFileError, OSError) as error:
                self.unreadable.append(str(error))

    def __len__(self) -> int:
        with self._lock:
            return len(self._index)

    def summaries(self) -> list[DetectorSummary]:
        """Newest first."""
        with self._lock:
            return sorted(self._index.values(), key=lambda d: (d.made, d.id), reverse=True)

    def summary(self, id: str) -> DetectorSummary:
        """Raises: NoSuchDetectorError: no detector has this id."""
        with self._lock:
            if id not in self._index:
                raise NoSuchDetectorError(f"no detector has the id {id}.")
            return self._index[id]

    def name_of(self, id: str) -> str | None:
        """The product's name; None if there is no detector with this id."""
        with self._lock:
            found = self._index.get(id)
        return None if found is None else found.name

    def is_full(self) -> bool:
        return len(self) >= self.most

    def add(self, detector: Detector, name: str, id: str | None = None) -> DetectorSummary:
        """Keep a detector under ``name``; when this returns it is on the disk.

        Raises:
            StoreFullError: there are as many detectors as there may be.
            OSError: the file cannot be written.
        """
        if self.is_full():
            raise StoreFullError(f"the store holds {self.most} detectors. Delete one first.")
        return self._write(id or new_id(), detector, name, is_new=True)

    def _write(self, id: str, detector: Detector, name: str, *, is_new: bool) -> DetectorSummary:
        named = copy.copy(detector)
        named.provenance = {**detector.provenance, "name": name}
        incoming = self.folder / f"{INCOMING}{new_id()}{SUFFIX}"
        try:
            named.save(incoming)
            force_to_disk(incoming)
            ready = computed_by(named, self.engine)
            # Not while ``get`` loads: it would remember the file that is being replaced.
            with self._loading:
                if not is_new:
                    self.summary(id)  # it may have been deleted meanwhile
                incoming.replace(self._path(id))
                summary = read_summary(self._path(id))
                with self._lock:
                    self._index[id] = summary
                    self._remember(id, ready)
        finally:
            incoming.unlink(missing_ok=True)
        force_to_disk(self.folder)
        return summary

    def take_in(self, path: Path) -> DetectorSummary:
        """Copy a detector file into the store; its id is a hash of its content, so only once.

        Raises: as ``Detector.load`` and ``add``.
        """
        detector = Detector.load(path)
        id = hashlib.sha256(path.read_bytes()).hexdigest()[:32]
        with self._lock:
            if id in self._index:
                return self._index[id]
        return self.add(detector, str(detector.provenance.get("name") or path.stem), id)

    def get(self, id: str) -> Detector:
        """The detector, from memory or from its file.

        Raises:
            NoSuchDetectorError: no detector has this id.
            DetectorFileError: its file is damaged.
        """
        with self._lock:
            if id in self._memory:
                self._memory.move_to_end(id)
                return self._memory[id]
        # One at a time: many requests for the same detector must not load it many times over.
        with self._loading:
            self.summary(id)
            with self._lock:
                if id in self._memory:
                    return self._memory[id]
            try:
                detector = computed_by(Detector.load(self._path(id)), self.engine)
            except FileNotFoundError:
                raise NoSuchDetectorError(f"no detector has the id {id}.") from None
            with self._lock:
                if id in self._index:  # it may have been deleted meanwhile
                    self._remember(id, detector)
            return detector

    def open(self, id: str) -> BinaryIO:
        """Its file, open for reading; deleting the detector does not disturb the reader.

        Raises: NoSuchDetectorError: no detector has this id.
        """
        self.summary(id)
        try:
            return self._path(id).open("rb")
        except FileNotFoundError:
            raise NoSuchDetectorError(f"no detector has the id {id}.") from None

    def delete(self, id: str) -> None:
        """Raises: NoSuchDetectorError: no detector has this id."""
        with self._loading:  # not while a change of it moves its file into place
            self.summary(id)
            self._path(id).unlink(missing_ok=True)
            with self._lock:
                self._index.pop(id, None)
                self._memory.pop(id, None)
        force_to_disk(self.folder)

    def change(self, id: str, change: Callable[[Detector], Detector]) -> DetectorSummary:
        """Put another detector in the place of the one with this id, under the same name.

        One change at a time, each of the detector that the one before has left.

        Args:
            id: of the detector.
            change: makes the new detector from the one kept now; should be quick.

        Raises:
            NoSuchDetectorError: no detector has this id.
            OSError: the file cannot be written.
        """
        with self._changing:
            changed = change(self.get(id))
            return self._write(id, changed, self.summary(id).name, is_new=False)

    def upload_folder(self) -> Path:
        """A new folder for files on their way in; swept at start if nobody removes it before."""
        folder = self.folder / f"{INCOMING}{new_id()}"
        folder.mkdir()
        return folder

    def _remember(self, id: str, detector: Detector) -> None:
        self._memory[id] = detector
        self._memory.move_to_end(id)
        while len(self._memory) > self.loaded:
            self._memory.popitem(last=False)

    def _path(self, id: str) -> Path:
        if not ID.fullmatch(id):
            raise NoSuchDetectorError("no detector has an id like this.")
        return self.folder / f"{id}{SUFFIX}"


def computed_by(detector: Detector, engine: ServeEngine) -> Detector:
    """The same detector, computed by ``engine``, or by PyTorch if it cannot leave it.

    ``auto`` is ONNX Runtime, and PyTorch whatever goes wrong with it.

    OpenVINO is not offered: it would score one image at a time, whatever the number of workers.

    Raises:
        MissingExtraError: the engine is not installed.
        EngineError: its results are not PyTorch's.
    """
    from metaformer.detection.engines.graph import UnsupportedExportError
    from metaformer.export.backends import with_engine

    try:
        return with_engine(detector, engine)
    except UnsupportedExportError:
        return detector


def read_summary(path: Path) -> DetectorSummary:
    """Summary of a detector from the header of its file.

    Raises:
        DetectorFileError: not a detector file, or damaged.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {})["metaformer"])
        provenance, calibration = header["made"], Calibration.from_dict(header["calibration"])
        return DetectorSummary(
            id=path.stem,
            name=str(provenance.get("name") or path.stem),
            preset=provenance["preset"],
            made=provenance["made"],
            support_count=len(provenance["support"]),
            false_alarm_rate=calibration.false_alarm_rate,
            threshold=calibration.threshold,
            guarantee=guarantee_of(calibration, provenance.get("additions", [])),
            bytes=path.stat().st_size,
        )
    except (SafetensorError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise DetectorFileError(
            f"{path}: not a readable detector file ({error!r}). Remove it from the folder."
        ) from error
