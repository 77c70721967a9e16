"""Time the making of episodes: ``python -m benchmarks.episodes.throughput PHOTOS``.

Prints, for each resolution and kind, milliseconds an episode of 4 supports and 6 queries: by the
clock, and of processor time, which says more on a machine with other work. Last comes the speed of
``prefetch`` and what a pool takes to load and to hold.
"""

from __future__ import annotations

import argparse
import time
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from metaformer.data.synthetic.defects import draw_defect
from metaformer.training.episodes.episodes import MAKERS, EpisodeConfig, TaskKind, episode, prefetch
from metaformer.training.episodes.photo_pool import PhotoPool

WARM_UP = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path, help="folder with texture/, grocery/ and clothing/")
    parser.add_argument("--episodes", type=int, default=100, help="episodes timed in each line")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)

    start = time.perf_counter()
    pool = PhotoPool.load(arguments.photos)
    megabytes = sum(len(photo.encoded) for photo in pool.photos) / 1e6
    print(f"pool: {len(pool)} photos, {megabytes:.0f} MB, {time.perf_counter() - start:.1f} s")
    time_defects(pool)

    print(f"{'resolution':>10} {'kind':>8} {'clock ms':>9} {'cpu ms':>7}")
    for resolution in (128, 224):
        kinds: list[TaskKind | None] = [None, *MAKERS]
        for kind in kinds:
            config = make_config(resolution, kind)
            clock, processor = time_episodes(pool, config, arguments.episodes)
            print(f"{resolution:>10} {kind or 'mixed':>8} {clock:>9.1f} {processor:>7.1f}")

    for workers in (1, 2):
        stream = prefetch(pool, make_config(128, None), 0, workers=workers)
        next(stream)
        start = time.perf_counter()
        for _ in islice(stream, arguments.episodes):
            pass
        clock = (time.perf_counter() - start) / arguments.episodes * 1e3
        stream.close()
        print(f"prefetch, 128 px, {workers} thread(s): {clock:.1f} ms an episode by the clock")


def make_config(resolution: int, kind: TaskKind | None) -> EpisodeConfig:
    mixed = EpisodeConfig().weights
    weights = mixed if kind is None else ((kind, 1.0),)
    return EpisodeConfig(resolution=resolution, shots=(4,), queries=(6, 6), weights=weights)


def time_episodes(pool: PhotoPool, config: EpisodeConfig, count: int) -> tuple[float, float]:
    """Milliseconds an episode: by the clock, of processor time."""
    for index in range(WARM_UP):
        episode(pool, config, 1, index)
    clock, processor = time.perf_counter(), time.process_time()
    for index in range(count):
        episode(pool, config, 0, index)
    return (
        (time.perf_counter() - clock) / count * 1e3,
        (time.process_time() - processor) / count * 1e3,
    )


def time_defects(pool: PhotoPool, count: int = 500) -> None:
    rng = np.random.default_rng(0)
    images = [cv2.resize(pool.image(int(i)), (256, 256)) for i in rng.integers(len(pool), size=50)]
    photos = [image.astype(np.uint8, copy=False) for image in images]
    for i in range(50):
        draw_defect(photos[i % 50], rng, donor=photos[(i + 7) % 50])
    processor = time.process_time()
    for i in range(count):
        draw_defect(photos[i % 50], rng, donor=photos[(i + 7) % 50])
    spent = (time.process_time() - processor) / count * 1e3
    print(f"draw_defect, 256 px: {spent:.2f} ms of processor time an image")


if __name__ == "__main__":
    main()
