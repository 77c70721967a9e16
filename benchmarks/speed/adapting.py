"""How long adapting takes, and how much memory, as the number of normal images grows.

Each number of images is adapted to by the command, in a process of its own, on one thread. Where
the folder has fewer images than asked for, shifted, brightened and noisy ones of them follow.

    python -m benchmarks.speed.adapting FOLDER [--counts 10,100,400,4000] --output adapting.json
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import cv2
import numpy as np

from metaformer.evaluation.aggregate import machine
from metaformer.io.atomic_files import write_text
from metaformer.io.images import list_images, read_image

ADAPT = """
import resource, subprocess, sys
done = subprocess.run([sys.executable, "-m", "metaformer.cli", "adapt", *sys.argv[1:], "-q"])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
sys.exit(done.returncode)
"""


def write_images(source: Path, target: Path, count: int) -> None:
    paths = list_images(source)
    rng = np.random.default_rng(0)
    for i in range(count):
        image = read_image(paths[i % len(paths)]).astype(np.float32)
        if i >= len(paths):
            image = np.roll(image, int(rng.integers(3, 40)), 0) * rng.uniform(0.95, 1.05)
            image += rng.normal(0, 3, image.shape)
        cv2.imwrite(
            str(target / f"{i:05d}.jpg"), np.clip(image[:, :, ::-1], 0, 255).astype(np.uint8)
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="normal images")
    parser.add_argument("--counts", default="10,100,400,4000")
    parser.add_argument("--output", type=Path, required=True, help="a .json file; .md beside it")
    options = parser.parse_args()
    rows = []
    for count in map(int, options.counts.split(",")):
        with tempfile.TemporaryDirectory() as name:
            images = Path(name) / "good"
            images.mkdir()
            write_images(options.folder, images, count)
            before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
            started = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-c", ADAPT, str(images), "-o", f"{name}/detector"],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
                check=True,
            )
            wall = time.perf_counter() - started
            used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
        megabytes = float(done.stdout.split()[-1])
        rows.append({"images": count, "seconds": wall, "cpu_seconds": used, "megabytes": megabytes})
        print(rows[-1], flush=True)
    content = {"date": date.today().isoformat(), "machine": machine(), "rows": rows}
    write_text(options.output, json.dumps(content, indent=1) + "\n")
    lines = ["| normal images | seconds | processor seconds | peak MB |", "|---|---|---|---|"]
    lines += [
        f"| {row['images']} | {row['seconds']:.1f} | {row['cpu_seconds']:.1f} | "
        f"{row['megabytes']:.0f} |"
        for row in rows
    ]
    write_text(options.output.with_suffix(".md"), "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
