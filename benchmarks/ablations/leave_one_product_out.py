"""What of the ``feature`` preset holds on products that played no part in choosing it.

The rule, written down before the run:

* Eight sets; 1, 4, 10 and, where there are so many, 16 normal images; three supports each; all test
  images (of a set with more than 100, 100 drawn by a fixed seed); maps at the images' own size.
* Four metrics: image AUROC, defects caught at 5 % false alarms (the threshold is set on the good
  test images), pixel AP, AUPRO. Of ``mvtec_screw`` the two pixel metrics alone, since the light of
  its images gives the others away.
* The gain of a candidate on a set is the mean over numbers of images, supports and metrics of its
  difference to the control, which is ``nearest-patch``: Euclidean distance of pooled features to
  the nearest of all support patches, maximum as score.
* For each set left out, the candidate with the largest mean gain over the other seven is chosen,
  the control among the candidates. It is judged on the set left out.
* It is a loss if a metric there is lower than the control's by more than half the standard
  deviation over supports, averaged over numbers of images.
* The preset is the candidate chosen most often. Of candidates within 0.1 points the simpler one,
  which stands first in the list, is chosen.

    python -m benchmarks.ablations.leave_one_product_out DATA --output results.json

Sets and numbers of images that the output already holds are not measured again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor

from benchmarks.accuracy.methods import CONTROL, NEAREST_PATCH
from metaformer.data.datasets.loading import load_categories
from metaformer.detection.adaptation import prepare
from metaformer.detection.feature.adapted import from_support
from metaformer.detection.feature.comparison import fuse
from metaformer.detection.feature.config import FeatureConfig
from metaformer.detection.feature.feature_image import FeatureImage
from metaformer.detection.feature.memory_bank import describe
from metaformer.detection.feature.preset import FeaturePreset
from metaformer.detection.preset import Preset
from metaformer.detection.scoring.anomaly_map import image_score, smooth, to_image_size
from metaformer.evaluation.aggregate import machine
from metaformer.evaluation.metrics import PixelMetrics
from metaformer.evaluation.samples import load_mask
from metaformer.io.atomic_files import write_text
from metaformer.io.images import read_image

SETS = (
    "cookie",
    "mvtec_bottle",
    "magnetic_tile",
    "elpv_mono",
    "bsdata",
    "crack_road",
    "block_screws",
    "mvtec_screw",
)
PIXELS_ONLY = {"mvtec_screw"}
SHOTS = (1, 4, 10, 16)
SEED = 5
MOST_TESTED = 100
METRICS = ("image_auroc", "caught_at_5", "pixel_ap", "aupro")
NEAR = 0.001
"""Gains closer than this are a tie."""
MIRRORED = FeatureConfig(
    transformer=False,
    mirrored_images=10,
    coreset_size=4_096,
    cosine_rows=4_096,
    principal_directions=0,
)
CANDIDATES: dict[str, FeatureConfig] = {
    CONTROL: NEAREST_PATCH,
    "top 1 %": replace(NEAREST_PATCH, score_share=0.01),
    "cosine 0.2": replace(NEAREST_PATCH, cosine_share=0.2),
    "cosine 0.5": replace(NEAREST_PATCH, cosine_share=0.5),
    "mirrored": replace(MIRRORED, cosine_share=0.0),
    "cosine 0.2, mirrored": MIRRORED,
    "cosine 0.2, mirrored, 2,048 patches, 64 directions": replace(
        MIRRORED, coreset_size=2_048, cosine_rows=2_048, principal_directions=64
    ),
    "cosine 0.2, mirrored, top 1 %": replace(MIRRORED, score_share=0.01),
    "cosine 0.2, mirrored, blur 1": replace(MIRRORED, sigma=1.0),
}
Row = dict[str, float]
Results = dict[str, dict[str, dict[str, list[Row]]]]
"""Set -> number of images -> candidate -> one row a support."""


class SampledTests:
    """The test images of a set, as a preset prepares them: features of ``feature``, pixels of
    ``pixel``.

    Args:
        most: so many are drawn by a fixed seed where the set has more.
        side: maps are judged on a square of so many pixels; None for the images' own size.
    """

    def __init__(
        self,
        preset: Preset[Any],
        root: Path,
        *,
        most: int = MOST_TESTED,
        side: int | None = None,
    ) -> None:
        (category,) = load_categories(root)
        count = len(category.test)
        chosen = np.sort(np.random.default_rng(SEED).permutation(count)[:most])
        self.train = category.train
        self.images: list[Any] = []
        self.shapes: list[tuple[int, ...]] = []
        self.masks: list[NDArray[np.bool_] | None] = []
        for i in chosen.tolist():
            sample = category.test[i]
            pixels = read_image(sample.image)
            self.images.append(prepare(preset, pixels))
            mask = load_mask(sample, pixels.shape[:2])
            if mask is not None and side is not None:  # a cell is defective if any part of it is
                parts = cv2.resize(
                    mask.astype(np.float32), (side, side), interpolation=cv2.INTER_AREA
                )
                mask = parts > 0
            self.shapes.append(pixels.shape if side is None else (side, side))
            self.masks.append(mask)
        self.labels = np.array([category.test[i].is_anomalous for i in chosen])

    def judge(self, maps: Sequence[Tensor], share: float) -> Row:
        """Of raw maps (h, w), one an image."""
        scores = np.array([image_score(grid, share) for grid in maps])
        return self.judge_scores(scores) | self.judge_pixels(maps)

    def judge_scores(self, scores: NDArray[np.float64]) -> Row:
        """Of one score an image."""
        good = np.sort(scores[~self.labels])
        threshold = good[-1 - int(0.05 * len(good))]
        return {
            "image_auroc": float(roc_auc_score(self.labels, scores)),
            "caught_at_5": float((scores[self.labels] > threshold).mean()),
        }

    def judge_pixels(self, maps: Sequence[Tensor]) -> Row:
        """Of raw maps (h, w), one an image; nothing where no defect has a mask."""
        pixels, has_defects = PixelMetrics(), False
        for grid, shape, mask in zip(maps, self.shapes, self.masks, strict=True):
            if mask is not None:
                pixels.add(to_image_size(grid, shape), mask)
                has_defects |= bool(mask.any())
        if not has_defects:
            return {}
        computed = pixels.compute()
        return {name: float(computed[name] or 0) for name in METRICS[2:]}


def drawn_support(train: Sequence[Path], shots: int, seed: int) -> list[Path]:
    """Of one seed, more shots keep the images of fewer."""
    drawn = np.random.default_rng((SEED, seed)).permutation(len(train))[:shots]
    return [train[i] for i in drawn]


def measure_tests(
    preset: FeaturePreset, tests: SampledTests, shots: int, supports: int
) -> dict[str, list[Row]]:
    """Distances are computed once for each memory bank, and fused as each candidate has it."""
    rows: dict[str, list[Row]] = {}
    mirroring = FeaturePreset(MIRRORED, preset.backbone)
    for seed in range(supports):
        images = [read_image(path) for path in drawn_support(tests.train, shots, seed)]
        support = [prepare(mirroring, image, support_size=shots) for image in images]
        banks: dict[tuple[bool, int, int], list[dict[str, Tensor]]] = {}
        for name, config in CANDIDATES.items():
            key = (config.mirrored_images > 0, config.coreset_size, config.principal_directions)
            if key not in banks:
                full = replace(config, cosine_share=0.2)
                kept = support if key[0] else [FeatureImage(each.features) for each in support]
                adapted = from_support(full, preset.backbone, kept, seed=seed)
                banks[key] = [
                    adapted.distances(describe(image.features, full.levels, full.cosine_share))
                    for image in tests.images
                ]
            maps = [smooth(fuse(found, config), config.sigma)[0] for found in banks[key]]
            rows.setdefault(name, []).append(tests.judge(maps, config.score_share))
    return rows


def metrics_of(set_name: str, row: Row) -> dict[str, float]:
    names = METRICS[2:] if set_name in PIXELS_ONLY else METRICS
    return {name: row[name] for name in names if name in row}


def means(results: Results, set_name: str, candidate: str) -> dict[str, float]:
    """Metric -> mean over numbers of images and supports."""
    rows = [
        metrics_of(set_name, row)
        for by_candidate in results[set_name].values()
        for row in by_candidate[candidate]
    ]
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def spreads(results: Results, set_name: str, control: str = CONTROL) -> dict[str, float]:
    """Metric -> deviation of the control over supports, averaged over numbers of images."""
    found: dict[str, list[float]] = {}
    for by_candidate in results[set_name].values():
        rows = [metrics_of(set_name, row) for row in by_candidate[control]]
        for name in rows[0]:
            values = [row[name] for row in rows]
            found.setdefault(name, []).append(float(np.std(values, ddof=min(1, len(rows) - 1))))
    return {name: float(np.mean(values)) for name, values in found.items()}


def gain(results: Results, set_name: str, candidate: str) -> float:
    control = means(results, set_name, CONTROL)
    return float(
        np.mean([v - control[name] for name, v in means(results, set_name, candidate).items()])
    )


def decide(results: Results) -> dict[str, Any]:
    """The rule of this file's head."""
    judged = {}
    for left_out in results:
        others = [name for name in results if name != left_out]
        gains = {
            candidate: float(np.mean([gain(results, name, candidate) for name in others]))
            for candidate in CANDIDATES
        }
        best = max(gains.values())
        chosen = next(name for name, value in gains.items() if value > best - NEAR)
        found, control = (means(results, left_out, name) for name in (chosen, CONTROL))
        spread = spreads(results, left_out)
        judged[left_out] = {
            "chosen": chosen,
            "gain_on_others": gains[chosen],
            "gain": gain(results, left_out, chosen),
            "differences": {name: found[name] - control[name] for name in found},
            "losses": [name for name in found if found[name] < control[name] - spread[name] / 2],
        }
    return judged


def tables(results: Results, judged: dict[str, Any]) -> str:
    lines = [
        "Percent, mean over numbers of images and supports: image AUROC / caught at 5 % / pixel AP "
        "/ AUPRO.",
        "",
        "| candidate | " + " | ".join(results) + " | mean gain |",
        "|---" * (len(results) + 2) + "|",
    ]
    for candidate in CANDIDATES:
        cells = [
            " / ".join(f"{100 * v:.1f}" for v in means(results, name, candidate).values())
            for name in results
        ]
        total = 100 * np.mean([gain(results, name, candidate) for name in results])
        lines.append(f"| {candidate} | " + " | ".join(cells) + f" | {total:+.2f} |")
    lines += ["", "| left out | chosen on the others | gain there | losses |", "|---|---|---|---|"]
    for name, row in judged.items():
        losses = ", ".join(row["losses"]) or "none"
        lines.append(f"| {name} | {row['chosen']} | {100 * row['gain']:+.2f} | {losses} |")
    return "\n".join(lines) + "\n"


def save(output: Path, content: dict[str, Any], text: str) -> None:
    """Write the JSON, and the tables beside it as Markdown; print the tables."""
    write_text(output, json.dumps(content, indent=1) + "\n")
    write_text(output.with_suffix(".md"), text)
    print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path, help="folder that holds the eight sets")
    parser.add_argument("--supports", type=int, default=3)
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--output", type=Path, required=True, help="a .json file; .md beside it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    preset = FeaturePreset.of(NEAREST_PATCH)
    results: Results = {}
    if options.output.is_file():
        earlier = json.loads(options.output.read_text(encoding="utf-8"))
        if earlier["supports"] == options.supports:
            results = earlier["results"]
    for name in options.sets:
        (category,) = load_categories(options.data / name)
        measured = results.setdefault(name, {})
        missing = [s for s in SHOTS if s <= len(category.train) and str(s) not in measured]
        if missing:
            with torch.inference_mode():
                tests = SampledTests(preset, options.data / name)
                for shots in missing:
                    measured[str(shots)] = measure_tests(preset, tests, shots, options.supports)
        print(name, flush=True)
    judged = decide(results)
    content = {
        "date": date.today().isoformat(),
        "machine": machine(),
        "seed": SEED,
        "supports": options.supports,
        "judged": judged,
        "results": results,
    }
    save(options.output, content, tables(results, judged))


if __name__ == "__main__":
    main()
