"""From the runs of a benchmark to its numbers: means, spreads, intervals, as plain JSON values."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaformer.data.datasets.loading import Category, Sample
from metaformer.evaluation.metrics import METRICS, bootstrap_auroc, image_undefined_reason
from metaformer.evaluation.threshold_metrics import (
    THRESHOLD_METRICS,
    Flags,
    by_kind,
    images_behind_mean,
    interval,
)

CONFIDENCE = 95
"""Percentage that the confidence intervals of image AUROC cover."""
BOOTSTRAP_RESAMPLES = 1000
ALL_METRICS = METRICS + THRESHOLD_METRICS


@dataclass(frozen=True)
class SeedRun:
    """All that one seed gives on one category, before it is summed up."""

    seed: int
    support: tuple[str, ...]
    scores: NDArray[np.float64]  # (N,), in the order of the test samples
    flags: Flags
    metrics: dict[str, float | None]
    pixel_reason: str | None
    without_mask: int
    fit_seconds: tuple[float, ...]
    predict_seconds: tuple[float, ...]  # per image, one number a batch


def summarise(
    category: Category, samples: Sequence[Sample], runs: Sequence[SeedRun], shots: int | str
) -> tuple[dict[str, Any], NDArray[np.float64] | None]:
    """The JSON of one category, and its (seeds, resamples) bootstrap of image AUROC."""
    labels = [sample.is_anomalous for sample in samples]
    reasons = {"image": image_undefined_reason(labels), "pixel": runs[0].pixel_reason}
    if runs[0].flags.at_threshold is None:
        reasons["threshold"] = "the method has no threshold"
    bootstrap = None
    if reasons["image"] is None:
        bootstrap = bootstrap_auroc(
            labels, np.stack([run.scores for run in runs]), resamples=BOOTSTRAP_RESAMPLES
        )
    per_seed = [
        {"seed": run.seed, "support": list(run.support), **run.metrics}
        | {"image_auroc_ci": None if bootstrap is None else _interval(bootstrap[i])}
        for i, run in enumerate(runs)
    ]
    summary = {
        "category": category.name,
        "split": category.split,
        "shots": 1 if category.is_paired else shots,
        "paired": category.is_paired,
        "seeds": [run.seed for run in runs],
        "per_seed": per_seed,
        **_over_seeds(per_seed, bootstrap, labels.count(False), labels.count(True)),
        "kinds": by_kind([sample.kind for sample in samples], labels, [run.flags for run in runs]),
        "seconds": {
            "adapt": median(second for run in runs for second in run.fit_seconds),
            "predict_per_image": median(second for run in runs for second in run.predict_seconds),
        },
        "counts": {
            "train": len(category.train),
            "test_normal": labels.count(False),
            "test_defective": labels.count(True),
            "defective_without_mask": runs[0].without_mask,
        },
        "undefined": {kind: reason for kind, reason in reasons.items() if reason is not None},
    }
    return summary, bootstrap


def average(
    summaries: dict[str, dict[str, Any]],
    bootstraps: Sequence[NDArray[np.float64]],
    seeds: Sequence[int],
    shots: int | str,
) -> dict[str, Any]:
    """The JSON of several categories: each seed averaged over them, then as for one."""
    # Categories are resampled independently, so their mean's bootstrap is the mean of theirs.
    bootstrap = np.mean(np.stack(bootstraps), axis=0) if bootstraps else None
    per_seed = []
    for i, seed in enumerate(seeds):
        entries = {name: summary["per_seed"][i] for name, summary in summaries.items()}
        support = [f"{name}/{path}" for name, entry in entries.items() for path in entry["support"]]
        means = {key: _mean(entry[key] for entry in entries.values()) for key in ALL_METRICS}
        around = None if bootstrap is None else _interval(bootstrap[i])
        per_seed.append({"seed": seed, "support": support, **means, "image_auroc_ci": around})
    undefined = {}
    for kind in ("image", "pixel", "threshold"):
        reasons = {
            name: summary["undefined"][kind]
            for name, summary in summaries.items()
            if kind in summary["undefined"]
        }
        if len(reasons) == len(summaries) and len(set(reasons.values())) == 1:
            undefined[kind] = next(iter(reasons.values()))
        elif reasons:
            undefined[kind] = "; ".join(f"{name}: {why}" for name, why in reasons.items())
    is_paired = all(summary["paired"] for summary in summaries.values())
    return {
        "shots": 1 if is_paired else shots,
        "paired": is_paired,
        "seeds": list(seeds),
        "per_seed": per_seed,
        **_over_seeds(
            per_seed,
            bootstrap,
            *(
                images_behind_mean([s["counts"][key] for s in summaries.values()])
                for key in ("test_normal", "test_defective")
            ),
        ),
        "kinds": {
            f"{name}/{kind}": row
            for name, summary in summaries.items()
            for kind, row in summary["kinds"].items()
        },
        "seconds": {
            key: fmean(summary["seconds"][key] for summary in summaries.values())
            for key in ("adapt", "predict_per_image")
        },
        "counts": {
            key: sum(summary["counts"][key] for summary in summaries.values())
            for key in next(iter(summaries.values()))["counts"]
        },
        "undefined": undefined,
        "categories": summaries,
    }


def _over_seeds(
    per_seed: Sequence[dict[str, Any]],
    bootstrap: NDArray[np.float64] | None,
    normal: float,
    defective: float,
) -> dict[str, Any]:
    """``mean``, ``std`` and ``mean_ci``, the intervals of the means over so many ``normal`` and
    ``defective`` test images."""
    columns = {key: [entry[key] for entry in per_seed] for key in ALL_METRICS}
    is_spread = len(per_seed) > 1
    images = {"recall": defective, "false_alarm_rate": normal, "recall_at_5": defective}
    return {
        "mean": {key: _mean(values) for key, values in columns.items()},
        "std": {
            key: stdev(values) if is_spread and None not in values else None
            for key, values in columns.items()
        },
        "mean_ci": {
            "image_auroc": None if bootstrap is None else _interval(bootstrap.mean(axis=0)),
            **{key: interval(_mean(columns[key]), count) for key, count in images.items()},
        },
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _interval(values: NDArray[np.float64]) -> list[float]:
    tail = (100 - CONFIDENCE) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return [float(low), float(high)]


def machine() -> dict[str, Any]:
    """The hardware and versions that timings depend on; no name of the machine or its user."""
    torch = sys.modules.get("torch")  # only if the method brought it in
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "torch": None if torch is None else torch.__version__,
        "torch_threads": None if torch is None else torch.get_num_threads(),
    }


def _processor() -> str:
    details = Path("/proc/cpuinfo")
    if details.is_file():
        for line in details.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
