"""Nonsense into the service and into ``predict``: no crash, no hang, no 5xx.

    pip install schemathesis
    python -m benchmarks.robustness.fuzz --output benchmarks/results/fuzz.json

* schemathesis against the OpenAPI document of a live server, with every check it has;
* damaged image files through ``metaformer predict``, in a process of its own;
* the same files, one by one, through the live server, whose scores must be the same.

Exits with 1 if anything went wrong.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from benchmarks.robustness.live_service import PHOTOS, LiveService, live_service, make_detector
from benchmarks.robustness.mutations import MUTATIONS, mutated_files, sound_files
from metaformer.detection.detector import Detector
from metaformer.evaluation.aggregate import machine
from metaformer.evaluation.protocol import save_results
from metaformer.io.pixels import ImageError

PACKAGES = (
    *("metaformer-ad", "pillow", "opencv-python-headless", "torch"),
    *("fastapi", "starlette", "uvicorn", "python-multipart", "schemathesis"),
)
NOT_CHECKED = "ensure_resource_availability"
"""It takes the id in the answer to POST /api/detectors for a detector's; it is that of a job."""
TOKEN = "a-token-for-fuzzing"
HANG_SECONDS = 20
"""No small image takes this long."""
MOST_SCORED = 3
"""Exit code of ``predict`` when some images could not be read."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Fuzz the service and predict.")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--examples", type=int, default=100, help="per operation")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = fuzz(Path(folder), options.files, options.examples, options.seed)
    print(json.dumps(result, indent=2))
    if options.output:
        save_results(result, options.output)
    sys.exit(0 if result["passed"] else 1)


def fuzz(folder: Path, files: int, examples: int, seed: int) -> dict[str, Any]:
    photo = Image.open(sorted((PHOTOS / "test").glob("*.jpg"))[0])
    sound = sound_files(photo)
    damaged = dict(mutated_files(sound, files, np.random.default_rng(seed)))
    options = ("--token", TOKEN, "--max-resolution", "128")
    with live_service(folder / "store", *options) as service:
        detector = make_detector(service.address, TOKEN, resolution="96")
        save_file(service, detector, folder / "board.metaformer")
        predicted, scores = through_predict(folder, damaged)
        served = through_service(service, detector, damaged, scores, folder)
        document = through_document(service, examples, seed, folder)
        log = "".join(service.log)
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "seed": seed,
        "machine": machine(),
        "versions": {name: version(name) for name in PACKAGES},
        "kinds_of_file": list(sound),
        "mutations": [mutate.__name__ for mutate in MUTATIONS],
        "predict": predicted,
        "service": served,
        "openapi": document,
        "tracebacks_in_server_log": log.count("Traceback"),
    }
    result["passed"] = (
        predicted["passed"]
        and served["passed"]
        and document["passed"]
        and not result["tracebacks_in_server_log"]
    )
    if not result["passed"]:
        print(log[-5000:], file=sys.stderr)
    return result


def save_file(service: LiveService, detector: str, path: Path) -> None:
    answer = httpx.get(
        f"{service.address}/api/detectors/{detector}/file",
        headers={"Authorization": f"Bearer {TOKEN}"},
    )
    path.write_bytes(answer.raise_for_status().content)


def through_predict(
    folder: Path, damaged: dict[str, bytes]
) -> tuple[dict[str, Any], dict[str, str]]:
    """``metaformer predict`` on all files; the result, and the scores by name."""
    photos = folder / "photos"
    photos.mkdir()
    for name, data in damaged.items():
        (photos / name).write_bytes(data)
    command = [sys.executable, "-m", "metaformer.cli", "predict", str(folder / "board.metaformer")]
    command += [str(photos), "-o", str(folder / "out"), "--quiet", "--engine", "torch"]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    with (folder / "out" / "scores.csv").open(newline="") as file:
        scores = {Path(row["path"]).name: row["raw_score"] for row in csv.DictReader(file)}
    failures = folder / "out" / "failures.csv"
    with failures.open(newline="") as file:
        unreadable = sum(1 for _ in csv.DictReader(file))
    # One line for each file that is not read; the others are libtiff talking to the terminal.
    others = [line for line in done.stderr.splitlines() if not line.startswith("not scored: ")]
    crashed = any("Traceback" in line for line in others)
    result = {
        "files": len(damaged),
        "scored": len(scores),
        "refused": unreadable,
        "exit_code": done.returncode,
        "seconds": round(time.monotonic() - started, 1),
        "other_lines_on_stderr": len(others),
        "passed": done.returncode == MOST_SCORED
        and len(scores) + unreadable == len(damaged)
        and not crashed,
    }
    return result, scores


def through_service(
    service: LiveService,
    detector: str,
    damaged: dict[str, bytes],
    scores: dict[str, str],
    folder: Path,
) -> dict[str, Any]:
    """Each file in a request of its own; what ``predict`` scored must get the same score."""
    statuses: Counter[str] = Counter()
    different: list[str] = []
    by_path_only: list[str] = []
    slowest = 0.0
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with httpx.Client(base_url=service.address, timeout=HANG_SECONDS, headers=headers) as client:
        for number, (name, data) in enumerate(damaged.items()):
            kind = ("none", "png", "overlay")[number % 3]
            started = time.monotonic()
            try:
                answer = client.post(
                    f"/api/detectors/{detector}/predict?map={kind}", files={"images": (name, data)}
                )
            except httpx.HTTPError as error:
                statuses[type(error).__name__] += 1
                continue
            slowest = max(slowest, time.monotonic() - started)
            statuses[str(answer.status_code)] += 1
            found = None
            if answer.status_code == 200:
                found = f"{answer.json()['predictions'][0]['raw_score']:.8g}"
            if found != scores.get(name):
                own = predict_bytes(folder / "board.metaformer", data)
                (by_path_only if found == own else different).append(name)
    return {
        "files": len(damaged),
        "statuses": dict(sorted(statuses.items())),
        "slowest_seconds": round(slowest, 3),
        "other_than_predict": different,
        # Damaged TIFFs that libtiff decodes otherwise from a file than from memory.
        "as_predict_on_bytes_but_not_on_the_file": by_path_only,
        "passed": set(statuses) <= {"200", "422"} and not different,
    }


def predict_bytes(detector: Path, data: bytes) -> str | None:
    """The raw score of one file by the library, None if it is refused."""
    try:
        return f"{Detector.load(detector).predict(data).raw_score:.8g}"
    except ImageError:
        return None


def through_document(
    service: LiveService, examples: int, seed: int, folder: Path
) -> dict[str, Any]:
    """schemathesis with all its checks."""
    command = [str(Path(sys.executable).parent / "schemathesis"), "run"]
    command += [f"{service.address}/openapi.json", "--checks", "all", "--seed", str(seed)]
    command += ["--exclude-checks", NOT_CHECKED]
    command += ["--max-examples", str(examples), "--continue-on-failure", "--no-color"]
    command += ["--header", f"Authorization: Bearer {TOKEN}", "--request-timeout", "60"]
    command += ["--report", "json", "--report-dir", str(folder / "report")]
    environment = {
        **os.environ,
        "SCHEMATHESIS_HOOKS": "benchmarks.robustness.fuzz_hooks",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    done = subprocess.run(
        command,
        cwd=folder,  # it leaves files where it runs
        capture_output=True,
        text=True,
        errors="replace",
        env=environment,
        timeout=1800,
    )
    reports = list((folder / "report").glob("*.json"))
    if not reports:
        print(done.stdout[-3000:], done.stderr[-3000:], file=sys.stderr)
        return {"exit_code": done.returncode, "passed": False}
    report = json.loads(reports[0].read_text())
    if done.returncode != 0:
        short = [line[:300] for line in done.stdout.splitlines()]  # without whole images
        print("\n".join(short[-150:]), file=sys.stderr)
    return {
        "operations": report["operations"]["tested"],
        "checks": f"all but {NOT_CHECKED}",
        "examples_an_operation": examples,
        "requests": report["test_cases"]["generated"],
        "failures": report["failures"],
        "seconds": round(report["running_time"], 1),
        "exit_code": done.returncode,
        "passed": done.returncode == 0,
    }


if __name__ == "__main__":
    main()
