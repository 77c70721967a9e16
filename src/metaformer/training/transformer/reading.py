"""Episodes as the transformer gets them: read by the backbone of either preset.

Features, distances and support are made as an adapted model makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from metaformer.detection.feature.adapted import Backbone
from metaformer.detection.feature.gap_distances import (
    OF_AUTOENCODER,
    OF_BACKBONE,
    Readings,
    measure_alone,
    measure_to,
    some_patches,
)
from metaformer.detection.pixel.autoencoder_backbone import RESPONSE_STRIDE, fit_moments
from metaformer.detection.pixel.config import PixelConfig
from metaformer.detection.pixel.universal_weights import load_universal
from metaformer.networks.efficientnet import load_backbone
from metaformer.networks.feature_maps import RESPONSE
from metaformer.networks.instance_prior import load_prior
from metaformer.networks.support_description import SupportDescription, describe_support
from metaformer.training.episodes.episodes import Episode

AT_ONCE = 2
"""Images seen at once: on a CPU more take longer each."""
MOST_LEFT_OUT = 3
"""Support images that are left out in turn, in training; an adapted model leaves out each."""

Features = dict[int, Tensor]
Encode = Callable[[Tensor, Tensor], tuple[Features, Features]]
"""Support and query images (n, 3, S, S) in [0, 1] -> their features."""


@dataclass(frozen=True)
class SeenEpisode:
    """An episode as the transformer gets it; tensors on the training's device."""

    features: Features
    distances: Tensor
    core: Tensor
    support: SupportDescription
    response: Tensor | None
    shares: Tensor
    """(q, H/4, W/4) share of each cell that is anomalous."""
    is_clean: Tensor


@dataclass(frozen=True)
class EpisodeReader:
    """Reads episodes as one preset does."""

    readings: Readings
    encode: Encode
    device: torch.device

    @torch.no_grad()
    def see(self, episode: Episode, generator: torch.Generator) -> SeenEpisode:
        """The episode's features, distances and support, as an adapted model makes them."""
        support, query = self.encode(self._images(episode.support), self._images(episode.query))
        shots = len(episode.support)
        readings = self.readings
        grids = readings.grids(support)
        found = measure_to(readings.grids(query), some_patches(grids, generator))
        distances, core = readings.together(found, query)
        left_out = []
        for i in range(min(shots, MOST_LEFT_OUT)):
            one = {name: grid[i : i + 1] for name, grid in grids.items()}
            if shots == 1:
                own = measure_alone(one)
            else:
                rest = [j for j in range(shots) if j != i]
                others = {name: grid[rest] for name, grid in grids.items()}
                own = measure_to(one, some_patches(others, generator))
            its_features = {name: grid[i : i + 1] for name, grid in support.items()}
            left_out.append(readings.together(own, its_features))
        described = describe_support(
            [{stride: support[stride][i] for stride in (8, 16)} for i in range(shots)],
            [found[0] for found, _ in left_out],
            [found[0] for _, found in left_out],
        )
        masks = torch.from_numpy(episode.masks).to(self.device).float()[:, None]
        return SeenEpisode(
            features=query,
            distances=distances,
            core=core,
            support=described,
            response=query.get(RESPONSE),
            shares=F.avg_pool2d(masks, 4)[:, 0],
            is_clean=torch.from_numpy(episode.is_clean).to(self.device),
        )

    def _images(self, pixels: NDArray[np.uint8]) -> Tensor:
        """uint8 (n, S, S, 3) -> (n, 3, S, S) in [0, 1]."""
        return torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2).float() / 255


class WithResponse(nn.Module):
    """A backbone whose maps include the prior's response map."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.channels = backbone.channels
        self.prior = load_prior()

    def forward(self, images: Tensor) -> Features:
        """(B, 3, H, W) in [0, 1] -> features by stride, and the response map."""
        response = F.avg_pool2d(self.prior(images), RESPONSE_STRIDE)
        return {**self.backbone(images), RESPONSE: response}


def reader_of(preset: str, device: torch.device, *, response: bool = False) -> EpisodeReader:
    """Of ``feature`` or ``pixel``, with the weights inside the package."""
    if preset == "feature":
        backbone = load_backbone(16, ahead=True).to(device)
        of_query = WithResponse(backbone).to(device) if response else backbone

        def encode_both(support: Tensor, query: Tensor) -> tuple[Features, Features]:
            return in_parts(backbone, support), in_parts(of_query, query)

        return EpisodeReader(OF_BACKBONE, encode_both, device)

    autoencoder, prior = load_universal()[0].to(device), load_prior().to(device)

    def encode_with_moments(support: Tensor, query: Tensor) -> tuple[Features, Features]:
        backbone, found = fit_moments(
            autoencoder, prior, support.split(1), PixelConfig(transformer=True)
        )
        return joined(found), in_parts(backbone, query)

    return EpisodeReader(OF_AUTOENCODER, encode_with_moments, device)


def in_parts(backbone: Callable[[Tensor], Features], images: Tensor) -> Features:
    """Images (n, 3, S, S) in [0, 1] -> their features, a few images at once."""
    size = len(images) if images.is_cuda else AT_ONCE
    return joined([backbone(some) for some in images.split(size)])


def joined(parts: Sequence[Features]) -> Features:
    return {name: torch.cat([part[name] for part in parts]).contiguous() for name in parts[0]}
