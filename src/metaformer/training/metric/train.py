"""Meta-training of the feature preset's metric on episodes of unlabelled photos.

Every episode is a product: its support is remembered as it is when a user adapts, and the metric
is asked to rank what is anomalous above what is not, pixels and images, within the episode. No
score is compared between products, since no threshold is learned here. Ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metaformer.detection.preprocessing import to_tensor, working_size
from metaformer.detection.scoring.anomaly_map import smooth
from metaformer.networks.efficientnet import EfficientNetLite0, load_backbone
from metaformer.networks.patch_metric import (
    CARD,
    CHANNELS,
    POOLED,
    POOLED_CHANNELS,
    READINGS,
    WEIGHTS,
    TokenMetric,
    pool,
    pool_wide,
)
from metaformer.training.auroc import auroc
from metaformer.training.episodes.photo_pool import PhotoPool
from metaformer.training.metric.config import MetricConfig
from metaformer.training.metric.feature_cache import FeatureEpisode, draw, make_bank, read_bank, see
from metaformer.training.metric.loop import Trained, meta_step, train
from metaformer.training.threads import restored_threads

SCORE_SHARE = 0.01
SIGMA = 1.0
"""As the preset makes a score and a map of distances (``FeatureConfig``)."""
QUERY_CHUNK = 1024
ANOMALOUS, NORMAL = 0.5, 0.02
"""A cell counts as anomalous above, as normal below these shares; between them it is not used."""
HARD_SHARE = 0.02
"""Share of an episode's normal cells that counts as the loudest."""
DRAWN, DRAWN_HARD = 256, 128
"""Cells of either kind that are compared with each other."""
TINY = 1e-4
START_TOKENS = 20_000
"""About as many of the bank's supports give the map of pooled tokens its start."""
WIDE_PHOTOS, TOKENS_OF_A_PHOTO = 300, 100
"""Whole photos that directions of wide tokens are kept by."""
VALIDATION_SEED = 1000


@restored_threads()
def train_metric(config: MetricConfig, *, resume: bool = False, quiet: bool = False) -> Path:
    """Train and return the path of the weights (safetensors).

    Raises:
        ImageError: a photo cannot be read.
        CheckpointError: ``resume`` without a usable checkpoint.
    """
    torch.set_num_threads(config.threads)
    cv2.setNumThreads(1)
    config.output.mkdir(parents=True, exist_ok=True)
    backbone = load_backbone()
    photos = PhotoPool.load(config.data, split="train", quiet=quiet)
    bank = read_bank(make_bank(photos, backbone, config, quiet=quiet))
    held_out = PhotoPool.load(config.data, split="validation", quiet=quiet)
    checks = [
        see(backbone, draw(held_out, config, config.seed + VALIDATION_SEED, index))
        for index in range(config.validation_episodes)
    ]

    metric = TokenMetric()
    metric.start_pooled(pooled_tokens(bank))
    metric.fit_wide(wide_tokens(photos, backbone, config.side))
    optimiser = torch.optim.Adam(metric.parameters(), lr=config.lr)
    trained = Trained("metric", metric, optimiser, WEIGHTS, CARD)
    train(
        trained,
        config,
        lambda step: train_step(trained, metric, bank, config, step),
        lambda: validate(metric, checks),
        resume=resume,
    )
    return config.output / WEIGHTS


def train_step(
    trained: Trained,
    metric: TokenMetric,
    bank: list[FeatureEpisode],
    config: MetricConfig,
    step: int,
) -> dict[str, float]:
    def losses_of(index: int, generator: torch.Generator) -> dict[str, Tensor]:
        maps = episode_maps(metric, bank[index])
        return ranking_losses(maps, bank[index], config.temperature, generator)

    return meta_step(trained, config, step, len(bank), losses_of)


def episode_maps(metric: TokenMetric, episode: FeatureEpisode) -> Tensor:
    """(q, h, w) raw maps of the queries, blurred, as the preset makes them."""
    support = metric({stride: x.float() for stride, x in episode.support.items()})
    query = metric({stride: x.float() for stride, x in episode.query.items()})
    height, width = episode.masks.shape[1:]
    distances = {}
    for name in READINGS:
        grid = nearest(query[name], support[name], euclidean=name == POOLED)[:, None]
        distances[name] = F.interpolate(grid, (height, width), mode="bilinear")[:, 0]
    return smooth(metric.join(distances), SIGMA)


def nearest(query: Tensor, support: Tensor, *, euclidean: bool) -> Tensor:
    """Distance of tokens (q, C, h, w) to the nearest of (k, C, h', w'): (q, h, w).

    Euclidean, or 1 - cosine of unit tokens. The gradient passes through the pair that is nearest.
    """
    tokens = query.flatten(2).transpose(1, 2).flatten(0, 1)  # (q * h * w, C)
    memory = support.flatten(2).transpose(1, 2).flatten(0, 1)  # (k * h' * w', C)
    with torch.no_grad():
        halves = memory.square().sum(1) / 2
        best = torch.cat(
            [(part @ memory.T - halves).argmax(1) for part in tokens.split(QUERY_CHUNK)]
        )
    squares = (tokens - memory[best]).square().sum(1)
    distance = squares.clamp_min(TINY**2).sqrt() if euclidean else squares / 2
    return distance.reshape(len(query), *query.shape[2:])


def ranking_losses(
    maps: Tensor, episode: FeatureEpisode, temperature: float, generator: torch.Generator
) -> dict[str, Tensor]:
    """How far anomalous is from ranking above normal, by logarithms of ratios.

    Args:
        maps: (q, h, w), above 0.
        generator: draws the cells that are compared.

    Returns:
        Means of ``softplus(-temperature * log(anomalous / normal))`` over pairs of ``image``s, of
        ``pixel``s, and of pixels against the loudest normal ones (``hard``); without those of
        which there is only one kind.
    """
    losses = {}
    scores = (image_scores(maps) + TINY).log()
    clean = episode.is_clean
    if clean.any() and not clean.all():
        losses["image"] = margin(scores[~clean], scores[clean], temperature)
    logarithms, masks = (maps + TINY).log(), episode.masks.float()
    anomalous, normal = logarithms[masks > ANOMALOUS], logarithms[masks < NORMAL]
    loudest = max(8, round(HARD_SHARE * len(normal)))
    if len(anomalous) > 4 and len(normal) > loudest:

        def some(cells: Tensor, number: int) -> Tensor:
            return cells[torch.randint(len(cells), (number,), generator=generator)]

        drawn = some(anomalous, DRAWN)
        losses["pixel"] = margin(drawn, some(normal, DRAWN), temperature)
        hard = some(normal.topk(loudest).values, DRAWN_HARD)
        losses["hard"] = margin(drawn, hard, temperature)
    return losses


def image_scores(maps: Tensor) -> Tensor:
    """(q, h, w) -> (q,) scores as ``preprocess.image_score`` makes them, with gradients."""
    count = max(1, round(SCORE_SHARE * maps[0].numel()))
    return maps.flatten(1).topk(count, dim=1).values.mean(1)


def margin(anomalous: Tensor, normal: Tensor, temperature: float) -> Tensor:
    """Of logarithms (n,) and (m,): mean over all pairs."""
    return F.softplus(-temperature * (anomalous[:, None] - normal[None])).mean()


def pooled_tokens(bank: list[FeatureEpisode]) -> Tensor:
    """(N, 152) a sample of the pooled tokens of the bank's supports."""
    cells = sum(episode.support[8][:, 0].numel() for episode in bank)
    parts = []
    for episode in bank:
        grid = pool({stride: x.float() for stride, x in episode.support.items()})
        tokens = grid.flatten(2).transpose(1, 2).flatten(0, 1)  # (k * h * w, 152)
        parts.append(tokens[:: -(-cells // START_TOKENS)])
    tokens = torch.cat(parts)
    if len(tokens) <= POOLED_CHANNELS:
        raise ValueError(
            f"episodes: {len(bank)} give {len(tokens)} tokens to start from; accepted are more "
            f"than {POOLED_CHANNELS}. Ask for more episodes."
        )
    return tokens


@torch.inference_mode()
def wide_tokens(photos: PhotoPool, backbone: EfficientNetLite0, side: int) -> Tensor:
    """(N, 152) wide tokens of some whole photos, of about ``side`` pixels squared each. Those of
    the bank, which are of parts of photos, were worse to keep directions by."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    for index in torch.randperm(len(photos), generator=generator)[:WIDE_PHOTOS].tolist():
        image = photos.image(index)
        height, width = image.shape[:2]
        size = working_size(height, width, side, max(CHANNELS))
        tokens = pool_wide(backbone(to_tensor(image, size)))[0].flatten(1).T  # (h * w, 152)
        drawn = torch.randperm(len(tokens), generator=generator)
        parts.append(tokens[drawn[:TOKENS_OF_A_PHOTO]])
    return torch.cat(parts)


@torch.no_grad()
def validate(metric: TokenMetric, episodes: Iterable[FeatureEpisode]) -> dict[str, float | int]:
    """AUROC within held-out episodes, means; whole anomalous images count for images only."""
    images, pixels = [], []
    for episode in episodes:
        maps = episode_maps(metric, episode)
        images.append(auroc(~episode.is_clean.numpy(), image_scores(maps).numpy()))
        masks = episode.masks > ANOMALOUS
        if not bool(masks.flatten(1).all(1).any()):
            pixels.append(auroc(masks.numpy().ravel(), maps.numpy().ravel()))
    return {
        "image_auroc": float(np.nanmean(images)),
        "pixel_auroc": float(np.nanmean(pixels)),
        "held_out": len(images),
    }
