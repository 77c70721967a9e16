"""The time of one image and of adapting to ten, against an earlier commit of this project.

    python -m benchmarks.speed.earlier DATA --commit b0aaa7d --output earlier.json

Both run in processes of their own, in turn, each as a user gets it from Python: ``adapt`` and
``predict_pixels``. With one thread processor time counts, with two the clock on the wall.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

from metaformer.evaluation.aggregate import machine
from metaformer.io.atomic_files import write_text

SETS = ("cookie", "mvtec_bottle", "magnetic_tile", "bsdata")
ROUNDS, IMAGES = 3, 20
PROGRAM = """
import json, statistics, sys, time
from pathlib import Path
import cv2, torch
from metaformer import Metaformer
try:
    from metaformer.io.images import read_image
except ImportError:
    from metaformer.images import read_image
support, tests, threads = json.loads(sys.argv[1])
torch.set_num_threads(threads)
cv2.setNumThreads(threads)
clock = time.process_time if threads == 1 else time.perf_counter
universal = Metaformer.from_pretrained()
started = clock()
detector = universal.adapt([Path(path) for path in support])
adapting = clock() - started
seconds = []
images = [read_image(Path(path)) for path in tests]
for round in range(3):
    for image in images:
        started = clock()
        detector.predict_pixels(image)
        if round:
            seconds.append(clock() - started)
print(json.dumps([adapting, statistics.median(seconds)]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Time against an earlier commit.")
    parser.add_argument("data", type=Path)
    parser.add_argument("--commit", default="b0aaa7d")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    root = Path(__file__).parents[2]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.check_output(["git", "archive", options.commit, "src"], cwd=root)
        with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
            packed.extractall(folder, filter="data")
        sources = {"earlier": Path(folder) / "src", "now": root / "src"}
        for threads in (1, 2):
            for name in SETS:
                found = [
                    {
                        which: run(path, options.data / name, threads)
                        for which, path in sources.items()
                    }
                    for _ in range(ROUNDS)
                ]
                rows.append({"data": name, "threads": threads, "rounds": found})
                print(rows[-1], flush=True)
    content = {"date": date.today().isoformat(), "machine": machine(), "commit": options.commit}
    write_text(options.output, json.dumps({**content, "rows": rows}, indent=1) + "\n")
    lines = [
        f"Milliseconds, median of {ROUNDS} rounds, 10 support images; earlier is {options.commit}.",
        "",
        "| set | threads | an image, earlier | now | ratio | adapting, earlier | now | ratio |",
        "|---" * 8 + "|",
        *map(line, rows),
    ]
    write_text(options.output.with_suffix(".md"), "\n".join(lines) + "\n")


def line(row: dict[str, Any]) -> str:
    """Of the table: a set on so many threads."""
    cells = [row["data"], str(row["threads"])]
    for place in (1, 0):
        before, now = (
            [1e3 * each[which][place] for each in row["rounds"]] for which in ("earlier", "now")
        )
        ratio = statistics.median(b / a for a, b in zip(before, now, strict=True))
        cells += [f"{statistics.median(t):.0f}" for t in (before, now)] + [f"{ratio:.2f}"]
    return "| " + " | ".join(cells) + " |"


def run(source: Path, data: Path, threads: int) -> list[float]:
    """Seconds of adapting and of an image."""
    support = sorted((data / "train" / "good").iterdir())[:10]
    tests = sorted(p for p in (data / "test").rglob("*") if p.suffix in (".jpg", ".png"))[:IMAGES]
    given = json.dumps([[*map(str, support)], [*map(str, tests)], threads])
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, given]
    with tempfile.TemporaryDirectory() as elsewhere:  # not this project's folder, which comes first
        answer = subprocess.check_output(command, env=environment, cwd=elsewhere, text=True)
    seconds: list[float] = json.loads(answer.splitlines()[-1])
    return seconds


if __name__ == "__main__":
    main()
