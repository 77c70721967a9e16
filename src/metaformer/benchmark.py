"""Few-shot evaluation: any method, any category, one protocol, one JSON.

For each seed the support is drawn from the normal training images, the method is fitted to it and
to nothing else, and every test image is scored. Maps are compared with the masks at the masks'
own resolution. In a set of template and test pairs each test image is scored by a method fitted
to its own template alone.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

from metaformer.datasets import Category, Sample, draw_support, load_categories
from metaformer.files import write_text
from metaformer.images import read_image, read_mask, resize_map
from metaformer.metrics import PixelMetrics, image_metrics
from metaformer.summary import SeedRun, average, machine, summarise

MAX_ASPECT_ERROR = 0.02
"""A mask whose sides relate otherwise than its image's by more than this is not its mask."""

Image = NDArray[np.uint8]
AnomalyMap = NDArray[np.float32]
Shots = int | Literal["full"]


class FittedMethod(Protocol):
    """A method that has seen its support."""

    def score(self, images: Sequence[Image]) -> list[tuple[float, AnomalyMap]]:
        """Score and map of each (H, W, 3) image, higher is more anomalous; maps are (H, W)."""


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


def evaluate(
    data: Path | str | Category | Sequence[Category],
    method: Method,
    *,
    shots: Shots = 4,
    seeds: Sequence[int] = (0, 1, 2),
    layout: str = "auto",
    test_limit: int | None = None,
    batch_size: int = 8,
    quiet: bool = False,
) -> dict[str, Any]:
    """Evaluate ``method`` on one category or on several.

    Args:
        data: a category's folder, a root of several, or categories already loaded.
        method: see ``Method``.
        shots: number of normal images a support has, or ``"full"`` for all there are. Pairs
            always have one, the template, and the results say 1.
        seeds: each draws a support and seeds the method.
        layout: passed to ``load_categories``.
        test_limit: at most this many test images a category, the same ones for every seed, with
            the set's share of defective ones; for quick looks, and written in the results.
        batch_size: images read and scored at a time.
        quiet: no progress bar.

    Returns:
        ``preset, settings, shots, seeds, resolution, per_seed, mean, std, mean_ci, seconds,
        counts, undefined, version, date, machine``. ``per_seed`` holds per seed its support
        (paths relative to the category), all metrics and ``image_auroc_ci`` (bootstrap over
        images). ``std`` is the sample standard deviation over seeds, None with one seed. A metric
        that cannot be computed is None and ``undefined`` says why. With several categories there
        is also ``categories`` (name -> the same keys), and the upper level is the plain mean over
        the categories that define a metric.

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

    for category in categories:
        if not category.test:
            raise ValueError(f"{category.root}: no test images, so nothing to evaluate on.")
        if not category.is_paired and shots != "full":
            draw_support(category, shots, seeds[0])  # too few images: say so before the hours

    tests = {category.name: _limit(category.test, test_limit) for category in categories}
    total = len(seeds) * sum(len(samples) for samples in tests.values())
    summaries: dict[str, dict[str, Any]] = {}
    bootstraps: list[NDArray[np.float64]] = []
    with _progress(method.name, total, quiet) as advance:
        for category in categories:
            samples = tests[category.name]
            runs = [
                _run_seed(category, samples, method, shots, seed, batch_size, advance)
                for seed in seeds
            ]
            summary, bootstrap = summarise(category, samples, runs, shots)
            summaries[category.name] = summary
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
        "test_limit": test_limit,
        "version": importlib.metadata.version("metaformer-ad"),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
    }


def save_results(results: dict[str, Any], path: Path | str) -> None:
    """Write results as JSON in one step: no reader ever sees half a file."""
    write_text(path, json.dumps(results, indent=2, allow_nan=False) + "\n")


# ------------------------------------------------------------------------------------- one seed


def _run_seed(
    category: Category,
    samples: Sequence[Sample],
    method: Method,
    shots: Shots,
    seed: int,
    batch_size: int,
    advance: Callable[[int], None],
) -> SeedRun:
    jobs: list[tuple[list[Path], Sequence[Sample]]]  # (support, what is scored after it)
    if category.is_paired:
        jobs = [([_template(sample)], [sample]) for sample in samples]
        support = list(dict.fromkeys(_template(sample) for sample in samples))
    else:
        support = draw_support(category, None if shots == "full" else shots, seed)
        jobs = [(support, samples)]

    pixels = PixelMetrics()
    scores: list[float] = []
    fit_seconds: list[float] = []
    predict_seconds: list[float] = []
    without_mask = 0
    for paths, targets in jobs:
        support_images = [read_image(path) for path in paths]
        start = time.perf_counter()
        fitted = method.fit(support_images, seed)
        fit_seconds.append(time.perf_counter() - start)
        for first in range(0, len(targets), batch_size):
            batch = targets[first : first + batch_size]
            images = [read_image(sample.image) for sample in batch]
            start = time.perf_counter()
            outputs = fitted.score(images)
            predict_seconds.append((time.perf_counter() - start) / len(batch))
            _check_outputs(outputs, images, batch, method.name)
            for sample, (score, anomaly_map) in zip(batch, outputs, strict=True):
                scores.append(score)
                mask = _load_mask(sample, anomaly_map.shape)
                if mask is None:
                    without_mask += 1
                elif category.has_masks:
                    pixels.add(resize_map(anomaly_map, (mask.shape[0], mask.shape[1])), mask)
            advance(len(batch))

    labels = [sample.is_anomalous for sample in samples]
    return SeedRun(
        seed=seed,
        support=tuple(path.relative_to(category.root).as_posix() for path in support),
        scores=np.asarray(scores),
        metrics={**image_metrics(labels, scores), **pixels.compute()},
        pixel_reason=pixels.undefined_reason() if category.has_masks else "the set has no masks",
        without_mask=without_mask,
        fit_seconds=tuple(fit_seconds),
        predict_seconds=tuple(predict_seconds),
    )


def _template(sample: Sample) -> Path:
    if sample.template is None:
        raise ValueError(f"{sample.image}: it has no template, though its set is one of pairs.")
    return sample.template


def _check_outputs(
    outputs: list[tuple[float, AnomalyMap]],
    images: Sequence[Image],
    batch: Sequence[Sample],
    name: str,
) -> None:
    """Raise ValueError unless there is one finite score and one finite map for each image."""
    if len(outputs) != len(images):
        raise ValueError(f"{name} gave {len(outputs)} scores for {len(images)} images.")
    for sample, image, (score, anomaly_map) in zip(batch, images, outputs, strict=True):
        if not math.isfinite(score):
            raise ValueError(f"{sample.image}: {name} gave the score {score}.")
        if anomaly_map.shape != image.shape[:2]:
            raise ValueError(
                f"{sample.image}: {name} gave a map of {anomaly_map.shape}, "
                f"the image is {image.shape[:2]}."
            )
        if not np.isfinite(anomaly_map).all():
            raise ValueError(f"{sample.image}: {name} gave a map with NaN or infinite values.")


def _load_mask(sample: Sample, shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
    """Where the sample is defective; None if that is not known.

    A defective image whose mask is missing, or marks no pixel, is unknown: counting its pixels as
    normal would punish a method for finding the defect.
    """
    if not sample.is_anomalous:
        return np.zeros(shape, dtype=bool)
    union: NDArray[np.bool_] | None = None
    for path in sample.masks:
        mask = read_mask(path)
        if union is not None and mask.shape != union.shape:
            raise ValueError(
                f"{path}: mask of {mask.shape}, other masks of the image are {union.shape}."
            )
        union = mask if union is None else union | mask
    if union is None or not union.any():
        return None
    aspect = (union.shape[0] / union.shape[1]) / (shape[0] / shape[1])
    if abs(aspect - 1) > MAX_ASPECT_ERROR:
        raise ValueError(
            f"{sample.masks[0]}: mask of {union.shape} for {sample.image} of {tuple(shape)}; "
            f"a mask must have its image's proportions."
        )
    return union


def _limit(samples: Sequence[Sample], limit: int | None) -> list[Sample]:
    """At most ``limit`` samples, drawn once and for all, keeping the share of each class."""
    if limit is None or len(samples) <= limit:
        return list(samples)
    defective = [i for i, sample in enumerate(samples) if sample.is_anomalous]
    normal = [i for i, sample in enumerate(samples) if not sample.is_anomalous]
    wanted = round(limit * len(defective) / len(samples))
    if defective and normal:
        wanted = min(max(wanted, 1), limit - 1)
    rng = np.random.default_rng(0)
    kept = [*rng.permutation(defective)[:wanted], *rng.permutation(normal)[: limit - wanted]]
    return [samples[int(i)] for i in sorted(kept)]


# ------------------------------------------------------------------------------------- around it


@contextmanager
def _progress(name: str, total: int, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Show a bar on stderr; yields the function that moves it on by so many images."""
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task(name, total=total)
        yield lambda count: bar.advance(task, count)
