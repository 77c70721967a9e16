"""Meta-training of A by MAML on few-shot reconstruction of unlabelled photos.

Every step takes a meta-batch of episodes, adapts A to each support by the inner loop, and moves
the start (and the inner rates) so that the good queries are rebuilt better afterwards. The
queries' defects are not used here: T's training is what they are for. Resumes exactly; under
``torchrun`` the processes share a meta-batch and come to the same weights as one alone.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from metaformer.autoencoder import Autoencoder, AutoencoderConfig
from metaformer.episodes import Episode, EpisodeConfig, episode
from metaformer.files import atomic_path
from metaformer.photo_pool import PhotoPool
from metaformer.training.checkpoints import (
    load_checkpoint,
    module_tensors,
    optimiser_tensors,
    restore_module,
    restore_optimiser,
    save_checkpoint,
)
from metaformer.training.distributed import Workers, average_gradients, join_workers
from metaformer.training.inner_loop import InnerRates, adaptation_gain, outer_loss, step_weights

WEIGHTS = "meta_autoencoder.safetensors"


@dataclass(frozen=True)
class MetaConfig:
    """One YAML key per field. Values are ours; those of MAML++ are named."""

    data: Path
    """Folder of photos as ``PhotoPool`` reads it."""
    output: Path
    """Folder for the checkpoint, the log and the exported weights."""
    start: Path | None = None
    """Weights of a plainly pre-trained A to begin from."""
    side: int = 128
    """Side of the episodes' images, a multiple of 128."""
    shots: tuple[int, ...] = (2, 4)
    queries: tuple[int, int] = (3, 3)
    meta_batch: int = 2
    """Episodes a step, over all processes together."""
    steps: int = 1000
    inner_steps: int = 3
    inner_lr: float = 1e-3
    """Start of the learned inner rates."""
    outer_lr: float = 1e-4
    rate_lr: float = 1e-5
    """Outer learning rate of the inner rates."""
    first_order_share: float = 0.5
    """Share of the steps, from the start, that are first order; 1 is first order throughout."""
    multi_step_share: float = 0.2
    """Share of the steps over which the multi-step loss fades."""
    clip: float = 1.0
    ema: float = 0.99
    seed: int = 0
    threads: int = 1
    log_every: int = 10
    validate_every: int = 100
    validation_episodes: int = 16
    checkpoint_every: int = 50

    def __post_init__(self) -> None:
        if self.side % 128 or self.side < 128:
            raise ValueError(f"side: found {self.side}; accepted are multiples of 128.")
        if self.meta_batch < 1 or self.steps < 1:
            raise ValueError(
                f"meta_batch, steps: found {self.meta_batch}, {self.steps}; accepted are 1 and "
                f"more."
            )

    @staticmethod
    def from_yaml(path: Path | str) -> MetaConfig:
        """Raises ValueError that names an unknown or missing key."""
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        known = {f.name for f in fields(MetaConfig)}
        if not isinstance(content, dict) or set(content) - known or {"data", "output"} - {*content}:
            raise ValueError(
                f"{path}: needs keys data and output; known: {', '.join(sorted(known))}."
            )
        for name in ("data", "output", "start"):
            if content.get(name) is not None:
                content[name] = Path(content[name])
        for name in ("shots", "queries"):
            if name in content:
                content[name] = tuple(content[name])
        return MetaConfig(**content)


class MetaLearner(nn.Module):
    """What meta-training learns: the start of A and the inner rates."""

    def __init__(self, config: MetaConfig) -> None:
        super().__init__()
        self.autoencoder = Autoencoder(AutoencoderConfig())
        if config.start is not None:
            weights = {name: t.float() for name, t in load_file(config.start).items()}
            self.autoencoder.load_state_dict(weights)
        self.rates = InnerRates(self.autoencoder, config.inner_steps, config.inner_lr)


def meta_train(config: MetaConfig, *, resume: bool = False, quiet: bool = False) -> Path:
    """Meta-train A and return the path of its averaged weights and inner rates (safetensors).

    Raises:
        ImageError: a photo cannot be read.
        CheckpointError: ``resume`` without a usable checkpoint.
        ValueError: the meta-batch cannot be shared evenly by the processes.
    """
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    config.output.mkdir(parents=True, exist_ok=True)
    train = PhotoPool.load(config.data, split="train", seed=config.seed, quiet=quiet)
    validation = PhotoPool.load(config.data, split="validation", seed=config.seed, quiet=quiet)
    episodes = EpisodeConfig(resolution=config.side, shots=config.shots, queries=config.queries)
    learner, average = MetaLearner(config), MetaLearner(config)
    optimiser = torch.optim.Adam(
        [
            {"params": learner.autoencoder.parameters(), "lr": config.outer_lr},
            {"params": learner.rates.parameters(), "lr": config.rate_lr},
        ]
    )
    checkpoint, first = config.output / "checkpoint.safetensors", 0
    if resume:
        tensors, record = load_checkpoint(checkpoint)
        restore_module("learner", learner, tensors)
        restore_module("average", average, tensors)
        restore_optimiser("optimiser", optimiser, tensors)
        first = record["step"]

    started = time.monotonic()
    with join_workers() as workers:
        if config.meta_batch % workers.count:
            raise ValueError(
                f"meta_batch: found {config.meta_batch}; accepted with {workers.count} processes "
                f"are multiples of {workers.count}."
            )
        for step in range(first, config.steps):
            drawn = [
                episode(train, episodes, config.seed, step * config.meta_batch + task)
                for task in range(workers.rank, config.meta_batch, workers.count)
            ]
            loss = meta_step(learner, average, optimiser, drawn, config, step, workers)
            done, last = step + 1, step + 1 == config.steps
            if not workers.is_first:
                continue
            if done % config.log_every == 0 or last:
                entry = {"step": done, "loss": loss, "seconds": time.monotonic() - started}
                write_log(config.output, entry)
            if done % config.validate_every == 0 or last:
                write_log(config.output, {"step": done, **validate(average, validation, config)})
            if done % config.checkpoint_every == 0 or last:
                tensors = module_tensors("learner", learner) | module_tensors("average", average)
                tensors |= optimiser_tensors("optimiser", optimiser)
                save_checkpoint(checkpoint, tensors, {"step": done, "config": describe(config)})
                export(average, config, done)
    return config.output / WEIGHTS


def meta_step(
    learner: MetaLearner,
    average: MetaLearner,
    optimiser: torch.optim.Optimizer,
    episodes: list[Episode],
    config: MetaConfig,
    step: int,
    workers: Workers,
) -> float:
    """One outer step on this process's share of the meta-batch; its mean query loss."""
    second_order = step >= config.first_order_share * config.steps
    weights = step_weights(
        config.inner_steps, step / max(1.0, config.multi_step_share * config.steps)
    )
    decay = 0.5 * (1 + math.cos(math.pi * step / config.steps))
    for group, highest in zip(
        optimiser.param_groups, (config.outer_lr, config.rate_lr), strict=True
    ):
        group["lr"] = highest * decay
    optimiser.zero_grad(set_to_none=True)
    total = 0.0
    for task in episodes:
        loss = outer_loss(
            learner.autoencoder,
            learner.rates,
            to_tensor(task.support),
            to_tensor(task.clean_query),
            second_order=second_order,
            weights=weights,
        )
        torch.autograd.backward(loss / len(episodes))
        total += loss.item() / len(episodes)
    parameters = list(learner.parameters())
    average_gradients(parameters, workers)
    nn.utils.clip_grad_norm_(parameters, config.clip)
    optimiser.step()
    # A young average forgets its start sooner than an old one.
    keep = min(config.ema, (1 + step) / (10 + step))
    with torch.no_grad():
        for mean, current in zip(average.parameters(), parameters, strict=True):
            mean.lerp_(current, 1 - keep)
    return total


def validate(learner: MetaLearner, pool: PhotoPool, config: MetaConfig) -> dict[str, float]:
    """Adaptation gain on held-out episodes: query loss before the inner steps minus after."""
    episodes = EpisodeConfig(resolution=config.side, shots=config.shots, queries=config.queries)
    losses = []
    for index in range(config.validation_episodes):
        task = episode(pool, episodes, config.seed + 1, index)
        support, query = to_tensor(task.support), to_tensor(task.clean_query)
        losses.append(adaptation_gain(learner.autoencoder, learner.rates, support, query))
    before, after = torch.tensor(losses, dtype=torch.float64).unbind(1)
    gain = before - after
    return {
        "validation_before": float(before.mean()),
        "validation_after": float(after.mean()),
        "gain": float(gain.mean()),
        "gain_std": float(gain.std(correction=0)),
        "episodes": len(losses),
    }


def to_tensor(images: Any) -> Tensor:
    """uint8 (N, H, W, 3) -> (N, 3, H, W) in [-1, 1]."""
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    return tensor.contiguous(memory_format=torch.channels_last)


def write_log(output: Path, entry: dict[str, Any]) -> None:
    """One line of ``log.jsonl``."""
    with (output / "log.jsonl").open("a", encoding="utf-8") as log:
        log.write(json.dumps(entry) + "\n")


def describe(config: MetaConfig) -> dict[str, Any]:
    """JSON-able, without the folders of the machine it runs on."""
    content = asdict(config)
    del content["data"], content["output"]
    content["start"] = None if config.start is None else config.start.name
    return content


def export(average: MetaLearner, config: MetaConfig, step: int) -> None:
    """A in half precision and its inner rates, with how they were made."""
    tensors = {name: t.half() for name, t in average.autoencoder.state_dict().items()}
    tensors["inner_rates"] = average.rates.rates.detach()
    plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
    record = json.dumps({"training": "maml", "step": step, "config": describe(config)})
    with atomic_path(config.output / WEIGHTS) as temporary:
        save_file(plain, temporary, metadata={"record": record})
