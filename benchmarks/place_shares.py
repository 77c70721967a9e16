"""How much what is normal place by place should count (docs/decisions/0016-places.md).

    python -m benchmarks.place_shares DATA_ROOT... --output benchmarks/results/place_shares.json

Test images in parts to choose on and to judge by, as in ``benchmarks.balances``. The share is the
exponent of the distance at a place in the map that images are scored by; in the map that marks
pixels it is ``MARKING`` of that.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from benchmarks.balances import (
    SEED,
    judge_pixels,
    judge_scores,
    measure_sets,
    parts,
    read_tests,
    table,
)
from metaformer.adaptation import prepare
from metaformer.adapted_feature import PLACES, on_one_grid
from metaformer.datasets import Category
from metaformer.feature_model import FeatureModel
from metaformer.images import read_image
from metaformer.places import MARKING
from metaformer.preprocess import smooth

SHARES = (0.0, 0.3, 0.5, 0.7, 1.0)
COUNTS = (16, 40, 100, 300)

Results = dict[str, dict[str, dict[str, dict[str, float]]]]
"""Part -> support images -> share -> metric."""


def measure(model: FeatureModel, category: Category, seeds: Sequence[int]) -> Results:
    tokens, labels, masks = read_tests(model, category)
    known = [prepare(model, read_image(path)) for path in category.train]
    found: dict[tuple[str, str, str], list[dict[str, float]]] = {}
    for count in sorted({min(count, len(known)) for count in COUNTS}):
        for seed in seeds:
            order = np.random.default_rng((SEED, seed)).permutation(len(known))[:count]
            adapted = model.remember([known[i] for i in order], seed=seed, places=True)
            first = model.config.readings[0]
            resized = [on_one_grid(adapted.distances(image), first) for image in tokens]
            places = [distances[PLACES] for distances in resized]
            adapted.places = None
            plain = [adapted.join(distances) for distances in resized]  # (2, h, w) each
            for share in SHARES:
                kinds = []
                for kind, exponent in enumerate((share, MARKING * share)):
                    joined = (
                        one[kind] ** (1 - exponent) * place**exponent
                        for one, place in zip(plain, places, strict=True)
                    )
                    kinds.append([smooth(one[None], model.config.sigma)[0] for one in joined])
                for part, chosen in parts(len(tokens)).items():
                    some = labels[chosen], [masks[i] for i in chosen]
                    row = judge_scores([kinds[0][i] for i in chosen], *some)
                    row |= judge_pixels([kinds[1][i] for i in chosen], *some)
                    found.setdefault((part, f"{count}", f"{share}"), []).append(row)
    results: Results = {}
    for (part, count_name, share_name), measured in found.items():
        means = {name: float(np.mean([row[name] for row in measured])) for name in measured[0]}
        results.setdefault(part, {}).setdefault(count_name, {})[share_name] = means
    return results


def main() -> None:
    model = FeatureModel.from_pretrained()
    title = __doc__.splitlines()[0]
    results = measure_sets(title, partial(measure, model), 2, {"marking": MARKING})
    print(table(results, [f"{share}" for share in SHARES]))


if __name__ == "__main__":
    main()
