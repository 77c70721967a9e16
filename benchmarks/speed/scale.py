"""What scoring very many images costs: processor time by stage, one worker and two, storage.

    python -m benchmarks.speed.scale DETECTOR IMAGES [--output benchmarks/results/scale.json]

``IMAGES`` is a folder, best of a few hundred images as they come from the line. Processor seconds
hardly depend on what else the machine does; throughput does, so the load is written down beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from metaformer.detection.detector import Detector
from metaformer.evaluation.aggregate import machine
from metaformer.inference.allocator import keep_freed_memory
from metaformer.inference.batch import write_map
from metaformer.inference.scores.parquet_scores import arrow, write_part
from metaformer.inference.scores.rows import score_row
from metaformer.io.atomic_files import write_text
from metaformer.io.images import list_images, read_image

REPEATS = 3
"""Runs with each number of workers, taken in turns; the median counts."""

WORKERS = """
import sys, time, ray
from pathlib import Path
from metaformer.inference.ray_cluster import score_on_ray
from metaformer.io.sources.shards import Sources
detector, images, output, workers, size = sys.argv[1:]
ray.init(num_cpus=int(workers), include_dashboard=False, log_to_driver=False)
steps = []
score_on_ray(Path(detector), Sources((images,)), Path(output), write_maps=False,
             shard_images=int(size), on_step=lambda done, _: steps.append((time.time(), done)))
# From the first shard of each worker on: starting and loading is done once, however long the job.
(began, before), (ended, after) = steps[int(workers) - 1], steps[-2]
print((after - before) / (ended - began))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("detector", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/scale.json"))
    arguments = parser.parse_args()
    paths = list_images(arguments.images)
    result = {
        "images": len(paths),
        "machine": machine() | {"load_average_before": os.getloadavg()[0]},
        "stages": measure_stages(Detector.load(arguments.detector), paths),
        "images_per_second": measure_workers(arguments.detector, arguments.images, len(paths)),
    }
    result["load_average_after"] = os.getloadavg()[0]
    write_text(arguments.output, json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def measure_stages(detector: Detector, paths: list[Path]) -> dict[str, float]:
    """Processor seconds an image of each stage, and bytes an image in and out."""
    seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def timed(stage: str) -> Iterator[None]:
        began = time.process_time()
        yield
        seconds[stage] += time.process_time() - began

    read = maps = megapixels = 0.0
    rows = []
    keep_freed_memory()  # as the command does
    detector.predict(paths[0])  # loads libraries, as does the next line
    arrow()
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "map.png")
        for path in paths:
            with timed("decode"):
                pixels = read_image(path, white_level=detector.provenance["white_level"])
            with timed("predict"):
                prediction = detector.predict_pixels(pixels, str(path))
            with timed("write_map"):
                write_map(target, prediction)
            read += path.stat().st_size
            maps += target.stat().st_size
            megapixels += pixels.shape[0] * pixels.shape[1] / 1e6
            rows.append(score_row(prediction, detector.calibration.p_value_kind, "maps/x.png"))
        part = Path(folder, "part.parquet")
        with timed("write_scores"):
            write_part(part, rows)
        scores = part.stat().st_size
    count = len(paths)
    return {
        "megapixels": megapixels / count,
        **{f"{stage}_cpu_seconds": total / count for stage, total in seconds.items()},
        "bytes_read": read / count,
        "bytes_of_map": maps / count,
        "bytes_of_scores": scores / count,
    }


def measure_workers(detector: Path, images: Path, count: int) -> dict[str, float]:
    """Images a second with one Ray worker and with two, each on one processor."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
    size = max(1, count // 10)
    for _ in range(REPEATS):
        for workers, found in rates.items():
            with tempfile.TemporaryDirectory() as output:
                command = [detector, images, output, str(workers), str(size)]
                done = subprocess.run(
                    [sys.executable, "-c", WORKERS, *map(str, command)],
                    env=environment,
                    capture_output=True,
                    text=True,
                    check=True,
                )
            found.append(float(done.stdout))
    one, two = (statistics.median(rates[workers]) for workers in (1, 2))
    return {"one_worker": one, "two_workers": two, "ratio": two / one}


if __name__ == "__main__":
    main()
