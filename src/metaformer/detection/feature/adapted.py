"""The ``feature`` preset adapted to one product: the model from pixels to a map."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.detection.feature.comparison import AlignedComparison, BankComparison, fuse
from metaformer.detection.feature.config import SHIPPED, FeatureConfig
from metaformer.detection.feature.feature_image import FeatureImage, own_rows, statistics_of
from metaformer.detection.feature.gap_correction import GapCorrection, SupportView, build_correction
from metaformer.detection.feature.memory_bank import Descriptors, MemoryBank, describe, total_rows
from metaformer.detection.nearest_neighbors import merge_samples
from metaformer.detection.preset import Adaptation, OnStep
from metaformer.detection.scoring.anomaly_map import smooth
from metaformer.detection.scoring.frame_check import FrameCheck
from metaformer.networks.custom_backbone import CUSTOM
from metaformer.networks.feature_maps import Features, with_detail
from metaformer.networks.gap_transformer import GapTransformer

AT_ONCE = 64
"""Images whose patches are in memory at once while a bank of many images is drawn."""
EPS = 1e-6
STATE_VERSION = 2
"""Of what ``AdaptedFeature.state`` gives. Version 1 had no number."""


class Backbone(Protocol):
    """A frozen network that turns images into maps of features."""

    channels: dict[int, int]
    """Stride -> channels of its map."""

    def __call__(self, images: Tensor, /) -> Features:
        """(B, 3, H, W) in [0, 1] -> features."""


class AdaptedFeature(nn.Module):
    """(B, 3, H, W) in [0, 1] -> (B, M, h, w) maps.

    Without a transformer there is one map, on the grid of the finest level. With one there are two
    on a grid twice as fine: the map that scores the image, scaled as the transformer sees it, and
    the corrected one that marks pixels.

    Args:
        bank: descriptors of the support; None if aligned.
        support: support images that are kept, by their index in the support.
        count: support images that the model stands for.
        frame: refuses frames that do not show the product; None for files of earlier versions.
        correction: the transformer; None where there is none.
    """

    products = 1

    def __init__(
        self,
        config: FeatureConfig,
        backbone: Backbone,
        bank: MemoryBank | None,
        support: Mapping[int, FeatureImage],
        count: int,
        frame: FrameCheck | None = None,
        correction: GapCorrection | None = None,
    ) -> None:
        super().__init__()
        self.frame = frame
        self.correction = correction
        self.config = config
        self.backbone = backbone
        self.bank = bank
        self.support = dict(support)
        self.count = count
        self.compare: AlignedComparison | BankComparison
        if bank is None:
            self.compare = AlignedComparison(self.support, config)
        else:
            self.compare = BankComparison(bank, config)

    @property
    def is_whole(self) -> bool:
        """Whether every support image is kept."""
        return len(self.support) == self.count

    def forward(self, images: Tensor) -> Tensor:
        return self.maps(with_detail(self.backbone(images), images))

    def maps(self, features: Features) -> Tensor:
        """(B, M, h, w) blurred maps of images with these features."""
        config = self.config
        distances = self.distances(describe(features, config.levels, config.cosine_share))
        maps = self.maps_of(features, distances)
        return maps if self.frame is None else self.frame(maps, features)

    def maps_of(
        self, features: Features, distances: dict[str, Tensor], view: SupportView | None = None
    ) -> Tensor:
        """``maps`` before the frame check.

        Args:
            distances: of ``distances``.
            view: what the transformer knows of the support; None for all that it knows.
        """
        config = self.config
        core = fuse(distances, config)  # (B, h, w)
        scored = smooth(core, config.sigma)[:, None]
        if self.correction is None:
            return scored
        marked = smooth(self.correction(core, features, distances, view), 2 * config.sigma)[:, None]
        # The score is the geometric mean of both maps' maxima.
        highest = scored.amax((2, 3), keepdim=True).clamp_min(EPS)  # (B, 1, 1, 1)
        factor = (marked.amax((2, 3), keepdim=True) / highest).sqrt()
        scored = F.interpolate(factor * scored, scale_factor=2)  # (B, 1, 2 h, 2 w)
        return torch.cat([scored, marked], dim=1)

    def distances(self, descriptors: Descriptors, without: int | None = None) -> dict[str, Tensor]:
        """Name -> (B, h, w) distance to the nearest descriptor of the support."""
        found: dict[str, Tensor] = self.compare(descriptors, without)
        return found

    @torch.inference_mode()
    def anomaly_maps(self, image: FeatureImage) -> Tensor:
        return self.maps(image.features)[0]

    @property
    def graph(self) -> str | None:
        is_whole = self.bank is not None and self.frame is not None and self.frame.reads_detail
        return self.config.graph if is_whole else None

    @property
    def typical_score(self) -> float | None:
        return self.config.typical_score(self.count)

    @torch.inference_mode()
    def left_out_distances(self, image: FeatureImage, index: int) -> dict[str, Tensor]:
        """``distances`` of a support image to the others alone."""
        config = self.config
        return self.distances(describe(image.features, config.levels, config.cosine_share), index)

    @torch.inference_mode()
    def left_out_maps(self, image: FeatureImage, index: int) -> Tensor:
        """(M, h, w) maps of a support image compared with the others alone."""
        return self.maps_of(image.features, self.left_out_distances(image, index))[0]

    def as_module(self) -> nn.Module:
        return self

    def kept_support(self) -> list[FeatureImage] | None:
        return [*self.support.values()] if self.is_whole else None

    def extend(self, new: Sequence[FeatureImage], *, seed: int) -> Adaptation[AdaptedFeature]:
        if self.is_whole:
            images = [*self.support.values(), *new]
            network = None if self.correction is None else self.correction.network
            return adapt(self.config, self.backbone, images, network=network, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        bank = self.bank
        support: dict[int, FeatureImage] = {}
        if bank is None:
            support = self._support_with(new, generator)
        else:
            bank = bank.extended(
                [own_rows(image, self.config) for image in new],
                earlier=self.count,
                most=self.config.max_patches,
                generator=generator,
            )
        frame = self.frame
        if frame is not None:
            frame = frame.extended([statistics_of(image, self.config) for image in new])
        adapted = AdaptedFeature(
            self.config, self.backbone, bank, support, self.count + len(new), frame, self.correction
        )
        left_out = [adapted.left_out_maps(image, self.count + i) for i, image in enumerate(new)]
        return Adaptation(adapted, left_out, "estimated")

    def _support_with(
        self, new: Sequence[FeatureImage], generator: torch.Generator
    ) -> dict[int, FeatureImage]:
        """As many images as are kept, each of the earlier and the new ones as likely."""
        images = self.support | {self.count + i: image for i, image in enumerate(new)}
        earlier = torch.tensor(list(self.support))
        kept = merge_samples(
            earlier,
            torch.arange(self.count, self.count + len(new)),
            stands_for=self.count,
            most=len(earlier),
            generator=generator,
        )
        return {i: images[i] for i in kept.tolist()}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors: dict[str, Tensor] = {}
        for i, image in self.support.items():
            for stride, grid in image.features.items():
                tensors[f"support.{i}.{stride}"] = grid.contiguous()
            for name, rows in image.mirrored.items():
                tensors[f"mirrored.{i}.{name}"] = rows.contiguous()
        if self.bank is not None and not self.is_whole:  # otherwise it is made of the support
            for name, rows in self.bank.rows.items():
                tensors[f"bank.{name}"] = rows.contiguous()
                tensors[f"owners.{name}"] = self.bank.owners[name].contiguous()
        settings: dict[str, Any] = {"version": STATE_VERSION, "images": self.count}
        if self.frame is not None:
            frame_tensors, settings["frame"] = self.frame.state()
            tensors |= frame_tensors
        if self.correction is not None:
            tensors |= self.correction.state()
        config = asdict(self.config)
        if self.config.backbone == SHIPPED:
            del config["backbone"], config["backbone_sha256"]
        elif not self.config.backbone.startswith(CUSTOM):
            del config["input_mean"], config["input_std"]
        return tensors, settings | {"config": config}


def adapt(
    config: FeatureConfig,
    backbone: Backbone,
    support: Sequence[FeatureImage],
    *,
    network: GapTransformer | None,
    seed: int,
    on_step: OnStep = lambda done, total: None,
    refine: Callable[[AdaptedFeature, Mapping[int, SupportView]], None] | None = None,
) -> Adaptation[AdaptedFeature]:
    """Build the memory bank, and the map of each support image by the others alone.

    Args:
        refine: changes the adapted model before these maps are made; it is also given what the
            transformer knows of the support without each image.
    """
    if len(support) > config.mirrored_images:  # more images show enough by themselves
        support = [FeatureImage(image.kept) for image in support]
    adapted = from_support(config, backbone, support, seed=seed)
    distances, maps = [], []
    if len(support) > 1:
        for i, image in enumerate(support):
            distances.append(adapted.left_out_distances(image, i))
            on_step(i + 1, 2 * len(support))
    views: dict[int, SupportView] = {}
    if network is not None and config.readings is not None:
        adapted.correction, views = build_correction(
            network, config.readings, lambda i: support[i].features, len(support), distances
        )
    if refine is not None:
        refine(adapted, views)
    with torch.inference_mode():
        for i, found in enumerate(distances):
            maps.append(adapted.maps_of(support[i].features, found, views.get(i))[0])
            on_step(len(support) + i + 1, 2 * len(support))
    return Adaptation(adapted, maps)


def from_support(
    config: FeatureConfig, backbone: Backbone, support: Sequence[FeatureImage], *, seed: int
) -> AdaptedFeature:
    """Keeps the support images as far as ``max_patches`` allows: all or none of them, or if
    aligned a random choice."""
    count = len(support)
    patches = [image.features[config.levels[0]][0, 0].numel() for image in support]
    generator = torch.Generator().manual_seed(seed)
    frame = FrameCheck.of([statistics_of(image, config) for image in support], config.frame_rule)
    if config.aligned:
        most = max(1, config.max_patches // patches[0])
        kept = torch.randperm(count, generator=generator)[:most].sort().values.tolist()
        chosen = {i: support[i] for i in kept}
        return AdaptedFeature(config, backbone, None, chosen, count, frame)
    if sum(patches) <= config.max_patches:
        bank = whole_bank(config, support, generator)
        return AdaptedFeature(config, backbone, bank, dict(enumerate(support)), count, frame)
    most = config.max_patches
    first = [own_rows(image, config) for image in support[:AT_ONCE]]
    bank = MemoryBank.of(first, most=most, generator=generator)
    for start in range(AT_ONCE, count, AT_ONCE):
        more = [own_rows(image, config) for image in support[start : start + AT_ONCE]]
        bank = bank.extended(more, earlier=start, most=most, generator=generator)
    return AdaptedFeature(config, backbone, bank, {}, count, frame)


def whole_bank(
    config: FeatureConfig, support: Sequence[FeatureImage], generator: torch.Generator
) -> MemoryBank:
    """All descriptors of all images."""
    rows = [own_rows(image, config) for image in support]
    return MemoryBank.of(rows, most=sum(map(total_rows, rows)), generator=generator)
