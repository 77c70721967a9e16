"""How much what is normal place by place should count (docs/decisions/0016-places.md).

    python -m benchmarks.place_shares DATA_ROOT... --output benchmarks/results/place_shares.json

Test images in parts to choose on and to judge by, as in ``benchmarks.held_out``, at one area as
before 0020. The share is the exponent of the distance at a place in the map that images are scored
by; in the map that marks pixels it is ``MARKING`` of that.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from benchmarks.held_out import (
    Found,
    Results,
    Tests,
    averaged,
    drawn,
    measure_sets,
    note,
    table,
)
from metaformer.adaptation import prepare
from metaformer.adapted_feature import PLACES, on_one_grid
from metaformer.datasets import Category
from metaformer.feature_config import FeatureConfig
from metaformer.feature_model import FeatureModel
from metaformer.images import read_image
from metaformer.places import MARKING
from metaformer.preprocess import smooth

SHARES = (0.0, 0.3, 0.5, 0.7, 1.0)
COUNTS = (16, 40, 100, 300)


def measure(model: FeatureModel, category: Category, seeds: Sequence[int]) -> Results:
    tests, found = Tests.of(category), Found()
    tokens = [prepare(model, image) for image in tests.images]
    known = [prepare(model, read_image(path)) for path in category.train]
    for count in sorted({min(count, len(known)) for count in COUNTS}):
        for seed in seeds:
            support = [known[i] for i in drawn(len(known), count, seed)]
            adapted = model.remember(support, seed=seed, places=True)
            first = model.config.readings[0]
            resized = [on_one_grid(adapted.distances(image), first) for image in tokens]
            places = [distances[PLACES] for distances in resized]
            adapted.places = None
            plain = [adapted.join(distances) for distances in resized]  # (2, h, w) each
            for share in SHARES:
                maps = []
                for one, place in zip(plain, places, strict=True):
                    exponents = (share, MARKING * share)
                    kinds = [
                        grid ** (1 - exponent) * place**exponent
                        for grid, exponent in zip(one, exponents, strict=True)
                    ]
                    maps.append(smooth(torch.stack(kinds), model.config.sigma))
                note(found, tests.judge(maps), count, f"{share}")
    return averaged(found)


def main() -> None:
    model = FeatureModel.from_pretrained(FeatureConfig(own=0.0))
    title = __doc__.splitlines()[0]
    results = measure_sets(title, partial(measure, model), 2, {"marking": MARKING})
    print(table(results, [f"{share}" for share in SHARES]))


if __name__ == "__main__":
    main()
