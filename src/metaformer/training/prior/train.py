"""Training of the prior: a matte generator and a critic against each other (VEGAN, WGAN-GP)."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metaformer.networks.instance_prior import (
    Critic,
    InstancePrior,
    apply_effects,
    gradient_penalty,
)
from metaformer.training.checkpoints import (
    CheckpointError,
    check_new,
    load_checkpoint,
    module_tensors,
    optimiser_tensors,
    restore_module,
    restore_optimiser,
    save_checkpoint,
)
from metaformer.training.distributed import (
    Workers,
    average_gradients,
    from_first,
    gather,
    join_workers,
)
from metaformer.training.prior.config import PriorTrainingConfig
from metaformer.training.prior.effect_photos import draw_effect_batch, draw_natural
from metaformer.training.prior.effect_pool import EffectPool
from metaformer.training.prior.export import export_prior
from metaformer.training.prior.imitation import imitation_gap
from metaformer.training.prior.monitor import Watch
from metaformer.training.prior.photo_bank import Photo, PhotoBank, load_bank
from metaformer.training.progress import TrainingBar
from metaformer.training.run_log import RunLog
from metaformer.training.threads import restored_threads

__all__ = ["CHECKPOINT", "EffectPool", "PriorTrainer", "PriorTrainingConfig", "train_prior"]

CHECKPOINT = "checkpoint.safetensors"


class PriorTrainer:
    """Generator, critic, their optimisers and the state that a checkpoint must hold."""

    def __init__(self, config: PriorTrainingConfig, bank: PhotoBank, workers: Workers) -> None:
        self.config, self.bank, self.workers = config, bank, workers
        torch.manual_seed(config.seed)
        side = config.prior.side
        self.generator = InstancePrior(config.prior).to(workers.device)
        self.critic = Critic(side, config.critic_width).to(workers.device)
        if config.start_from is not None:
            tensors, _ = load_checkpoint(config.data / config.start_from)
            restore_module("ema", self.generator, tensors)
        # A third faster on a CPU than the default layout.
        self.generator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.critic.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ema = copy.deepcopy(self.generator).eval().requires_grad_(False)
        # Momentum for the prior, which imitation drives; none for the critic (WGAN-GP, VEGAN).
        self.optimiser_g = torch.optim.Adam(
            self.generator.parameters(), config.generator_lr, (0.9, 0.99)
        )
        self.optimiser_d = torch.optim.Adam(self.critic.parameters(), config.critic_lr, (0.0, 0.9))
        self.pool = EffectPool(config.pool, side)
        self.step = 0
        self.seconds = 0.0

    def progress(self) -> float:
        """Share of the schedule that is done, in [0, 1]."""
        done = self.step / self.config.steps
        if self.config.hours is not None:
            done = max(done, from_first(self.seconds, self.workers) / (3600 * self.config.hours))
        return min(1.0, done)

    def train_step(self) -> dict[str, Tensor | float]:
        """``critic_steps`` of the critic and one of the generator; what they were like."""
        config = self.config
        # All randomness of a step comes from its number: resuming needs no generator state.
        rng = np.random.default_rng([config.seed, self.workers.rank, self.step])
        remaining = 1.0 - max(0.0, self.progress() - config.anneal_from) / (1 - config.anneal_from)
        # Only the prior slows down: the critic keeps its rate and judges better and better.
        self.optimiser_g.param_groups[0]["lr"] = config.generator_lr * remaining

        judged = self.step % config.critic_every == 0
        losses: dict[str, Tensor] = {}
        total = torch.zeros((), device=self.workers.device)
        logits: list[Tensor] = []
        for last in [False] * (config.critic_steps - 1) + [True] if judged else []:
            images = self._draw_natural(rng)
            shown, real, real_mattes, effects = self._draw_effects(rng)
            # Only the last edited photos go on to train the generator.
            with self._autocast(), torch.set_grad_enabled(last):
                logits = [self.generator.logits(images)]  # (B, 1, side, side)
            matte = torch.sigmoid(logits[0])
            fake = apply_effects(images, matte, effects)
            losses = self._critic_step(real, fake.detach(), effects, rng)
        self.critic.requires_grad_(False)
        if judged:  # generator: edited photos up
            with self._autocast():
                total = total - self.critic(fake, effects).mean()
        else:
            shown, _, real_mattes, _ = self._draw_effects(rng)

        # And effects made by software to be made again: for them the photo before is known.
        with self._autocast():
            logits.append(self.generator.logits(shown))
        difference = imitation_gap(shown, torch.sigmoid(logits[-1]), real_mattes)
        matte = torch.sigmoid(logits[0])  # of natural photos where there are any in this step
        area = matte.mean()
        guard = F.relu(config.area_low - area) + F.relu(area - config.area_high)
        saturation = F.relu(torch.cat(logits).abs() - config.logit_limit).square().mean()
        guards = config.area_weight * guard + config.logit_weight * saturation
        self.optimiser_g.zero_grad(set_to_none=True)
        (total + config.imitation * difference + guards).backward()
        self.critic.requires_grad_(True)
        average_gradients(self.generator.parameters(), self.workers)
        self.optimiser_g.step()

        self.step += 1
        decay = min(config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for kept, new in zip(self.ema.parameters(), self.generator.parameters(), strict=True):
                kept.lerp_(new, 1 - decay)
        return {
            **losses,
            "area": area.detach(),
            "area_spread": matte.detach().mean(dim=(1, 2, 3)).std(),
            "softness": (4 * matte * (1 - matte)).detach().mean(),
            "area_guard": guard.detach(),
            "saturation": saturation.detach(),
            "difference": difference.detach(),
            "lr_share": remaining,
        }

    def _draw_natural(self, rng: np.random.Generator) -> Tensor:
        """Natural photos (B, 3, side, side)."""
        config = self.config
        natural = [
            draw_natural(self.bank.natural, config.mix, config.prior.side, rng)
            for _ in range(config.batch)
        ]
        return to_batch(natural).to(self.workers.device)

    def _draw_effects(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Photos of side B without and with their effect, (B, 3, side, side) both; the mattes the
        effect was made with, (B, 1, side, side); the effects (B,)."""
        config, device = self.config, self.workers.device
        photos, mattes, codes = draw_effect_batch(
            self.bank, config.mix, config.prior.side, config.batch, rng
        )
        effects = torch.from_numpy(codes).to(device)
        shown = to_batch(photos).to(device)
        made_with = torch.from_numpy(mattes)[:, None].to(device)
        return shown, apply_effects(shown, made_with, effects), made_with, effects

    def _critic_step(
        self, real: Tensor, fake: Tensor, effects: Tensor, rng: np.random.Generator
    ) -> dict[str, Tensor]:
        """Critic: real effect photos up, edited ones down, slope one in between."""
        judged = self.pool.exchange(fake, effects, rng)
        mix = torch.from_numpy(rng.random(len(fake), dtype=np.float32)).to(fake.device)
        with self._autocast():
            score_real = self.critic(real, effects).mean()
            score_fake = self.critic(judged, effects).mean()
            penalty = gradient_penalty(self.critic, real, judged, effects, mix)
        self.optimiser_d.zero_grad(set_to_none=True)
        (score_fake - score_real + self.config.penalty * penalty).backward()
        average_gradients(self.critic.parameters(), self.workers)
        self.optimiser_d.step()
        return {"wasserstein": (score_real - score_fake).detach(), "penalty": penalty.detach()}

    def save(self, path: Path) -> None:
        """Write the checkpoint; every process must call it, the first one writes."""
        tensors = {
            **module_tensors("generator", self.generator),
            **module_tensors("critic", self.critic),
            **module_tensors("ema", self.ema),
            **optimiser_tensors("optimiser_g", self.optimiser_g),
            **optimiser_tensors("optimiser_d", self.optimiser_d),
        }
        pools = gather(self.pool.photos.to(self.workers.device), self.workers)
        used = gather(self.pool.used.to(self.workers.device), self.workers)
        for rank in range(self.workers.count):
            tensors[f"pool.{rank}.photos"], tensors[f"pool.{rank}.used"] = pools[rank], used[rank]
        record = {
            "step": self.step,
            "seconds": self.seconds,
            "workers": self.workers.count,
            "config": self.config.describe(),
        }
        if self.workers.is_first:
            save_checkpoint(path, tensors, record)

    def restore(self, path: Path) -> None:
        """Continue from ``path``.

        Raises:
            CheckpointError: unreadable, or written by another number of processes.
        """
        tensors, record = load_checkpoint(path)
        if record["workers"] != self.workers.count:
            raise CheckpointError(
                f"{path}: written by {record['workers']} processes, resumed by "
                f"{self.workers.count}. Use the same number."
            )
        restore_module("generator", self.generator, tensors)
        restore_module("critic", self.critic, tensors)
        restore_module("ema", self.ema, tensors)
        restore_optimiser("optimiser_g", self.optimiser_g, tensors)
        restore_optimiser("optimiser_d", self.optimiser_d, tensors)
        self.pool.photos = tensors[f"pool.{self.workers.rank}.photos"]
        self.pool.used = tensors[f"pool.{self.workers.rank}.used"]
        self.step, self.seconds = record["step"], record["seconds"]

    def _autocast(self) -> torch.autocast:
        enabled = self.config.precision == "bfloat16"
        return torch.autocast(self.workers.device.type, torch.bfloat16, enabled=enabled)


def to_batch(photos: Sequence[Photo]) -> Tensor:
    """uint8 (H, W, 3) photos of one size -> float32 (B, 3, H, W) in [0, 1]."""
    stacked = torch.from_numpy(np.stack(photos))  # (B, H, W, 3)
    return stacked.permute(0, 3, 1, 2).float() / 255


@restored_threads()
def train_prior(
    config: PriorTrainingConfig, *, resume: bool = False, quiet: bool = False, device: str = "cpu"
) -> Path:
    """Train the prior on ``device`` and return the path of its checkpoint
    (``output/checkpoint.safetensors``).

    Runs alone or under ``torchrun``. Writes ``log.jsonl``, sample
    sheets, TensorBoard events if tensorboard is installed, the checkpoint and, at the end,
    ``prior.safetensors`` and ``prior.json`` as
    ``metaformer.networks.instance_prior.prior_from_bytes`` reads them.

    Raises:
        CheckpointError: ``resume`` and there is no fitting checkpoint; or not ``resume`` and
            there is one, which would be lost.
        DeviceError: there is no such device.
        ValueError: the data folders hold too little.
    """
    path = config.output / CHECKPOINT
    check_new(path, resume=resume)
    torch.set_num_threads(config.threads)
    with join_workers(device) as workers:
        config.output.mkdir(parents=True, exist_ok=True)
        bank = load_bank(
            [config.data / folder for folder in config.object_folders],
            [config.data / folder for folder in config.background_folders],
            saliency_sets=[config.data / folder for folder in config.saliency_sets],
            effect_folder=None
            if config.effect_folder is None
            else config.data / config.effect_folder,
            seed=config.seed,
        )
        trainer = PriorTrainer(config, bank, workers)
        if resume:
            trainer.restore(path)
        watch = Watch(bank.held_out, config.prior.side)
        log = RunLog(config.output, from_step=trainer.step, active=workers.is_first)
        is_quiet = quiet or not workers.is_first
        bar = TrainingBar("training the prior", config.steps, first=trainer.step, quiet=is_quiet)
        with log, bar:  # a run may end by hours: the bar shows the share of its steps
            while trainer.progress() < 1.0:
                began = time.perf_counter()
                values = trainer.train_step()
                log.add(values)
                trainer.seconds += time.perf_counter() - began
                last = trainer.progress() >= 1.0
                if trainer.step % config.log_every == 0 or last:
                    log.write(trainer.step, trainer.seconds)
                if workers.is_first and (trainer.step % config.watch_every == 0 or last):
                    log.write_watch(trainer.step, trainer.seconds, watch.measure(trainer.ema))
                    watch.sample_sheet(trainer.ema, config.output / f"r-{trainer.step:06d}.png")
                if trainer.step % config.checkpoint_every == 0 or last:
                    trainer.save(path)
                done = round(trainer.progress() * config.steps)
                bar.show(done, float(values["difference"]))
        if workers.is_first:
            export_prior(path, config.output)
    return path
