"""Which library may read TIFF files? Damaged ones into each of them, in a process of its own.

    pip install tifffile imagecodecs
    python -m benchmarks.robustness.tiff_readers --output benchmarks/results/tiff_readers.json

Counted are files read with the pixels of the sound file, read with others (damaged pixels that
nobody is told of), refused by an exception, and those that end the process or take more than
``HANG_SECONDS``. Ours and tifffile get the same files.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import multiprocessing.connection
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.robustness.live_service import PHOTOS
from benchmarks.robustness.mutations import mutated_files, sound_files
from metaformer.evaluation.aggregate import machine
from metaformer.evaluation.protocol import save_results
from metaformer.io.images import read_image

HANG_SECONDS = 10
READERS = ("metaformer", "tifffile")
Pair = tuple[bytes, bytes]
"""A sound file and a damaged copy of it."""
ENDED, HUNG = "ended the process", f"took more than {HANG_SECONDS} s"


def main() -> None:
    parser = argparse.ArgumentParser(description="Damaged TIFF files into two readers.")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--files", type=int, default=4000)
    options = parser.parse_args()
    photo = Image.open(next(PHOTOS.rglob("*.jpg")))
    sound = {name: data for name, data in sound_files(photo).items() if name.endswith(".tiff")}
    made = mutated_files(sound, options.files, np.random.default_rng(0))
    files = [(sound[name.split("-")[-1]], data) for name, data in made]
    counts = {name: dict(Counter(outcomes(name, files))) for name in READERS}
    packages = {name: version(name) for name in ("tifffile", "imagecodecs", "metaformer-ad")}
    content = {"machine": machine(), "packages": packages, "files": len(files), "counts": counts}
    save_results(content, options.output)
    print(counts)


def outcomes(reader: str, files: list[Pair]) -> list[str]:
    """What became of each file; a reader whose process ended is started again."""
    found: list[str] = []
    context = multiprocessing.get_context("spawn")
    while len(found) < len(files):
        ours, theirs = context.Pipe()
        child = context.Process(target=read_all, args=(reader, files[len(found) :], theirs))
        child.start()
        theirs.close()
        try:
            while len(found) < len(files):
                # The first answer waits for imports.
                if not ours.poll(HANG_SECONDS * 6 if not found else HANG_SECONDS):
                    found.append(HUNG)
                    break
                found.append(ours.recv())
        except EOFError:
            found.append(ENDED)
        child.kill()
        child.join()
    return found


def read_all(
    reader: str, files: list[Pair], answers: multiprocessing.connection.Connection
) -> None:
    import tifffile

    def read(data: bytes) -> NDArray[Any]:
        if reader == "tifffile":
            return np.asarray(tifffile.imread(io.BytesIO(data)))
        return read_image(data)

    for sound, damaged in files:
        try:
            same = np.array_equal(read(damaged), read(sound))
            answers.send("read as the sound file" if same else "read with other pixels")
        except Exception:  # any exception is a refusal
            answers.send("refused")


if __name__ == "__main__":
    main()
