"""What is each part of a preset worth on real products? Left out one at a time.

    python -m benchmarks.ablations.parts DATA --output parts.json

The same as ``metaformer evaluate --without PART`` on every set, with the ``pixel`` preset's
transformer turned on. Resumable: what is in the file is not measured again.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.ablations.leave_one_product_out import SETS
from benchmarks.accuracy.baselines.feature_cache import keep_features
from benchmarks.accuracy.methods import backbone_of
from metaformer.data.datasets.loading import load_categories
from metaformer.detection.feature.config import FeatureConfig
from metaformer.detection.feature.preset import FeaturePreset
from metaformer.detection.metaformer import Metaformer
from metaformer.detection.pixel.config import PixelConfig
from metaformer.detection.pixel.preset import PixelPreset
from metaformer.detection.preset import PARTS as PART_NAMES
from metaformer.evaluation.detector_method import DetectorMethod
from metaformer.evaluation.protocol import evaluate, save_results
from metaformer.io.atomic_files import write_text

METRICS = ("image_auroc", "recall_at_5", "pixel_ap", "aupro")
NO_IMAGE_METRICS = "mvtec_screw"
"""Its good test images are darker than all others."""
SMALL_BANK = "small memory bank"
PARTS = {
    "feature": ("", "transformer", "gap", SMALL_BANK),
    "pixel": ("", "transformer", "response", "gap", "adaptation"),
}
"""What is left out; the empty one is the whole preset."""
MORE_PATCHES = replace(
    FeatureConfig(), coreset_size=2_048, cosine_rows=2_048, principal_directions=64
)


def main() -> None:
    parser = argparse.ArgumentParser(description="What each part is worth on real products.")
    parser.add_argument("data", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--presets", nargs="+", default=list(PARTS))
    parser.add_argument("--shots", nargs="+", type=int, default=[1, 4, 10])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--limit", type=int, default=50, help="test images of each set")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_features(1500)
    rows: list[dict[str, Any]] = []
    if options.output.exists():
        rows = json.loads(options.output.read_text())["rows"]
    for preset, name, shots in itertools.product(options.presets, SETS, options.shots):
        (category,) = load_categories(options.data / name)
        for part in PARTS[preset]:
            key = {"preset": preset, "without": part, "data": name, "shots": shots}
            if any(key.items() <= row.items() for row in rows):
                continue
            found = evaluate(
                category,
                MAKERS[preset](part),
                shots=shots,
                seeds=options.seeds,
                test_limit=options.limit,
                quiet=True,
            )
            metrics = {metric: found["mean"].get(metric) for metric in METRICS}
            rows.append({**key, **metrics, "seeds": options.seeds, "limit": options.limit})
            save_results({"machine": found["machine"], "rows": rows}, options.output)
            print(key, flush=True)
    write_text(options.output.with_suffix(".md"), markdown(rows))


def of_feature(part: str) -> DetectorMethod:
    config = MORE_PATCHES if part == SMALL_BANK else FeatureConfig()
    preset = FeaturePreset(config, backbone_of(config.levels, config.corrects))
    left_out = [part] if part in PART_NAMES else []
    return DetectorMethod(Metaformer(preset.without(left_out), "feature"), name=part)


def of_pixel(part: str) -> DetectorMethod:
    preset = pixel_preset().without([part] if part else [])
    return DetectorMethod(Metaformer(preset, "pixel"), name=part)


@cache
def pixel_preset() -> PixelPreset:
    return PixelPreset.from_pretrained(PixelConfig(transformer=True))


MAKERS: dict[str, Callable[[str], DetectorMethod]] = {"feature": of_feature, "pixel": of_pixel}


def markdown(rows: list[dict[str, Any]]) -> str:
    """Per preset the whole, percent, and the points that each part left out changes: mean over
    sets and numbers of images, and the worst set."""
    lines = [
        f"Percent; seeds {rows[0]['seeds']}, up to {rows[0]['limit']} test images a set, mean over "
        "sets and numbers of images. In brackets the set that loses most without the part.",
        "",
        "| preset | without | " + " | ".join(METRICS) + " |",
        "|---" * (2 + len(METRICS)) + "|",
    ]
    for preset, parts in PARTS.items():
        for part in parts:
            cells = [cell(rows, preset, part, metric) for metric in METRICS]
            lines.append(f"| {preset} | {part or '–'} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def cell(rows: list[dict[str, Any]], preset: str, part: str, metric: str) -> str:
    whole, left = (
        {
            (row["data"], row["shots"]): 100 * row[metric]
            for row in rows
            if row["preset"] == preset and row["without"] == which and row[metric] is not None
        }
        for which in ("", part)
    )
    if metric in METRICS[:2]:
        left = {key: value for key, value in left.items() if key[0] != NO_IMAGE_METRICS}
    if not left:
        return "–"
    if not part:
        return f"{np.mean([*left.values()]):.1f}"
    by_set: dict[str, list[float]] = {}
    for key, value in left.items():
        by_set.setdefault(key[0], []).append(value - whole[key])
    means = {name: float(np.mean(changes)) for name, changes in by_set.items()}
    worst = min(means, key=lambda name: means[name])
    change = np.mean([value - whole[key] for key, value in left.items()])
    return f"{change:+.1f} ({worst} {means[worst]:+.1f})"


if __name__ == "__main__":
    main()
