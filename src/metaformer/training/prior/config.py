"""Configuration of the training of the prior."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from metaformer.networks.instance_prior import PriorConfig
from metaformer.training.config_file import read_config
from metaformer.training.prior.effect_photos import PhotoMix


@dataclass(frozen=True)
class PriorTrainingConfig:
    """Everything a run depends on. YAML keys are these names, folders relative to ``data``."""

    output: Path
    """Folder of checkpoint, log and sample sheets; made if missing."""
    data: Path
    object_folders: tuple[str, ...]
    """Photos of one main object each; those on a plain backdrop are keyed."""
    background_folders: tuple[str, ...]
    """Materials, heaps, scenes."""
    saliency_sets: tuple[str, ...] = ()
    """MSRA10K, DUTS, ECSSD or HKU-IS: their photos join side A, their masks are not read."""
    effect_folder: str | None = None
    """Folder with subfolders ``black``, ``colour``, ``defocus`` of photos that show the effect."""
    start_from: str | None = None
    """Checkpoint of an earlier run, of any ``prior.side``, whose prior this run begins with."""
    prior: PriorConfig = field(default_factory=lambda: PriorConfig(side=96))
    mix: PhotoMix = field(default_factory=PhotoMix)
    critic_width: int = 32
    seed: int = 0
    batch: int = 16
    steps: int = 20_000
    hours: float | None = None
    """If set, the schedule also ends after this much time. The run is then not reproducible."""
    critic_steps: int = 1
    """Steps of the critic for one of the generator (WGAN-GP 5, VEGAN 1). By the critic alone
    (``imitation: 0``) take 3 or more: with 1, mattes turned inside out within 100 steps."""
    critic_every: int = 1
    """The critic and its judgement of the prior's mattes take part in every so many steps; the
    others are imitation alone, at a third of the cost."""
    imitation: float = 80.0
    """Weight of ``imitation_gap``, the difference between effect photos made by software and the
    prior's own edits of the photos they were made from; ours, not VEGAN's. 0 leaves the critic
    alone."""
    generator_lr: float = 3e-4
    critic_lr: float = 4e-4
    anneal_from: float = 0.4
    """Share of the schedule after which the generator's rate falls linearly to zero."""
    penalty: float = 10.0  # WGAN-GP
    ema: float = 0.998
    pool: int = 50  # VEGAN
    """Edited photos remembered per effect; half of what the critic sees comes from there."""
    area_low: float = 0.05
    area_high: float = 0.85
    area_weight: float = 50.0
    """Weight of the hinge on the batch's mean matte outside [area_low, area_high]. Inside, it is
    zero: it only bars the two trivial mattes, all ones and all zeros."""
    logit_limit: float = 3.0
    logit_weight: float = 5.0
    """Weight of the squared hinge on logits of the matte beyond +-logit_limit. Without it the
    matte was black and white after 500 steps; its sigmoid passed no gradient and it stood still."""
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    threads: int = 1
    log_every: int = 20
    watch_every: int = 250
    checkpoint_every: int = 250

    def __post_init__(self) -> None:
        if self.prior.side % 32:
            raise ValueError(f"prior.side={self.prior.side}: the critic needs a multiple of 32.")
        if self.precision not in ("bfloat16", "float32"):
            raise ValueError(f"precision={self.precision!r}: known are 'bfloat16' and 'float32'.")
        if not 0 <= self.anneal_from < 1:
            raise ValueError(f"anneal_from={self.anneal_from}: must be in [0, 1).")
        for name in (
            "batch",
            "steps",
            "critic_steps",
            "critic_every",
            "pool",
            "log_every",
            "watch_every",
            "checkpoint_every",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1.")

    @staticmethod
    def from_yaml(path: Path | str) -> PriorTrainingConfig:
        """Read a configuration.

        Raises:
            ValueError: unknown or missing keys, or values out of range; the message names them.
        """
        return read_config(path, PriorTrainingConfig)

    def describe(self) -> dict[str, Any]:
        """JSON-able, without the folders of the machine it runs on."""
        content = asdict(self)
        for name in ("output", "data", "start_from", "effect_folder"):
            del content[name]
        return content
