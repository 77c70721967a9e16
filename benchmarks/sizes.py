"""How much of their size images keep, and what many images are compared with
(docs/decisions/0020-sizes.md, 0021-means.md).

    python -m benchmarks.sizes DATA_ROOT... --output benchmarks/results/sizes.json

Real test images, in the parts of ``benchmarks.held_out``, with the statistics of places where there
are enough images. Sizes kept are compared where images come in many sizes; means
where memories are cut to their cap.
"""

from __future__ import annotations

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
    measure_sets,
    note,
    table,
)
from metaformer.adaptation import Image, prepare, raw_maps
from metaformer.datasets import Category
from metaformer.feature_model import FeatureModel
from metaformer.images import pixels_of
from metaformer.sizes import fit_to_sizes

SHOTS = (2, 4, 16, "all")
KEPT = (0.0, 0.5, 0.75, 1.0)
FEW = 16
"""Up to so many images no memory is cut to its cap."""
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
                break  # nothing to compare
            for name, candidate in candidates.items():
                adapted = adapt(candidate, support, seed)
                tokens = (prepare(candidate, image) for image in tests.images)
                maps = [raw_maps(candidate, adapted, image) for image in tokens]
                note(found, tests.judge(maps), shots, name)
    return averaged(found)


def models(model: FeatureModel, support: Sequence[Image]) -> dict[str, FeatureModel]:
    """Candidate -> model, as far as the support makes them differ."""
    areas = [pixels_of(image) for image in support]
    now = fit_to_sizes(model, areas, lambda i: support[i])
    assert isinstance(now, FeatureModel)
    found = {NOW: now}
    if now.config.usual_side is not None:
        for kept in KEPT:
            found[f"kept {kept:g}"] = now.with_config(replace(now.config, size_kept=kept))
    if len(support) > FEW:
        found[RANDOM] = now.with_config(replace(now.config, means=False))
    return found


def main() -> None:
    model = FeatureModel.from_pretrained()
    results = measure_sets(__doc__.splitlines()[0], partial(measure, model), 3, {})
    print(table(results, [NOW, *(f"kept {kept:g}" for kept in KEPT), RANDOM]))


if __name__ == "__main__":
    main()
