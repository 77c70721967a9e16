"""Configuration of the training of the transformer: one YAML key a field."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from metaformer.training.config_file import read_config


@dataclass(frozen=True)
class TransformerTrainingConfig:
    data: Path
    """Folder of photos as ``PhotoPool`` reads it."""
    output: Path
    """Folder for the checkpoint, the log and the exported weights."""
    preset: Literal["feature", "pixel"] = "feature"
    """Whose backbone sees the episodes."""
    response: bool = False
    """``feature`` reads the response map of the instance prior too; ``pixel`` always does."""
    start: Path | None = None
    """Weights to begin from, as far as they fit."""
    pairs: int = 50_000
    """Queries, each with its support, to train on; every one is new."""
    exports: tuple[int, ...] = (5_000, 20_000, 50_000, 100_000, 200_000)
    """Numbers of pairs after which the weights are kept."""
    meta_batch: int = 2
    """Episodes of one step."""
    lr: float = 1e-3
    warm_up: int = 100
    """Steps."""
    weight_decay: float = 0.05
    clip: float = 1.0
    average: float = 0.998
    """What is exported is the running mean of the weights, with this share kept in each step: the
    rate of learning stays as it is, so that every export is the end of a training."""
    pixel_weight: float = 1.0
    image_weight: float = 0.5
    size_weight: float = 0.05
    """Weights of the losses: pixels, ranking of images, size of the correction on clean images."""
    seed: int = 0
    threads: int = 1
    workers: int = 0
    """Threads that make episodes ahead; 0 makes them in turn."""
    log_every: int = 50
    checkpoint_seconds: float = 180.0

    def __post_init__(self) -> None:
        if min(self.pairs, self.meta_batch, self.threads, self.log_every) < 1:
            raise ValueError(
                f"pairs, meta_batch, threads, log_every: found {self.pairs}, {self.meta_batch}, "
                f"{self.threads}, {self.log_every}; accepted are 1 and more."
            )
        if self.preset not in ("feature", "pixel"):
            raise ValueError(f"preset: found {self.preset!r}; accepted are feature and pixel.")
        if not 0 <= self.average < 1:
            raise ValueError(f"average: found {self.average}; accepted are 0 to below 1.")

    @staticmethod
    def from_yaml(path: Path | str) -> TransformerTrainingConfig:
        """Raises ValueError that names what is wrong."""
        return read_config(path, TransformerTrainingConfig)


def describe(config: TransformerTrainingConfig) -> dict[str, Any]:
    """JSON-able, without the folders of the machine it runs on."""
    content = asdict(config)
    del content["data"], content["output"]
    content["start"] = None if config.start is None else config.start.name
    return content
