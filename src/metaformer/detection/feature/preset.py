"""The ``feature`` preset: a frozen backbone, and how images are prepared for a memory bank."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metaformer.detection.feature.adapted import AdaptedFeature, Backbone, adapt
from metaformer.detection.feature.config import ALIGNED, SHIPPED, FeatureConfig
from metaformer.detection.feature.feature_image import FeatureImage
from metaformer.detection.feature.gap_correction import load_transformer
from metaformer.detection.feature.memory_bank import Rows, describe, to_rows
from metaformer.detection.feature.products import (
    PART,
    SeveralProducts,
    adapt_to_each,
    product_groups,
)
from metaformer.detection.feature.state import restore
from metaformer.detection.preprocessing import working_size
from metaformer.detection.preset import Adaptation, OnStep, changes_without
from metaformer.networks.backbone_weights import BackboneError
from metaformer.networks.custom_backbone import CUSTOM, CustomBackbone, check_same_module
from metaformer.networks.efficientnet import load_backbone
from metaformer.networks.feature_maps import Features, with_detail
from metaformer.networks.gap_transformer import GapTransformer
from metaformer.networks.named_buffers import under
from metaformer.networks.placement import placed
from metaformer.networks.timm_backbone import level_settings, load_timm_backbone

VIEW_FACTOR, COSINE_VIEW_FACTOR = 1.4, 1.3
"""How many times a changed view's score another good part scores; the second where patches are
compared by direction alone (``docs/decisions/01-threshold.md``)."""
HALF_FROM = 1_000
"""Features of a support of more images are kept in float16 while it is adapted to: 4,000 images
would take more than 2 GB."""
MANY_PRODUCTS = 10
"""In a support of up to this many times ``mirrored_images`` the images are kept in memory during
adaptation: they are mirrored if their product turns out to have few images."""
KEPT_OF_MIRRORED = 3
"""One in so many patches of each of the three mirror images is kept: together as many as the image
itself has."""


class FeaturePreset:
    """The backbone and its settings, before adaptation to a product."""

    def __init__(
        self, config: FeatureConfig, backbone: Backbone, network: GapTransformer | None = None
    ) -> None:
        self.config = config
        self.backbone = backbone
        self.view_factor = COSINE_VIEW_FACTOR if config.cosine_share == 1 else VIEW_FACTOR
        self.network = (network or load_transformer()) if config.corrects else None
        if self.network is not None:
            self.network.reads_gap = config.gap
        self.size_multiple = max(config.strides)

    @classmethod
    def from_pretrained(
        cls,
        backbone: str,
        backbone_weights: Path | None,
        *,
        download: bool,
        device: str,
        aligned: bool,
        **settings: Any,
    ) -> FeaturePreset:
        """See ``Metaformer.from_pretrained``; other settings are those of ``FeatureConfig``.

        Raises:
            BackboneError: the backbone or its weights cannot be used.
            DeviceError: there is no such device.
        """
        settings["aligned"] = aligned
        if backbone == SHIPPED:
            config = FeatureConfig(**settings, **(ALIGNED if aligned else {}))
            return cls.of(config, backbone_weights, device=device)
        network = load_timm_backbone(backbone, weights=backbone_weights, download=download)
        return cls(FeatureConfig(**(level_settings(network) | settings)), placed(network, device))

    @classmethod
    def from_backbone(
        cls,
        backbone: CustomBackbone,
        *,
        level_weights: Sequence[float] | None,
        device: str,
        **settings: Any,
    ) -> FeaturePreset:
        """See ``Metaformer.from_backbone``; other settings are those of ``FeatureConfig``.

        Raises:
            ValueError: there are not as many weights as levels.
            DeviceError: there is no such device.
        """
        mean, std = backbone.mean.flatten().tolist(), backbone.std.flatten().tolist()
        config = FeatureConfig(
            levels=backbone.levels,
            level_weights=tuple(level_weights or (1.0,) * len(backbone.levels)),
            backbone=backbone.name,
            backbone_sha256=backbone.sha256,
            input_mean=tuple(mean),
            input_std=tuple(std),
            **settings,
        )
        return cls(config, placed(backbone, device))

    @classmethod
    def of(
        cls,
        config: FeatureConfig,
        backbone_weights: Path | None = None,
        *,
        backbone: nn.Module | None = None,
        device: str = "cpu",
    ) -> FeaturePreset:
        """With the backbone that ``config`` names.

        Args:
            backbone: the module itself, where ``config`` names one of the user's own.

        Raises:
            BackboneError: the backbone or its weights cannot be used.
            DeviceError: there is no such device.
        """
        if config.backbone.startswith(CUSTOM):
            mean, std, sha256 = config.input_mean, config.input_std, config.backbone_sha256
            found = None
            if backbone is not None:
                found = CustomBackbone(backbone, levels=config.levels, mean=mean, std=std)
            own = check_same_module(found, config.backbone, sha256)
            return cls(config, placed(own, device))
        if backbone is not None:
            raise BackboneError(
                f"a module is given, but the detector was made with {config.backbone}. Leave "
                f"backbone out."
            )
        if config.backbone != SHIPPED:
            network = load_timm_backbone(
                config.backbone,
                weights=backbone_weights,
                sha256=config.backbone_sha256,
                levels=config.levels,
            )
            return cls(config, placed(network, device))
        if backbone_weights is not None:
            raise BackboneError(
                f"{backbone_weights}: weights are given, but the backbone is the one inside the "
                f"package. Name theirs with --backbone (backbone= in Python), or leave them out."
            )
        deepest = max(config.levels)
        shipped = load_backbone(
            deepest, ahead=config.corrects, input_mean=config.input_mean, input_std=config.input_std
        )
        return cls(config, placed(shipped, device))

    def with_config(self, **changes: Any) -> FeaturePreset:
        """The same backbone with other settings; the transformer is a copy."""
        config = replace(self.config, **changes)
        return FeaturePreset(config, self.backbone, copy.deepcopy(self.network))

    def without(self, parts: Sequence[str]) -> FeaturePreset:
        """``transformer`` and ``gap``. Nothing is fitted to the support: it is the memory bank."""
        has = {"transformer": "transformer", "gap": "gap"} if self.config.corrects else {}
        name = "the feature preset" if has else "the feature preset without a transformer"
        same = self.with_config(**changes_without(parts, has, name))
        same.size_multiple = self.size_multiple  # the same grids are compared
        return same

    def working_size(self, height: int, width: int) -> tuple[int, int]:
        """Sides (H, W) that an image is resized to, multiples of ``size_multiple``."""
        return working_size(height, width, self.config.resolution, self.size_multiple)

    @torch.inference_mode()
    def prepare(self, image: Tensor, *, support_size: int | None = None) -> FeatureImage:
        features = self.features(image)
        if support_size is not None and support_size > HALF_FROM:
            return FeatureImage({stride: grid.half() for stride, grid in features.items()})
        mirrored = 0 if self.config.aligned else self.config.mirrored_images
        if support_size is None or not mirrored or support_size > MANY_PRODUCTS * mirrored:
            return FeatureImage(features)
        if support_size > mirrored:
            return FeatureImage(features, image=image)
        return FeatureImage(features, self.mirrored_rows(image))

    def features(self, image: Tensor) -> Features:
        """Of one image (1, 3, H, W): the strides that are read, the detail, and what else the
        backbone gives."""
        read = {k: m for k, m in self.backbone(image).items() if k in self.config.strides or k < 0}
        return with_detail(read, image)

    def mirrored_rows(self, image: Tensor) -> Rows:
        """Some descriptors of the image mirrored along either side and along both."""
        generator = torch.Generator().manual_seed(0)
        kept: dict[str, list[Tensor]] = {}
        for axes in ((3,), (2,), (2, 3)):
            features = self.features(image.flip(axes))
            described = describe(features, self.config.levels, self.config.cosine_share)
            for name, grid in described.items():
                rows = to_rows(grid)
                drawn = torch.randperm(len(rows), generator=generator)
                some = drawn[: max(1, len(rows) // KEPT_OF_MIRRORED)]
                kept.setdefault(name, []).append(rows[some])
        return {name: torch.cat(parts) for name, parts in kept.items()}

    @torch.inference_mode()
    def with_mirrored(self, image: FeatureImage) -> FeatureImage:
        """With descriptors of its mirror images, if they can still be made."""
        if image.image is None:
            return image
        return FeatureImage(image.kept, self.mirrored_rows(image.image))

    def adapt(
        self, support: Sequence[FeatureImage], *, seed: int, on_step: OnStep
    ) -> Adaptation[AdaptedFeature | SeveralProducts]:
        """Adapts to each product, where the images show several."""

        def adapt_to(images: Sequence[FeatureImage], told: OnStep) -> Adaptation[AdaptedFeature]:
            return adapt(
                self.config, self.backbone, images, network=self.network, seed=seed, on_step=told
            )

        groups = product_groups(support, self.config)
        if len(groups) == 1:
            return adapt_to([FeatureImage(i.kept, i.mirrored) for i in support], on_step)
        images = [*support]
        for group in groups:
            if len(group) <= self.config.mirrored_images:
                for i in group:
                    images[i] = self.with_mirrored(support[i])
        return adapt_to_each(self.config, self.backbone, images, groups, adapt_to, on_step)

    @classmethod
    def from_state(
        cls,
        tensors: dict[str, Tensor],
        settings: dict[str, Any],
        *,
        backbone_weights: Path | None = None,
        backbone: nn.Module | None = None,
        device: str = "cpu",
    ) -> tuple[FeaturePreset, AdaptedFeature | SeveralProducts]:
        """Restore what ``state`` of the adapted model returned, in this version or an earlier one.

        Raises:
            ValueError, KeyError, TypeError: something is missing or does not fit.
            BackboneError: the weights of another backbone cannot be used.
        """
        parts = settings.get("products")
        first, about = (under(f"{PART}0.", tensors), parts[0]) if parts else (tensors, settings)
        restored = restore(first, about, of_product=bool(parts))
        preset = cls.of(restored.config, backbone_weights, backbone=backbone, device=device)
        adapted = restored.adapted(first, preset.backbone)
        if adapted.correction is not None:
            preset.network = adapted.correction.network
        if not parts:
            return preset, adapted
        several = SeveralProducts.from_state(tensors, settings, preset.config, preset.backbone)
        return preset, several
