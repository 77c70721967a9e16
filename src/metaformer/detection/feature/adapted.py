"""What the ``feature`` preset remembers of one product, and how an image is compared with it."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metaformer.detection.feature.config import SHIPPED
from metaformer.detection.feature.position_gaussian import Places
from metaformer.detection.feature.position_memory import SamePlace, products_in
from metaformer.detection.feature.self_similarity import lowered, own_distances
from metaformer.detection.nearest_neighbors import (
    aligned_distance,
    as_columns,
    fit_grid,
    merge_samples,
    nearest_distance,
    nearest_means,
)
from metaformer.networks.patch_metric import COARSE, EUCLIDEAN, POOLED, Shares
from metaformer.networks.patch_transformer import SeenImage

if TYPE_CHECKING:
    from metaformer.detection.feature.preset import FeatureModel

Tokens = dict[str, Tensor]
"""Reading -> (C, h, w) of one image; tokens of unit length where they are compared by direction."""
Rows = dict[str, Tensor]
"""Reading -> (N, C) tokens without their places."""
Distances = dict[str, Tensor]
"""Reading -> (h, w) of one image: distance of each token to the nearest remembered; and under
``PLACES``, if they are known, of the token at each place to what is normal there, under ``HERE``
and ``RAW`` to what some images show there; under the names of ``own_image`` to what is elsewhere on
the image."""
PLACES = "places"
METRIC = "metric."
"""Start of the names of the metric's tensors in a detector file."""
TRANSFORMER = "transformer."
"""Start of the names of T's tensors in a detector file."""
TRUST = 0.5
"""Share of T's correction that is made. It was trained on photos with all of it; on products half
does better (``docs/decisions/09-transformer.md``)."""
SEEN_IMAGES = 10
"""Most support images that T attends to."""


class AdaptedFeature:
    """A feature model with the memory of one product."""

    def __init__(
        self,
        model: FeatureModel,
        memory: dict[str, Tensor],
        grids: dict[str, Tensor] | None = None,
        views: Sequence[Rows] = (),
        places: Places | None = None,
        same_place: SamePlace | None = None,
        *,
        count: int = 1,
        products: int = 1,
        means: frozenset[str] | None = None,
    ) -> None:
        self.model = model
        self.count = count
        """Support images that the memory stands for."""
        self.products = products
        """How many the support shows."""
        self.memory = memory  # reading -> (N, C), or (K, C, h, w) if aligned
        self.grids = grids
        """Reading -> (K, 2) rows and columns of each support image's grid, in the order of the
        memory; None if the memory does not hold every token of the support."""
        self.views = list(views)
        """Of support images, where it has few."""
        searched = [name for name in model.config.searched if name in memory]
        if means is None:
            means = model.averaged({name: len(memory[name]) for name in searched})
        self.means = means
        """Readings compared with means of what is remembered. When some images are left out, those
        of all images, so that their scores are of one kind."""
        self.compared = {name: self._choose(name) for name in searched}
        """What of memory and views a token is compared with."""
        self._columns = {} if model.config.aligned else self._as_columns()
        self.places = places
        self.same_place = same_place
        self.seen: dict[int, SeenImage] = {}
        """Index in the support -> the image as T sees it."""

    @cached_property
    def shares(self) -> tuple[tuple[Shares, ...], ...]:
        """Of each product, for each map: of how many images there are, and how far places say what
        is to be seen there."""
        alignments = (0.0,) if self.same_place is None else self.same_place.alignments
        return tuple(
            tuple(shares.given(self.count, alignment) for shares in self.model.config.maps)
            for alignment in alignments
        )

    def product_of(self, tokens: Tokens) -> int:
        """Which of the products that the detector is of an image shows, as an index of
        ``shares``."""
        return 0 if self.same_place is None else self.same_place.product_of(tokens)

    def _as_columns(self) -> dict[str, Tensor]:
        return {
            name: as_columns(rows, euclidean=name in EUCLIDEAN)
            for name, rows in self.compared.items()
        }

    def _choose(self, name: str) -> Tensor:
        config, memory = self.model.config, self.memory[name]
        if config.aligned:
            return memory
        rows = torch.cat([memory, *(views[name] for views in self.views)])
        most = config.compared_tokens * self.products
        if len(rows) <= most:
            return rows
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randperm(len(rows), generator=generator)
        chosen = rows[drawn[:most].sort().values]
        if name not in self.means:
            return chosen
        averaged = rows[drawn[: config.averaged_tokens * self.products].sort().values]
        means = nearest_means(averaged, chosen, euclidean=name in EUCLIDEAN)
        return means if name in EUCLIDEAN else F.normalize(means, dim=1)

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
        self,
        images: Sequence[Tokens],
        *,
        earlier: int,
        seed: int,
        views: Sequence[Rows] = (),
        like: AdaptedFeature | None = None,
    ) -> AdaptedFeature:
        """With the tokens of more images in the memory, which stays within ``max_tokens``.

        For a memory that does not hold all of its support; otherwise adapt to ``support()`` and
        the new images.

        Args:
            images: what ``prepare`` gave for each new image.
            earlier: how many support images the memory stands for.
            views: what ``sample_views`` gave for each new image, or nothing.
            like: what all images make, of which some are left out here: it says how many products
                there are and what is compared with means, and reads the distances. None to find
                out by the memory.
        """
        generator = torch.Generator().manual_seed(seed)
        config = self.model.config
        memory = {}
        for name in config.searched:
            old = self.memory[name]
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
        same_place = self.same_place
        if same_place is not None and images:
            same_place = same_place.merged(SamePlace.of(images))
            if like is None:
                same_place = same_place.measured()
        extended = AdaptedFeature(
            self.model,
            memory,
            None,
            [*self.views, *views],
            places,
            same_place,
            count=earlier + len(images),
            products=products_in(same_place) if like is None else like.products,
            means=None if like is None else like.means,
        )
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
        found = {name: self._distance(name, tokens[name]) for name in self.compared}
        if self.same_place is not None:
            found |= self.same_place.distances(tokens)
        if self.places is not None:
            found[PLACES] = self.places.distance(tokens[POOLED])
        if self.model.config.has_own:
            found |= own_distances(tokens)
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
        joined = self._join(resized, self.product_of(tokens))
        transformer = self.model.transformer
        if transformer is None:
            return joined
        support = [image for i, image in self.seen.items() if i not in without]
        logarithm = self._learned_map(resized).log()[None]
        embedded = transformer.embed(batch(tokens), batch(distances), logarithm)
        height, width = distances[COARSE].shape
        correction = transformer(embedded, support or [*self.seen.values()], (height, width))
        return joined * (TRUST * correction[0]).exp()

    def join(self, distances: Distances, product: int = 0) -> Tensor:
        """(M, h, w) of all readings of an image that shows a product, as they are before T."""
        return self._join(on_one_grid(distances, self.model.config.readings[0]), product)

    def _join(self, resized: Distances, product: int) -> Tensor:
        config, metric = self.model.config, self.model.metric
        if metric is not None:
            maps = [metric.join(resized, shares) for shares in self.shares[product]]
            if self.places is not None:
                maps = [
                    grid ** (1 - share) * resized[PLACES] ** share
                    for grid, share in zip(maps, self.places.shares(len(maps)), strict=True)
                ]
            joined = torch.stack(maps)
            if config.has_own:
                joined = joined * lowered(metric, resized, config.own)
            return joined
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
        distance = nearest_distance(
            tokens.flatten(1).T, self._columns[name], euclidean=name in EUCLIDEAN
        )
        return distance.reshape(tokens.shape[1:])

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and settings to save; ``adapted_from_state`` restores the same scores."""
        tensors = {f"memory.{name}": tokens for name, tokens in self.memory.items()}
        if self.grids is not None:
            tensors |= {f"grids.{name}": sizes for name, sizes in self.grids.items()}
        if self.views:
            for name in self.compared:
                rows = [views[name] for views in self.views]
                tensors[f"views.{name}"] = torch.cat(rows)
                tensors[f"view_rows.{name}"] = torch.tensor([len(of_image) for of_image in rows])
        if self.model.metric is not None:  # another version of the package may have another
            tensors |= {f"{METRIC}{n}": t for n, t in self.model.metric.state_dict().items()}
        if self.places is not None:
            tensors["places.mean"] = self.places.mean
            tensors["places.covariances"] = self.places.covariances
            tensors["places.count"] = torch.tensor(self.places.count)
        if self.same_place is not None and self.grids is None:  # otherwise the memory holds them
            tensors["same_place.fine"] = self.same_place.fine
            tensors["same_place.raw"] = self.same_place.raw.contiguous()
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
        settings = {"config": config, "images": self.count, **self._said_of_places()}
        return tensors, settings

    def _said_of_places(self) -> dict[str, Any]:
        if self.same_place is None:
            return {}
        products, alignments = self.same_place.products, self.same_place.alignments
        if len(alignments) == 1:  # as before a detector could be of several
            return {"alignment": alignments[0]}
        return {"products": list(products), "alignment": list(alignments)}


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
        if grid.shape[-2:] == size:
            resized[name] = grid
            continue
        channels = grid.reshape(1, -1, *grid.shape[-2:])
        same = F.interpolate(channels, size, mode="bilinear")
        resized[name] = same.reshape(*grid.shape[:-2], *size)
    return resized


def batch(grids: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of one image -> of a batch of one."""
    return {name: grid[None] for name, grid in grids.items()}
