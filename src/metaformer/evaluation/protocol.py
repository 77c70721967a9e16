"""Few-shot evaluation: any method, any category, one protocol, one JSON.

For each seed the support is drawn from the normal training images, the method is fitted to it and
to nothing else, and every test image is scored. Maps are compared with the masks at the masks'
own resolution. In a set of template and test pairs each test image is scored by a method fitted
to its own template alone.
"""

from __future__ import annotations

import importlib.metadata
import json
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from metaformer.data.datasets.loading import Category, Sample, load_categories
from metaformer.evaluation.aggregate import SeedRun, average, machine, summarise
from metaformer.evaluation.metrics import PixelMetrics, image_metrics
from metaformer.evaluation.progress_bar import progress_bar
from metaformer.evaluation.samples import (
    AnomalyMap,
    Image,
    all_supports,
    check_outputs,
    limit_samples,
    load_mask,
    support_of,
    template_of,
    white_levels,
)
from metaformer.evaluation.samples import Shots as Shots
from metaformer.evaluation.threshold_metrics import flag, threshold_metrics
from metaformer.io.atomic_files import write_text
from metaformer.io.images import read_image, resize_map


class FittedMethod(Protocol):
    """A method that has seen its support."""

    def score(self, images: Sequence[Image]) -> list[tuple[float, AnomalyMap]]:
        """Score and map of each (H, W, 3) image, higher is more anomalous; maps are (H, W)."""


@runtime_checkable
class HasThreshold(Protocol):
    """A fitted method that says what is defective."""

    threshold: float
    """A score at or above it is anomalous."""


class Method(Protocol):
    """What is evaluated: a detector or a baseline."""

    @property
    def name(self) -> str:
        """Goes into the results as ``preset``."""

    @property
    def settings(self) -> dict[str, Any]:
        """Goes into the results; ``resolution`` (pixels the method works at) is read from it."""

    def fit(self, support: Sequence[Image], seed: int) -> FittedMethod:
        """Adapt to normal images (H, W, 3) uint8 RGB. Nothing may be kept from an earlier fit."""


class ScoredSample(NamedTuple):
    """One test image of an evaluation, for those who look on."""

    seed: int
    sample: Sample
    image: Image
    score: float
    anomaly_map: AnomalyMap
    fitted: FittedMethod


def evaluate(
    data: Path | str | Category | Sequence[Category],
    method: Method,
    *,
    shots: Shots = 4,
    seeds: Sequence[int] = (0, 1, 2),
    layout: str = "auto",
    unified: bool = False,
    test_limit: int | None = None,
    white_level: int | None = None,
    batch_size: int = 8,
    quiet: bool = False,
    on_scored: Callable[[ScoredSample], None] = lambda scored: None,
) -> dict[str, Any]:
    """Evaluate ``method`` on one category or on several.

    Args:
        data: a category's folder, a root of several, or categories already loaded.
        method: see ``Method``.
        shots: number of normal images a support has, or ``"full"`` for all there are. Pairs
            always have one, the template, and the results say 1.
        seeds: each draws a support and seeds the method.
        layout: passed to ``load_categories``.
        unified: fit the method once for each seed, to the supports of all categories together,
            and score every category with it; it is not told which category an image is of.
        test_limit: at most this many test images a category, the same ones for every seed, with
            the set's share of defective ones; for quick looks, and written in the results.
        white_level: value of 16-bit images that means white, 1 to 65535; if None, guessed for each
            category from its supports (with ``unified`` from all of them), as ``adapt`` does.
        batch_size: images read and scored at a time.
        quiet: no progress bar.
        on_scored: called with each test image when it has been scored.

    Returns:
        ``preset, settings, shots, seeds, resolution, per_seed, mean, std, mean_ci, kinds, seconds,
        counts, undefined, white_level, version, date, machine``. ``per_seed`` holds per seed its
        support (paths relative to the category), all metrics and ``image_auroc_ci`` (bootstrap
        over images). ``mean_ci`` has that interval of the mean, and Wilson's of ``recall``,
        ``false_alarm_rate`` and ``recall_at_5`` (``threshold_metrics``); ``kinds`` says what is
        flagged of each kind of image. ``std`` is the sample standard deviation over seeds, None
        with one seed. A metric that cannot be computed is None and ``undefined`` says why. With
        several categories there is also ``categories`` (name -> the same keys), and the upper
        level is the plain mean over the categories that define a metric; its ``white_level`` is
        None where they differ, as where no support has 16 bits.

    Raises:
        DatasetError: the folder is no data set, or a category has fewer than ``shots`` images.
        ValueError: an argument is out of range, a category has no test image, or the method
            returned a wrong number of scores, a NaN, or a map of another size than its image.
        ImageError: an image cannot be read. The evaluation stops: leaving it out would make the
            numbers incomparable.
    """
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds must be one or more different numbers, got {list(seeds)}.")
    if shots != "full" and (not isinstance(shots, int) or shots < 1):
        raise ValueError(f'shots must be a number of images from 1 up, or "full", got {shots!r}.')
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    if test_limit is not None and test_limit < 2:
        raise ValueError(f"test_limit must be at least 2, one of each class, got {test_limit}.")
    if isinstance(data, Category):
        categories: Sequence[Category] = [data]
    elif isinstance(data, (str, Path)):
        categories = load_categories(Path(data), layout=layout)
    else:
        categories = data
    if not categories:
        raise ValueError("there is no category to evaluate.")
    names = [category.name for category in categories]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"several categories are called {', '.join(repeated)}. Results go by name: evaluate "
            f"them one after the other, or rename their folders."
        )

    for category in categories:
        if not category.test:
            raise ValueError(f"{category.root}: no test images, so nothing to evaluate on.")
    if unified and any(category.is_paired for category in categories):
        raise ValueError("pairs have a template each; one detector for all of them has no meaning.")

    tests = {category.name: limit_samples(category.test, test_limit) for category in categories}
    total = len(seeds) * sum(len(samples) for samples in tests.values())
    summaries: dict[str, dict[str, Any]] = {}
    bootstraps: list[NDArray[np.float64]] = []
    fitted: dict[int, tuple[FittedMethod, float]] = {}
    # Drawn before the hours: that there are too few images is said now.
    supports = {c.name: all_supports(c, tests[c.name], shots, seeds) for c in categories}
    levels = white_levels(supports, white_level, unified)
    with progress_bar(method.name, total, quiet) as advance:
        if unified:
            level = levels[categories[0].name]
            for seed in seeds:
                pool = [path for c in categories for path in support_of(c, shots, seed)]
                fitted[seed] = _fit(method, pool, seed, level)
        for category in categories:
            samples = tests[category.name]
            runs = [
                _run_seed(
                    category,
                    samples,
                    method,
                    shots,
                    seed,
                    batch_size,
                    levels[category.name],
                    advance,
                    on_scored,
                    fitted.get(seed),
                )
                for seed in seeds
            ]
            summary, bootstrap = summarise(category, samples, runs, shots)
            summaries[category.name] = summary | {"white_level": levels[category.name]}
            if bootstrap is not None:
                bootstraps.append(bootstrap)

    if len(summaries) == 1:
        body = next(iter(summaries.values()))
    else:
        body = average(summaries, bootstraps, seeds, shots)
    return {
        "preset": method.name,
        "settings": method.settings,
        "resolution": method.settings.get("resolution"),
        **body,
        "white_level": levels.popitem()[1] if len(set(levels.values())) == 1 else None,
        "unified": unified,
        "test_limit": test_limit,
        "version": importlib.metadata.version("metaformer-ad"),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
    }


def save_results(results: dict[str, Any], path: Path | str) -> None:
    """Write results as JSON, atomically."""
    write_text(path, json.dumps(results, indent=2, allow_nan=False) + "\n")


def _run_seed(
    category: Category,
    samples: Sequence[Sample],
    method: Method,
    shots: Shots,
    seed: int,
    batch_size: int,
    white_level: int | None,
    advance: Callable[[int], None],
    on_scored: Callable[[ScoredSample], None],
    fitted_to_all: tuple[FittedMethod, float] | None,
) -> SeedRun:
    jobs: list[tuple[list[Path], Sequence[Sample]]]  # (support, what is scored after it)
    if category.is_paired:
        jobs = [([template_of(sample)], [sample]) for sample in samples]
        support = list(dict.fromkeys(template_of(sample) for sample in samples))
    else:
        support = support_of(category, shots, seed)
        jobs = [(support, samples)]

    pixels = PixelMetrics()
    scores: list[float] = []
    flagged: list[bool] | None = []
    fit_seconds: list[float] = []
    predict_seconds: list[float] = []
    without_mask = 0
    for paths, targets in jobs:
        fitted, seconds = fitted_to_all or _fit(method, paths, seed, white_level)
        fit_seconds.append(seconds)
        for first in range(0, len(targets), batch_size):
            batch = targets[first : first + batch_size]
            images = [read_image(sample.image, white_level=white_level) for sample in batch]
            start = time.perf_counter()
            outputs = fitted.score(images)
            predict_seconds.append((time.perf_counter() - start) / len(batch))
            check_outputs(outputs, images, batch, method.name)
            for sample, image, (score, anomaly_map) in zip(batch, images, outputs, strict=True):
                on_scored(ScoredSample(seed, sample, image, score, anomaly_map, fitted))
                scores.append(score)
                if flagged is not None and isinstance(fitted, HasThreshold):
                    flagged.append(score >= fitted.threshold)
                else:
                    flagged = None
                mask = load_mask(sample, anomaly_map.shape)
                if mask is None:
                    without_mask += 1
                elif category.has_masks:
                    pixels.add(resize_map(anomaly_map, (mask.shape[0], mask.shape[1])), mask)
            advance(len(batch))

    labels = [sample.is_anomalous for sample in samples]
    flags = flag(labels, scores, flagged)
    return SeedRun(
        seed=seed,
        support=tuple(path.relative_to(category.root).as_posix() for path in support),
        scores=np.asarray(scores),
        flags=flags,
        metrics={
            **image_metrics(labels, scores),
            **threshold_metrics(labels, flags),
            **pixels.compute(),
        },
        pixel_reason=pixels.undefined_reason() if category.has_masks else "the set has no masks",
        without_mask=without_mask,
        fit_seconds=tuple(fit_seconds),
        predict_seconds=tuple(predict_seconds),
    )


def _fit(
    method: Method, paths: Sequence[Path], seed: int, white_level: int | None
) -> tuple[FittedMethod, float]:
    """The fitted method and the seconds it took, reading not counted."""
    images = [read_image(path, white_level=white_level) for path in paths]
    start = time.perf_counter()
    return method.fit(images, seed), time.perf_counter() - start
