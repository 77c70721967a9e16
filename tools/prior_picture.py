"""The picture of docs/training.md: photo, R, edited photo, one column an image.

    python -m tools.prior_picture OUTPUT.png IMAGE... [--weights FOLDER]

The effects take turns: black background, colour selectivo, defocus.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.instance_prior.__main__ import prior_of
from metaformer.io.atomic_files import write_bytes
from metaformer.io.images import read_image, resize_image
from metaformer.networks.instance_prior import EFFECTS, InstancePrior, apply_effects

TILE = 160
GAP = 6
COLUMNS = 6


@torch.no_grad()
def column(prior: InstancePrior, image: NDArray[np.uint8], effect: int) -> NDArray[np.uint8]:
    """Photo, R and edited photo under each other, (3 TILE + 2 GAP, TILE, 3)."""
    photo = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    response = prior(photo)  # (1, 1, H, W)
    edited = apply_effects(photo, response, torch.tensor([effect]))
    rows = []
    for picture in (photo, response.expand_as(photo), edited):
        array = (picture[0].permute(1, 2, 0) * 255).round().byte().numpy()
        rows += [resize_image(array, (TILE, TILE)), np.full((GAP, TILE, 3), 255, np.uint8)]
    return np.concatenate(rows[:-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--weights", type=Path, help="folder with prior.safetensors, prior.json")
    arguments = parser.parse_args()

    prior = prior_of(arguments.weights)
    columns = [
        column(prior, read_image(path), i % len(EFFECTS)) for i, path in enumerate(arguments.images)
    ]
    while len(columns) % COLUMNS and len(columns) > COLUMNS:
        columns.append(np.full_like(columns[0], 255))
    gap = np.full((columns[0].shape[0], GAP, 3), 255, np.uint8)
    bands = []
    for start in range(0, len(columns), COLUMNS):
        band = [part for c in columns[start : start + COLUMNS] for part in (c, gap)][:-1]
        bands.append(np.concatenate(band, axis=1))
        bands.append(np.full((3 * GAP, bands[0].shape[1], 3), 255, np.uint8))
    sheet = np.concatenate(bands[:-1])
    _, png = cv2.imencode(".png", np.ascontiguousarray(sheet[..., ::-1]))
    write_bytes(arguments.output, png.tobytes())


if __name__ == "__main__":
    main()
