"""The ``feature`` preset: backbone tokens compared with the tokens of the support.

Tokens are compared in a metric meta-learned on other products (``metric.py``). Without it, for
other backbones and for aligned parts, this is the plain comparison: cosine distance of each token
to its nearest support token, level by level, which is the control that the metric has to beat.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from metaformer.backbone import load_backbone
from metaformer.backbone_weights import BackboneError
from metaformer.feature_config import SHIPPED, FeatureConfig
from metaformer.memory import (
    aligned_distance,
    cosine_distance,
    euclidean_distance,
    fit_grid,
    merge_samples,
)
from metaformer.metric import POOLED, TokenMetric, load_metric
from metaformer.timm_backbone import load_timm_backbone

VIEW_FACTOR, LEARNED_VIEW_FACTOR = 1.3, 1.4
"""How many times a changed view's score another part scores (``docs/decisions/0002-threshold.md``);
the metric has learned to overlook changes of view, and sees more of a difference of parts."""


Tokens = dict[str, Tensor]
"""Reading -> (C, h, w) of one image: at a stride, each token of unit length, or ``pooled``."""
Rows = dict[str, Tensor]
"""Reading -> (N, C) tokens without their places."""
METRIC = "metric."
"""Start of the names of the metric's tensors in a detector file."""
VIEW_SHARE = 8
"""One in so many of the tokens of a view is kept: views stand beside the image they are of."""


class Backbone(Protocol):
    """A frozen network that turns an image into maps of features."""

    channels: dict[int, int]
    """Stride -> channels of its map."""

    def __call__(self, images: Tensor, /) -> dict[int, Tensor]:
        """(B, 3, H, W) in [0, 1] -> {stride: (B, C, H / stride, W / stride)}."""


class FeatureModel:
    """Universal part of the preset: the frozen backbone."""

    max_folds = 10
    """Leave-one-out costs little: leaving an image out is leaving its tokens out."""

    def __init__(
        self, config: FeatureConfig, backbone: Backbone, metric: TokenMetric | None = None
    ) -> None:
        self.config = config
        self.backbone = backbone
        self.metric = (metric or load_metric()) if config.learned else None
        self.view_factor = LEARNED_VIEW_FACTOR if config.learned else VIEW_FACTOR
        self.size_multiple = max(config.levels)

    @classmethod
    def from_pretrained(
        cls,
        config: FeatureConfig | None = None,
        *,
        backbone_weights: Path | None = None,
        metric: TokenMetric | None = None,
    ) -> FeatureModel:
        """The model of ``config``; ``backbone_weights`` are those of a backbone of timm, and
        ``metric`` takes the place of the package's.

        Raises:
            BackboneError: the backbone or its weights cannot be used.
        """
        config = config or FeatureConfig()
        if config.backbone == SHIPPED:
            refuse_weights(backbone_weights)
            return cls(config, load_backbone(deepest=max(config.levels)), metric)
        backbone = load_timm_backbone(
            config.backbone,
            weights=backbone_weights,
            sha256=config.backbone_sha256,
            levels=config.levels,
        )
        return cls(config, backbone)

    def channels(self, reading: str) -> int:
        """Length of the tokens of ``reading``."""
        if self.metric is not None:
            return self.metric.channels(reading)
        return self.backbone.channels[int(reading)]

    @torch.inference_mode()
    def prepare(self, image: Tensor) -> Tokens:
        """Tokens of one image (1, 3, H, W) in [0, 1]."""
        features = self.backbone(image)
        if self.metric is not None:
            readings = self.metric(features)
        else:
            levels = self.config.levels
            readings = {str(level): F.normalize(features[level], dim=1) for level in levels}
        return {name: channels_last(grid[0]) for name, grid in readings.items()}

    def sample_views(self, views: Sequence[Tokens]) -> Rows:
        """Some of the tokens of an image in other light or mirrored."""
        generator = torch.Generator().manual_seed(0)
        rows: dict[str, list[Tensor]] = {name: [] for name in self.config.readings}
        for view in views:
            for name, grid in view.items():
                tokens = grid.flatten(1).T
                drawn = torch.randperm(len(tokens), generator=generator)
                rows[name].append(tokens[drawn[: max(1, len(tokens) // VIEW_SHARE)]])
        return {name: torch.cat(parts) for name, parts in rows.items()}

    def adapt(
        self, support: Sequence[Tokens], *, seed: int, views: Sequence[Rows] = ()
    ) -> AdaptedFeature:
        """Remember the support. No weight changes.

        Args:
            support: what ``prepare`` gave for each image.
            views: what ``sample_views`` gave for each image, or nothing.
        """
        generator = torch.Generator().manual_seed(seed)
        remember = self._remember_grids if self.config.aligned else self._remember_tokens
        memory = {name: remember(name, support, generator) for name in self.config.readings}
        grids = {
            name: torch.tensor([image[name].shape[1:] for image in support]) for name in memory
        }
        is_whole = all(
            tokens.numel() == sum(image[name].numel() for image in support)
            for name, tokens in memory.items()
        )
        if self.config.aligned:  # grids of another size than the first have been resampled
            is_whole &= all(bool((sizes == sizes[0]).all()) for sizes in grids.values())
        return AdaptedFeature(self, memory, grids if is_whole else None, views)

    def _remember_tokens(
        self, name: str, support: Sequence[Tokens], generator: torch.Generator
    ) -> Tensor:
        """(N, C) tokens of all images, at most ``max_tokens`` of them."""
        tokens = torch.cat([image[name].flatten(1).T for image in support])
        if len(tokens) > self.config.max_tokens:
            chosen = torch.randperm(len(tokens), generator=generator)[: self.config.max_tokens]
            tokens = tokens[chosen.sort().values]
        return tokens.contiguous()

    def _remember_grids(
        self, name: str, support: Sequence[Tokens], generator: torch.Generator
    ) -> Tensor:
        """(K, C, h, w) grids of as many images as ``max_tokens`` allows, sized as the first."""
        size = support[0][name].shape[1:]
        most = max(1, self.config.max_tokens // size.numel())
        chosen = torch.randperm(len(support), generator=generator)[:most].sort().values
        grids = [fit_grid(support[i][name], size) for i in chosen.tolist()]
        return torch.stack(grids)


class AdaptedFeature:
    """A feature model with the memory of one product."""

    def __init__(
        self,
        model: FeatureModel,
        memory: dict[str, Tensor],
        grids: dict[str, Tensor] | None = None,
        views: Sequence[Rows] = (),
    ) -> None:
        self.model = model
        self.memory = memory  # reading -> (N, C), or (K, C, h, w) if aligned
        self.grids = grids
        """Reading -> (K, 2) rows and columns of each support image's grid, in the order of the
        memory; None if the memory does not hold every token of the support."""
        self.views = list(views)
        """Of support images, where it has few."""
        self.compared = {name: self._choose(name) for name in memory}
        """What of memory and views a token is compared with."""

    def _choose(self, name: str) -> Tensor:
        config, memory = self.model.config, self.memory[name]
        if config.aligned:
            return memory
        rows = torch.cat([memory, *(views[name] for views in self.views)])
        if len(rows) <= config.compared_tokens:
            return rows
        generator = torch.Generator().manual_seed(0)
        chosen = torch.randperm(len(rows), generator=generator)[: config.compared_tokens]
        return rows[chosen.sort().values]

    def support(self) -> list[Tokens] | None:
        """What ``prepare`` gave for each support image; None if not all of it was kept."""
        if self.grids is None:
            return None
        count = len(self.grids[self.model.config.readings[0]])
        support: list[Tokens] = [{} for _ in range(count)]
        for name, memory in self.memory.items():
            if self.model.config.aligned:
                images = [channels_last(grid) for grid in memory]  # (C, h, w) each
            else:
                sizes = self.grids[name].tolist()
                parts = memory.split([rows * columns for rows, columns in sizes])  # (h * w, C)
                images = [
                    channels_last(part.T.reshape(-1, *size))
                    for part, size in zip(parts, sizes, strict=True)
                ]
            for tokens, image in zip(support, images, strict=True):
                tokens[name] = image
        return support

    def extended(
        self, images: Sequence[Tokens], *, earlier: int, seed: int, views: Sequence[Rows] = ()
    ) -> AdaptedFeature:
        """With the tokens of more images in the memory, which stays within ``max_tokens``.

        For a memory that does not hold all of its support; otherwise adapt to ``support()`` and
        the new images.

        Args:
            images: what ``prepare`` gave for each new image.
            earlier: how many support images the memory stands for.
            views: what ``sample_views`` gave for each new image, or nothing.
        """
        generator = torch.Generator().manual_seed(seed)
        config = self.model.config
        memory = {}
        for name, old in self.memory.items():
            if config.aligned:
                most = max(1, config.max_tokens // old[0, 0].numel())
                grids = [fit_grid(image[name], old.shape[2:]) for image in images]
                new = torch.stack(grids) if grids else old[:0]
                per_image = 1.0
            else:
                most = config.max_tokens
                new = torch.cat([old[:0], *(image[name].flatten(1).T for image in images)])
                per_image = len(new) / max(1, len(images))
            memory[name] = merge_samples(
                old, new, stands_for=round(earlier * per_image), most=most, generator=generator
            )
        return AdaptedFeature(self.model, memory, None, [*self.views, *views])

    @torch.inference_mode()
    def anomaly_map(self, tokens: Tokens) -> Tensor:
        """(h, w) raw map on the finest grid, values from 0 to about 2 before blur."""
        config, metric = self.model.config, self.model.metric
        height, width = tokens[config.readings[0]].shape[1:]
        distances = {
            name: F.interpolate(
                self._distance(name, tokens[name]), (height, width), mode="bilinear"
            )
            for name in config.readings
        }  # (1, 1, h, w) each
        if metric is not None:
            return metric.join(distances)[0, 0]
        weighted = zip(distances.values(), config.level_weights, strict=True)
        total = torch.stack([weight * distance for distance, weight in weighted]).sum(0)
        return total[0, 0] / sum(config.level_weights)

    def _distance(self, name: str, tokens: Tensor) -> Tensor:
        """Tokens (C, h, w) of one reading -> (1, 1, h, w) distance to what is remembered."""
        config = self.model.config
        if config.aligned:
            reach = config.reach_cells(int(name))
            distance = aligned_distance(tokens, self.compared[name], reach=reach)
        else:
            nearest = euclidean_distance if name == POOLED else cosine_distance
            distance = nearest(tokens.flatten(1).T, self.compared[name])
        return distance.reshape(1, 1, *tokens.shape[1:])

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and settings to save; ``adapted_from_state`` restores the same scores."""
        tensors = {f"memory.{name}": tokens for name, tokens in self.memory.items()}
        if self.grids is not None:
            tensors |= {f"grids.{name}": sizes for name, sizes in self.grids.items()}
        if self.views:
            for name in self.memory:
                rows = [views[name] for views in self.views]
                tensors[f"views.{name}"] = torch.cat(rows)
                tensors[f"view_rows.{name}"] = torch.tensor([len(of_image) for of_image in rows])
        if self.model.metric is not None:  # another version of the package may have another
            tensors |= {f"{METRIC}{n}": t for n, t in self.model.metric.state_dict().items()}
        config = asdict(self.model.config)
        if config["backbone"] == SHIPPED:
            del config["backbone"], config["backbone_sha256"]  # as before there were others
        return tensors, {"config": config}


def channels_last(grid: Tensor) -> Tensor:
    """(C, h, w) with the channels of a cell side by side, as they are compared. The same numbers in
    another order in memory would be summed in another order."""
    return grid[None].contiguous(memory_format=torch.channels_last)[0]


def refuse_weights(backbone_weights: Path | None) -> None:
    """Raises: BackboneError: weights are given for the backbone inside the package."""
    if backbone_weights is not None:
        raise BackboneError(
            f"{backbone_weights}: weights are given, but the backbone is the one inside the "
            f"package. Name theirs with --backbone (backbone= in Python), or leave them out."
        )
