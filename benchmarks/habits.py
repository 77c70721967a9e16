"""What else strong few-shot methods do, each added alone to the feature preset as it is
(docs/decisions/0019-one-by-one.md).

    python -m benchmarks.habits DATA_ROOT... --output benchmarks/results/habits.json

Real test images, in parts and with the supports of ``benchmarks.balances``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.balances import (
    SEED,
    judge_pixels,
    judge_scores,
    measure_sets,
    parts,
    table,
)
from metaformer.adaptation import has_views, lone_alignment, other_views
from metaformer.adapted_feature import AdaptedFeature, Tokens
from metaformer.benchmark_samples import load_mask
from metaformer.datasets import Category
from metaformer.feature_model import FeatureModel
from metaformer.images import read_image
from metaformer.preprocess import smooth, to_tensor, working_size
from metaformer.prior import load_prior

SHOTS = (1, 4)
MOST_SCALE = 2.0
"""Where images keep their scale, one has at most so many times the sides of the first, or this part
of them."""
FLOOR = 0.05
"""Of a response map that multiplies: what P does not see is not worth nothing."""

Image = NDArray[np.uint8]
Size = tuple[int, int]
SizeOf = Callable[[Image], Size]
Results = dict[str, dict[str, dict[str, dict[str, float]]]]
"""Part -> shots -> habit -> metric."""


def of_area(model: FeatureModel, resolution: int) -> SizeOf:
    """As the preset: all images have the same area."""

    def size(image: Image) -> Size:
        height, width = image.shape[:2]
        return working_size(height, width, resolution, model.size_multiple)

    return size


def of_scale(model: FeatureModel, support: Sequence[Image]) -> SizeOf:
    """All images are enlarged as much as the support's median one."""
    side = float(np.median([np.prod(image.shape[:2]) ** 0.5 for image in support]))

    def size(image: Image) -> Size:
        height, width = image.shape[:2]
        scale = min(max((height * width) ** 0.5 / side, 1 / MOST_SCALE), MOST_SCALE)
        resolution = round(model.config.resolution * scale)
        return working_size(height, width, resolution, model.size_multiple)

    return size


def square(model: FeatureModel) -> SizeOf:
    return lambda image: (model.config.resolution, model.config.resolution)


def read(model: FeatureModel, image: Image, size: SizeOf) -> Tokens:
    return model.prepare(to_tensor(image, size(image)))


def adapt(model: FeatureModel, support: Sequence[Image], size: SizeOf, seed: int) -> AdaptedFeature:
    known = [read(model, image, size) for image in support]
    views = []
    if has_views(model, len(support)):
        views = [
            model.sample_views([read(model, view, size) for view in other_views(image)])
            for image in support
        ]
    alignment = lone_alignment(model, support[0], known) if len(support) == 1 else None
    return model.adapt(known, seed=seed, views=views, alignment=alignment)


def measure(model: FeatureModel, category: Category, seeds: Sequence[int]) -> Results:
    images = [read_image(sample.image) for sample in category.test]
    labels = np.array([sample.is_anomalous for sample in category.test])
    masks = [
        load_mask(sample, image.shape[:2])
        for sample, image in zip(category.test, images, strict=True)
    ]
    responses = response_maps(images)
    by_part = parts(len(images))
    found: dict[tuple[str, str, str], list[dict[str, float]]] = {}
    for shots in SHOTS:
        for seed in seeds:
            order = np.random.default_rng((SEED, seed)).permutation(len(category.train))[:shots]
            support = [read_image(category.train[i]) for i in order]
            for habit, maps in habits(model, support, images, responses, seed).items():
                for part, chosen in by_part.items():
                    some = labels[chosen], [masks[i] for i in chosen]
                    row = judge_scores([maps[i][0] for i in chosen], *some)
                    row |= judge_pixels([maps[i][-1] for i in chosen], *some)
                    found.setdefault((part, f"{shots}", habit), []).append(row)
    results: Results = {}
    for (part, shots_name, habit), rows in found.items():
        means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        results.setdefault(part, {}).setdefault(shots_name, {})[habit] = means
    return results


def habits(
    model: FeatureModel,
    support: Sequence[Image],
    images: Sequence[Image],
    responses: Sequence[Tensor],
    seed: int,
) -> dict[str, list[Tensor]]:
    """Habit -> (2, h, w) maps of each image."""

    def maps(adapted: AdaptedFeature, size: SizeOf, some: Sequence[Image]) -> list[Tensor]:
        grids = (adapted.anomaly_maps(read(model, image, size)) for image in some)
        return [smooth(grid, model.config.sigma) for grid in grids]

    area = of_area(model, model.config.resolution)
    adapted = adapt(model, support, area, seed)
    plain = maps(adapted, area, images)
    found = {"as it is": plain}
    mirrored = maps(adapted, area, [np.ascontiguousarray(image[:, ::-1]) for image in images])
    found["mean with its mirror image"] = [
        (one + other.flip(2)) / 2 for one, other in zip(plain, mirrored, strict=True)
    ]
    for power in (0.3, 1.0):
        found[f"times R^{power}"] = [
            grid * (fit(response, grid) + FLOOR) ** power
            for grid, response in zip(plain, responses, strict=True)
        ]
    others = {"at 384 pixels": of_area(model, 384)}
    others |= {"squeezed to squares": square(model), "one scale": of_scale(model, support)}
    for name, size in others.items():
        found[name] = maps(adapt(model, support, size, seed), size, images)
    return found


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
