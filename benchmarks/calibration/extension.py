"""Extending a detector against adapting to all images at once.

    python -m benchmarks.calibration.extension DATA_ROOT... --output results.json

For each set and seed: adapt to 4 images of train/good, add 6 more, and adapt to the same 10 at
once. All test images are scored by the three detectors. In four ways: the feature preset as it is
(``recomputed``), with its memory capped below what four images fill (``capped``), from a file that
does not say what is in the memory (``older file``), and the pixel preset (``pixel``). The last
three estimate the earlier images' scores; see docs/decisions/02-extension.md.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metaformer.data.datasets.loading import Sample, draw_support, load_categories
from metaformer.detection.adaptation import prepare, raw_maps
from metaformer.detection.detector import Detector, Metaformer
from metaformer.detection.feature.adapted import AdaptedFeature
from metaformer.detection.feature.config import FeatureConfig
from metaformer.detection.feature.preset import FeatureModel
from metaformer.detection.scoring.anomaly_map import image_score
from metaformer.evaluation.aggregate import machine
from metaformer.evaluation.metrics import image_metrics
from metaformer.evaluation.protocol import save_results
from metaformer.evaluation.samples import limit_samples
from metaformer.io.images import read_image

FIRST, ALL = 4, 10
RATES = (0.05, 0.1, 0.2)
CAP = 3000
"""Tokens a level; four images have 4,096 at stride 8 and 256 pixels."""
WAYS = ("recomputed", "capped", "older file", "pixel")


def main() -> None:
    parser = argparse.ArgumentParser(description="Extending against adapting at once.")
    parser.add_argument("roots", nargs="+", type=Path, metavar="DATA_ROOT")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--limit", type=int, help="test images, drawn once, of each set")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows: list[dict[str, Any]] = []
    for way in options.ways.split(","):
        universal = universal_of(way)
        for root in options.roots:
            (category,) = load_categories(root)
            test = limit_samples(category.test, options.limit)
            score = scorer(universal, test)
            for seed in (int(part) for part in options.seeds.split(",")):
                support = draw_support(category, ALL, seed)
                first = universal.adapt(support[:FIRST], seed=seed)
                if way == "older file":
                    assert isinstance(first.adapted, AdaptedFeature)
                    first.adapted.grids = None
                detectors = {
                    f"adapted to {FIRST}": first,
                    f"{FIRST} and {ALL - FIRST} added": first.extended_with(support[FIRST:]),
                    f"adapted to {ALL}": universal.adapt(support, seed=seed),
                }
                for name, detector in detectors.items():
                    row = {"way": way, "data": root.name, "seed": seed, "detector": name}
                    row |= measure(detector, score(detector), test)
                    rows.append(row)
                    print(row, flush=True)
    means = summarise(rows)
    for mean in means:
        print(mean)
    content = {"first": FIRST, "all": ALL, "cap": CAP, "limit": options.limit}
    save_results({**content, "mean": means, "rows": rows, "machine": machine()}, options.output)


def universal_of(way: str) -> Metaformer:
    if way == "pixel":
        return Metaformer.from_pretrained("pixel")
    model = Metaformer.from_pretrained().model
    assert isinstance(model, FeatureModel)
    config = replace(FeatureConfig(), max_tokens=CAP) if way == "capped" else model.config
    return Metaformer(model.with_config(config), "feature")


def scorer(universal: Metaformer, test: Sequence[Sample]) -> Callable[[Detector], list[float]]:
    """Raw scores of the test images; the part of the work without a support is done once."""
    model = universal.model
    prepared = [prepare(model, read_image(sample.image)) for sample in test]

    def score(detector: Detector) -> list[float]:
        maps = (raw_maps(detector.model, detector.adapted, image) for image in prepared)
        return [image_score(m[0], model.config.score_share) for m in maps]

    return score


def measure(
    detector: Detector, scores: Sequence[float], test: Sequence[Sample]
) -> dict[str, float]:
    found, labels = np.array(scores), np.array([sample.is_anomalous for sample in test])
    row = {"image_auroc": float(image_metrics(labels, found)["image_auroc"] or 0)}
    for rate in RATES:
        threshold = detector.calibration.with_false_alarm_rate(rate).threshold
        row[f"false_alarms_at_{rate}"] = float(np.mean(found[~labels] >= threshold))
        row[f"found_at_{rate}"] = float(np.mean(found[labels] >= threshold))
    return row


def summarise(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds."""
    kinds = dict.fromkeys((row["way"], row["data"], row["detector"]) for row in rows)
    means = []
    for way, data, detector in kinds:
        same = [r for r in rows if (r["way"], r["data"], r["detector"]) == (way, data, detector)]
        numbers = [key for key in same[0] if key not in ("way", "data", "seed", "detector")]
        mean = {key: round(float(np.mean([r[key] for r in same])), 4) for key in numbers}
        means.append({"way": way, "data": data, "detector": detector, **mean})
    return means


if __name__ == "__main__":
    main()
