"""Configuration of the meta-training: one YAML key per field."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from metaformer.networks.autoencoder import AutoencoderConfig
from metaformer.training.config_file import read_config
from metaformer.training.episodes.episodes import EpisodeConfig
from metaformer.training.universal.losses import LossWeights


@dataclass(frozen=True)
class MetaConfig:
    """Values are ours; those of MAML++ are named."""

    data: Path
    """Folder of photos as ``PhotoPool`` reads it."""
    output: Path
    """Folder for the checkpoint, the log and the exported weights."""
    start: Path | None = None
    """Weights of a plainly pre-trained autoencoder, or of an earlier meta-training, to begin
    from."""
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    losses: LossWeights = field(default_factory=LossWeights)
    side: int = 128
    """Side of the episodes' images, a multiple of 128."""
    shots: tuple[int, ...] = (1, 2, 4)
    queries: tuple[int, int] = (3, 4)
    wide_share: float = 0.0
    """Share of the steps whose images have twice the side, and at most two to a support."""
    novel_share: float = 0.0
    """Share of the episodes whose anomalies are real photos and not synthetic defects."""
    meta_batch: int = 4
    """Episodes a step, over all processes together."""
    steps: int = 1000
    inner_steps: int = 3
    inner_lr: float = 1e-3
    """Start of the learned inner rates; 0 with ``rate_lr`` 0 is training without adaptation."""
    outer_lr: float = 3e-4
    rate_lr: float = 1e-4
    """Outer learning rate of the inner rates."""
    warm_up: int = 50
    first_order_share: float = 1.0
    """Share of the steps, from the start, that are first order; 1 is first order throughout."""
    multi_step_share: float = 0.1
    """Share of the steps over which the multi-step loss fades."""
    clip: float = 1.0
    ema: float = 0.995
    bfloat16: bool = False
    """Convolutions of the autoencoder in bfloat16 autocast; weights and optimiser stay float32.
    Half the time on processors that have bfloat16 (AVX-512 BF16 or AMX), ten times as long on those
    without."""
    seed: int = 0
    threads: int = 1
    workers: int = 1
    """Threads that make episodes ahead of their use."""
    log_every: int = 10
    validate_every: int = 200
    validation_episodes: int = 24
    checkpoint_every: int = 100

    def __post_init__(self) -> None:
        if self.side % 128 or self.side < 128:
            raise ValueError(f"side: found {self.side}; accepted are multiples of 128.")
        if self.meta_batch < 1 or self.steps < 1:
            raise ValueError(
                f"meta_batch, steps: found {self.meta_batch}, {self.steps}; accepted are 1 and "
                f"more."
            )

        if not 0 <= self.novel_share <= 1:
            raise ValueError(f"novel_share: found {self.novel_share}; accepted are 0 to 1.")

    def episodes(self, step: int) -> EpisodeConfig:
        """Episode configuration of a step."""
        # Evenly spread, so that a resumed run has the same steps wide.
        if int((step + 1) * self.wide_share) > int(step * self.wide_share):
            few = tuple(shots for shots in self.shots if shots <= 2) or (2,)
            return EpisodeConfig(resolution=2 * self.side, shots=few, queries=self.queries)
        return EpisodeConfig(resolution=self.side, shots=self.shots, queries=self.queries)

    @staticmethod
    def from_yaml(path: Path | str) -> MetaConfig:
        """Raises ValueError that names what is wrong."""
        return read_config(path, MetaConfig)


def describe(config: MetaConfig) -> dict[str, Any]:
    """JSON-able, without the folders of the machine it runs on."""
    content = asdict(config)
    del content["data"], content["output"]
    content["start"] = None if config.start is None else config.start.name
    return content
