"""What is kept of one image: features, and descriptors of its mirrored copies."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from metaformer.detection.feature.config import FeatureConfig
from metaformer.detection.feature.memory_bank import Rows, describe, to_rows
from metaformer.detection.scoring.frame_check import Statistics, frame_statistics
from metaformer.networks.feature_maps import DETAIL, Features


@dataclass(frozen=True)
class FeatureImage:
    """Features of one image, and of its mirrored copy where the preset uses one."""

    kept: Features
    """Of a batch of one, float32, or float16 where there are very many images."""
    mirrored: Rows = field(default_factory=dict)
    """Some descriptors of its mirror images, where it belongs to a small support."""
    image: Tensor | None = None
    """(1, 3, H, W) in [0, 1], where it may turn out to belong to a product of few images."""

    @property
    def features(self) -> Features:
        """(1, C, H / stride, W / stride) float32 by stride, and other maps."""
        return {stride: grid.float() for stride, grid in self.kept.items()}


def own_rows(image: FeatureImage, config: FeatureConfig) -> Rows:
    """Descriptors of an image and of its mirror images."""
    described = describe(image.features, config.levels, config.cosine_share)
    own = {name: to_rows(grid) for name, grid in described.items()}
    if not image.mirrored:
        return own
    return {name: torch.cat([rows, image.mirrored[name]]) for name, rows in own.items()}


def statistics_of(image: FeatureImage, config: FeatureConfig) -> Statistics:
    features = image.features
    kept = (*config.levels, DETAIL) if DETAIL in features else config.levels
    return frame_statistics(features, kept, config.frame_rule)
