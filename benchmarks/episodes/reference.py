"""Score nearest-patch distance on episodes: ``python -m benchmarks.episodes.reference PHOTOS``.

Prints, for each kind of task on the validation split, image and pixel AUROC within a task, mean and
standard deviation over tasks, at 4 shots. It tells how hard each kind is for a method that learned
nothing from episodes; a model trained on them should be held against it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from benchmarks.accuracy.methods import CONTROL, METHODS
from metaformer.training.episodes.episodes import MAKERS, Episode, EpisodeConfig, episode
from metaformer.training.episodes.photo_pool import PhotoPool
from metaformer.training.episodes.real_anomalies import real_anomaly_tasks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path, help="folder with texture/, grocery/ and clothing/")
    parser.add_argument("--tasks", type=int, default=30, help="tasks of each kind")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)

    pool = PhotoPool.load(arguments.photos, split="validation")
    print(f"{'kind':>13} {'n':>4} {'image AUROC':>16} {'pixel AUROC':>16}")
    for name, tasks in task_sets(pool, arguments.tasks, arguments.seed):
        image, pixel = score(tasks)
        cells = [f"{np.mean(v):.3f} +- {np.std(v):.3f}" if v else "-" for v in (image, pixel)]
        print(f"{name:>13} {len(image):>4} {cells[0]:>16} {cells[1]:>16}")


def task_sets(pool: PhotoPool, count: int, seed: int) -> Iterator[tuple[str, Iterator[Episode]]]:
    for kind in MAKERS:
        config = EpisodeConfig(
            resolution=224, shots=(4,), queries=(8, 8), clean_share=0.5, weights=((kind, 1.0),)
        )
        yield kind, (episode(pool, config, seed, index) for index in range(count))
    config = EpisodeConfig(resolution=224, shots=(4,), queries=(8, 8))
    for kind in ("novel_region", "novel_image"):
        tasks = real_anomaly_tasks(pool, config, seed, 2 * count)
        yield kind, (task for task in tasks if task.kind == kind)


def score(tasks: Iterator[Episode]) -> tuple[list[float], list[float]]:
    """Image and pixel AUROC of each task that has clean and anomalous queries."""
    method = METHODS[CONTROL]()
    image, pixel = [], []
    for task in tasks:
        if task.is_clean.all() or not task.is_clean.any():
            continue
        results = method.fit(list(task.support), 0).score(list(task.query))
        image.append(float(roc_auc_score(~task.is_clean, [result[0] for result in results])))
        if task.kind != "novel_image":  # its masks cover whole images
            maps = np.stack([result[1] for result in results])
            pixel.append(float(roc_auc_score(task.masks.ravel(), maps.ravel())))
    return image, pixel


if __name__ == "__main__":
    main()
