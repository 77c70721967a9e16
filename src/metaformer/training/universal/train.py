"""Meta-training of the autoencoder by MAML, from unlabelled photos.

Every step takes a meta-batch of episodes. The inner loop fits the autoencoder to each support; the
outer loss asks that the good queries are then rebuilt well and synthetic defects found, and moves
the start of the autoencoder and the inner rates. Resumes exactly; under ``torchrun`` the processes
share a meta-batch and come to the same weights as one alone.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import cv2
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from metaformer.detection.pixel.inner_rates import InnerRates
from metaformer.detection.pixel.universal_weights import CARD, RATES, START, WEIGHTS
from metaformer.io.atomic_files import atomic_path, write_text
from metaformer.networks.autoencoder import Autoencoder
from metaformer.training.checkpoints import (
    check_new,
    load_checkpoint,
    module_tensors,
    optimiser_tensors,
    restore_module,
    restore_optimiser,
    save_checkpoint,
)
from metaformer.training.distributed import Workers, average_gradients, join_workers
from metaformer.training.episodes.episodes import Episode, EpisodeConfig, episode, prefetch
from metaformer.training.episodes.photo_pool import PhotoPool
from metaformer.training.episodes.real_anomalies import mixed_task, real_anomaly_tasks
from metaformer.training.progress import TrainingBar
from metaformer.training.run_log import RunLog
from metaformer.training.threads import restored_threads
from metaformer.training.universal.config import MetaConfig, describe
from metaformer.training.universal.distance_map import DefectLogit
from metaformer.training.universal.losses import Task, episode_loss
from metaformer.training.universal.maml import step_weights
from metaformer.training.universal.validation import to_task, validate

VALIDATION_SEED = 1
"""Added to the seed: held-out episodes are drawn apart from those of training."""


class MetaLearner(nn.Module):
    """What meta-training learns: the start of the autoencoder and the inner rates; and from which
    distance on a cell counts as defective."""

    def __init__(self, config: MetaConfig) -> None:
        super().__init__()
        self.autoencoder = Autoencoder(config.autoencoder)
        rates = None
        if config.start is not None:
            weights = {name: t.float() for name, t in load_file(config.start).items()}
            rates = weights.get(RATES)
            own = {n.removeprefix(START): t for n, t in weights.items() if n.startswith(START)}
            self.autoencoder.load_state_dict(own or weights)
        # A tenth faster on CPUs.
        self.autoencoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.rates = InnerRates(self.autoencoder, config.inner_steps, config.inner_lr)
        if rates is not None:
            if rates.shape != self.rates.rates.shape:
                raise ValueError(
                    f"{config.start}: has rates for {rates.shape[1]} inner steps; accepted with it "
                    f"is inner_steps: {rates.shape[1]}."
                )
            self.rates.rates.data.copy_(rates)
        self.to_logit = DefectLogit()


@restored_threads()
def meta_train(
    config: MetaConfig, *, resume: bool = False, quiet: bool = False, device: str = "cpu"
) -> Path:
    """Meta-train on ``device`` and return the path of the averaged weights and inner rates
    (safetensors).

    Beside them go the checkpoint, ``log.jsonl`` and, where tensorboard is installed (extra
    ``train``), its events, the adaptation gain on held-out photos among them.

    Raises:
        ImageError: a photo cannot be read.
        DeviceError: there is no such device.
        CheckpointError: ``resume`` without a usable checkpoint; a checkpoint without ``resume``.
        ValueError: the meta-batch cannot be shared evenly by the processes.
    """
    torch.set_num_threads(config.threads)
    cv2.setNumThreads(1)
    torch.manual_seed(config.seed)
    with join_workers(device) as workers:
        _meta_train(config, workers, resume=resume, quiet=quiet)
    return config.output / WEIGHTS


def _meta_train(config: MetaConfig, workers: Workers, *, resume: bool, quiet: bool) -> None:
    """The part of one process."""
    if config.meta_batch % workers.count:
        raise ValueError(
            f"meta_batch: found {config.meta_batch}; accepted with {workers.count} processes "
            f"are multiples of {workers.count}."
        )
    checkpoint, first = config.output / "checkpoint.safetensors", 0
    check_new(checkpoint, resume=resume)
    config.output.mkdir(parents=True, exist_ok=True)
    train = PhotoPool.load(config.data, split="train", seed=config.seed, quiet=quiet)
    held_out = PhotoPool.load(config.data, split="validation", seed=config.seed, quiet=quiet)
    learner, average = (MetaLearner(config).to(workers.device) for _ in range(2))
    optimiser = torch.optim.Adam(
        [
            {
                "params": [*learner.autoencoder.parameters(), *learner.to_logit.parameters()],
                "lr": config.outer_lr,
            },
            {"params": learner.rates.parameters(), "lr": config.rate_lr},
        ]
    )
    if resume:
        tensors, record = load_checkpoint(checkpoint)
        restore_module("learner", learner, tensors)
        restore_module("average", average, tensors)
        restore_optimiser("optimiser", optimiser, tensors)
        first = record["step"]

    started, waited = time.monotonic(), 0.0
    with (
        closing(batches(train, config, first, workers)) as drawn,
        RunLog(config.output, from_step=first, active=workers.is_first) as log,
        TrainingBar(
            "meta-training the autoencoder",
            config.steps,
            first=first,
            quiet=quiet or not workers.is_first,
        ) as bar,
    ):
        for step in range(first, config.steps):
            asked = time.monotonic()
            tasks = next(drawn)
            waited += time.monotonic() - asked
            parts = meta_step(learner, average, optimiser, tasks, config, step, workers)
            done, last = step + 1, step + 1 == config.steps
            if not workers.is_first:
                continue
            bar.show(done, sum(v for name, v in parts.items() if name != "gradient_norm"))
            seconds = time.monotonic() - started
            if done % config.log_every == 0 or last:
                log.write_watch(done, seconds, {**parts, "waited": waited / seconds})
            if done % config.validate_every == 0 or last:
                for kind, episodes in validation(held_out, config).items():
                    found = validate(
                        average.autoencoder, average.rates, episodes, bfloat16=config.bfloat16
                    )
                    log.write_watch(done, seconds, found, validation=kind)
            if done % config.checkpoint_every == 0 or last:
                tensors = module_tensors("learner", learner) | module_tensors("average", average)
                tensors |= optimiser_tensors("optimiser", optimiser)
                save_checkpoint(checkpoint, tensors, {"step": done, "config": describe(config)})
                export(average, config, done)


def batches(
    pool: PhotoPool, config: MetaConfig, first: int, workers: Workers
) -> Generator[list[Task], None, None]:
    """This process's share of the meta-batch of each step, made ahead of its use."""
    share = config.meta_batch // workers.count
    for start, stop, episodes in stretches(config, first):
        made = prefetch(
            pool,
            episodes,
            config.seed,
            start=start * config.meta_batch + workers.rank,
            stop=stop * config.meta_batch,
            step=workers.count,
            workers=config.workers,
            ahead=2 * share + 2,
            make=partial(mixed_task, novel_share=config.novel_share),
        )
        with closing(made):
            for _ in range(start, stop):
                yield [to_task(next(made), workers.device) for _ in range(share)]


def stretches(config: MetaConfig, first: int) -> Iterator[tuple[int, int, EpisodeConfig]]:
    """Ranges (start, stop) of steps from ``first`` on, each with one kind of episodes."""
    start = first
    for step in range(first + 1, config.steps + 1):
        if step == config.steps or config.episodes(step) != config.episodes(start):
            yield start, step, config.episodes(start)
            start = step


def meta_step(
    learner: MetaLearner,
    average: MetaLearner,
    optimiser: torch.optim.Optimizer,
    tasks: list[Task],
    config: MetaConfig,
    step: int,
    workers: Workers,
) -> dict[str, float]:
    """One outer step on this process's share of the meta-batch; mean of each part of the loss."""
    weights = step_weights(
        config.inner_steps, step / max(1.0, config.multi_step_share * config.steps)
    )
    warm = min(1.0, (step + 1) / max(1, config.warm_up))
    decay = warm * 0.5 * (1 + math.cos(math.pi * step / config.steps))
    for group, highest in zip(
        optimiser.param_groups, (config.outer_lr, config.rate_lr), strict=True
    ):
        group["lr"] = highest * decay
    optimiser.zero_grad(set_to_none=True)
    sums: dict[str, float] = {}
    for task in tasks:
        parts = episode_loss(
            learner.autoencoder,
            learner.to_logit,
            learner.rates,
            task,
            loss_weights=config.losses,
            step_weights=weights,
            second_order=step >= config.first_order_share * config.steps,
            bfloat16=config.bfloat16,
        )
        torch.autograd.backward(torch.stack(list(parts.values())).sum() / len(tasks))
        for name, part in parts.items():
            sums[name] = sums.get(name, 0.0) + part.item() / len(tasks)
    parameters = list(learner.parameters())
    fill_gradients(parameters)
    average_gradients(parameters, workers)
    norm = nn.utils.clip_grad_norm_(parameters, config.clip)
    optimiser.step()
    # A young average forgets its start sooner than an old one.
    keep = min(config.ema, (1 + step) / (10 + step))
    with torch.no_grad():
        for mean, current in zip(average.parameters(), parameters, strict=True):
            mean.lerp_(current, 1 - keep)
    return {**sums, "gradient_norm": float(norm)}


def fill_gradients(parameters: list[nn.Parameter]) -> None:
    """Zero for parameters that a variant does not use, so that all processes share alike."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


def validation(pool: PhotoPool, config: MetaConfig) -> dict[str, Iterator[Episode]]:
    """Validation tasks of held-out kinds of photos: synthetic defects and real anomalies."""
    episodes = EpisodeConfig(resolution=config.side, shots=config.shots, queries=(6, 6))
    seed, count = config.seed + VALIDATION_SEED, config.validation_episodes
    return {
        "synthetic": (episode(pool, episodes, seed, index) for index in range(count)),
        "novelty": real_anomaly_tasks(pool, episodes, seed, count),
    }


def export(average: MetaLearner, config: MetaConfig, step: int) -> None:
    """What the package ships: the averaged autoencoder in half precision with its inner rates, and
    a card that says how they were made."""
    weights = average.autoencoder.state_dict()
    tensors: dict[str, Tensor] = {f"{START}{n}": t.half() for n, t in weights.items()}
    tensors[RATES] = average.rates.rates.detach()
    plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with atomic_path(config.output / WEIGHTS) as temporary:
        save_file(plain, temporary)
    training = describe(config)
    made = {"autoencoder": training.pop("autoencoder")}
    card = {"config": made, "step": step, "training": training}
    write_text(config.output / CARD, json.dumps(card, indent=2) + "\n")
