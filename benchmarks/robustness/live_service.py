"""A real ``metaformer serve`` in a process of its own, for fuzzing and load."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

import metaformer

PHOTOS = Path(metaformer.__file__).parent / "data" / "demo_images" / "circuit_board"
"""Bundled photos of circuit boards: ``template`` good ones, ``test`` with defects."""
START_SECONDS = 60


@dataclass(frozen=True)
class LiveService:
    """Where it listens, its process, and what it wrote to standard error."""

    address: str
    process: subprocess.Popen[str]
    log: list[str] = field(default_factory=list)

    def resident_megabytes(self) -> float:
        """Memory of the process now, by the kernel's account (Linux)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024


@contextmanager
def live_service(folder: Path, *options: str) -> Iterator[LiveService]:
    """Start it on a free port, wait until it answers, stop it at the end.

    Raises:
        RuntimeError: it did not start, or did not stop in good order.
    """
    command = [sys.executable, "-m", "metaformer.cli", "serve", "--folder", str(folder)]
    command += ["--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    stderr = process.stderr
    assert stderr is not None
    try:
        line = stderr.readline()
        while line and not line.startswith("serving"):
            line = stderr.readline()
        if not line:
            raise RuntimeError("the service did not start.")
        address = next(word for word in line.split() if word.startswith("http"))
        service = LiveService(address, process)
        # Read on, lest the service stops when the pipe is full.
        threading.Thread(target=lambda: service.log.extend(stderr), daemon=True).start()
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            try:
                httpx.get(f"{address}/health").raise_for_status()
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield service
        process.terminate()
        code = process.wait(60)
        if code != 0:
            raise RuntimeError(f"the service ended with exit code {code}.")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def make_detector(address: str, token: str | None = None, **fields: str) -> str:
    """Adapt to the good boards over HTTP; the id of the detector."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    fields = {"name": "board", **fields}
    with httpx.Client(base_url=address, timeout=60, headers=headers) as client:
        photos = sorted((PHOTOS / "template").glob("*.jpg"))
        files = [("images", (photo.name, photo.read_bytes())) for photo in photos]
        answer = client.post("/api/detectors", data=fields, files=files)
        answer.raise_for_status()
        job = answer.json()["job"]
        while job["state"] in ("waiting", "running"):
            time.sleep(0.1)
            job = client.get(f"/api/jobs/{job['id']}").json()
        if job["state"] != "done":
            raise RuntimeError(f"adapting failed: {job['error']}")
        detector_id: str = job["detector"]["id"]
        return detector_id
