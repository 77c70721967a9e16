"""What the map of the ``pixel`` preset is made of, and what A's steps and the long mode are worth.

    python -m benchmarks.pixel_map PHOTOS DATA_ROOT... --output benchmarks/results/pixel_map.json

The tasks of ``benchmarks.metric``, fewer of them: held-out kinds of photos, and good training
images of products, some with a synthetic defect; no test image. Compared are the map with and
without the gap of image and reconstruction, and the number of support images that A takes its steps
on; none means no steps. ``--long`` adds the long mode, before T and after. Metrics within a task,
of cells of stride 8, means over tasks.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import metric
from benchmarks.metric import Task, judge, means_of, photo_tasks, product_tasks, table
from metaformer import pixel_fit
from metaformer.adaptation import adapt_model, prepare, raw_maps
from metaformer.allocation import keep_freed_memory
from metaformer.benchmark import save_results
from metaformer.model import LEVELS
from metaformer.pixel_model import AdaptedPixel, PixelConfig, PixelModel
from metaformer.preprocess import image_score, smooth
from metaformer.summary import machine


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    keep_freed_memory()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    metric.SHOTS, metric.PHOTO_TASKS = (4,), options.photo_tasks
    metric.PRODUCT_SHOTS = tuple(options.shots)
    metric.PRODUCT_TASKS, metric.PRODUCT_QUERIES = options.product_tasks, 14
    model = PixelModel.from_pretrained(PixelConfig(gap=True, resolution=options.resolution))
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for task in (*product_tasks(options.roots), *photo_tasks(options.photos)):
        group = f"{task.group}, {len(task.support)} shots"
        variants = [*measured_maps(model, task, options.fit_images)]
        if options.long:
            variants += long_maps(model, task)
        for name, maps in variants:
            scores = [image_score(grid, model.config.score_share) for grid in maps]
            coarse = [F.avg_pool2d(grid[None], 2)[0] for grid in maps]  # stride 4 -> 8
            for key, value in judge(task, scores, coarse).items():
                per_variant = found.setdefault(group, {}).setdefault(name, {})
                per_variant.setdefault(key, []).append(value)
        means = means_of(found)
        settings = {
            "product_tasks": options.product_tasks,
            "photo_tasks": options.photo_tasks,
            "resolution": options.resolution,
        }
        save_results({**settings, "machine": machine(), "results": means}, options.output)
    print("Image AUROC / pixel AUROC / pixel AP, percent.\n")
    print(table(means))


def measured_maps(
    model: PixelModel, task: Task, fit_images: Sequence[int]
) -> Iterator[tuple[str, list[Tensor]]]:
    """The queries' maps (h, w) by each variant."""
    support = [prepare(model, image) for image in task.support]
    queries = [prepare(model, image) for image in task.query]
    for count in fit_images:
        pixel_fit.FIT_IMAGES = count or 1
        adapting = model if count else with_no_steps(model)
        adapted = adapting.adapt(support, seed=0)
        for with_gap in (True, False):
            name = f"steps on {count}" + (", with gap" if with_gap else "")
            chosen = adapted if with_gap else without_gap(adapted)
            yield name, [raw_maps(model, chosen, query)[-1] for query in queries]


def long_maps(model: PixelModel, task: Task) -> Iterator[tuple[str, list[Tensor]]]:
    config = PixelConfig(mode="long", resolution=model.config.resolution)
    long = PixelModel(config, model.universal, model.rates, model.prior)
    adapted = adapt_model(long, [prepare(long, image) for image in task.support], [], seed=0)
    assert isinstance(adapted, AdaptedPixel) and adapted.known is not None
    findings = []
    with torch.no_grad():
        for image in task.query:
            reading = adapted.read(prepare(long, image))
            findings.append(adapted.universal.find(reading, adapted.known))
    yield "long, before T", [smooth(found.first, config.sigma)[0] for found in findings]
    yield "long", [smooth(found.anomaly, config.sigma)[0] for found in findings]


def with_no_steps(model: PixelModel) -> PixelModel:
    """The same with inner rates of zero."""
    rates = copy.deepcopy(model.rates)
    rates.rates.zero_()
    return PixelModel(model.config, model.universal, rates, model.prior)


def without_gap(adapted: AdaptedPixel) -> AdaptedPixel:
    """The same, with the gap left out of the map."""
    assert adapted.known is not None
    known = replace(adapted.known, typical=adapted.known.typical[: len(LEVELS)])
    config = replace(adapted.config, gap=False)
    return AdaptedPixel(config, adapted.universal, adapted.prior, adapted.moments, known)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("roots", type=Path, nargs="*")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--fit-images", type=int, nargs="+", default=[0, 2, 4])
    parser.add_argument("--long", action="store_true", help="minutes for every task")
    parser.add_argument("--resolution", type=int, default=PixelConfig().resolution)
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--product-tasks", type=int, default=2)
    parser.add_argument("--photo-tasks", type=int, default=4)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
