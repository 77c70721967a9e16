"""What choices within the ``pixel`` preset are worth, on kinds of photos held out of its training.

    python -m benchmarks.pixel_choices PHOTOS --episodes 12 --output results.json

For every episode the preset is adapted to the support as for a user, and scores the queries.
Compared are the number of support images that A takes its steps on, and the maps before and after
T. AUROC is within an episode, averaged over episodes; whole novel images count for images only.
With ``--long`` T is trained on the support too, which takes a minute an episode. ``--sets`` asks
for real products in place of episodes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metaformer import pixel_fit
from metaformer.adaptation import at_working_size
from metaformer.benchmark import save_results
from metaformer.benchmark_samples import limit_samples, load_mask
from metaformer.datasets import draw_support, load_categories
from metaformer.episodes import Episode, EpisodeConfig, episode
from metaformer.images import read_image, resize_map
from metaformer.metrics import PixelMetrics, image_metrics
from metaformer.model import FINE
from metaformer.novelty import novelty_tasks
from metaformer.photo_pool import PhotoPool
from metaformer.pixel_long import train_transformer
from metaformer.pixel_model import AdaptedPixel, PixelConfig, PixelModel
from metaformer.preprocess import image_score, smooth, to_image_size
from metaformer.summary import machine
from metaformer.training.meta_watch import auroc

POOL_SEED = 0
"""Splits the photos as in training (``seed`` of configs/universal_pixel.yaml)."""
EPISODE_SEED = 1000
"""Apart from the episodes that training is watched on."""


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(1)
    if options.sets:
        real = PixelModel.from_pretrained(PixelConfig(mode="long", long_steps=0), options.weights)
        sets = [row for root in options.sets for row in measure_set(real, root, options.shots, 40)]
        for row in sets:
            print(row)
        if options.output:
            settings = {"shots": options.shots, "support_seed": 0, "resolution": 256}
            save_results({**settings, "rows": sets, "machine": machine()}, options.output)
        return
    config = EpisodeConfig(resolution=options.side, shots=(options.shots,), queries=(6, 6))
    model = PixelModel.from_pretrained(
        PixelConfig(resolution=options.side, mode="long", long_steps=0), options.weights
    )
    pool = PhotoPool.load(options.photos, split="validation", seed=POOL_SEED, quiet=True)
    rows: list[dict[str, Any]] = []
    # Saved after every episode: a run that is stopped has measured what it says.
    for number, (kind, drawn) in enumerate(episodes(pool, config, options.episodes), start=1):
        for fit_images in options.fit_images:
            pixel_fit.FIT_IMAGES = fit_images
            found = measure(model, drawn, long=options.long and fit_images == options.fit_images[0])
            rows += [{"kind": kind, "fit_images": fit_images, **row} for row in found]
        results = {
            "shots": options.shots,
            "side": options.side,
            "episodes": number,
            "weights": "the package's" if options.weights is None else options.weights.name,
            "means": means(rows),
            "machine": machine(),
            "rows": rows,
        }
        if options.output:
            save_results(results, options.output)
    for row in means(rows):
        print(row)


def episodes(pool: PhotoPool, config: EpisodeConfig, count: int) -> Iterator[tuple[str, Episode]]:
    """By turns: synthetic defects, a novel region, a novel image; ``count`` of each."""
    novel = novelty_tasks(pool, config, EPISODE_SEED, 2 * count)
    for index in range(count):
        yield "synthetic", episode(pool, config, EPISODE_SEED, index)
        for _ in range(2):
            drawn = next(novel)
            yield drawn.kind, drawn


def measure(model: PixelModel, drawn: Episode, *, long: bool) -> list[dict[str, Any]]:
    """AUROC of images and pixels by the maps before T, after T and, trained long, after T."""
    support = [model.prepare(at_working_size(model, image)) for image in drawn.support]
    adapted = model.adapt(support, seed=0)
    before, after = maps(model, adapted, drawn.query)
    found = {"before T": before, "after T": after}
    if long:
        train_transformer(adapted, support, seed=0)
        found["after T, long"] = maps(model, adapted, drawn.query)[1]
    images = ~drawn.is_clean
    pixels = drawn.masks[:, FINE // 2 :: FINE, FINE // 2 :: FINE]
    if (drawn.masks.all((1, 2))).any():
        pixels = pixels & False
    share = model.config.score_share
    return [
        {
            "map": name,
            "image_auroc": finite(auroc(images, np.array([image_score(m, share) for m in raw]))),
            "pixel_auroc": finite(auroc(pixels.ravel(), torch.stack(raw).flatten().numpy())),
        }
        for name, raw in found.items()
    ]


@torch.no_grad()
def maps(
    model: PixelModel, adapted: AdaptedPixel, queries: Iterable[NDArray[np.uint8]]
) -> tuple[list[Tensor], list[Tensor]]:
    """Blurred maps (h, w) of each query (H, W, 3), before T and after."""
    assert adapted.known is not None
    before, after = [], []
    for image in queries:
        reading = adapted.read(model.prepare(at_working_size(model, image)))
        finding = adapted.universal.find(reading, adapted.known)
        before.append(smooth(finding.first, model.config.sigma)[0])
        after.append(smooth(finding.anomaly, model.config.sigma)[0])
    return before, after


def measure_set(model: PixelModel, folder: Path, shots: int, limit: int) -> list[dict[str, Any]]:
    """The same on real products: one support, some of the test images."""
    (category,) = load_categories(folder)
    samples = limit_samples(category.test, limit)
    support = [read_image(path) for path in draw_support(category, shots, 0)]
    prepared = [model.prepare(at_working_size(model, image)) for image in support]
    adapted = model.adapt(prepared, seed=0)
    images = [read_image(sample.image) for sample in samples]
    labels = [sample.is_anomalous for sample in samples]
    rows = []
    for name, raw in zip(("before T", "after T"), maps(model, adapted, images), strict=True):
        pixels = PixelMetrics()
        for sample, image, grid in zip(samples, images, raw, strict=True):
            mask = load_mask(sample, image.shape[:2])
            if mask is not None:
                full = to_image_size(grid, image.shape)
                pixels.add(resize_map(full, (mask.shape[0], mask.shape[1])), mask)
        scores = [image_score(grid, model.config.score_share) for grid in raw]
        found = {**image_metrics(labels, scores), **pixels.compute()}
        row = {key: found[key] for key in ("image_auroc", "pixel_auroc", "pixel_ap")}
        rows.append({"kind": folder.name, "map": name, "test_images": len(samples), **row})
    return rows


def finite(value: float) -> float | None:
    return None if np.isnan(value) else value


def means(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["kind"], row["fit_images"], row["map"]), []).append(row)
    result = []
    for (kind, fit_images, name), group in groups.items():
        mean: dict[str, Any] = {"kind": kind, "fit_images": fit_images, "map": name}
        for metric in ("image_auroc", "pixel_auroc"):
            known = [row[metric] for row in group if row[metric] is not None]
            mean[metric] = round(100 * float(np.mean(known)), 2) if known else None
        result.append(mean)
    return result


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Choices within the pixel preset.")
    parser.add_argument("photos", type=Path)
    parser.add_argument("--weights", type=Path, help="folder; the package's own if left out")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--sets", type=Path, nargs="+", help="categories to measure instead")
    parser.add_argument("--episodes", type=int, default=12, help="of each of three kinds")
    parser.add_argument("--shots", type=int, default=8)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--fit-images", type=int, nargs="+", default=[pixel_fit.FIT_IMAGES])
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
