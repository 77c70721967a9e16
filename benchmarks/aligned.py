"""Which strides and reach the aligned comparison should have, on pairs of a template and a board.

    python -m benchmarks.aligned DEEPPCB --output benchmarks/results/aligned.json

Choices are made on the boards of the first two groups; the other two, not looked at before, show
what they are worth. Pixel AUROC and AP against filled boxes, at stride 4 of the working size.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from metaformer.adaptation import adapt_model, prepare, raw_maps
from metaformer.datasets import load_categories
from metaformer.feature_config import ALIGNED, FeatureConfig
from metaformer.feature_model import FeatureModel
from metaformer.files import write_text
from metaformer.images import read_image
from metaformer.samples import Sample
from metaformer.summary import machine

EVERY = 5
"""Of the pairs of a group, one in so many."""
GRID = 160
"""Side of the maps that are compared, a fourth of the boards'."""
LEVELS: tuple[tuple[int, ...], ...] = ((8, 16), (4,), (8,), (4, 8), (4, 8, 16))
RESOLUTIONS = (256, 384)
REACHES = (4, 8, 16)


def variants() -> dict[str, FeatureConfig]:
    configs = {}
    for resolution in RESOLUTIONS:
        for levels in LEVELS:
            weights = (0.5, 1.0) if levels == (8, 16) else (1.0,) * len(levels)
            config = replace(ALIGNED, levels=levels, level_weights=weights, resolution=resolution)
            configs[f"strides {', '.join(map(str, levels))} at {resolution}"] = config
    for reach in REACHES:
        if reach != ALIGNED.reach:
            configs[f"strides 4, 8 at 256, reach {reach}"] = replace(ALIGNED, reach=reach)
    return configs


def measure(config: FeatureConfig, samples: Sequence[Sample]) -> list[float]:
    """Pixel AUROC and AP over all ``samples`` together."""
    model = FeatureModel.from_pretrained(config)
    values, truth = [], []
    for sample in samples:
        assert sample.template is not None
        adapted = adapt_model(model, [prepare(model, read_image(sample.template))], [], 0)
        found = raw_maps(model, adapted, prepare(model, read_image(sample.image)))[-1]
        values.append(cv2.resize(found.numpy(), (GRID, GRID)).ravel())
        truth.append(box_mask(sample))
    labels, scores = np.concatenate(truth), np.concatenate(values)
    return [float(roc_auc_score(labels, scores)), float(average_precision_score(labels, scores))]


def box_mask(sample: Sample) -> NDArray[np.bool_]:
    """Flat, of cells that are more than half within a box."""
    masks = np.stack([read_image(path)[..., 0] > 127 for path in sample.masks])
    whole = np.asarray(masks.any(0), np.float32)
    share = cv2.resize(whole, (GRID, GRID), interpolation=cv2.INTER_AREA)
    return np.asarray(share > 0.5).ravel()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    groups = [category.test[::EVERY] for category in load_categories(options.root)]
    parts = {
        "chosen on": [sample for group in groups[:2] for sample in group],
        "held out": [sample for group in groups[2:] for sample in group],
    }
    results = {
        name: {part: measure(config, samples) for part, samples in parts.items()}
        for name, config in variants().items()
    }
    content = {
        "date": date.today().isoformat(),
        "machine": machine(),
        "pairs": {part: len(samples) for part, samples in parts.items()},
        "results": results,
    }
    write_text(options.output, json.dumps(content, indent=1) + "\n")
    print(f"| comparison | {' | '.join(parts)} |\n|---|---|---|")
    for name, found in results.items():
        cells = [f"{100 * auroc:.1f} / {100 * ap:.1f}" for auroc, ap in found.values()]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
