"""Meta-training of the transformer: fresh episodes at every step, seen by the frozen backbone.
Ours.

The wrong yardstick for the transformer is a synthetic task: the better it gets at those, the worse
it can get on real defects. So nothing is chosen here; weights are kept along the way, and what is
shipped is chosen on real products (``docs/decisions/11-transformer.md``).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from metaformer.detection.feature.gap_distances import DISTANCES, grids, measure, measure_alone
from metaformer.io.atomic_files import atomic_path, write_text
from metaformer.networks.efficientnet import EfficientNetLite0, load_backbone
from metaformer.networks.gap_transformer import (
    GapTransformer,
    GapTransformerConfig,
    SupportDescription,
    corrected,
    describe_support,
)
from metaformer.networks.placement import check_device
from metaformer.training.checkpoints import (
    load_checkpoint,
    module_tensors,
    optimiser_tensors,
    restore_module,
    restore_optimiser,
    save_checkpoint,
)
from metaformer.training.episodes.change_episodes import ChangeConfig, change_episode
from metaformer.training.episodes.episodes import Episode, EpisodeConfig, prefetch
from metaformer.training.episodes.photo_pool import PhotoPool
from metaformer.training.progress import TrainingBar
from metaformer.training.run_log import RunLog
from metaformer.training.threads import restored_threads
from metaformer.training.transformer.config import TransformerTrainingConfig, describe
from metaformer.training.transformer.losses import LevelLogit, image_loss, image_scores, pixel_loss

WEIGHTS, CARD = "gap_transformer.safetensors", "gap_transformer.json"
BACKBONE_BATCH = 2
"""Images seen at once: on a CPU more take longer each."""
MOST_LEFT_OUT = 3
"""Support images that are left out in turn, in training; an adapted model leaves out each."""


@dataclass
class Run:
    """State of a training run."""

    transformer: GapTransformer
    average: GapTransformer
    level: LevelLogit
    optimiser: torch.optim.Optimizer


@dataclass(frozen=True)
class SeenEpisode:
    """An episode as the transformer gets it; tensors on the training's device."""

    features: dict[int, Tensor]
    distances: Tensor
    core: Tensor
    support: SupportDescription
    shares: Tensor
    """(q, H/4, W/4) share of each cell that is anomalous."""
    is_clean: Tensor


def new_transformer() -> GapTransformer:
    """The transformer for EfficientNet-Lite0 and the readings of ``core``."""
    return GapTransformer(GapTransformerConfig({8: 40, 16: 112}, len(DISTANCES)))


@restored_threads()
def train_transformer(
    config: TransformerTrainingConfig,
    *,
    resume: bool = False,
    quiet: bool = False,
    device: str = "cpu",
) -> Path:
    """Train the transformer on ``device`` and return the path of the last weights (safetensors).

    Raises:
        ImageError: a photo cannot be read.
        DeviceError: there is no such device.
        CheckpointError: ``resume`` without a usable checkpoint.
    """
    place = check_device(device)
    torch.set_num_threads(config.threads)
    cv2.setNumThreads(1)
    torch.manual_seed(config.seed)
    config.output.mkdir(parents=True, exist_ok=True)
    backbone = load_backbone(16, ahead=True).to(place)
    pool = PhotoPool.load(config.data, split="train", quiet=quiet)
    run = start_run(config, place)
    checkpoint, first = config.output / "checkpoint.safetensors", 0
    if resume:
        tensors, record = load_checkpoint(checkpoint)
        for name in ("transformer", "average", "level"):
            restore_module(name, getattr(run, name), tensors)
        restore_optimiser("optimiser", run.optimiser, tensors)
        first = record["step"]

    each = config.meta_batch * ChangeConfig().queries
    steps = -(-config.pairs // each)
    exports = sorted({min(steps, -(-pairs // each)) for pairs in config.exports} | {steps})
    episodes = stream(pool, config, first * config.meta_batch, steps * config.meta_batch)
    started = saved = time.monotonic()
    with (
        RunLog(config.output, from_step=first, active=True) as log,
        TrainingBar("training the transformer", steps, first=first, quiet=quiet) as bar,
    ):
        for step in range(first, steps):
            batch = [next(episodes) for _ in range(config.meta_batch)]
            losses = train_step(run, backbone, batch, config, step, place)
            log.add(losses)
            done = step + 1
            bar.show(done, losses["pixel"])
            now = time.monotonic()
            if done % config.log_every == 0 or done == steps:
                log.write(done, now - started)
            if done in exports:
                export(run, config, done * each)
            if now - saved > config.checkpoint_seconds or done == steps:
                tensors = optimiser_tensors("optimiser", run.optimiser)
                for name in ("transformer", "average", "level"):
                    tensors |= module_tensors(name, getattr(run, name))
                save_checkpoint(checkpoint, tensors, {"step": done, "config": describe(config)})
                saved = now
    return config.output / WEIGHTS


def start_run(config: TransformerTrainingConfig, device: torch.device) -> Run:
    transformer, average = new_transformer(), new_transformer()
    average.load_state_dict(transformer.state_dict())
    average.requires_grad_(False).eval()
    level = LevelLogit()
    for module in (transformer, average, level):
        module.to(device)
    matrices = [p for p in transformer.parameters() if p.dim() > 1]
    others = [p for p in transformer.parameters() if p.dim() <= 1]
    optimiser = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": [*others, *level.parameters()], "weight_decay": 0.0},
        ],
        lr=config.lr,
    )
    return Run(transformer, average, level, optimiser)


def stream(
    pool: PhotoPool, config: TransformerTrainingConfig, start: int, stop: int
) -> Iterator[Episode]:
    """Episodes ``start`` to ``stop``, each seen once."""
    made = ChangeConfig()
    if config.workers < 1:
        return (change_episode(pool, made, config.seed, index) for index in range(start, stop))
    return prefetch(
        pool,
        EpisodeConfig(),
        config.seed,
        start=start,
        stop=stop,
        workers=config.workers,
        ahead=4 * config.workers,
        make=lambda pool, _, seed, index: change_episode(pool, made, seed, index),
    )


def train_step(
    run: Run,
    backbone: EfficientNetLite0,
    batch: list[Episode],
    config: TransformerTrainingConfig,
    step: int,
    device: torch.device,
) -> dict[str, float]:
    """One step on a batch of episodes; a pure function of weights, batch, seed and step."""
    torch.manual_seed((config.seed << 32) + step)  # of dropout
    generator = torch.Generator().manual_seed((config.seed << 32) + step)
    for group in run.optimiser.param_groups:
        group["lr"] = config.lr * min(1.0, (step + 1) / max(1, config.warm_up))
    run.transformer.train()
    run.optimiser.zero_grad(set_to_none=True)
    sums: dict[str, float] = {}
    for episode in batch:
        losses = losses_of(run, see(backbone, episode, generator, device))
        total = (
            config.pixel_weight * losses["pixel"]
            + config.image_weight * losses["image"]
            + config.size_weight * losses["size"]
        )
        torch.autograd.backward(total / len(batch))
        for name, loss in losses.items():
            sums[name] = sums.get(name, 0.0) + loss.item() / len(batch)
    nn.utils.clip_grad_norm_(run.transformer.parameters(), config.clip)
    run.optimiser.step()
    keep = min(config.average, (step + 1) / (step + 10))
    with torch.no_grad():
        for mean, new in zip(run.average.parameters(), run.transformer.parameters(), strict=True):
            mean.lerp_(new, 1 - keep)
    return sums


@torch.no_grad()
def see(
    backbone: EfficientNetLite0, episode: Episode, generator: torch.Generator, device: torch.device
) -> SeenEpisode:
    """The episode's features, distances and support, as an adapted model makes them."""
    images = torch.from_numpy(episode.query).to(device)
    known = torch.from_numpy(episode.support).to(device)
    query, support = features_of(backbone, images), features_of(backbone, known)
    shots = len(known)
    grids_of_support = grids(support)
    distances, core = measure(grids(query), grids_of_support, generator)
    alone, alone_cores = [], []
    for i in range(min(shots, MOST_LEFT_OUT)):
        one = {name: grid[i : i + 1] for name, grid in grids_of_support.items()}
        if shots == 1:
            found = measure_alone(one)
        else:
            rest = [j for j in range(shots) if j != i]
            others = {name: grid[rest] for name, grid in grids_of_support.items()}
            found = measure(one, others, generator)
        alone.append(found[0][0])
        alone_cores.append(found[1][0])
    described = describe_support(
        [{stride: x[i] for stride, x in support.items()} for i in range(shots)], alone, alone_cores
    )
    masks = torch.from_numpy(episode.masks).to(device).float()[:, None]
    return SeenEpisode(
        features=query,
        distances=distances,
        core=core,
        support=described,
        shares=F.avg_pool2d(masks, 4)[:, 0],
        is_clean=torch.from_numpy(episode.is_clean).to(device),
    )


def features_of(backbone: EfficientNetLite0, images: Tensor) -> dict[int, Tensor]:
    """uint8 (n, S, S, 3) -> stride -> (n, C, h, w)."""
    size = len(images) if images.is_cuda else BACKBONE_BATCH
    parts = [backbone(some.permute(0, 3, 1, 2).float() / 255) for some in images.split(size)]
    return {
        stride: torch.cat([part[stride] for part in parts]).contiguous()
        for stride in parts[0]
        if stride >= 8
    }


def losses_of(run: Run, seen: SeenEpisode) -> dict[str, Tensor]:
    correction = run.transformer(seen.features, seen.distances, seen.core, seen.support)
    final = corrected(seen.core, correction)[:, 0]  # (q, H/4, W/4)
    logits = run.level(final.log() - seen.support.loudest)
    before = image_scores(corrected(seen.core, torch.zeros_like(correction))[:, 0]).log()
    clean = seen.is_clean
    return {
        "pixel": pixel_loss(logits, seen.shares),
        "image": image_loss(image_scores(final).log(), clean),
        "image_before": image_loss(before, clean).detach(),
        "size": correction[clean].square().mean(),
    }


def export(run: Run, config: TransformerTrainingConfig, pairs: int) -> None:
    """The averaged weights, once under their number of pairs and once as the latest."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in run.average.state_dict().items()}
    for name in (f"gap_transformer-{pairs:07d}.safetensors", WEIGHTS):
        with atomic_path(config.output / name) as temporary:
            save_file(tensors, str(temporary))
    card = {"pairs": pairs, "training": describe(config)}
    write_text(config.output / CARD, json.dumps(card, indent=2) + "\n")
