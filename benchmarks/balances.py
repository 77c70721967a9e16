"""How the feature preset's two maps were chosen (docs/decisions/0012-two-maps.md and 0018).

    python -m benchmarks.balances DATA_ROOT... --output benchmarks/results/balances.json

Real test images, in two parts: of a set with more than twice ``CHOSEN_ON`` of them, so many drawn
by a fixed seed are the part to choose on, and the rest is the part to judge by; a smaller set is
chosen on as a whole, and serves to leave out. Pixels are counted at the images' own size: in cells
of 8 pixels wide means look better than they are. Means over supports.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from metaformer.adaptation import has_views, lone_alignment, prepare, prepare_views
from metaformer.adapted_feature import Tokens, on_one_grid
from metaformer.allocation import keep_freed_memory
from metaformer.benchmark_samples import load_mask
from metaformer.datasets import Category, load_categories
from metaformer.feature_config import MARKING, SCORING, FeatureConfig
from metaformer.feature_model import FeatureModel
from metaformer.files import write_text
from metaformer.images import read_image, resize_map
from metaformer.metric import Shares
from metaformer.metrics import PixelMetrics
from metaformer.preprocess import image_score, smooth
from metaformer.summary import machine

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
Labels = NDArray[np.bool_]
Masks = Sequence[NDArray[np.bool_] | None]

SHOTS = (1, 4, 16)
CHOSEN_ON = 160
SEED = 5


def parts(count: int) -> dict[str, NDArray[np.intp]]:
    """Indices of the test images of each part."""
    order = np.random.default_rng(SEED).permutation(count)
    if count <= 2 * CHOSEN_ON:
        return {"to choose": np.sort(order)}
    return {"to choose": np.sort(order[:CHOSEN_ON]), "to judge": np.sort(order[CHOSEN_ON:])}


def read_tests(model: FeatureModel, category: Category) -> tuple[list[Tokens], Labels, Masks]:
    """Of each test image its tokens, whether it is defective, and where if that is known."""
    tokens, masks = [], []
    for sample in category.test:
        image = read_image(sample.image)
        tokens.append(prepare(model, image))
        masks.append(load_mask(sample, image.shape[:2]))
    return tokens, np.array([sample.is_anomalous for sample in category.test]), masks


def measure(
    model: FeatureModel, category: Category, seeds: Sequence[int]
) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Part -> shots -> map -> metric."""
    assert model.metric is not None
    tokens, labels, masks = read_tests(model, category)
    by_part = parts(len(tokens))
    found: dict[str, dict[str, dict[str, dict[str, list[float]]]]] = {}
    for shots in SHOTS:
        for seed in seeds:
            order = np.random.default_rng((SEED, seed)).permutation(len(category.train))
            support = [read_image(category.train[i]) for i in order[:shots]]
            views = []
            if has_views(model, shots):
                views = [prepare_views(model, image) for image in support]
            known = [prepare(model, image) for image in support]
            alignment = lone_alignment(model, support[0], known) if shots == 1 else None
            adapted = model.adapt(known, seed=seed, views=views, alignment=alignment)
            first = model.config.readings[0]
            resized = [on_one_grid(adapted.distances(image), first) for image in tokens]
            rows = {ALIGNMENT: {part: {ALIGNMENT: adapted.alignment} for part in by_part}}
            for kind, candidates in enumerate((SCORES, PIXELS)):
                for name, (shares, sigma, says) in candidates.items():
                    given = shares.given(shots, adapted.alignment if says is None else says)
                    joined = (model.metric.join(image, given) for image in resized)
                    maps = [smooth(grid[None], sigma)[0] for grid in joined]
                    judge = judge_scores if kind == 0 else judge_pixels
                    rows[name] = {
                        part: judge(
                            [maps[i] for i in chosen], labels[chosen], [masks[i] for i in chosen]
                        )
                        for part, chosen in by_part.items()
                    }
            for name, row_of_part in rows.items():
                for part, row in row_of_part.items():
                    place = found.setdefault(part, {}).setdefault(f"{shots}", {})
                    for metric, value in row.items():
                        place.setdefault(name, {}).setdefault(metric, []).append(value)
    return {
        part: {
            shots: {
                kind: {metric: float(np.mean(values)) for metric, values in row.items()}
                for kind, row in by_map.items()
            }
            for shots, by_map in by_shots.items()
        }
        for part, by_shots in found.items()
    }


def judge_scores(maps: Sequence[torch.Tensor], labels: Labels, masks: Masks) -> dict[str, float]:
    scores = [image_score(grid, FeatureConfig().score_share) for grid in maps]
    return {"image_auroc": float(roc_auc_score(labels, scores))}


def judge_pixels(maps: Sequence[torch.Tensor], labels: Labels, masks: Masks) -> dict[str, float]:
    """Nothing where no mask says where the defects are."""
    if not any(mask is not None and mask.any() for mask in masks):
        return {}
    pixels = PixelMetrics()
    for grid, mask in zip(maps, masks, strict=True):
        if mask is not None:
            pixels.add(resize_map(grid.numpy(), mask.shape), mask)
    computed = pixels.compute()
    return {name: float(computed[name] or 0) for name in ("pixel_auroc", "pixel_ap", "aupro")}


def table(
    results: dict[str, dict[str, dict[str, dict[str, dict[str, float]]]]], names: Sequence[str]
) -> str:
    lines = [
        "| set, part, shots | " + " | ".join(names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    for set_name, by_part in results.items():
        for part, by_shots in by_part.items():
            for shots, rows in by_shots.items():
                values = (
                    " / ".join(f"{100 * value:.1f}" for value in rows.get(name, {}).values())
                    for name in names
                )
                lines.append(f"| {set_name}, {part}, {shots} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def left_out(results: dict[str, dict[str, dict[str, dict[str, dict[str, float]]]]]) -> str:
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


def measure_sets(
    description: str,
    measure: Callable[[Category, Sequence[int]], Any],
    supports: int,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Of each set of the command line, written to its ``--output`` as soon as it is there.

    Args:
        description: of the command.
        measure: of a category and the seeds of its supports.
        supports: how many, unless the command line says otherwise.
        settings: written beside the results.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("roots", type=Path, nargs="+")
    parser.add_argument("--seeds", type=int, default=supports, help="how many supports")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    results = {}
    for root in options.roots:
        for category in load_categories(root):
            print(category.name, flush=True)
            results[category.name] = measure(category, range(options.seeds))
            content = {
                "date": date.today().isoformat(),
                "machine": machine(),
                "seed": SEED,
                "supports": options.seeds,
                **settings,
                "results": results,
            }
            write_text(options.output, json.dumps(content, indent=1) + "\n")
    print("Image AUROC / pixel AUROC / pixel AP / AUPRO, percent.\n")
    return results


def main() -> None:
    model = FeatureModel.from_pretrained()
    title = __doc__.splitlines()[0]
    results = measure_sets(title, partial(measure, model), 3, {})
    for names in ([ALIGNMENT, *SCORES], [*PIXELS]):
        print(table(results, names), end="\n\n")
    print("\nImage AUROC; pixel AUROC / AUPRO, percent, mean over parts and shots.\n")
    print(left_out(results))


if __name__ == "__main__":
    main()
