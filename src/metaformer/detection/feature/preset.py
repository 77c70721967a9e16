"""The ``feature`` preset: backbone tokens compared with the tokens of the support.

Tokens are compared in a metric meta-learned on other products (``networks/patch_metric.py``).
Without it, for other backbones and for aligned parts, this is the plain comparison: cosine distance
of each token to its nearest support token, level by level, which is the control that the metric has
to beat. Beside the metric the transformer T (``networks/patch_transformer.py``) corrects the map,
by what the map of each support image is when the others are remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from metaformer.detection.feature.adapted import (
    AdaptedFeature,
    Distances,
    Rows,
    Tokens,
    channels_last,
)
from metaformer.detection.feature.config import SHIPPED, FeatureConfig
from metaformer.detection.feature.position_gaussian import Places
from metaformer.detection.feature.position_memory import SamePlace, products_in
from metaformer.detection.nearest_neighbors import apart_distance, fit_grid
from metaformer.detection.preprocessing import enlarged, working_size
from metaformer.detection.support_set import make_folds
from metaformer.networks.backbone_weights import BackboneError
from metaformer.networks.efficientnet import load_backbone
from metaformer.networks.patch_metric import (
    COARSE,
    CONTEXT_STRIDE,
    EUCLIDEAN,
    POOLED,
    RAW,
    TokenMetric,
    load_metric,
)
from metaformer.networks.patch_transformer import TokenTransformer, load_token_transformer
from metaformer.networks.timm_backbone import load_timm_backbone

VIEW_FACTOR, LEARNED_VIEW_FACTOR = 1.3, 1.4
"""How many times a changed view's score another part scores (``docs/decisions/01-threshold.md``);
the metric has learned to overlook changes of view, and sees more of a difference of parts."""


VIEW_SHARE = 8
"""One in so many of the tokens of a view is kept: views stand beside the image they are of."""
OWN_REACH = 2
"""Cells of stride 16 around a place of a lone support image that are not compared with it."""


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
        self,
        config: FeatureConfig,
        backbone: Backbone,
        metric: TokenMetric | None = None,
        transformer: TokenTransformer | None = None,
    ) -> None:
        self.config = config
        self.backbone = backbone
        self.metric = (metric or load_metric()) if config.learned else None
        self.transformer: TokenTransformer | None = None
        if config.corrects:
            self.transformer = transformer or load_token_transformer()
        self.view_factor = LEARNED_VIEW_FACTOR if config.learned else VIEW_FACTOR
        self.size_multiple = CONTEXT_STRIDE if config.has_context else max(config.levels)

    @classmethod
    def from_pretrained(
        cls,
        config: FeatureConfig | None = None,
        *,
        backbone_weights: Path | None = None,
        metric: TokenMetric | None = None,
        transformer: TokenTransformer | None = None,
    ) -> FeatureModel:
        """The model of ``config``; ``backbone_weights`` are those of a backbone of timm, and
        ``metric`` and ``transformer`` take the places of the package's.

        Raises:
            BackboneError: the backbone or its weights cannot be used.
        """
        config = config or FeatureConfig()
        if config.backbone == SHIPPED:
            refuse_weights(backbone_weights)
            deepest = max(config.levels)
            shipped = load_backbone(deepest, ahead=config.has_context)
            return cls(config, shipped, metric, transformer)
        backbone = load_timm_backbone(
            config.backbone,
            weights=backbone_weights,
            sha256=config.backbone_sha256,
            levels=config.levels,
        )
        return cls(config, backbone)

    def with_config(self, config: FeatureConfig) -> FeatureModel:
        """The same networks with other settings for what is done around them."""
        return FeatureModel(config, self.backbone, self.metric, self.transformer)

    def working_size(self, height: int, width: int) -> tuple[int, int]:
        """Sides (H, W) that an image is resized to, multiples of ``size_multiple``."""
        config, resolution = self.config, float(self.config.resolution)
        if config.usual_side is not None and height * width not in config.shared_areas:
            resolution *= enlarged(height, width, config.usual_side, config.size_kept)
        return working_size(height, width, resolution, self.size_multiple)

    def channels(self, reading: str) -> int:
        """Length of the tokens of ``reading``."""
        if self.metric is not None:
            return self.metric.channels(reading)
        return self.backbone.channels[int(reading)]

    def has_places(self, count: int) -> bool:
        """Whether of ``count`` support images is learned what is normal place by place."""
        return self.config.learned and 0 < self.config.places <= count

    def averaged(self, tokens: Mapping[str, int]) -> frozenset[str]:
        """Readings compared with means, by how many tokens of each the support has: as many as are
        kept at most, or more."""
        config = self.config
        if config.aligned or not config.means:
            return frozenset()
        return frozenset(name for name, count in tokens.items() if count >= config.max_tokens)

    @torch.inference_mode()
    def prepare(self, image: Tensor) -> Tokens:
        """Tokens of one image (1, 3, H, W) in [0, 1]."""
        features = self.backbone(image)
        if self.metric is not None:
            readings = self.metric(features, self.config.readings)
        else:
            levels = self.config.levels
            readings = {str(level): F.normalize(features[level], dim=1) for level in levels}
        return {name: channels_last(grid[0]) for name, grid in readings.items()}

    def in_place(
        self, support: Sequence[Tokens], alignment: float | None = None
    ) -> SamePlace | None:
        """What the support shows at each place, and how far places count; None if that does not
        matter.

        Args:
            alignment: how far, 0 to 1, if it is known; None to measure it on the support, of which
                a lone image says nothing.
        """
        if not self.config.has_same_place:
            return None
        same_place = SamePlace.of(support)
        if alignment is not None:
            return replace(same_place, alignments=(alignment,))
        return same_place.measured() if len(support) > 1 else same_place

    def sample_views(self, views: Sequence[Tokens]) -> Rows:
        """Some of the tokens of an image in other light or mirrored."""
        generator = torch.Generator().manual_seed(0)
        rows: dict[str, list[Tensor]] = {name: [] for name in self.config.searched}
        for view in views:
            for name in rows:
                tokens = view[name].flatten(1).T
                drawn = torch.randperm(len(tokens), generator=generator)
                rows[name].append(tokens[drawn[: max(1, len(tokens) // VIEW_SHARE)]])
        return {name: torch.cat(parts) for name, parts in rows.items()}

    def adapt(
        self,
        support: Sequence[Tokens],
        *,
        seed: int,
        views: Sequence[Rows] = (),
        left_out: Sequence[Distances] | None = None,
        alignment: float | None = None,
        same_place: SamePlace | None = None,
    ) -> AdaptedFeature:
        """Remember the support, and show it to T. No weight changes.

        Args:
            support: what ``prepare`` gave for each image.
            views: what ``sample_views`` gave for each image, or nothing.
            left_out: what ``left_out_distances`` gave for the support, if that is known already.
            alignment: as ``in_place`` takes it.
            same_place: what ``in_place`` gave for the support, if that is known already.
        """
        same_place = same_place or self.in_place(support, alignment)
        adapted = self.remember(
            support,
            seed=seed,
            views=views,
            places=self.has_places(len(support)),
            same_place=same_place,
        )
        if self.transformer is not None:
            if left_out is None:
                left_out = self.left_out_distances(
                    support, views, seed=seed, products=adapted.products
                )
            adapted.seen = adapted.show(support, left_out, seed=seed)
        return adapted

    @torch.inference_mode()
    def left_out_distances(
        self,
        support: Sequence[Tokens],
        views: Sequence[Rows] = (),
        *,
        seed: int,
        products: int | None = None,
        on_fold: Callable[[int], None] = lambda done: None,
    ) -> list[Distances]:
        """Of each support image, to what is remembered of the others.

        Of a lone image, to the rest of it: each token to those not around its own place. Its views
        are left out then, for they show the same place again.

        Args:
            products: how many the support shows, if that is known already.
            on_fold: called with the number of folds done.
        """
        if len(support) == 1:
            return [
                {
                    name: apart_distance(
                        grid,
                        OWN_REACH * grid.shape[1] // support[0][COARSE].shape[1],
                        euclidean=name in EUCLIDEAN,
                    )
                    for name in self.config.searched
                    for grid in (support[0][name],)
                }
            ]
        found: list[Distances] = [{} for _ in support]
        products = products or products_in(self.in_place(support))
        places = self.has_places(len(support))
        tokens_of = {n: sum(image[n][0].numel() for image in support) for n in self.config.searched}
        means = self.averaged(tokens_of)
        for number, fold in enumerate(make_folds(len(support), self.max_folds)):
            others = self.remember(
                [tokens for i, tokens in enumerate(support) if i not in fold],
                seed=seed,
                views=[rows for i, rows in enumerate(views) if i not in fold],
                places=places,
                products=products,
                means=means,
            )
            for i in fold:
                found[i] = others.distances(support[i])
            on_fold(number + 1)
        return found

    def remember(
        self,
        support: Sequence[Tokens],
        *,
        seed: int,
        views: Sequence[Rows] = (),
        places: bool = False,
        same_place: SamePlace | None = None,
        products: int | None = None,
        means: frozenset[str] | None = None,
    ) -> AdaptedFeature:
        """``adapt`` without T, and without asking how far places say what is to be seen there.

        Args:
            places: learn what is normal place by place, too.
            same_place: what ``in_place`` gave for the support; None for it not measured.
            products: how many the support shows; None for those that ``same_place`` tells.
            means: readings compared with means; None for those that ``averaged`` names.
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
        if not is_whole:
            memory.pop(RAW, None)  # kept for ``support`` alone
        if same_place is None and self.config.has_same_place:
            same_place = SamePlace.of(support)
        return AdaptedFeature(
            self,
            memory,
            grids if is_whole else None,
            views,
            Places.of([image[POOLED] for image in support]) if places else None,
            same_place,
            count=len(support),
            products=products or products_in(same_place),
            means=means,
        )

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


def refuse_weights(backbone_weights: Path | None) -> None:
    """Raises: BackboneError: weights are given for the backbone inside the package."""
    if backbone_weights is not None:
        raise BackboneError(
            f"{backbone_weights}: weights are given, but the backbone is the one inside the "
            f"package. Name theirs with --backbone (backbone= in Python), or leave them out."
        )
