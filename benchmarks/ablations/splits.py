"""Test images in a part to choose on and one to judge by, and what is measured on each.

Real test images: of a set with more than twice ``CHOSEN_ON`` of them, so many drawn by a fixed seed
are the part to choose on, and the rest is the part to judge by; a smaller set is chosen on as a
whole, and serves to leave out. Pixels are counted at the images' own size: in cells of 8 pixels
wide means look better than they are. Means over supports.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor

from metaformer.data.datasets.loading import Category, load_categories
from metaformer.detection.adaptation import has_views, lone_alignment, prepare, prepare_views
from metaformer.detection.feature.adapted import AdaptedFeature
from metaformer.detection.feature.config import FeatureConfig
from metaformer.detection.feature.preset import FeatureModel
from metaformer.detection.feature.scale import fit_to_sizes
from metaformer.detection.scoring.anomaly_map import image_score
from metaformer.evaluation.aggregate import machine
from metaformer.evaluation.metrics import PixelMetrics
from metaformer.evaluation.samples import load_mask
from metaformer.inference.allocator import keep_freed_memory
from metaformer.io.atomic_files import write_text
from metaformer.io.images import Image, pixels_of, read_image, resize_map

CHOSEN_ON = 160
SEED = 5
Row = dict[str, float]
"""Metric -> value."""
Results = dict[str, dict[str, dict[str, Row]]]
"""Part -> shots -> candidate -> metric -> value."""
Found = dict[tuple[str, str, str], list[Row]]
"""Part, shots, candidate -> one row a support."""


@dataclass(frozen=True)
class Tests:
    """The test images of a set."""

    images: list[Image]
    labels: NDArray[np.bool_]
    masks: list[NDArray[np.bool_] | None]

    @classmethod
    def of(cls, category: Category) -> Tests:
        images = [read_image(sample.image) for sample in category.test]
        masks = [
            load_mask(sample, image.shape[:2])
            for sample, image in zip(category.test, images, strict=True)
        ]
        return cls(images, np.array([sample.is_anomalous for sample in category.test]), masks)

    def parts(self) -> dict[str, NDArray[np.intp]]:
        """Indices of the images of each part."""
        order = np.random.default_rng(SEED).permutation(len(self.images))
        if len(order) <= 2 * CHOSEN_ON:
            return {"to choose": np.sort(order)}
        return {"to choose": np.sort(order[:CHOSEN_ON]), "to judge": np.sort(order[CHOSEN_ON:])}

    def judge_scores(self, maps: Sequence[Tensor]) -> dict[str, Row]:
        """Of maps (h, w) to score images by, of each part."""
        scores = np.array([image_score(grid, FeatureConfig().score_share) for grid in maps])
        return {
            part: {"image_auroc": float(roc_auc_score(self.labels[chosen], scores[chosen]))}
            for part, chosen in self.parts().items()
        }

    def judge_pixels(self, maps: Sequence[Tensor]) -> dict[str, Row]:
        """Of maps (h, w) to mark pixels; nothing where no mask says where the defects are."""
        rows: dict[str, Row] = {}
        for part, chosen in self.parts().items():
            rows[part] = {}
            pixels, has_defects = PixelMetrics(), False
            for i in chosen:
                mask = self.masks[i]
                if mask is not None:
                    pixels.add(resize_map(maps[i].numpy(), mask.shape), mask)
                    has_defects |= bool(mask.any())
            if has_defects:
                computed = pixels.compute()
                names = ("pixel_auroc", "pixel_ap", "aupro")
                rows[part] = {name: float(computed[name] or 0) for name in names}
        return rows

    def judge(self, maps: Sequence[Tensor]) -> dict[str, Row]:
        """Of maps (M, h, w): the first to score by, the last to mark pixels."""
        scores = self.judge_scores([grids[0] for grids in maps])
        pixels = self.judge_pixels([grids[-1] for grids in maps])
        return {part: scores[part] | pixels[part] for part in scores}


def note(found: Found, rows: dict[str, Row], shots: int | str, candidate: str) -> None:
    """Add what a candidate did on each part with one support."""
    for part, row in rows.items():
        found.setdefault((part, f"{shots}", candidate), []).append(row)


def averaged(found: Found) -> Results:
    """Means over supports."""
    results: Results = {}
    for (part, shots, candidate), rows in found.items():
        means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        results.setdefault(part, {}).setdefault(shots, {})[candidate] = means
    return results


def drawn(total: int, count: int, seed: int) -> NDArray[np.intp]:
    """Indices of a support of so many out of all normal training images."""
    return np.random.default_rng((SEED, seed)).permutation(total)[:count]


def draw(category: Category, count: int, seed: int) -> list[Image]:
    """The images of such a support."""
    return [read_image(category.train[i]) for i in drawn(len(category.train), count, seed)]


def fitted(model: FeatureModel, support: Sequence[Image]) -> FeatureModel:
    """The model as a product is adapted to with it: sizes of the images may say something."""
    areas = (pixels_of(image) for image in support)
    found = fit_to_sizes(model, areas, lambda i: support[i])
    assert isinstance(found, FeatureModel)
    return found


def adapt(model: FeatureModel, support: Sequence[Image], seed: int) -> AdaptedFeature:
    """Without a threshold; sizes as ``model`` knows of them."""
    known = [prepare(model, image) for image in support]
    views = []
    if has_views(model, len(support)):
        views = [prepare_views(model, image) for image in support]
    alignment = lone_alignment(model, support[0], known) if len(support) == 1 else None
    return model.adapt(known, seed=seed, views=views, alignment=alignment)


def table(results: dict[str, Results], names: Sequence[str]) -> str:
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


def measure_sets(
    description: str,
    measure: Callable[[Category, Sequence[int]], Results],
    supports: int,
    settings: dict[str, Any],
) -> dict[str, Results]:
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
