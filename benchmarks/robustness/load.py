"""Many clients at once against a live server: answers by status, waiting times, memory.

    python -m benchmarks.robustness.load --clients 32 --seconds 300
        --output benchmarks/results/load.json

Each client asks again as soon as it has its answer, and when told to wait (429, 503), waits as
long as it is told. Clients and server share the machine. Exits with 1 if there was any other
error, or if memory kept growing.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from benchmarks.robustness.live_service import PHOTOS, LiveService, live_service, make_detector
from metaformer.evaluation.aggregate import machine
from metaformer.evaluation.protocol import save_results

BUSY = (429, 503)
KINDS = ("none", "none", "png", "overlay")
MOST_IMAGES = 3
ANSWER_SECONDS = 120
GROWTH_ALLOWED = 0.05
"""Of the memory after the first third of the run, by its end."""


@dataclass
class Record:
    """What the clients saw; appended to from many threads."""

    answers: list[tuple[int, float, int]] = field(default_factory=list)
    """Status, seconds, images."""
    broken: Counter[str] = field(default_factory=Counter)
    """Requests without an answer, by kind of error."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Load on the service.")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", default="torch", help="of the server: torch, onnxruntime")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(
            Path(folder), options.clients, options.seconds, options.seed, options.engine
        )
    print(json.dumps({k: v for k, v in result.items() if k != "resident_megabytes"}, indent=2))
    if options.output:
        save_results(result, options.output)
    sys.exit(0 if result["passed"] else 1)


def measure(folder: Path, clients: int, seconds: float, seed: int, engine: str) -> dict[str, Any]:
    busy_before = os.getloadavg()[0]
    with live_service(folder / "store", "--engine", engine) as service:
        detector = make_detector(service.address)
        record = Record()
        ends = time.monotonic() + seconds
        threads = [
            threading.Thread(target=ask_until, args=(service, detector, ends, seed + i, record))
            for i in range(clients)
        ]
        for thread in threads:
            thread.start()
        memory = watch_memory(service, ends)
        for thread in threads:
            thread.join()
        elapsed = time.monotonic() - (ends - seconds)  # the last answers come after the end
        tracebacks = sum("Traceback" in line for line in service.log)
    statuses = Counter(status for status, _, _ in record.answers)
    good = sorted(spent for status, spent, _ in record.answers if status == 200)
    images = sum(number for status, _, number in record.answers if status == 200)
    growth = growth_of(memory)
    errors = sum(n for status, n in statuses.items() if status not in (200, *BUSY))
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "load_average_before": round(busy_before, 2),
        "versions": {
            name: version(name) for name in ("metaformer-ad", "torch", "fastapi", "uvicorn")
        },
        "engine": engine,
        "clients": clients,
        "seconds": seconds,
        "seed": seed,
        "requests": "1 to 3 photos of 640 x 640 pixels; half with a map or overlay",
        "statuses": {str(status): n for status, n in sorted(statuses.items())},
        "broken": dict(record.broken),
        "images_scored": images,
        "images_per_second": round(images / elapsed, 2),
        "seconds_p50": round(statistics.median(good), 3) if good else None,
        "seconds_p99": round(good[int(0.99 * (len(good) - 1))], 3) if good else None,
        "seconds_most": round(good[-1], 3) if good else None,
        "tracebacks_in_server_log": tracebacks,
        "memory_growth": growth,
        "passed": not errors and not record.broken and not tracebacks and growth <= GROWTH_ALLOWED,
        "resident_megabytes": memory,
    }


def ask_until(service: LiveService, detector: str, ends: float, seed: int, record: Record) -> None:
    """One client, on one connection, until ``ends`` on the clock of ``time.monotonic``."""
    rng = np.random.default_rng(seed)
    photos = [path.read_bytes() for path in sorted(PHOTOS.rglob("*.jpg"))]
    place = urlsplit(service.address)
    assert place.hostname is not None
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=ANSWER_SECONDS)
    while time.monotonic() < ends:
        number = int(rng.integers(1, MOST_IMAGES + 1))
        chosen = [photos[int(i)] for i in rng.integers(0, len(photos), number)]
        path = f"/api/detectors/{detector}/predict?map={rng.choice(KINDS)}"
        body, kind = multipart(chosen)
        started = time.monotonic()
        try:
            connection.request("POST", path, body, {"Content-Type": kind})
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException) as error:
            record.broken[type(error).__name__] += 1
            connection.close()
            continue
        record.answers.append((answer.status, time.monotonic() - started, number))
        if answer.status in BUSY:
            time.sleep(float(answer.headers.get("Retry-After", "1")))
    connection.close()


def multipart(photos: list[bytes]) -> tuple[bytes, str]:
    """A form with the photos, and its content type."""
    edge = "edge-of-a-part-in-this-form"
    head = 'Content-Disposition: form-data; name="images"; filename="photo.jpg"'
    parts = [f"--{edge}\r\n{head}\r\n\r\n".encode() + photo + b"\r\n" for photo in photos]
    return b"".join([*parts, f"--{edge}--\r\n".encode()]), f"multipart/form-data; boundary={edge}"


def watch_memory(service: LiveService, ends: float) -> list[float]:
    """Resident megabytes of the server, once a second."""
    memory = []
    while time.monotonic() < ends:
        memory.append(round(service.resident_megabytes(), 1))
        time.sleep(1)
    return memory


def growth_of(memory: list[float]) -> float:
    """Median of the last third over that of the middle third, minus one."""
    third = max(1, len(memory) // 3)
    before = statistics.median(memory[third : 2 * third] or memory)
    return round(statistics.median(memory[-third:]) / before - 1, 4)


if __name__ == "__main__":
    main()
