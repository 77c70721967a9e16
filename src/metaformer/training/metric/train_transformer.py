"""Meta-training of the feature preset's transformer T on episodes of unlabelled photos.

The episodes are those of the metric (``training/metric/train.py``), and so are the losses: rank
what is anomalous above what is not, within a product. The metric stays as it is; T learns what to
add to the logarithm of its map, from the support's images as the others see them. Ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from metaformer.detection.feature.adapted import Distances, Tokens, on_one_grid
from metaformer.detection.feature.config import FeatureConfig
from metaformer.detection.feature.preset import FeatureModel
from metaformer.detection.scoring.anomaly_map import smooth
from metaformer.networks.efficientnet import load_backbone
from metaformer.networks.patch_metric import COARSE, LEARNED, READINGS, TokenMetric, load_metric
from metaformer.networks.patch_transformer import CARD, WEIGHTS, SeenImage, TokenTransformer
from metaformer.training.auroc import auroc
from metaformer.training.episodes.photo_pool import PhotoPool
from metaformer.training.metric.config import MetricConfig
from metaformer.training.metric.feature_cache import FeatureEpisode, draw, make_bank, read_bank, see
from metaformer.training.metric.loop import Trained, meta_step, train
from metaformer.training.metric.train import (
    ANOMALOUS,
    SIGMA,
    VALIDATION_SEED,
    image_scores,
    ranking_losses,
)
from metaformer.training.threads import restored_threads


@dataclass(frozen=True)
class GapEpisode:
    """An episode and how far its tokens are from the support's, in the metric."""

    episode: FeatureEpisode
    support: Distances
    """Reading -> (k, h, w), each image from the others; from the rest of it if it is alone."""
    query: Distances
    """Reading -> (q, h, w)."""


@restored_threads()
def train_transformer(config: MetricConfig, *, resume: bool = False, quiet: bool = False) -> Path:
    """Train T and return the path of the weights (safetensors).

    Raises:
        ImageError: a photo cannot be read.
        CheckpointError: ``resume`` without a usable checkpoint.
    """
    torch.set_num_threads(config.threads)
    cv2.setNumThreads(1)
    torch.manual_seed(config.seed)
    config.output.mkdir(parents=True, exist_ok=True)
    backbone, metric = load_backbone(), load_metric()
    model = FeatureModel(FeatureConfig(maps=(LEARNED,), own=0.0), backbone, metric)
    photos = PhotoPool.load(config.data, split="train", quiet=quiet)
    episodes = read_bank(make_bank(photos, backbone, config, quiet=quiet))
    bar = track(
        episodes,
        description="Measuring distances",
        console=Console(stderr=True),
        disable=quiet,
        transient=True,
    )
    bank = [with_gaps(model, one) for one in bar]
    held_out = PhotoPool.load(config.data, split="validation", quiet=quiet)
    checks = [
        with_gaps(model, see(backbone, draw(held_out, config, config.seed + VALIDATION_SEED, i)))
        for i in range(config.validation_episodes)
    ]

    transformer = TokenTransformer()
    optimiser = torch.optim.AdamW(
        transformer.parameters(), lr=config.lr, weight_decay=config.weight_decay
    )
    trained = Trained("transformer", transformer, optimiser, WEIGHTS, CARD)
    train(
        trained,
        config,
        lambda step: train_step(trained, transformer, metric, bank, config, step),
        lambda: validate(transformer, metric, checks),
        resume=resume,
    )
    return config.output / WEIGHTS


@torch.inference_mode()
def with_gaps(model: FeatureModel, episode: FeatureEpisode) -> GapEpisode:
    """Measure the distances of an episode once; the metric does not change."""
    assert model.metric is not None
    support = split(model.metric({stride: x.float() for stride, x in episode.support.items()}))
    query = split(model.metric({stride: x.float() for stride, x in episode.query.items()}))
    adapted = model.remember(support, seed=0)
    return GapEpisode(
        episode,
        stack(model.left_out_distances(support, seed=0)),
        stack([adapted.distances(tokens) for tokens in query]),
    )


def split(tokens: dict[str, Tensor]) -> list[Tokens]:
    """Reading -> (n, C, h, w) to n images."""
    count = len(tokens[COARSE])
    return [{name: grid[i] for name, grid in tokens.items()} for i in range(count)]


def stack(images: Sequence[Distances]) -> Distances:
    return {name: torch.stack([image[name] for image in images]).half() for name in READINGS}


def train_step(
    trained: Trained,
    transformer: TokenTransformer,
    metric: TokenMetric,
    bank: list[GapEpisode],
    config: MetricConfig,
    step: int,
) -> dict[str, float]:
    torch.manual_seed((config.seed << 32) + step)  # of dropout
    transformer.train()

    def losses_of(index: int, generator: torch.Generator) -> dict[str, Tensor]:
        _, maps = episode_maps(transformer, metric, bank[index])
        return ranking_losses(maps, bank[index].episode, config.temperature, generator)

    return meta_step(trained, config, step, len(bank), losses_of)


def episode_maps(
    transformer: TokenTransformer, metric: TokenMetric, gaps: GapEpisode
) -> tuple[Tensor, Tensor]:
    """(q, h, w) maps of the queries before T and after, blurred as the preset blurs them."""
    episode = gaps.episode
    with torch.no_grad():
        support = metric({stride: x.float() for stride, x in episode.support.items()})
        query = metric({stride: x.float() for stride, x in episode.query.items()})
    near = {name: grid.float() for name, grid in gaps.support.items()}
    far = {name: grid.float() for name, grid in gaps.query.items()}
    with torch.no_grad():
        known = metric.join(on_one_grid(near, READINGS[0])).log()
        before = metric.join(on_one_grid(far, READINGS[0])).log()
    embedded = transformer.embed(support, near, known)  # (k, N, W)
    images = [
        SeenImage(tokens, float(grid.mean())) for tokens, grid in zip(embedded, known, strict=True)
    ]
    height, width = gaps.query[COARSE].shape[1:]
    after = before + transformer(transformer.embed(query, far, before), images, (height, width))
    return smooth(before.exp(), SIGMA), smooth(after.exp(), SIGMA)


@torch.no_grad()
def validate(
    transformer: TokenTransformer, metric: TokenMetric, bank: Sequence[GapEpisode]
) -> dict[str, float | int]:
    """AUROC within held-out episodes before T (``first``) and after, means; whole anomalous images
    count for images only."""
    transformer.eval()
    found: dict[str, list[float]] = {}
    for gaps in bank:
        episode = gaps.episode
        masks = episode.masks > ANOMALOUS
        both = episode_maps(transformer, metric, gaps)
        for start, maps in zip(("first_", ""), both, strict=True):
            scores = auroc(~episode.is_clean.numpy(), image_scores(maps).numpy())
            found.setdefault(f"{start}image_auroc", []).append(scores)
            if not bool(masks.flatten(1).all(1).any()):
                pixels = auroc(masks.numpy().ravel(), maps.numpy().ravel())
                found.setdefault(f"{start}pixel_auroc", []).append(pixels)
    means = {name: float(np.nanmean(values)) for name, values in found.items()}
    return {**means, "held_out": len(bank)}
