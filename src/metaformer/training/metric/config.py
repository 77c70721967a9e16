"""Configuration of the feature preset's trainings, of the metric and of T: one YAML key a field."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class MetricConfig:
    """All values are ours, chosen on held-out kinds of photos."""

    data: Path
    """Folder of photos as ``PhotoPool`` reads it."""
    output: Path
    """Folder for the bank of episodes, the checkpoint, the log and the exported weights."""
    side: int = 256
    """Side of the episodes' images: what the preset works at."""
    shots: tuple[int, ...] = (1, 2, 4)
    queries: int = 5
    clean_share: float = 0.4
    """Chance of a query with synthetic defects to have none; of the others half are clean."""
    episodes: int = 1200
    """Different ones; their features are kept on disk, and each is met several times."""
    novel_regions: float = 0.3
    novel_images: float = 0.2
    """Shares of the episodes whose anomalies are real photos of something else; the rest have
    synthetic defects."""
    meta_batch: int = 4
    steps: int = 600
    lr: float = 1e-3
    warm_up: int = 100
    weight_decay: float = 0.0
    """Of AdamW, which T is trained with."""
    clip: float = 1.0
    temperature: float = 8.0
    """Steepness of the ranking losses: 8 times the logarithm of a ratio of distances."""
    image_weight: float = 1.0
    pixel_weight: float = 1.0
    hard_weight: float = 0.5
    """Weights of ranking images, pixels, and pixels against the loudest of the normal ones."""
    seed: int = 0
    threads: int = 1
    log_every: int = 50
    validate_every: int = 200
    validation_episodes: int = 24
    checkpoint_every: int = 50

    def __post_init__(self) -> None:
        if min(self.episodes, self.meta_batch, self.steps, self.queries) < 1:
            raise ValueError(
                f"episodes, meta_batch, steps, queries: found {self.episodes}, {self.meta_batch}, "
                f"{self.steps}, {self.queries}; accepted are 1 and more."
            )
        if self.side % 16 or self.side < 64:
            raise ValueError(f"side: found {self.side}; accepted are multiples of 16 from 64 on.")
        shares = (self.novel_regions, self.novel_images)
        if min(shares) < 0 or sum(shares) > 1:
            raise ValueError(
                f"novel_regions, novel_images: found {shares}; accepted are shares of 0 or more "
                "that sum to 1 at most."
            )

    @staticmethod
    def from_yaml(path: Path | str) -> MetricConfig:
        """Raises ValueError that names an unknown or missing key."""
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        known = {f.name for f in fields(MetricConfig)}
        if not isinstance(content, dict) or set(content) - known or {"data", "output"} - {*content}:
            raise ValueError(
                f"{path}: needs keys data and output; known: {', '.join(sorted(known))}."
            )
        content |= {name: Path(content[name]) for name in ("data", "output")}
        if "shots" in content:
            content["shots"] = tuple(content["shots"])
        return MetricConfig(**content)


def describe(config: MetricConfig) -> dict[str, Any]:
    """JSON-able, without the folders of the machine it runs on."""
    content = asdict(config)
    del content["data"], content["output"]
    return content
