"""The loop that the feature preset's trainings share: steps, log, checks, checkpoints, export."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from metaformer.io.atomic_files import atomic_path, write_text
from metaformer.training.checkpoints import (
    load_checkpoint,
    module_tensors,
    optimiser_tensors,
    restore_module,
    restore_optimiser,
    save_checkpoint,
)
from metaformer.training.metric.config import MetricConfig, describe
from metaformer.training.run_log import RunLog

LOSSES = ("image", "pixel", "hard")


@dataclass(frozen=True)
class Trained:
    """What is trained, and the names it has in files."""

    name: str
    """Start of the names of its tensors in a checkpoint."""
    module: nn.Module
    optimiser: torch.optim.Optimizer
    weights: str
    card: str
    """File names of what the package ships."""


def train(
    trained: Trained,
    config: MetricConfig,
    take_step: Callable[[int], Mapping[str, float]],
    validate: Callable[[], Mapping[str, float | int]],
    *,
    resume: bool,
) -> None:
    """Train to ``config.steps``; the same, stopped and resumed or not.

    Args:
        take_step: does step i and returns its losses.
        validate: what held-out episodes say.

    Raises:
        CheckpointError: ``resume`` without a usable checkpoint.
    """
    checkpoint, first = config.output / "checkpoint.safetensors", 0
    if resume:
        tensors, record = load_checkpoint(checkpoint)
        restore_module(trained.name, trained.module, tensors)
        restore_optimiser("optimiser", trained.optimiser, tensors)
        first = record["step"]

    started = time.monotonic()
    with RunLog(config.output, from_step=first, active=True) as log:
        if not first:
            log.write_watch(0, 0.0, validate())
        for step in range(first, config.steps):
            log.add(take_step(step))
            done, last = step + 1, step + 1 == config.steps
            seconds = time.monotonic() - started
            if done % config.log_every == 0 or last:
                log.write(done, seconds)
            if done % config.validate_every == 0 or last:
                log.write_watch(done, seconds, validate())
            if done % config.checkpoint_every == 0 or last:
                tensors = module_tensors(trained.name, trained.module)
                tensors |= optimiser_tensors("optimiser", trained.optimiser)
                save_checkpoint(checkpoint, tensors, {"step": done, "config": describe(config)})
                export(trained, config, done)


def meta_step(
    trained: Trained,
    config: MetricConfig,
    step: int,
    episodes: int,
    losses_of: Callable[[int, torch.Generator], dict[str, Tensor]],
) -> dict[str, float]:
    """One meta-batch; a pure function of weights, episodes, seed and step. Means of the losses.

    Args:
        episodes: how many there are to draw from.
        losses_of: the losses of episode i, some of ``LOSSES``.
    """
    warm = min(1.0, (step + 1) / max(1, config.warm_up))
    for group in trained.optimiser.param_groups:
        group["lr"] = config.lr * warm * 0.5 * (1 + math.cos(math.pi * step / config.steps))
    generator = torch.Generator().manual_seed((config.seed << 32) + step)
    factors = (config.image_weight, config.pixel_weight, config.hard_weight)
    weights = dict(zip(LOSSES, factors, strict=True))
    trained.optimiser.zero_grad(set_to_none=True)
    found: dict[str, list[float]] = {}
    for index in torch.randint(episodes, (config.meta_batch,), generator=generator).tolist():
        losses = losses_of(index, generator)
        if not losses:
            continue
        total = torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
        torch.autograd.backward(total / config.meta_batch)
        for name, loss in losses.items():
            found.setdefault(name, []).append(loss.item())
    nn.utils.clip_grad_norm_(trained.module.parameters(), config.clip)
    trained.optimiser.step()
    return {name: float(np.mean(values)) for name, values in found.items()}


def export(trained: Trained, config: MetricConfig, step: int) -> None:
    """What the package ships: the weights, and a card that says how they were made."""
    tensors = {name: t.detach().contiguous() for name, t in trained.module.state_dict().items()}
    with atomic_path(config.output / trained.weights) as temporary:
        save_file(tensors, str(temporary))
    card = {"step": step, "training": describe(config)}
    write_text(config.output / trained.card, json.dumps(card, indent=2) + "\n")
