"""One detector for several products: each has a model of its own, and an image is read by that of
the support image most like it. Ours (``docs/decisions/10-measured-core.md``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metaformer.detection.feature.adapted import AdaptedFeature, Backbone
from metaformer.detection.feature.config import SHIPPED, FeatureConfig
from metaformer.detection.feature.feature_image import FeatureImage, statistics_of
from metaformer.detection.feature.state import image_count, restore
from metaformer.detection.preset import Adaptation, OnStep
from metaformer.detection.scoring.anomaly_map import image_score
from metaformer.detection.scoring.frame_check import (
    FrameCheck,
    Statistics,
    drawn_references,
    joined,
)
from metaformer.networks.feature_maps import Features, with_detail
from metaformer.networks.named_buffers import under

LINKED = 0.7
"""Images at most so far apart show one product, and so do those linked by others between them; 1 is
the limit of the frame check. On eight sets this splits no support of 6 to 40 images of one product,
and separates all products in 252 of 300 mixtures of two to four."""
LEAST_IMAGES = 3
"""Fewer images are no product: they may be odd ones of another."""
MOST_COMPARED = 256
"""Images among which products are looked for; the others go with the most similar of them."""
PART = "product."
"""How the names of a part's tensors begin, before its number."""

AdaptTo = Callable[[Sequence[FeatureImage], OnStep], Adaptation[AdaptedFeature]]
"""Adapts to images of one product."""


class SeveralProducts(nn.Module):
    """(B, 3, H, W) in [0, 1] -> (B, M, h, w) maps, 1 where a product's normal images score.

    Args:
        parts: a model for each product, without a frame check.
        members: of each, the indices of its images in the support.
        units: of each, the median score of its images; its maps are divided by it.
        frame: refuses frames that show none of the products.
        owners: product of each reference of the frame check.
    """

    def __init__(
        self,
        config: FeatureConfig,
        backbone: Backbone,
        parts: Sequence[AdaptedFeature],
        members: Sequence[Sequence[int]],
        units: Sequence[float],
        frame: FrameCheck,
        owners: Sequence[int],
    ) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.parts = list(parts)
        self.registered = nn.ModuleList(parts)  # ``eval`` and the exporter find them here
        self.members = [list(of_part) for of_part in members]
        self.units = list(units)
        self.frame = frame
        self.owners = torch.tensor(owners)

    def forward(self, images: Tensor) -> Tensor:
        features = with_detail(self.backbone(images), images)
        product = self.product_of(features)[:, None, None, None]
        maps = self.maps_of_part(0, features)
        for number in range(1, len(self.parts)):  # a traced graph has no branches: all are computed
            maps = torch.where(product == number, self.maps_of_part(number, features), maps)
        return self.frame(maps, features)

    def product_of(self, features: Mapping[int, Tensor]) -> Tensor:
        """(B,) number of the product that each image shows."""
        distances = self.frame.distances(self.frame.statistics(features))  # (B, K)
        return self.owners[distances.argmin(1)]

    def maps_of_part(self, number: int, features: Features) -> Tensor:
        return self.parts[number].maps(features) / self.units[number]

    @torch.inference_mode()
    def anomaly_maps(self, image: FeatureImage) -> Tensor:
        features = image.features
        maps = self.maps_of_part(int(self.product_of(features)), features)
        return self.frame(maps, features)[0]

    @property
    def products(self) -> int:
        return len(self.parts)

    @property
    def graph(self) -> None:
        return None

    @property
    def typical_score(self) -> None:
        """Maps are in units of each product's own scores."""

    def kept_support(self) -> list[FeatureImage] | None:
        images: dict[int, FeatureImage] = {}
        for part, of_part in zip(self.parts, self.members, strict=True):
            kept = part.kept_support()
            if kept is None:
                return None
            images |= dict(zip(of_part, kept, strict=True))
        return [images[i] for i in sorted(images)]

    def extend(self, new: Sequence[FeatureImage], *, seed: int) -> Adaptation[SeveralProducts]:
        """Adds each image to the product that it is most like; makes no new product."""
        count = sum(map(len, self.members))
        products = [int(self.product_of(image.features)) for image in new]
        parts: list[AdaptedFeature] = []
        members: list[list[int]] = []
        left_out: dict[int, Tensor] = {}
        for number, (part, of_part) in enumerate(zip(self.parts, self.members, strict=True)):
            added = [i for i, product in enumerate(products) if product == number]
            members.append([*of_part, *(count + i for i in added)])
            if not added:
                parts.append(part)
                continue
            done = part.extend([new[i] for i in added], seed=seed)
            done.adapted.frame = None
            parts.append(done.adapted)
            maps = done.left_out[-len(added) :]
            left_out |= {i: m / self.units[number] for i, m in zip(added, maps, strict=True)}
        frame, owners = frame_of(
            [*self.frame.each(), *(statistics_of(image, self.config) for image in new)],
            [*self.owners.tolist(), *products],
            self.config,
        )
        adapted = SeveralProducts(
            self.config, self.backbone, parts, members, self.units, frame, owners
        )
        return Adaptation(adapted, [left_out[i] for i in range(len(new))], "estimated")

    def as_module(self) -> nn.Module:
        return self

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, frame = self.frame.state()
        settings: dict[str, Any] = {"products": [], "frame": frame}
        for number, part in enumerate(self.parts):
            of_part, about = part.state()
            # The parts share the transformer; a file holds no tensor twice.
            tensors |= {f"{PART}{number}.{name}": t.clone() for name, t in of_part.items()}
            settings["products"].append(about)
        shared = settings["products"][0]
        return tensors, {
            **settings,
            "version": shared["version"],
            "config": shared["config"],
            "images": sum(map(len, self.members)),
            "members": self.members,
            "units": self.units,
            "owners": self.owners.tolist(),
        }

    @classmethod
    def from_state(
        cls,
        tensors: dict[str, Tensor],
        settings: dict[str, Any],
        config: FeatureConfig,
        backbone: Backbone,
    ) -> SeveralProducts:
        """Raises: ValueError, KeyError, TypeError: something is missing or does not fit."""
        parts = []
        for number, about in enumerate(settings["products"]):
            of_part = under(f"{PART}{number}.", tensors)
            parts.append(restore(of_part, about, of_product=True).adapted(of_part, backbone))
        members, owners = settings["members"], settings["owners"]
        frame = FrameCheck.from_state(tensors, settings["frame"])
        if sorted(i for of_part in members for i in of_part) != list(range(image_count(settings))):
            raise ValueError("members: not every support image belongs to one product")
        if len(owners) != frame.count or not set(owners) <= set(range(len(parts))):
            raise ValueError("owners: not every reference of the frame check has a product")
        units = [float(unit) for unit in settings["units"]]
        if len(units) != len(parts) or len(members) != len(parts) or not min(units) > 0:
            raise ValueError("units, members: needed is one for each product, units above 0")
        return cls(config, backbone, parts, members, units, frame, owners)


def adapt_to_each(
    config: FeatureConfig,
    backbone: Backbone,
    support: Sequence[FeatureImage],
    groups: Sequence[Sequence[int]],
    adapt_to: AdaptTo,
    on_step: OnStep,
) -> Adaptation[SeveralProducts]:
    """Adapt to each product; ``groups`` as ``product_groups`` gives them."""
    parts: list[AdaptedFeature] = []
    units: list[float] = []
    left_out: dict[int, Tensor] = {}
    told = 0
    for group in groups:
        before = told

        def on_part(step: int, steps: int, before: int = before, count: int = len(group)) -> None:
            on_step(before + count * step // max(1, steps), len(support))

        done = adapt_to([support[i] for i in group], on_part)
        told += len(group)
        done.adapted.frame = None
        parts.append(done.adapted)
        scores = [image_score(maps[0], config.score_share) for maps in done.left_out]
        units.append(float(np.median(scores)))
        left_out |= {i: m / units[-1] for i, m in zip(group, done.left_out, strict=True)}
    of_image = {i: number for number, group in enumerate(groups) for i in group}
    statistics = [statistics_of(image, config) for image in support]
    products = [of_image[i] for i in range(len(support))]
    frame, owners = frame_of(statistics, products, config)
    adapted = SeveralProducts(config, backbone, parts, groups, units, frame, owners)
    return Adaptation(adapted, [left_out[i] for i in range(len(support))])


def product_groups(support: Sequence[FeatureImage], config: FeatureConfig) -> list[list[int]]:
    """Indices of the images of each product; one group where they cannot be told apart."""
    count = len(support)
    one = [list(range(count))]
    # How far apart products are is known for the shipped backbone alone.
    if count < 2 * LEAST_IMAGES or config.aligned or config.backbone != SHIPPED:
        return one
    from scipy.sparse.csgraph import connected_components  # takes longer than the rest here

    statistics = [statistics_of(image, config) for image in support]
    drawn = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:MOST_COMPARED]
    compared = FrameCheck(joined([statistics[i] for i in drawn.tolist()]), config.frame_rule)
    between = compared.distances(compared.references)
    links = torch.minimum(between, between.T) <= LINKED
    number, labels = connected_components(links.numpy(), directed=False)
    nearest = [int(compared.distances(each).argmin(1)) for each in statistics]
    groups = [[i for i in range(count) if labels[nearest[i]] == g] for g in range(number)]
    return sorted(groups) if min(map(len, groups)) >= LEAST_IMAGES else one


def frame_of(
    statistics: Sequence[Statistics], products: Sequence[int], config: FeatureConfig
) -> tuple[FrameCheck, list[int]]:
    """A frame check by some of the images, and the product of each of its references."""
    kept = drawn_references(len(statistics))
    check = FrameCheck(joined([statistics[i] for i in kept]), config.frame_rule)
    return check, [products[i] for i in kept]
