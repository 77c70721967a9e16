"""How the feature preset's metric was chosen, and what it adds to the comparison without learning.

    python -m benchmarks.ablations.patch_metric PHOTOS DATA_ROOT...
        --output benchmarks/results/metric.json

Tasks of two kinds, neither of which shows a test image or a real defect of any benchmark:
held-out kinds of photos, with novel material and with synthetic defects; and good training images
of real products, some of which get a synthetic defect. Means over tasks; AUROC and AP of pixels
at stride 8. ``--weights NAME=FOLDER`` adds what ``metaformer pretrain metric`` wrote,
``--transformer NAME=FOLDER`` what ``metaformer pretrain transformer`` did.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from benchmarks.accuracy.few_shot import WITH_T
from metaformer.data.datasets.loading import load_categories
from metaformer.data.synthetic.defects import DefectConfig, draw_defect
from metaformer.detection.adaptation import adapt_model, has_views, prepare, prepare_views, raw_maps
from metaformer.detection.feature.config import PLAIN, FeatureConfig
from metaformer.detection.feature.preset import FeatureModel
from metaformer.detection.preprocessing import working_size
from metaformer.detection.scoring.anomaly_map import image_score
from metaformer.evaluation.aggregate import machine
from metaformer.inference.allocator import keep_freed_memory
from metaformer.io.atomic_files import write_text
from metaformer.io.images import read_image, resize_image
from metaformer.networks.patch_metric import LEARNED, load_metric
from metaformer.networks.patch_transformer import load_token_transformer
from metaformer.training.episodes.episodes import Episode, EpisodeConfig, episode
from metaformer.training.episodes.photo_pool import PhotoPool
from metaformer.training.episodes.real_anomalies import novelty_task

SHOTS: tuple[int, ...] = (1, 4)
PRODUCT_SHOTS: tuple[int, ...] = (1, 4, 8)
SEED = 77
PHOTO_TASKS = 20
"""Of each kind and number of shots."""
PRODUCT_TASKS = 3
PRODUCT_QUERIES = 20
RESOLUTION = 256


@dataclass(frozen=True)
class Task:
    group: str
    support: Sequence[NDArray[np.uint8]]
    query: Sequence[NDArray[np.uint8]]
    masks: Sequence[NDArray[np.bool_]] | None
    """None where whole images are anomalous."""
    anomalous: NDArray[np.bool_]


def photo_tasks(photos: Path) -> Iterator[Task]:
    """Held-out kinds of photos."""
    pool = PhotoPool.load(photos, split="validation")
    for shots in SHOTS:
        config = EpisodeConfig(
            resolution=RESOLUTION, shots=(shots,), queries=(8, 8), clean_share=0.5
        )
        for index in range(PHOTO_TASKS):
            yield from (
                to_task("novel region", novelty_task(pool, config, SEED + shots, 2 * index)),
                to_task("novel image", novelty_task(pool, config, SEED + shots, 2 * index + 1)),
                to_task("synthetic", episode(pool, config, SEED + shots, index)),
            )


def to_task(group: str, drawn: Episode) -> Task:
    masks = None if drawn.kind == "novel_image" else list(drawn.masks)
    return Task(group, list(drawn.support), list(drawn.query), masks, ~drawn.is_clean)


def product_tasks(roots: Sequence[Path]) -> Iterator[Task]:
    """Good training images; every second query gets a synthetic defect."""
    rng = np.random.default_rng(SEED)
    for root in roots:
        for category in load_categories(root):
            for shots in PRODUCT_SHOTS:
                for _ in range(PRODUCT_TASKS):
                    yield product_task(category.name, list(category.train), shots, rng)


def product_task(name: str, paths: list[Path], shots: int, rng: np.random.Generator) -> Task:
    order = [paths[i] for i in rng.permutation(len(paths))]
    count = min(PRODUCT_QUERIES, len(order) - shots - 1)
    support = [at_work_size(path) for path in order[:shots]]
    query, masks = [], []
    for number, path in enumerate(order[shots : shots + count]):
        image, mask = at_work_size(path), np.zeros(0, bool)
        if number % 2:
            donor = resize_image(at_work_size(order[-1]), image.shape[:2])
            image, mask = draw_defect(image, rng, donor=donor, config=DefectConfig())
        query.append(image)
        masks.append(mask if number % 2 else np.zeros(image.shape[:2], bool))
    anomalous = np.arange(count) % 2 == 1
    return Task(f"{name}, synthetic", support, query, masks, anomalous)


def at_work_size(path: Path) -> NDArray[np.uint8]:
    image = read_image(path)
    return resize_image(image, working_size(image.shape[0], image.shape[1], RESOLUTION, 16))


@dataclass(frozen=True)
class Variant:
    model: FeatureModel
    views: bool = True
    """Remember images of a small support in other light and mirrored too, as the package does."""


def measure(variant: Variant, task: Task) -> dict[str, float]:
    """Within one task; without what it does not have."""
    model, views = variant.model, []
    if variant.views and has_views(model, len(task.support)):
        views = [prepare_views(model, image) for image in task.support]
    adapted = adapt_model(model, [prepare(model, image) for image in task.support], views, 0)
    maps = [raw_maps(model, adapted, prepare(model, image)) for image in task.query]
    scores = [image_score(grids[0], model.config.score_share) for grids in maps]
    return judge(task, scores, [grids[-1] for grids in maps])


def judge(task: Task, scores: Sequence[float], maps: Sequence[Tensor]) -> dict[str, float]:
    """Metrics of the queries' scores and maps (h, w); without what the task does not have."""
    found = {}
    if task.anomalous.any() and not task.anomalous.all():
        found["image_auroc"] = float(roc_auc_score(task.anomalous, scores))
    if task.masks is not None and any(mask.any() for mask in task.masks):
        masks = [cells(mask, grid.shape) for mask, grid in zip(task.masks, maps, strict=True)]
        truth = np.concatenate(masks)
        values = np.concatenate([grid.flatten().numpy() for grid in maps])
        if truth.any():
            found["pixel_auroc"] = float(roc_auc_score(truth, values))
            found["pixel_ap"] = float(average_precision_score(truth, values))
    return found


def cells(mask: NDArray[np.bool_], shape: Sequence[int]) -> NDArray[np.bool_]:
    """(H, W) -> flat, of the cells that are anomalous in more than half of their area."""
    share = F.interpolate(torch.from_numpy(mask)[None, None].float(), tuple(shape), mode="area")
    found: NDArray[np.bool_] = (share > 0.5).flatten().numpy()
    return found


def variants(weights: Sequence[str], transformers: Sequence[str]) -> dict[str, Variant]:
    def learned(**changes: Any) -> FeatureModel:
        return FeatureModel.from_pretrained(FeatureConfig(own=0.0, **changes))

    found = {
        "without learning": Variant(FeatureModel.from_pretrained(PLAIN)),
        "one map, as learned": Variant(learned(maps=(LEARNED,))),
        "no views": Variant(learned(), views=False),
        "every token": Variant(learned(compared_tokens=20_000)),
        "4,000 tokens": Variant(learned(compared_tokens=4_000)),
        "as it is": Variant(learned()),
    }
    for entry in weights:
        name, _, folder = entry.partition("=")
        model = FeatureModel.from_pretrained(metric=load_metric(Path(folder)))
        found[name] = Variant(model)
    for entry in transformers:
        name, _, folder = entry.partition("=")
        transformer = load_token_transformer(Path(folder) if folder else None)
        found[name] = Variant(FeatureModel.from_pretrained(WITH_T, transformer=transformer))
    return found


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    names = list(next(iter(results.values())))
    lines = ["| tasks | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for group, found in results.items():
        row = [
            " / ".join(
                f"{100 * found[name][metric]:.1f}" if metric in found[name] else "–"
                for metric in ("image_auroc", "pixel_auroc", "pixel_ap")
            )
            for name in names
        ]
        lines.append(f"| {group} | " + " | ".join(row) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("roots", type=Path, nargs="*")
    parser.add_argument("--weights", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument(
        "--transformer", action="append", default=[], metavar="NAME=FOLDER", help="empty: shipped"
    )
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    keep_freed_memory()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    models = variants(options.weights, options.transformer)
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for tasks in (photo_tasks(options.photos), product_tasks(options.roots)):
        for task in tasks:
            group = f"{task.group}, {len(task.support)} shots"
            for name, model in models.items():
                for metric, value in measure(model, task).items():
                    per_model = found.setdefault(group, {}).setdefault(name, {})
                    per_model.setdefault(metric, []).append(value)
    means = means_of(found)
    content: dict[str, Any] = {
        "date": date.today().isoformat(),
        "machine": machine(),
        "seed": SEED,
        "results": means,
    }
    write_text(options.output, json.dumps(content, indent=1) + "\n")
    print("Image AUROC / pixel AUROC / pixel AP, percent.\n")
    print(table(means))


def means_of(
    found: dict[str, dict[str, dict[str, list[float]]]],
) -> dict[str, dict[str, dict[str, float]]]:
    """Group -> variant -> metric: values to their mean, and the mean of groups as one more."""
    means = {
        group: {
            name: {metric: float(np.mean(values)) for metric, values in metrics.items()}
            for name, metrics in per_model.items()
        }
        for group, per_model in found.items()
    }
    means["mean"] = {name: overall(means, name) for name in next(iter(found.values()))}
    return means


def overall(means: dict[str, dict[str, dict[str, float]]], name: str) -> dict[str, float]:
    """Mean over the groups that have the metric."""
    rows = [found[name] for found in means.values()]
    return {
        metric: float(np.mean([row[metric] for row in rows if metric in row]))
        for metric in ("image_auroc", "pixel_auroc", "pixel_ap")
    }


if __name__ == "__main__":
    main()
