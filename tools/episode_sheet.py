"""Draw a sheet of episodes, to look at: ``python -m tools.episode_sheet PHOTOS SHEET.jpg``.

One row an episode: its supports, a gap, its queries with each defect outlined.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from metaformer.io.atomic_files import write_bytes
from metaformer.training.episodes.episodes import MAKERS, Episode, EpisodeConfig, episode
from metaformer.training.episodes.photo_pool import PhotoPool
from metaformer.training.episodes.real_anomalies import real_anomaly_tasks

OUTLINE = (255, 0, 255)
GAP = 6
LABEL_HEIGHT = 14
JPEG_QUALITY = 72


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path, help="folder with texture/, grocery/ and clothing/")
    parser.add_argument("output", type=Path, help="JPEG picture to write")
    parser.add_argument("--resolution", type=int, default=112)
    parser.add_argument("--rows", type=int, default=2, help="episodes of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", default="train", choices=["train", "validation"])
    arguments = parser.parse_args()

    pool = PhotoPool.load(arguments.photos, split=arguments.split, seed=arguments.seed)
    shape = {"resolution": arguments.resolution, "shots": (3,), "queries": (6, 6)}
    tasks: list[Episode] = []
    for kind in MAKERS:
        config = EpisodeConfig(**shape, weights=((kind, 1.0),))
        tasks += [episode(pool, config, arguments.seed, i) for i in range(arguments.rows)]
    novel = list(
        real_anomaly_tasks(pool, EpisodeConfig(**shape), arguments.seed, 2 * arguments.rows)
    )
    tasks += novel[0::2] + novel[1::2]
    sheet = np.concatenate([draw_row(task) for task in tasks])
    encoded = cv2.imencode(".jpg", sheet[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    write_bytes(arguments.output, encoded.tobytes())


def draw_row(task: Episode) -> NDArray[np.uint8]:
    """(height, width, 3): a label, the supports, a gap, the queries."""
    size = task.support.shape[1]
    queries = []
    for query, mask in zip(task.query, task.masks, strict=True):
        marked = query.copy()
        contours, _ = cv2.findContours(
            mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
        )
        cv2.drawContours(marked, contours, -1, OUTLINE, 1)
        queries.append(marked)
    gap = np.full((size, GAP, 3), 255, np.uint8)
    images = np.concatenate([*task.support, gap, *queries], axis=1)
    label = np.full((LABEL_HEIGHT, images.shape[1], 3), 255, np.uint8)
    text = f"{task.kind}: {task.product}"
    cv2.putText(label, text, (3, 11), cv2.FONT_HERSHEY_SIMPLEX, 0.38, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([label, images])


if __name__ == "__main__":
    main()
