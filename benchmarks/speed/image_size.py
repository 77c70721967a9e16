"""How long one image takes as it grows, from 64 pixels to 12 megapixels: reading, and all of it.

    python -m benchmarks.speed.image_size IMAGE... --output image_size.json

The images are the support; the first is resized, given noise and written as JPEG. Medians of nine
calls of ``Detector.predict`` on a file, in turns with Pillow decoding it, on as many threads as
``OMP_NUM_THREADS`` says.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from metaformer.detection.detector import Detector
from metaformer.detection.metaformer import Metaformer
from metaformer.evaluation.aggregate import machine
from metaformer.export.backends import with_engine
from metaformer.inference.allocator import keep_freed_memory
from metaformer.io.atomic_files import write_text
from metaformer.io.images import read_image

SIDES = ((64, 64), (256, 256), (640, 480), (1280, 960), (2048, 1536), (4000, 3000))
ROUNDS = 9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("images", nargs="+", type=Path, help="normal images")
    parser.add_argument("--output", type=Path, required=True, help="a .json file; .md beside it")
    options = parser.parse_args()
    keep_freed_memory()  # as the command does
    detector = Metaformer.from_pretrained().adapt(options.images)
    engines = {name: with_engine(detector, name) for name in ("torch", "onnxruntime")}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for width, height in SIDES:
            path = Path(folder) / f"{width}.jpg"
            write_image(options.images[0], path, width, height)
            rows.append({"width": width, "height": height} | milliseconds(path, engines))
            print(rows[-1], flush=True)
    threads = torch.get_num_threads()
    content = {"date": date.today().isoformat(), "machine": machine(), "threads": threads}
    write_text(options.output, json.dumps({**content, "rows": rows}, indent=1) + "\n")
    names = [name for name in rows[0] if name not in ("width", "height")]
    lines = [
        f"Milliseconds an image, {threads} threads.",
        "",
        "| pixels | " + " | ".join(names) + " |",
        "|---" * (1 + len(names)) + "|",
    ]
    lines += [
        f"| {row['width']} x {row['height']} | " + " | ".join(f"{row[n]:.0f}" for n in names) + " |"
        for row in rows
    ]
    write_text(options.output.with_suffix(".md"), "\n".join(lines) + "\n")


def write_image(source: Path, target: Path, width: int, height: int) -> None:
    image = cv2.resize(read_image(source), (width, height), interpolation=cv2.INTER_CUBIC)
    noise = np.random.default_rng(0).normal(0, 4, image.shape)
    pixels = np.clip(image + noise, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(target, quality=90)


def milliseconds(path: Path, engines: dict[str, Detector]) -> dict[str, float]:
    calls: dict[str, Callable[[], object]] = {
        "Pillow's decoder": lambda: np.asarray(Image.open(path).convert("RGB")),
        "reading": lambda: read_image(path),
    }
    for name, detector in engines.items():
        calls[name] = partial(detector.predict, path)
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(ROUNDS + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if number:  # the first warms up
                taken[name].append(1000 * (time.perf_counter() - started))
    return {name: statistics.median(of_call) for name, of_call in taken.items()}


if __name__ == "__main__":
    main()
