"""How the feature preset's two maps were chosen (docs/decisions/0012-two-maps.md and 0018).

    python -m benchmarks.balances DATA_ROOT... --output benchmarks/results/balances.json

Real test images, in the parts of ``benchmarks.held_out``, at one area as before 0020, and
without 0022.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

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
from metaformer.adaptation import prepare
from metaformer.adapted_feature import on_one_grid
from metaformer.datasets import Category
from metaformer.feature_config import MARKING, SCORING, FeatureConfig
from metaformer.feature_model import FeatureModel
from metaformer.metric import Shares
from metaformer.preprocess import smooth

Candidate = tuple[Shares, float, float | None]
"""Shares, blur in cells, and what places are taken to say: None for what the support says."""
SCORES: dict[str, Candidate] = {
    "score before": (replace(SCORING, here=0.0), 0.6, None),
    "score now": (SCORING, 0.6, None),
    "here 0.1": (replace(SCORING, here=0.1), 0.6, None),
    "here 0.1, unasked": (replace(SCORING, here=0.1), 0.6, 1.0),
    "raw 0.1": (replace(SCORING, raw=0.1), 0.6, None),
}
PIXELS: dict[str, Candidate] = {
    "pixels before": (replace(MARKING, here=0.0, raw=0.0), 0.6, None),
    "pixels now": (MARKING, 0.6, None),
    "no here": (replace(MARKING, here=0.0), 0.6, None),
    "here 0.15": (replace(MARKING, here=0.15), 0.6, None),
    "here 0.4": (replace(MARKING, here=0.4), 0.6, None),
    "here 0.15, unasked": (replace(MARKING, here=0.15), 0.6, 1.0),
    "no raw": (replace(MARKING, raw=0.0), 0.6, None),
    "raw 0.2": (replace(MARKING, raw=0.2), 0.6, None),
    "context 0.5": (replace(MARKING, context=0.5), 0.6, None),
    "blur 0.8": (MARKING, 0.8, None),
}
"""Maps to score images by, and maps to mark pixels, no name twice. The first of each is what
``0017`` left."""
ALIGNMENT = "alignment"
"""Among the maps of a set: how far places say what is to be seen there, as the supports tell."""
SHOTS = (1, 4, 16)


def measure(model: FeatureModel, category: Category, seeds: Sequence[int]) -> Results:
    assert model.metric is not None
    tests, found = Tests.of(category), Found()
    tokens = [prepare(model, image) for image in tests.images]
    for shots in SHOTS:
        for seed in seeds:
            adapted = adapt(model, draw(category, shots, seed), seed)
            first = model.config.readings[0]
            resized = [on_one_grid(adapted.distances(image), first) for image in tokens]
            assert adapted.same_place is not None
            (alignment,) = adapted.same_place.alignments
            measured = {part: {ALIGNMENT: alignment} for part in tests.parts()}
            note(found, measured, shots, ALIGNMENT)
            for judge, candidates in (
                (tests.judge_scores, SCORES),
                (tests.judge_pixels, PIXELS),
            ):
                for name, (shares, sigma, says) in candidates.items():
                    given = shares.given(shots, alignment if says is None else says)
                    joined = (model.metric.join(image, given) for image in resized)
                    maps = [smooth(grid[None], sigma)[0] for grid in joined]
                    note(found, judge(maps), shots, name)
    return averaged(found)


def left_out(results: dict[str, Results]) -> str:
    """What each set would get if the maps had been chosen on the other sets alone: by the mean of
    image AUROC, and of pixel AUROC and AUPRO, over their parts to choose on and numbers of shots.
    """
    lines = ["| left out | chosen | before | with what was chosen |", "|---|---|---|---|"]
    for names, metrics in (
        (list(SCORES), ("image_auroc",)),
        (list(PIXELS), ("pixel_auroc", "aupro")),
    ):
        before, means = names[0], {}
        for place, by_part in results.items():
            rows = [row for part in by_part.values() for row in part.values()]
            to_choose = list(by_part["to choose"].values())
            if all(metric in rows[0].get(before, {}) for metric in metrics):
                means[place] = {
                    name: tuple(
                        [100 * float(np.mean([row[name][m] for row in some])) for m in metrics]
                        for some in (to_choose, rows)
                    )
                    for name in names
                }
        for place, found in means.items():
            others = [means[other] for other in means if other != place]
            if not others:
                continue
            best = max(
                names,
                key=lambda name: sum(sum(other[name][0]) for other in others),
            )
            values = (
                " / ".join(f"{value:.1f}" for value in found[name][1]) for name in (before, best)
            )
            lines.append(f"| {place} | {best} | {' | '.join(values)} |")
    return "\n".join(lines)


def main() -> None:
    model = FeatureModel.from_pretrained(FeatureConfig(own=0.0))
    title = __doc__.splitlines()[0]
    results = measure_sets(title, partial(measure, model), 3, {})
    for names in ([ALIGNMENT, *SCORES], [*PIXELS]):
        print(table(results, names), end="\n\n")
    print("\nImage AUROC; pixel AUROC / AUPRO, percent, mean over parts and shots.\n")
    print(left_out(results))


if __name__ == "__main__":
    main()
