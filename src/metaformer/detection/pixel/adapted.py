"""The ``pixel`` preset adapted to one product: a memory bank over the fitted autoencoder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from metaformer.detection.feature.adapted import AdaptedFeature
from metaformer.detection.feature.feature_image import FeatureImage
from metaformer.detection.feature.state import restore
from metaformer.detection.pixel.autoencoder_backbone import AutoencoderBackbone, nested
from metaformer.detection.pixel.config import PixelConfig
from metaformer.detection.preset import Adaptation, EarlierVersionError
from metaformer.detection.scoring.frame_check import FrameCheck
from metaformer.networks.autoencoder import Autoencoder, AutoencoderConfig
from metaformer.networks.feature_maps import with_detail
from metaformer.networks.instance_prior import InstancePrior, PriorConfig
from metaformer.networks.named_buffers import under

STATE_VERSION = 2
"""Of what ``AdaptedPixel.state`` gives. Version 1 had no number."""
PARTS = ("autoencoder.", "prior.", "moments.", "small_moments.")
"""How the names of the backbone's tensors begin in a detector file."""


class AdaptedPixel:
    """The model of ``detection/feature`` over an autoencoder that was fitted to the product."""

    products = 1

    def __init__(self, config: PixelConfig, model: AdaptedFeature) -> None:
        assert isinstance(model.backbone, AutoencoderBackbone)
        self.config = config
        self.model = model
        self.backbone = model.backbone

    @property
    def frame(self) -> FrameCheck | None:
        return self.model.frame

    @frame.setter
    def frame(self, frame: FrameCheck | None) -> None:
        self.model.frame = frame

    @torch.inference_mode()
    def encode(self, image: Tensor) -> FeatureImage:
        """What the autoencoder and the prior say of an image (1, 3, H, W) in [0, 1]."""
        return FeatureImage(with_detail(self.backbone(image), image))

    def anomaly_maps(self, image: Tensor) -> Tensor:
        return self.model.anomaly_maps(self.encode(image))

    @property
    def graph(self) -> str | None:
        return self.model.graph

    @property
    def typical_score(self) -> float | None:
        return self.model.typical_score

    def kept_support(self) -> None:
        """The autoencoder was fitted to the earlier images themselves, which are not kept."""

    def extend(self, new: Sequence[Tensor], *, seed: int) -> Adaptation[AdaptedPixel]:
        """With the features of more images in the memory bank; the autoencoder stays as it was
        fitted."""
        done = self.model.extend([self.encode(image) for image in new], seed=seed)
        return Adaptation(AdaptedPixel(self.config, done.adapted), done.left_out, done.how)

    def as_module(self) -> nn.Module:
        return self.model

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, comparison = self.model.state()
        backbone = self.backbone
        tensors |= {f"autoencoder.{n}": t for n, t in backbone.autoencoder.state_dict().items()}
        if backbone.prior is not None:
            tensors |= {f"prior.{n}": t for n, t in backbone.prior.state_dict().items()}
        tensors |= {f"moments.{n}": t for n, t in backbone.moments.tensors().items()}
        tensors |= {f"small_moments.{n}": t for n, t in backbone.small_moments.tensors().items()}
        settings = {
            "version": STATE_VERSION,
            "config": asdict(self.config),
            "comparison": comparison,
            "autoencoder": asdict(backbone.autoencoder.config),
            "prior": None if backbone.prior is None else asdict(backbone.prior.config),
        }
        return {n: t.contiguous() for n, t in tensors.items()}, json.loads(json.dumps(settings))

    @classmethod
    def from_state(cls, tensors: dict[str, Tensor], settings: dict[str, Any]) -> AdaptedPixel:
        """Raises: ValueError, KeyError, TypeError, RuntimeError: something is missing or does not
        fit."""
        version = settings.get("version", 1)
        if version == 1:
            raise EarlierVersionError(
                "a pixel detector of an earlier version, whose model is gone: adapt again from the "
                "good images."
            )
        if version != STATE_VERSION:
            raise ValueError(f"version {version} of the pixel preset is not known here")
        autoencoder = Autoencoder(AutoencoderConfig(**settings["autoencoder"]))
        autoencoder.load_state_dict(under("autoencoder.", tensors))
        autoencoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        prior = None
        if settings["prior"] is not None:
            prior = InstancePrior(PriorConfig(**settings["prior"]))
            prior.load_state_dict(under("prior.", tensors))
            prior.requires_grad_(False).eval()
        config = PixelConfig(**settings["config"])
        backbone = AutoencoderBackbone(
            autoencoder.requires_grad_(False).eval(),
            prior,
            nested(under("moments.", tensors)),
            nested(under("small_moments.", tensors)),
            config,
        )
        of_model = {n: t for n, t in tensors.items() if not n.startswith(PARTS)}
        restored = restore(of_model, settings["comparison"])
        return cls(config, restored.adapted(of_model, backbone))
