"""Extending a detector against adapting to all images at once.

    python -m benchmarks.calibration.extension DATA_ROOT... --output results.json

For each set and seed: adapt to 4 images of train/good, add 6 more, and adapt to the same 10 at
once. All test images are scored by the three detectors. In three ways: the feature preset as it is
(``recomputed``), with its memory bank capped below what four images fill (``capped``), and the
pixel preset (``pixel``). The last two estimate the earlier images' scores; see
docs/decisions/02-extension.md.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metaformer.data.datasets.loading import Sample, draw_support, load_categories
from metaformer.detection.adaptation import prepare, scores_of
from metaformer.detection.detector import Detector
from metaformer.detection.feature.config import FeatureConfig
from metaformer.detection.feature.preset import FeaturePreset
from metaformer.detection.metaformer import Metaformer
from metaformer.evaluation.aggregate import machine
from metaformer.evaluation.metrics import image_metrics
from metaformer.evaluation.protocol import save_results
from metaformer.evaluation.samples import limit_samples
from metaformer.io.images import read_image

FIRST, ALL = 4, 10
RATES = (0.05, 0.1, 0.2)
CAP = 3000
"""Patches a level; four images have 4,096 at stride 8 and 256 pixels."""
WAYS: dict[str, Callable[[], Metaformer]] = {
    "recomputed": Metaformer.from_pretrained,
    "capped": lambda: Metaformer(FeaturePreset.of(FeatureConfig(max_patches=CAP)), "feature"),
    "pixel": lambda: Metaformer.from_pretrained("pixel"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Extending against adapting at once.")
    parser.add_argument("roots", nargs="+", type=Path, metavar="DATA_ROOT")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--limit", type=int, help="test images, drawn once, of each set")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows: list[dict[str, Any]] = []
    for way in options.ways:
        universal = WAYS[way]()
        for root in options.roots:
            (category,) = load_categories(root)
            test = limit_samples(category.test, options.limit)
            # The part of the work without a support is done once.
            prepared = [prepare(universal.model, read_image(sample.image)) for sample in test]
            for seed in options.seeds:
                support = draw_support(category, ALL, seed)
                first = universal.adapt(support[:FIRST], seed=seed)
                detectors = {
                    f"adapted to {FIRST}": first,
                    f"{FIRST} and {ALL - FIRST} added": first.extended_with(support[FIRST:]),
                    f"adapted to {ALL}": universal.adapt(support, seed=seed),
                }
                for name, detector in detectors.items():
                    row = {"way": way, "data": root.name, "seed": seed, "detector": name}
                    maps = [detector.adapted.anomaly_maps(image) for image in prepared]
                    row |= measure(detector, scores_of(detector.adapted, maps), test)
                    rows.append(row)
                    print(row, flush=True)
    means = summarise(rows)
    for mean in means:
        print(mean)
    content = {"first": FIRST, "all": ALL, "cap": CAP, "limit": options.limit}
    save_results({**content, "mean": means, "rows": rows, "machine": machine()}, options.output)


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
