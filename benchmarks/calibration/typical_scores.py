"""What the threshold of few images may lean on: the score of good images of other products.

    python -m benchmarks.calibration.typical_scores DATA --output typical_scores.json

For each set, number of normal images and support seed, written down once (the file is taken up
again): left-out scores (of changed views with one image), scores of other good training images, of
good and of defective test images, all without the frame check. Then three constants of
``scoring/prediction_bounds.py`` and the typical score are chosen for each set on the other sets
alone: among those that flag 4.5 to 5.5 % of the other good training images at an asked 5 %, the
ones that catch most. Off, the bound by a product's own scores, stands beside.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.ablations.leave_one_product_out import SETS
from benchmarks.accuracy.baselines.feature_cache import keep_features
from benchmarks.accuracy.methods import backbone_of
from metaformer.data.datasets.loading import draw_support, load_categories
from metaformer.detection.adaptation import prepare, scores_of, views_of
from metaformer.detection.feature.adapted import AdaptedFeature
from metaformer.detection.feature.config import FeatureConfig
from metaformer.detection.feature.preset import VIEW_FACTOR, FeaturePreset
from metaformer.detection.scoring import prediction_bounds
from metaformer.detection.scoring.calibration import calibrate
from metaformer.evaluation.aggregate import machine
from metaformer.io.atomic_files import write_text
from metaformer.io.images import read_image

SHOTS, CHOSEN_ON, SEEDS = (1, 2, 4, 7, 10, 16), (1, 2, 4, 7, 10), range(5)
MOST_OTHERS, MOST_TEST = 20, 25
RATE, AROUND = 0.05, 0.005
IMAGES = (1, 2, 3, 4, 6, 10)
SPREADS = (0.10, 0.11, 0.12, 0.13, 0.14, 0.155)
BETWEEN = (0.08, 0.10, 0.12, 0.15)
KINDS = ("others", "good", "defective")
Row = dict[str, Any]
Shares = dict[tuple[str, int], NDArray[np.float64]]
"""(set, number of images) -> share flagged of each of ``KINDS``."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Typical scores of good images.")
    parser.add_argument("data", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    keep_features(3000)
    rows: list[Row] = []
    if options.output.exists():
        rows = json.loads(options.output.read_text())["rows"]
    for name in SETS:
        if not any(row["data"] == name for row in rows):
            rows += measure(options.data / name)
            write_text(options.output, json.dumps({"machine": machine(), "rows": rows}) + "\n")
            print(name, flush=True)
    write_text(options.output.with_suffix(".md"), markdown(rows))


def measure(root: Path) -> list[Row]:
    """Scores of one set."""
    config = FeatureConfig()
    preset = FeaturePreset(config, backbone_of(config.levels, config.corrects))
    (category,) = load_categories(root)
    rng = np.random.default_rng(0)
    test = [[s.image for s in category.test if s.is_anomalous is bad] for bad in (False, True)]
    good, defective = (
        [images[i] for i in rng.permutation(len(images))[:MOST_TEST]] for images in test
    )
    rows = []
    for shots, seed in itertools.product(SHOTS, SEEDS):
        if shots + 5 > len(category.train):
            continue
        paths = draw_support(category, shots, seed)
        rest = [path for path in category.train if path not in set(paths)]
        others = [rest[i] for i in np.random.default_rng(seed).permutation(len(rest))[:MOST_OTHERS]]
        support = [prepare(preset, read_image(path), support_size=shots) for path in paths]
        done = preset.adapt(support, seed=seed, on_step=lambda step, steps: None)
        adapted = done.adapted
        assert isinstance(adapted, AdaptedFeature)
        adapted.frame = None

        def scores(images: Sequence[Path], model: AdaptedFeature = adapted) -> list[float]:
            maps = [model.anomaly_maps(prepare(preset, read_image(image))) for image in images]
            return scores_of(model, maps)

        left_out = done.left_out
        if shots == 1:
            views = views_of(preset, read_image(paths[0]), seed)
            left_out = [adapted.anomaly_maps(view) for view in views]
        rows.append(
            {
                "data": root.name,
                "shots": shots,
                "seed": seed,
                "normal": rounded(scores_of(adapted, left_out)),
                "others": rounded(scores(others)),
                "good": rounded(scores(good)),
                "defective": rounded(scores(defective)),
            }
        )
    return rows


def rounded(scores: Sequence[float]) -> list[float]:
    return [round(score, 3) for score in scores]


def typical(rows: Sequence[Row]) -> tuple[float, float]:
    """Mean log score of other good images with one support image, and how much it falls with the
    logarithm of their number: least squares over the means of each set and number."""
    means: dict[tuple[str, int], list[float]] = {}
    for row in rows:
        logs = float(np.mean(np.log(row["others"])))
        means.setdefault((row["data"], row["shots"]), []).append(logs)
    design = np.array([(1.0, -np.log(shots)) for _, shots in means])
    found = np.linalg.lstsq(design, np.array([np.mean(each) for each in means.values()]))[0]
    return float(found[0]), float(found[1])


def shares(rows: Sequence[Row], threshold: Callable[[Row], float]) -> Shares:
    found: dict[tuple[str, int], list[list[float]]] = {}
    for row in rows:
        bound = threshold(row)
        flagged = [float(np.mean(np.array(row[kind]) >= bound)) for kind in KINDS]
        found.setdefault((row["data"], row["shots"]), []).append(flagged)
    return {key: np.mean(each, axis=0) for key, each in found.items()}


def by_own(row: Row) -> float:
    """The threshold without a typical score."""
    is_lone = row["shots"] == 1
    scores = np.array(row["normal"]) * (VIEW_FACTOR if is_lone else 1)
    return calibrate(scores.tolist(), RATE, pixel_threshold=1, from_views=is_lone).threshold


def by_typical(row: Row, known: tuple[float, float]) -> float:
    score = float(np.exp(known[0] - known[1] * np.log(row["shots"])))
    is_lone = row["shots"] == 1
    return calibrate(
        row["normal"], RATE, pixel_threshold=1, from_views=is_lone, typical_score=score
    ).threshold


def mean_of(found: Shares, names: Sequence[str], kind: int) -> float:
    """Mean over numbers of images of the mean over sets."""
    return float(
        np.mean(
            [
                np.mean([found[n, shots][kind] for n in names if (n, shots) in found])
                for shots in CHOSEN_ON
            ]
        )
    )


def markdown(rows: Sequence[Row]) -> str:
    names = list(dict.fromkeys(row["data"] for row in rows))
    known = {n: typical([row for row in rows if row["data"] != n]) for n in names}
    candidates: dict[tuple[float, ...], Shares] = {}
    for constants in itertools.product(IMAGES, SPREADS, BETWEEN):
        bounds = ("TYPICAL_IMAGES", "LOG_SPREAD", "BETWEEN_PRODUCTS")
        for name, value in zip(bounds, constants, strict=True):
            setattr(prediction_bounds, name, value)
        candidates[constants] = shares(rows, lambda row: by_typical(row, known[row["data"]]))
    off = shares(rows, by_own)
    lines = [
        "Flagged at an asked 5 %, percent: other good training images / good test images / "
        "defective ones.",
        "",
        "| set left out | images, log spread, between products chosen on the others | "
        + " | ".join(f"{shots}: chosen (own scores alone)" for shots in SHOTS)
        + " |",
        "|---" * (2 + len(SHOTS)) + "|",
    ]
    taken: Shares = {}
    for name in names:
        rest = [n for n in names if n != name]
        fair = [c for c, f in candidates.items() if abs(mean_of(f, rest, 0) - RATE) <= AROUND]
        best = max(fair, key=lambda c: mean_of(candidates[c], rest, 2))
        taken |= {(n, s): v for (n, s), v in candidates[best].items() if n == name}
        cells = [cell(taken, off, [name], shots) for shots in SHOTS]
        lines.append(f"| {name} | {', '.join(f'{c:g}' for c in best)} | {' | '.join(cells)} |")
    cells = [cell(taken, off, names, shots) for shots in SHOTS]
    lines.append(f"| **mean** | | {' | '.join(cells)} |")
    fall = typical(rows)
    lines += ["", f"Typical log score of all sets: {fall[0]:.3f} - {fall[1]:.3f} log(images)."]
    return "\n".join(lines) + "\n"


def cell(found: Shares, off: Shares, names: Sequence[str], shots: int) -> str:
    there = [n for n in names if (n, shots) in found]
    if not there:
        return "–"
    chosen, own = (np.mean([f[n, shots] for n in there], axis=0) for f in (found, off))
    return f"{in_percent(chosen)} ({in_percent(own)})"


def in_percent(values: NDArray[np.float64]) -> str:
    return " / ".join(f"{100 * value:.0f}" for value in values)


if __name__ == "__main__":
    main()
