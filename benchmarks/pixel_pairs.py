"""The ``pixel`` preset on pairs of a golden sample and a test image, by place and not.

    python -m benchmarks.pixel_pairs ROOT --limit 9 --output results.json

As ``metaformer evaluate``, but that no threshold is calibrated: for maps it is not needed, and it
takes most of the time where every test image has a detector of its own. Both ways of comparing are
measured in one run, with the same adapted A.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from metaformer.adaptation import at_working_size, raw_maps
from metaformer.benchmark import save_results
from metaformer.benchmark_samples import limit_samples, load_mask, template_of
from metaformer.datasets import load_categories
from metaformer.images import read_image, resize_map
from metaformer.metrics import PixelMetrics
from metaformer.pixel_model import PixelConfig, PixelModel
from metaformer.preprocess import to_image_size
from metaformer.summary import machine


def main() -> None:
    parser = argparse.ArgumentParser(description="The pixel preset on pairs, by place and not.")
    parser.add_argument("root", type=Path)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--limit", type=int, default=9, help="test images of each group")
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = PixelModel.from_pretrained(PixelConfig(resolution=options.resolution, aligned=True))
    groups: dict[str, dict[str, dict[str, float | None]]] = {}
    for category in load_categories(options.root):
        metrics = {"anywhere": PixelMetrics(), "aligned": PixelMetrics()}
        for sample in limit_samples(category.test, options.limit):
            image, template = read_image(sample.image), read_image(template_of(sample))
            adapted = model.adapt([model.prepare(at_working_size(model, template))], seed=0)
            prepared = model.prepare(at_working_size(model, image))
            mask = load_mask(sample, image.shape[:2])
            assert mask is not None and adapted.known is not None
            maps = {"aligned": raw_maps(model, adapted, prepared)[-1]}
            adapted.known = replace(adapted.known, templates=())
            maps["anywhere"] = raw_maps(model, adapted, prepared)[-1]
            for name, grid in maps.items():
                full = to_image_size(grid, image.shape)
                metrics[name].add(resize_map(full, (mask.shape[0], mask.shape[1])), mask)
        groups[category.name] = {name: metric.compute() for name, metric in metrics.items()}
        result = {
            "data": options.root.name,
            "resolution": options.resolution,
            "test_images_of_each_group": options.limit,
            "mean": {name: mean(groups, name) for name in metrics},
            "groups": groups,
            "machine": machine(),
        }
        print(category.name, result["mean"], flush=True)
        if options.output:
            save_results(result, options.output)


def mean(groups: dict[str, dict[str, dict[str, float | None]]], name: str) -> dict[str, Any]:
    """Plain mean over the groups so far."""
    found = [group[name] for group in groups.values()]
    means = {}
    for metric in found[0]:
        values = [one[metric] for one in found]
        known = [value for value in values if value is not None]
        means[metric] = sum(known) / len(known) if known else None
    return means


if __name__ == "__main__":
    main()
