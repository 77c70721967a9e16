"""The ``feature`` preset: backbone tokens compared with the tokens of the support.

Tokens are compared in a metric meta-learned on other products (``metric.py``). Without it, for
other backbones and for aligned parts, this is the plain comparison: cosine distance of each token
to its nearest support token, level by level, which is the control that the metric has to beat.
Beside the metric the transformer T (``token_transformer.py``) corrects the map, by what the map of
each support image is when the others are remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
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
    apart_distance,
    cosine_distance,
    euclidean_distance,
    fit_grid,
    make_folds,
    merge_samples,
)
from metaformer.metric import COARSE, CONTEXT_STRIDE, POOLED, TokenMetric, load_metric
from metaformer.places import Places
from metaformer.timm_backbone import load_timm_backbone
from metaformer.token_transformer import SeenImage, TokenTransformer, load_token_transformer

VIEW_FACTOR, LEARNED_VIEW_FACTOR = 1.3, 1.4
"""How many times a changed view's score another part scores (``docs/decisions/0002-threshold.md``);
the metric has learned to overlook changes of view, and sees more of a difference of parts."""


Tokens = dict[str, Tensor]
"""Reading -> (C, h, w) of one image: at a stride, each token of unit length, or ``pooled``."""
Rows = dict[str, Tensor]
"""Reading -> (N, C) tokens without their places."""
Distances = dict[str, Tensor]
"""Reading -> (h, w) of one image: distance of each token to the nearest remembered; and under
``PLACES``, if they are known, of the token at each place to what is normal there."""
PLACES = "places"
METRIC = "metric."
"""Start of the names of the metric's tensors in a detector file."""
VIEW_SHARE = 8
"""One in so many of the tokens of a view is kept: views stand beside the image they are of."""
TRANSFORMER = "transformer."
"""Start of the names of T's tensors in a detector file."""
TRUST = 0.5
"""Share of T's correction that is made. It was trained on photos with all of it; on products half
does better (``docs/decisions/0013-token-transformer.md``)."""
SEEN_IMAGES = 10
"""Most support images that T attends to."""
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

    def channels(self, reading: str) -> int:
        """Length of the tokens of ``reading``."""
        if self.metric is not None:
            return self.metric.channels(reading)
        return self.backbone.channels[int(reading)]

    def has_places(self, count: int) -> bool:
        """Whether of ``count`` support images is learned what is normal place by place."""
        return self.config.learned and 0 < self.config.places <= count

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
        self,
        support: Sequence[Tokens],
        *,
        seed: int,
        views: Sequence[Rows] = (),
        left_out: Sequence[Distances] | None = None,
    ) -> AdaptedFeature:
        """Remember the support, and show it to T. No weight changes.

        Args:
            support: what ``prepare`` gave for each image.
            views: what ``sample_views`` gave for each image, or nothing.
            left_out: what ``left_out_distances`` gave for the support, if that is known already.
        """
        places = self.has_places(len(support))
        adapted = self.remember(support, seed=seed, views=views, places=places)
        if self.transformer is not None:
            if left_out is None:
                left_out = self.left_out_distances(support, views, seed=seed)
            adapted.seen = adapted.show(support, left_out, seed=seed)
        return adapted

    @torch.inference_mode()
    def left_out_distances(
        self,
        support: Sequence[Tokens],
        views: Sequence[Rows] = (),
        *,
        seed: int,
        on_fold: Callable[[int], None] = lambda done: None,
    ) -> list[Distances]:
        """Of each support image, to what is remembered of the others.

        Of a lone image, to the rest of it: each token to those not around its own place. Its views
        are left out then, for they show the same place again.

        Args:
            on_fold: called with the number of folds done.
        """
        if len(support) == 1:
            return [
                {
                    name: apart_distance(
                        grid,
                        OWN_REACH * grid.shape[1] // support[0][COARSE].shape[1],
                        euclidean=name == POOLED,
                    )
                    for name, grid in support[0].items()
                }
            ]
        found: list[Distances] = [{} for _ in support]
        places = self.has_places(len(support))
        for number, fold in enumerate(make_folds(len(support), self.max_folds)):
            others = self.remember(
                [tokens for i, tokens in enumerate(support) if i not in fold],
                seed=seed,
                views=[rows for i, rows in enumerate(views) if i not in fold],
                places=places,
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
    ) -> AdaptedFeature:
        """``adapt`` without T.

        Args:
            places: learn what is normal place by place, too.
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
        known = Places.of([image[POOLED] for image in support]) if places else None
        return AdaptedFeature(self, memory, grids if is_whole else None, views, known)

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
        places: Places | None = None,
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
        self.places = places
        self.seen: dict[int, SeenImage] = {}
        """Index in the support -> the image as T sees it."""

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
        places = self.places
        if places is not None and images:
            places = places.merged(Places.of([image[POOLED] for image in images]))
        extended = AdaptedFeature(self.model, memory, None, [*self.views, *views], places)
        extended.seen = self.seen  # of the earlier images: gaps of later ones are much the same
        return extended

    @torch.inference_mode()
    def show(
        self, support: Sequence[Tokens], left_out: Sequence[Distances], *, seed: int
    ) -> dict[int, SeenImage]:
        """Some of the support as T sees it, by the distances of each image to the others."""
        transformer = self.model.transformer
        assert transformer is not None
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(support), generator=generator)[:SEEN_IMAGES].sort().values
        seen = {}
        for i in chosen.tolist():
            resized = on_one_grid(left_out[i], self.model.config.readings[0])
            logarithm = self._learned_map(resized).log()
            embedded = transformer.embed(batch(support[i]), batch(left_out[i]), logarithm[None])
            seen[i] = SeenImage(embedded[0], float(logarithm.mean()))
        return seen

    @torch.inference_mode()
    def anomaly_maps(self, tokens: Tokens) -> Tensor:
        """(M, h, w) raw maps on the finest grid, values from 0 to about 2 before blur: the first
        is what the image is scored by, the last marks pixels. M is 1 or 2."""
        return self.read(tokens, self.distances(tokens))

    @torch.inference_mode()
    def distances(self, tokens: Tokens) -> Distances:
        found = {name: self._distance(name, tokens[name]) for name in self.model.config.readings}
        if self.places is not None:
            found[PLACES] = self.places.distance(tokens[POOLED])
        return found

    @torch.inference_mode()
    def read(
        self, tokens: Tokens, distances: Distances, *, without: Set[int] = frozenset()
    ) -> Tensor:
        """(M, h, w) raw maps of an image by its distances.

        Args:
            without: support images that T is not to look at; unless there is no other.
        """
        resized = on_one_grid(distances, self.model.config.readings[0])
        joined = self._join(resized)
        transformer = self.model.transformer
        if transformer is None:
            return joined
        support = [image for i, image in self.seen.items() if i not in without]
        logarithm = self._learned_map(resized).log()[None]
        embedded = transformer.embed(batch(tokens), batch(distances), logarithm)
        height, width = distances[COARSE].shape
        correction = transformer(embedded, support or [*self.seen.values()], (height, width))
        return joined * (TRUST * correction[0]).exp()

    def join(self, distances: Distances) -> Tensor:
        """(M, h, w) of all readings, as they are before T."""
        return self._join(on_one_grid(distances, self.model.config.readings[0]))

    def _join(self, resized: Distances) -> Tensor:
        config, metric = self.model.config, self.model.metric
        if metric is not None:
            maps = [metric.join(resized, *kind) for kind in config.maps]
            if self.places is not None:
                maps = [
                    grid ** (1 - share) * resized[PLACES] ** share
                    for grid, share in zip(maps, self.places.shares(len(maps)), strict=True)
                ]
            return torch.stack(maps)
        weighted = zip(resized.values(), config.level_weights, strict=True)
        total = torch.stack([weight * distance for distance, weight in weighted]).sum(0)
        return total[None] / sum(config.level_weights)

    def _learned_map(self, resized: Distances) -> Tensor:
        """(h, w) as the metric was trained to join distances, which T was trained to read."""
        assert self.model.metric is not None
        return self.model.metric.join(resized)

    def _distance(self, name: str, tokens: Tensor) -> Tensor:
        """Tokens (C, h, w) of one reading -> (h, w) distance to what is remembered."""
        config = self.model.config
        if config.aligned:
            reach = config.reach_cells(int(name))
            return aligned_distance(tokens, self.compared[name], reach=reach)
        nearest = euclidean_distance if name == POOLED else cosine_distance
        return nearest(tokens.flatten(1).T, self.compared[name]).reshape(tokens.shape[1:])

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
        if self.places is not None:
            tensors["places.mean"] = self.places.mean
            tensors["places.covariances"] = self.places.covariances
            tensors["places.count"] = torch.tensor(self.places.count)
        if self.model.transformer is not None:
            weights = self.model.transformer.state_dict()
            tensors |= {f"{TRANSFORMER}{n}": t for n, t in weights.items()}
            images = self.seen.values()
            tensors["seen.tokens"] = torch.cat([image.tokens for image in images])
            tensors["seen.rows"] = torch.tensor([len(image.tokens) for image in images])
            tensors["seen.loudness"] = torch.tensor(
                [image.loudness for image in images], dtype=torch.float64
            )
            tensors["seen.index"] = torch.tensor(list(self.seen))
        config = asdict(self.model.config)
        if config["backbone"] == SHIPPED:
            del config["backbone"], config["backbone_sha256"]  # as before there were others
        return tensors, {"config": config}


def channels_last(grid: Tensor) -> Tensor:
    """(C, h, w) with the channels of a cell side by side, as they are compared. The same numbers in
    another order in memory would be summed in another order."""
    return grid[None].contiguous(memory_format=torch.channels_last)[0]


def on_one_grid(distances: Distances, reading: str) -> Distances:
    """(..., h, w) of each reading, of one image or of several, resampled to the grid of
    ``reading``."""
    size = tuple(distances[reading].shape[-2:])
    resized = {}
    for name, grid in distances.items():
        channels = grid.reshape(1, -1, *grid.shape[-2:])
        same = F.interpolate(channels, size, mode="bilinear")
        resized[name] = same.reshape(*grid.shape[:-2], *size)
    return resized


def batch(grids: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of one image -> of a batch of one."""
    return {name: grid[None] for name, grid in grids.items()}


def refuse_weights(backbone_weights: Path | None) -> None:
    """Raises: BackboneError: weights are given for the backbone inside the package."""
    if backbone_weights is not None:
        raise BackboneError(
            f"{backbone_weights}: weights are given, but the backbone is the one inside the "
            f"package. Name theirs with --backbone (backbone= in Python), or leave them out."
        )
