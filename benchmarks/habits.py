"""What else strong few-shot methods do, each added alone to the feature preset as it is
(docs/decisions/0019-one-by-one.md).

    python -m benchmarks.habits DATA_ROOT... --output benchmarks/results/habits.json

Real test images, in the parts of ``benchmarks.held_out``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.held_out import (
    Found,
    Results,
    Tests,
    adapt,
    averaged,
    draw,
    fitted,
    measure_sets,
    note,
    table,
)
from metaformer.adaptation import Image, prepare, raw_maps
from metaformer.adapted_feature import AdaptedFeature
from metaformer.datasets import Category
from metaformer.feature_model import FeatureModel
from metaformer.images import resize_image
from metaformer.preprocess import to_tensor
from metaformer.prior import load_prior

SHOTS = (1, 4)
QUARTERED = "in quarters"
FLOOR = 0.05
"""Of a response map that multiplies: what P does not see is not worth nothing."""


def squared(image: Image) -> Image:
    """As many pixels, squeezed."""
    side = round(np.prod(image.shape[:2]) ** 0.5)
    return resize_image(image, (side, side))


def measure(model: FeatureModel, category: Category, seeds: Sequence[int]) -> Results:
    tests, found = Tests.of(category), Found()
    responses = response_maps(tests.images)
    for shots in SHOTS:
        for seed in seeds:
            support = draw(category, shots, seed)
            for habit, maps in habits(model, support, tests.images, responses, seed).items():
                note(found, tests.judge(maps), shots, habit)
    return averaged(found)


def habits(
    model: FeatureModel,
    support: Sequence[Image],
    images: Sequence[Image],
    responses: Sequence[Tensor],
    seed: int,
) -> dict[str, list[Tensor]]:
    """Habit -> (2, h, w) maps of each image."""

    def maps(adapted: AdaptedFeature, some: Sequence[Image]) -> list[Tensor]:
        return [raw_maps(adapted.model, adapted, prepare(adapted.model, image)) for image in some]

    usual = fitted(model, support)
    adapted = adapt(usual, support, seed)
    plain = maps(adapted, images)
    found = {"as it is": plain}
    mirrored = maps(adapted, [np.ascontiguousarray(image[:, ::-1]) for image in images])
    found["mean with its mirror image"] = [
        (one + other.flip(2)) / 2 for one, other in zip(plain, mirrored, strict=True)
    ]
    for power in (0.3, 1.0):
        found[f"times R^{power}"] = [
            grid * (fit(response, grid) + FLOOR) ** power
            for grid, response in zip(plain, responses, strict=True)
        ]
    finer = usual.with_config(replace(usual.config, resolution=384))
    found["at 384 pixels"] = maps(adapt(finer, support, seed), images)
    squares = adapt(model, [squared(image) for image in support], seed)
    found["squeezed to squares"] = maps(squares, [squared(image) for image in images])
    found[QUARTERED] = in_quarters(model, support, images, seed)
    return found


def in_quarters(
    model: FeatureModel, support: Sequence[Image], images: Sequence[Image], seed: int
) -> list[Tensor]:
    """Maps put together of those of the quarters of an image, each as large as an image."""
    model = model.with_config(replace(model.config, places=0))  # quarters are of four places
    adapted = adapt(model, [quarter for image in support for quarter in quarters(image)], seed)
    found = []
    for image in images:
        parts = [raw_maps(model, adapted, prepare(model, quarter)) for quarter in quarters(image)]
        above, below = torch.cat(parts[:2], dim=2), torch.cat(parts[2:], dim=2)
        found.append(torch.cat([above, below], dim=1))
    return found


def quarters(image: Image) -> list[Image]:
    """Row by row, all of one size."""
    height, width = (side // 2 for side in image.shape[:2])
    return [
        np.ascontiguousarray(image[top : top + height, left : left + width])
        for top in (0, image.shape[0] - height)
        for left in (0, image.shape[1] - width)
    ]


@torch.inference_mode()
def response_maps(images: Sequence[Image]) -> list[Tensor]:
    """(1, h, w) of each image, by the shipped P at its own side."""
    prior = load_prior()
    side = prior.config.side
    return [prior(to_tensor(image, (side, side)))[0] for image in images]


def fit(response: Tensor, grid: Tensor) -> Tensor:
    return F.interpolate(response[None], tuple(grid.shape[1:]), mode="bilinear")[0]


def main() -> None:
    model = FeatureModel.from_pretrained()
    results = measure_sets(__doc__.splitlines()[0], partial(measure, model), 2, {})
    rows = next(iter(next(iter(next(iter(results.values())).values())).values()))
    print(table(results, list(rows)))


if __name__ == "__main__":
    main()
