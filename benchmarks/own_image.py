"""How the feature preset came to ask an image about itself (docs/decisions/0022-own-image.md).

    python -m benchmarks.own_image DATA_ROOT... --output benchmarks/results/own_image.json

Real test images, in the parts of ``benchmarks.held_out``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
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
from metaformer.adaptation import prepare
from metaformer.adapted_feature import on_one_grid
from metaformer.datasets import Category
from metaformer.feature_model import FeatureModel
from metaformer.own_image import REACH, own_distances, ratio
from metaformer.preprocess import smooth

BEFORE = "before"
CANDIDATES = {
    "0.3": (REACH, 0.3, False),
    "0.5": (REACH, 0.5, False),
    "0.8": (REACH, 0.8, False),
    "0.5, an eighth of the side": (REACH / 2, 0.5, False),
    "0.3, raised too": (REACH, 0.3, True),
}
"""How far away elsewhere is, to what power the ratio is taken, and whether it raises the map where
the memory is nearer."""
SHOTS = (1, 2, 16)


def measure(model: FeatureModel, category: Category, seeds: Sequence[int]) -> Results:
    metric = model.metric
    assert metric is not None
    tests, found = Tests.of(category), Found()
    for shots in SHOTS:
        for seed in seeds:
            support = draw(category, shots, seed)
            adapted = adapt(fitted(model, support), support, seed)
            first, sigma = adapted.model.config.readings[0], adapted.model.config.sigma
            maps: dict[str, list[Tensor]] = {name: [] for name in (BEFORE, *CANDIDATES)}
            for image in tests.images:
                tokens = prepare(adapted.model, image)
                distances = adapted.distances(tokens)
                before = adapted.join(distances)
                maps[BEFORE].append(smooth(before, sigma))
                for name, (reach, share, is_raised) in CANDIDATES.items():
                    known = on_one_grid(distances | own_distances(tokens, reach), first)
                    factor = ratio(metric, known)
                    if not is_raised:
                        factor = factor.clamp_max(1)
                    maps[name].append(smooth(before * factor**share, sigma))
            for name, grids in maps.items():
                note(found, tests.judge(grids), shots, name)
    return averaged(found)


def main() -> None:
    torch.set_grad_enabled(False)
    whole = FeatureModel.from_pretrained()
    model = whole.with_config(replace(whole.config, own=0.0))
    results = measure_sets(__doc__.splitlines()[0], partial(measure, model), 2, {})
    print(table(results, [BEFORE, *CANDIDATES]))


if __name__ == "__main__":
    main()
