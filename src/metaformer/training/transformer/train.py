"""Meta-training of the transformer: fresh episodes at every step, seen by the frozen backbone.
Ours.

The wrong yardstick for the transformer is a synthetic task: the better it gets at those, the worse
it can get on real defects. So nothing is chosen here; weights are kept along the way, and what is
shipped is chosen on real products (``docs/decisions/11-transformer.md``).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from metaformer.detection.feature.gap_correction import new_transformer
from metaformer.detection.feature.gap_distances import Readings
from metaformer.io.atomic_files import atomic_path, write_text
from metaformer.networks.gap_transformer import GapTransformer, corrected
from metaformer.networks.placement import check_device
from metaformer.training.checkpoints import (
    check_new,
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
from metaformer.training.transformer.reading import EpisodeReader, SeenEpisode, reader_of

WEIGHTS, CARD = "gap_transformer.safetensors", "gap_transformer.json"


@dataclass
class Run:
    """State of a training run."""

    transformer: GapTransformer
    average: GapTransformer
    level: LevelLogit
    optimiser: torch.optim.Optimizer


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
        CheckpointError: ``resume`` without a usable checkpoint; a checkpoint without ``resume``.
    """
    place = check_device(device)
    checkpoint, first = config.output / "checkpoint.safetensors", 0
    check_new(checkpoint, resume=resume)
    torch.set_num_threads(config.threads)
    cv2.setNumThreads(1)
    torch.manual_seed(config.seed)
    config.output.mkdir(parents=True, exist_ok=True)
    reader = reader_of(config.preset, place, response=config.response)
    pool = PhotoPool.load(config.data, split="train", quiet=quiet)
    run = start_run(config, reader.readings, place)
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
            losses = train_step(run, reader, batch, config, step)
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


def start_run(config: TransformerTrainingConfig, readings: Readings, device: torch.device) -> Run:
    transformer, average = new_transformer(readings), new_transformer(readings)
    if config.start is not None:
        start_from(transformer, load_file(config.start))
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


def start_from(transformer: GapTransformer, tensors: Mapping[str, Tensor]) -> None:
    """Take those weights that fit, and begin with a correction of zero: the inputs of another
    backbone do not fit, and the rest has to get used to new ones."""
    own = transformer.state_dict()
    fitting = {
        name: tensor
        for name, tensor in tensors.items()
        if name in own and own[name].shape == tensor.shape and not name.startswith("out.")
    }
    transformer.load_state_dict(own | fitting)


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
    reader: EpisodeReader,
    batch: list[Episode],
    config: TransformerTrainingConfig,
    step: int,
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
        losses = losses_of(run, reader.see(episode, generator))
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


def losses_of(run: Run, seen: SeenEpisode) -> dict[str, Tensor]:
    correction = run.transformer(
        seen.features, seen.distances, seen.core, seen.support, seen.response
    )
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
