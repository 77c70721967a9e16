"""The ``pixel`` preset: autoencoder, prior and transformer, nothing pretrained by others.

Adapting takes the meta-learned gradient steps of the autoencoder on the support and keeps what its
encoder says of the support. The ``long`` mode takes a hundred more steps, and then trains the
transformer on synthetic defects of the support images.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metaformer.detection.pixel.adapted import FRAME_LIMITS, MAX_FOLDS, AdaptedPixel, statistics_of
from metaformer.detection.pixel.config import PixelConfig
from metaformer.detection.pixel.finetuning import train_transformer
from metaformer.detection.pixel.fitting import fit, fit_long, read_support, squeezed
from metaformer.detection.pixel.inner_rates import InnerRates
from metaformer.detection.pixel.prepared_image import PreparedImage, cropped_output, prepare
from metaformer.detection.pixel.universal_model import UniversalModel
from metaformer.detection.pixel.universal_weights import load_universal
from metaformer.detection.preprocessing import working_size
from metaformer.detection.preset import Adaptation, OnStep, changes_without
from metaformer.detection.scoring.frame_check import FrameCheck
from metaformer.detection.support_set import make_folds
from metaformer.networks.instance_prior import InstancePrior, load_prior


class PixelPreset:
    """Universal part of the preset: the autoencoder, the prior and the transformer as
    meta-trained."""

    size_multiple = 16
    view_factor = 1.3

    def __init__(
        self,
        config: PixelConfig,
        universal: UniversalModel,
        rates: InnerRates,
        prior: InstancePrior,
    ) -> None:
        self.config = config
        self.universal = universal.eval()
        self.rates = rates
        self.prior = prior

    @classmethod
    def from_pretrained(
        cls, config: PixelConfig | None = None, folder: Path | None = None
    ) -> PixelPreset:
        """With the package's weights, or those in ``folder``."""
        universal, rates = load_universal(folder)
        return cls(config or PixelConfig(), universal, rates, load_prior())

    def without(self, parts: Sequence[str]) -> PixelPreset:
        """``adaptation``; in the long mode also ``transformer``, ``response`` and ``gap``."""
        name = f"the {self.config.mode} mode of the pixel preset"
        changes = changes_without(parts, self.config.parts, name)
        config = replace(self.config, **changes)
        return PixelPreset(config, self.universal, self.rates, self.prior)

    def working_size(self, height: int, width: int) -> tuple[int, int]:
        """Sides (H, W) that an image is resized to, multiples of ``size_multiple``."""
        return working_size(height, width, self.config.resolution, self.size_multiple)

    def prepare(self, image: Tensor, *, support_size: int | None = None) -> PreparedImage:
        return prepare(self.config, self.prior, image)

    def adapt(
        self, support: Sequence[PreparedImage], *, seed: int, on_step: OnStep
    ) -> Adaptation[PreparedImage]:
        """The meta-learned steps of a copy of the autoencoder on the support, then the memory of
        the support. In the long mode more steps of the autoencoder, then the transformer is trained
        on synthetic defects of the support."""
        generator = torch.Generator().manual_seed(seed)
        images = [image.pixels for image in support]
        whole = [image.pixels[:, :, : image.height, : image.width] for image in support]
        adapts = self.config.adaptation
        if adapts:
            fitted = fit(self.universal, self.rates, whole, generator)
        else:
            fitted = copy.deepcopy(self.universal).requires_grad_(False)
        if adapts and self.config.mode == "long":
            watched = [squeezed(image) for image in whole]
            fit_long(fitted.autoencoder, watched, self.config.long_steps, generator)
        moments, passes = read_support(
            fitted.autoencoder, images, generator, rebuild=self.config.rebuilds
        )
        adapted = AdaptedPixel(self.config, fitted, self.prior, moments, None)
        adapted.encoded_images = [
            adapted.encode(image)
            if i not in passes
            else cropped_output(self.config, image, *passes.pop(i))
            for i, image in enumerate(support)
        ]
        adapted.memory = adapted.build_memory(adapted.encoded_images, generator)
        adapted.frame = FrameCheck.of(
            [statistics_of(r) for r in adapted.encoded_images], FRAME_LIMITS
        )
        if adapts and self.config.corrects:
            train_transformer(adapted, support, seed=seed)
        folds = make_folds(len(support), MAX_FOLDS)
        on_step(1, len(folds) + 1)
        maps: dict[int, Tensor] = {}
        for number, fold in enumerate(folds):
            maps |= adapted.left_out_maps(fold, seed=seed)
            on_step(number + 2, len(folds) + 1)
        adapted.encoded_images = []
        return Adaptation(adapted, [maps[i] for i in range(len(maps))])

    @classmethod
    def from_state(
        cls, tensors: dict[str, Tensor], settings: dict[str, Any]
    ) -> tuple[PixelPreset, AdaptedPixel]:
        """What ``AdaptedPixel.state`` gave.

        Raises:
            ValueError, KeyError, TypeError: something is missing or does not fit.
        """
        adapted = AdaptedPixel.from_state(tensors, settings)
        rates = InnerRates(adapted.universal.autoencoder, 1, 0.0)
        return cls(adapted.config, adapted.universal, rates, adapted.prior), adapted
