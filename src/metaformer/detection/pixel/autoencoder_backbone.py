"""The autoencoder (A), fitted to a product, as the backbone of a memory bank.

Its encoder gives features of an image at working size. It rebuilds a small copy of the image, of
the size that it was meta-trained on; what differs between copy and reconstruction is the gap. The
prior (P) gives the response map. Both are read by the transformer. Ours but for the networks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.detection.pixel.config import PixelConfig
from metaformer.detection.pixel.reconstruction_gap import gap_maps
from metaformer.networks.autoencoder import Autoencoder, Moments
from metaformer.networks.feature_maps import GAP, PIXELS, RESPONSE
from metaformer.networks.instance_prior import InstancePrior, shrink
from metaformer.networks.named_buffers import NamedBuffers

STAGES = 4
"""Encoder stages that are read, from the first, which has stride 2."""
REBUILT_SIDE = 128
"""Sides of the copy that is rebuilt."""
RESPONSE_STRIDE = 8
"""Pixels along a cell of the response map, which is smooth."""
MOMENT_IMAGES = 16
"""Support images that moments are taken over; 16 hold a million pixels a channel."""


class AutoencoderBackbone(nn.Module):
    """(B, 3, H, W) in [0, 1], sides multiples of 16, to features by stride, gap and response.

    Args:
        autoencoder: fitted to the support.
        prior: gives the response map; None leaves gap and response out.
        moments: of the support at working size.
        small_moments: of the support's small copies.
        config: says which maps are read.
    """

    channels = {4: 64, 8: 128, 16: 256}  # noqa: RUF012 - never written

    def __init__(
        self,
        autoencoder: Autoencoder,
        prior: InstancePrior | None,
        moments: Moments,
        small_moments: Moments,
        config: PixelConfig,
    ) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.prior = prior
        self.moments = NamedBuffers(flat(moments))
        self.small_moments = NamedBuffers(flat(small_moments))
        self.config = config
        self.strides = config.comparison.strides

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        (stages,), _ = self.autoencoder.read_stages(
            STAGES, to_input(images), moments=nested(self.moments.tensors())
        )
        copies = rebuilt = None
        if self.prior is not None:
            copies = small(images)
            _, rebuilt, _ = self.autoencoder.read(copies, nested(self.small_moments.tensors()))
        return self.maps_of(images, stages, copies, rebuilt)

    def maps_of(
        self,
        images: Tensor,
        stages: Sequence[Tensor],
        copies: Tensor | None,
        rebuilt: Tensor | None,
    ) -> dict[int, Tensor]:
        """All that is read of images (B, 3, H, W) in [0, 1]; copies and reconstructions are in
        [-1, 1]."""
        of_stride = {4: stages[1], 8: stages[2], 16: stages[3]}
        found = {stride: of_stride[stride] for stride in self.strides}
        if self.config.aligned:
            found[PIXELS] = images.contiguous()
        if self.prior is not None and copies is not None and rebuilt is not None:
            found[GAP] = gap_maps(copies, rebuilt).contiguous()
            if self.config.response:
                found[RESPONSE] = F.avg_pool2d(self.prior(images), RESPONSE_STRIDE)
        return found


def flat(moments: Moments) -> dict[str, Tensor]:
    """Of each layer, its mean and variance by name."""
    found = {}
    for name, (mean, variance) in moments.items():
        found[f"{name}.mean"], found[f"{name}.variance"] = mean, variance
    return found


def nested(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """What ``flat`` took apart. Raises: KeyError: half of it is missing."""
    names = {name.rpartition(".")[0] for name in tensors}
    return {n: (tensors[f"{n}.mean"], tensors[f"{n}.variance"]) for n in sorted(names)}


def fit_moments(
    autoencoder: Autoencoder,
    prior: InstancePrior | None,
    support: Sequence[Tensor],
    config: PixelConfig,
) -> tuple[AutoencoderBackbone, list[dict[int, Tensor]]]:
    """A backbone by the moments of support images (1, 3, H, W) in [0, 1], and what it gives of
    them: the pass that finds the moments has it."""
    with torch.no_grad():
        stages, moments = autoencoder.read_stages(STAGES, *map(to_input, support))
        if prior is None:  # nothing is rebuilt
            backbone = AutoencoderBackbone(autoencoder, None, moments, {}, config)
            pairs = zip(support, stages, strict=True)
            return backbone, [backbone.maps_of(*pair, None, None) for pair in pairs]
        copies = torch.cat([small(image) for image in support])
        ((_, rebuilt),), small_moments = autoencoder.read_support(copies)
        backbone = AutoencoderBackbone(autoencoder, prior, moments, small_moments, config)
        return backbone, [
            backbone.maps_of(image, stages[i], copies[i : i + 1], rebuilt[i : i + 1])
            for i, image in enumerate(support)
        ]


def to_input(images: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> what the autoencoder takes, in [-1, 1]."""
    return (images * 2 - 1).contiguous(memory_format=torch.channels_last)


def small(images: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> the autoencoder's input (B, 3, 128, 128); aspect is not kept."""
    return to_input(shrink(images, REBUILT_SIDE))
