"""A service over small detectors, for the tests: in this process, or in one of its own."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from PIL import Image

from metaformer.serve.app import create_app
from metaformer.serve.http.limits import Limits
from tests.helpers import boards

File = tuple[str, tuple[str, bytes]]


@contextmanager
def client(folder: Path, *, limits: Limits | None = None, **options: Any) -> Iterator[TestClient]:
    """The real application, spoken to without a socket."""
    app = create_app(folder, limits=limits, workers=options.pop("workers", 2), **options)
    with TestClient(app, raise_server_exceptions=False) as found:
        yield found


@contextmanager
def server(folder: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """``metaformer serve`` in a process of its own: its address, and the process."""
    command = [sys.executable, "-m", "metaformer.cli", "serve", "--folder", str(folder)]
    process = subprocess.Popen(
        [*command, "--port", "0", *options],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        line = next(line for line in lines if line.startswith("serving"))
        address = next(word for word in line.split() if word.startswith("http"))
        for _ in range(100):
            try:
                httpx.get(f"{address}/health")
                break
            except httpx.TransportError:
                time.sleep(0.05)
        yield address, process
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def png(pixels: NDArray[np.uint8]) -> bytes:
    return encoded(Image.fromarray(pixels), "PNG")


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


def good(count: int, seed: int = 0) -> list[File]:
    """Uploads of good specimens."""
    return [("images", (f"{i}.png", png(boards.good(seed + i)))) for i in range(count)]


def images(*contents: bytes) -> list[File]:
    return [("images", (f"{i}.png", content)) for i, content in enumerate(contents)]


def wait_for(http: httpx.Client, job: dict[str, Any], seconds: float = 60) -> dict[str, Any]:
    """The job when it is over."""
    ends = time.monotonic() + seconds
    while job["state"] in ("waiting", "running"):
        assert time.monotonic() < ends, job
        time.sleep(0.02)
        job = http.get(f"/api/jobs/{job['id']}").json()
    return job


def adapt(http: httpx.Client, count: int = 3, files: Any = None, **fields: str) -> dict[str, Any]:
    """A detector made over HTTP, by the way a page would."""
    data = {"name": "board", "resolution": str(boards.RESOLUTION), **fields}
    answer = http.post("/api/detectors", data=data, files=files or good(count))
    assert answer.status_code == 202, answer.text
    job = wait_for(http, answer.json()["job"])
    assert job["state"] == "done", job
    detector: dict[str, Any] = job["detector"]
    return detector
