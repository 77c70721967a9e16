"""How much of their size images keep, and what many images are compared with
(docs/decisions/0020-sizes.md, 0021-means.md).

    python -m benchmarks.sizes DATA_ROOT... --output benchmarks/results/sizes.json

Real test images, in the parts of ``benchmarks.held_out``, with the statistics of places where there
are enough images. Sizes kept are compared where images come in many sizes; means
where memories are cut to their cap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

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
from metaformer.datasets import Category
from metaformer.feature_model import FeatureModel

SHOTS = (2, 4, 16, "all")
KEPT = (0.0, 0.5, 0.75, 1.0)
NOW = "now"
RANDOM = "now, no means"


def measure(model: FeatureModel, category: Category, seeds: Sequence[int]) -> Results:
    tests, found = Tests.of(category), Found()
    for shots in SHOTS:
        count = len(category.train) if shots == "all" else int(shots)
        if count > len(category.train) or (shots == "all" and count in SHOTS):
            continue
        for seed in seeds[:1] if shots == "all" else seeds:
            support = draw(category, count, seed)
            candidates = models(model, support)
            if len(candidates) == 1:
                continue  # nothing to compare
            for name, candidate in candidates.items():
                adapted = adapt(candidate, support, seed)
                tokens = (prepare(candidate, image) for image in tests.images)
                maps = [raw_maps(candidate, adapted, image) for image in tokens]
                note(found, tests.judge(maps), shots, name)
    return averaged(found)


def models(model: FeatureModel, support: Sequence[Image]) -> dict[str, FeatureModel]:
    """Candidate -> model, as far as the support makes them differ."""
    now = fitted(model, support)
    found = {NOW: now}
    if now.config.usual_side is not None:
        for kept in KEPT:
            found[f"kept {kept:g}"] = now.with_config(replace(now.config, size_kept=kept))
    cells = sum(math.prod(now.working_size(*image.shape[:2])) for image in support) // 8**2
    if cells >= now.config.max_tokens:
        found[RANDOM] = now.with_config(replace(now.config, means=False))
    return found


def main() -> None:
    model = FeatureModel.from_pretrained()
    results = measure_sets(__doc__.splitlines()[0], partial(measure, model), 3, {})
    print(table(results, [NOW, *(f"kept {kept:g}" for kept in KEPT), RANDOM]))


if __name__ == "__main__":
    main()
