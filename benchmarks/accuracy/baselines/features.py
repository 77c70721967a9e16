"""Patch features that PatchCore and PaDiM share."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.accuracy.baselines.feature_cache import remembering
from metaformer.networks.efficientnet import EfficientNetLite0, load_backbone


@cache
def _backbone(deepest: int, finest: int, trained: bool) -> nn.Module:
    return remembering(load_backbone(deepest) if trained else untrained(deepest), finest)


def untrained(deepest: int) -> EfficientNetLite0:
    """The backbone with random weights, He-initialised: it has learned nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = EfficientNetLite0(deepest)
        for module in backbone.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return backbone.eval().requires_grad_(False)


@torch.no_grad()
def patch_features(
    images: Tensor, strides: tuple[int, ...], pooling: int, *, trained: bool = True
) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> (B, C, h, w) on the grid of the finest stride.

    Each stage is averaged over ``pooling`` x ``pooling`` neighbours (1: not at all), zeros beyond
    the border as in PatchCore's published code, enlarged bilinearly to the finest grid, and all
    are stacked. The zeros set the border apart and gain 20 points of pixel AP on one set.
    """
    stages = _backbone(max(strides), min(strides), trained)(images)
    grid = stages[min(strides)].shape[2:]
    levels = []
    for stride in strides:
        level = stages[stride]
        if pooling > 1:
            level = F.avg_pool2d(level, pooling, 1, pooling // 2)
        levels.append(F.interpolate(level, grid, mode="bilinear"))
    return torch.cat(levels, dim=1)
