"""The ``pixel`` preset: autoencoder, prior and transformer, nothing pretrained by others.

Adapting takes the meta-learned gradient steps of the autoencoder on the support. The fitted
autoencoder is then the backbone of a memory bank, as in the ``feature`` preset, and the transformer
corrects the map: it also reads the gap between image and reconstruction, and the response map of
the prior. The ``long`` mode fits the autoencoder further, and trains the transformer on synthetic
defects of the support images.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metaformer.detection.feature.adapted import AdaptedFeature, adapt
from metaformer.detection.feature.feature_image import FeatureImage
from metaformer.detection.feature.gap_correction import SupportView, load_transformer
from metaformer.detection.feature.gap_distances import OF_AUTOENCODER
from metaformer.detection.pixel.adapted import AdaptedPixel
from metaformer.detection.pixel.autoencoder_backbone import (
    MOMENT_IMAGES,
    AutoencoderBackbone,
    fit_moments,
    small,
)
from metaformer.detection.pixel.config import PixelConfig
from metaformer.detection.pixel.finetuning import Finetuning
from metaformer.detection.pixel.fitting import choose, fit, fit_long
from metaformer.detection.pixel.inner_rates import InnerRates
from metaformer.detection.pixel.universal_weights import load_universal
from metaformer.detection.preprocessing import working_size
from metaformer.detection.preset import Adaptation, OnStep, changes_without
from metaformer.networks.autoencoder import Autoencoder
from metaformer.networks.feature_maps import with_detail
from metaformer.networks.gap_transformer import GapTransformer
from metaformer.networks.instance_prior import InstancePrior, load_prior


class PixelPreset:
    """Universal part of the preset: the autoencoder, the prior and the transformer as
    meta-trained."""

    size_multiple = 16
    view_factor = 1.3

    def __init__(
        self,
        config: PixelConfig,
        autoencoder: Autoencoder,
        rates: InnerRates,
        prior: InstancePrior | None = None,
        network: GapTransformer | None = None,
    ) -> None:
        self.config = config
        self.autoencoder = autoencoder.eval()
        self.rates = rates
        corrects = config.corrects  # only then are the prior and the transformer asked
        self.prior = (prior or load_prior()) if corrects else None
        self.network = (network or load_transformer(OF_AUTOENCODER)) if corrects else None

    @classmethod
    def from_pretrained(
        cls, config: PixelConfig | None = None, folder: Path | None = None
    ) -> PixelPreset:
        """With the package's weights; those of the autoencoder from ``folder`` if given."""
        autoencoder, rates = load_universal(folder)
        return cls(config or PixelConfig(), autoencoder, rates)

    def without(self, parts: Sequence[str]) -> PixelPreset:
        """``transformer``, ``response``, ``gap`` and ``adaptation``."""
        kind = "aligned" if self.config.aligned else self.config.mode
        name = f"the {kind} mode of the pixel preset"
        changes = changes_without(parts, self.config.parts, name)
        return self.with_config(**changes)

    def with_config(self, **changes: Any) -> PixelPreset:
        """The same weights with other settings."""
        config = replace(self.config, **changes)
        return PixelPreset(config, self.autoencoder, self.rates, self.prior, self.network)

    def working_size(self, height: int, width: int) -> tuple[int, int]:
        """Sides (H, W) that an image is resized to, multiples of ``size_multiple``."""
        return working_size(height, width, self.config.resolution, self.size_multiple)

    def prepare(self, image: Tensor, *, support_size: int | None = None) -> Tensor:
        """The image itself: its features depend on the support."""
        return image

    def adapt(
        self, support: Sequence[Tensor], *, seed: int, on_step: OnStep
    ) -> Adaptation[AdaptedPixel]:
        """Fits the autoencoder, then builds the memory bank. In the long mode a copy of the
        transformer is trained on synthetic defects of the support."""
        config = self.config
        backbone, images = self.fit_backbone(support, seed=seed)

        def refine(adapted: AdaptedFeature, views: Mapping[int, SupportView]) -> None:
            if config.is_long and config.corrects:
                Finetuning(adapted, support, views, seed=seed).train()

        network = copy.deepcopy(self.network)
        if network is not None:
            network.reads_gap = config.gap
        done = adapt(
            config.comparison,
            backbone,
            images,
            network=network,
            seed=seed,
            on_step=on_step,
            refine=refine,
        )
        return Adaptation(AdaptedPixel(config, done.adapted), done.left_out)

    def fit_backbone(
        self, support: Sequence[Tensor], *, seed: int
    ) -> tuple[AutoencoderBackbone, list[FeatureImage]]:
        """A copy of the autoencoder that has taken the meta-learned steps on the support, in the
        long mode more, and what it gives of the support images."""
        config, generator = self.config, torch.Generator().manual_seed(seed)
        fitted = self.autoencoder
        if config.adaptation:
            copies = [small(image) for image in support]
            fitted = fit(fitted, self.rates, copies, generator)
            if config.is_long:
                fit_long(fitted, copies, config.long_steps, generator)
        chosen = choose(range(len(support)), MOMENT_IMAGES, generator)
        of_moments = [support[i] for i in chosen]
        backbone, of_chosen = fit_moments(fitted, self.prior, of_moments, config)
        known = dict(zip(chosen, of_chosen, strict=True))
        with torch.no_grad():
            images = [
                FeatureImage(with_detail(known[i] if i in known else backbone(image), image))
                for i, image in enumerate(support)
            ]
        return backbone, images

    @classmethod
    def from_state(
        cls, tensors: dict[str, Tensor], settings: dict[str, Any]
    ) -> tuple[PixelPreset, AdaptedPixel]:
        """What ``AdaptedPixel.state`` gave; the preset has the weights of the detector.

        Raises:
            ValueError, KeyError, TypeError, RuntimeError: something is missing or does not fit.
        """
        adapted = AdaptedPixel.from_state(tensors, settings)
        backbone, correction = adapted.backbone, adapted.model.correction
        rates = InnerRates(backbone.autoencoder, 1, 0.0)
        network = None if correction is None else correction.network
        return cls(adapted.config, backbone.autoencoder, rates, backbone.prior, network), adapted
