"""Episodes as the frozen backbone sees them, kept on disk: made once, trained on many times."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor

from metaformer.io.atomic_files import atomic_path
from metaformer.networks.efficientnet import EfficientNetLite0
from metaformer.networks.patch_metric import CHANNELS
from metaformer.training.episodes.episodes import Episode, EpisodeConfig, episode
from metaformer.training.episodes.photo_pool import PhotoPool
from metaformer.training.episodes.real_anomalies import novelty_task
from metaformer.training.metric.config import MetricConfig

SHARD = 20
"""Episodes of one file, about 25 MB."""
SYNTHETIC_SEED = 1
"""Added to the seed, so that synthetic episodes are drawn apart from novel ones."""


@dataclass(frozen=True)
class FeatureEpisode:
    """Stride -> features (n, C, h, w), half precision."""

    support: dict[int, Tensor]
    query: dict[int, Tensor]
    masks: Tensor
    """(q, h, w) share of each cell of stride 8 that is anomalous."""
    is_clean: Tensor
    """(q,) bool."""


def draw(pool: PhotoPool, config: MetricConfig, seed: int, index: int) -> Episode:
    """Episode ``index`` of ``seed``: kinds come in the configured shares, evenly spread."""
    settings = EpisodeConfig(
        resolution=config.side,
        shots=config.shots,
        queries=(config.queries, config.queries),
        clean_share=config.clean_share,
    )
    position = (index % SHARD) / SHARD
    if position < config.novel_regions:
        return novelty_task(pool, settings, seed, 2 * index)
    if position < config.novel_regions + config.novel_images:
        return novelty_task(pool, settings, seed, 2 * index + 1)
    return episode(pool, settings, seed + SYNTHETIC_SEED, index)


@torch.inference_mode()
def see(backbone: EfficientNetLite0, drawn: Episode) -> FeatureEpisode:
    def features(images: Tensor) -> dict[int, Tensor]:
        seen = backbone(images.permute(0, 3, 1, 2).float() / 255)
        return {stride: seen[stride].half().contiguous() for stride in CHANNELS}

    masks = torch.from_numpy(drawn.masks).float()[:, None]  # (q, 1, S, S)
    return FeatureEpisode(
        support=features(torch.from_numpy(drawn.support)),
        query=features(torch.from_numpy(drawn.query)),
        masks=F.avg_pool2d(masks, min(CHANNELS))[:, 0].half(),
        is_clean=torch.from_numpy(drawn.is_clean),
    )


def make_bank(
    pool: PhotoPool, backbone: EfficientNetLite0, config: MetricConfig, *, quiet: bool
) -> list[Path]:
    """Files of ``SHARD`` episodes each; those that are there already are not made again."""
    folder = config.output / f"episodes-{fingerprint(config)}"
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:04d}.safetensors" for i in range(-(-config.episodes // SHARD))]
    bar = track(
        [(i, path) for i, path in enumerate(paths) if not path.exists()],
        description="Making episodes",
        console=Console(stderr=True),
        disable=quiet,
        transient=True,
    )
    for i, path in bar:
        tensors: dict[str, Tensor] = {}
        for j in range(SHARD):
            seen = see(backbone, draw(pool, config, config.seed, i * SHARD + j))
            for stride in CHANNELS:
                tensors[f"{j}.support.{stride}"] = seen.support[stride]
                tensors[f"{j}.query.{stride}"] = seen.query[stride]
            tensors[f"{j}.masks"], tensors[f"{j}.is_clean"] = seen.masks, seen.is_clean
        with atomic_path(path) as temporary:
            save_file(tensors, str(temporary))
    return paths


def fingerprint(config: MetricConfig) -> str:
    """Eight hex digits that change with whatever changes the episodes."""
    made_of = (
        config.side,
        config.shots,
        config.queries,
        config.clean_share,
        config.novel_regions,
        config.novel_images,
        config.seed,
    )
    return hashlib.sha256(repr(made_of).encode()).hexdigest()[:8]


def read_bank(paths: list[Path]) -> list[FeatureEpisode]:
    """All episodes of the files, in memory: about 1.2 MB each at 256 pixels."""
    return [found for path in paths for found in _read(path)]


def _read(path: Path) -> Iterator[FeatureEpisode]:
    tensors = load_file(str(path))
    for j in range(SHARD):
        yield FeatureEpisode(
            support={stride: tensors[f"{j}.support.{stride}"] for stride in CHANNELS},
            query={stride: tensors[f"{j}.query.{stride}"] for stride in CHANNELS},
            masks=tensors[f"{j}.masks"],
            is_clean=tensors[f"{j}.is_clean"],
        )
