"""The autoencoder (A): Table 1 of the paper's supplement.

A reads an image and rebuilds it through a code of 2 x 2 x 512 numbers, too few to hold a defect
it has never seen. What it cannot rebuild is the reconstruction gap.

Table 1 fixes every layer and output size. It leaves open the normalisation at test time, the
last activation and the kind of upsampling; ``AutoencoderConfig`` names our reading of each.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ENCODER_CHANNELS = (3, 32, 64, 128, 256, 512)
DECODER_CHANNELS = (512, 256, 128, 64, 32, 3)
KERNEL = 5
PADDING = 2
BOTTLENECK_POOL = 4
"""Table 1's AvgPool, 8 x 8 to 2 x 2 at 256 pixels. The kernel is fixed, not adaptive, so that
other sizes come back at their own size (paper-independent: 4x4 and adaptive agree at 256)."""
SIZE_MULTIPLE = 128
"""Five max pools and the average pool divide each side by 2^5 * 4."""

SUPPORT_EPS = 1e-2
"""Added to the support's variance. Larger than batch normalisation's usual 1e-5: the code of one
image at 128 pixels is one value, whose variance over the support is zero."""

Norm = Literal["support", "group"]
Moments = Mapping[str, tuple[Tensor, Tensor]]
"""Layer name -> (mean, variance), each of shape (C,): see ``SupportNorm``."""
Record = dict[str, tuple[Tensor, Tensor]] | None
"""Where a pass over the support writes its moments; None on any other pass."""


@dataclass(frozen=True)
class AutoencoderConfig:
    """Choices that Table 1 leaves open. The defaults give 8,711,747 parameters."""

    norm: Norm = "support"
    """``support``: batch normalisation by the moments of the support images.
    ``group``: group normalisation, which needs no support."""
    last: Literal["linear", "literal"] = "linear"
    """``literal`` follows the sentence "each convolutional layer is followed by batch
    normalization, leaky ReLU" to the last layer too; ``linear`` gives T.Conv5 a bias alone."""
    upsample: Literal["bilinear", "nearest"] = "bilinear"
    slope: float = 0.2
    """Negative slope of the leaky ReLU; the paper gives none, 0.2 is what the same group's
    critic uses (VEGAN)."""


class SupportNorm(nn.Module):
    """Batch normalisation whose moments come from the support images and from nothing else.

    The paper's batch normalisation, used as is, makes the score of an image depend on the other
    images in its batch. Here a pass over the support *computes* moments and every other pass
    *uses* given ones, so that a score depends on its image and the support alone.
    """

    def __init__(self, channels: int, eps: float = SUPPORT_EPS) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, moments: tuple[Tensor, Tensor] | None) -> Tensor:
        """Normalise ``x`` (B, C, H, W) by ``moments`` or, if None, by its own batch moments."""
        if moments is None:
            return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)
        mean, variance = moments
        scale = self.weight * torch.rsqrt(variance + self.eps)  # (C,)
        shift = self.bias - mean * scale  # (C,)
        return x * scale.to(x.dtype)[:, None, None] + shift.to(x.dtype)[:, None, None]


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation with 8 channels a group at least where there are that many."""
    return nn.GroupNorm(min(32, max(1, channels // 8)), channels)


class Autoencoder(nn.Module):
    """A of the paper: (B, 3, H, W) in [-1, 1] -> reconstruction of the same shape.

    H and W must be multiples of 128; at 256 x 256 every shape is the one of Table 1.

    With ``norm="support"`` call ``support_moments`` on the support images first and hand the
    result to ``forward``. Without moments, ``forward`` normalises by the batch it is given: that
    is right for a batch of support images in training and for nothing else.

    Raises:
        ValueError: the input's shape is not (B, 3, H, W) with H and W multiples of 128.
    """

    def __init__(self, config: AutoencoderConfig | None = None) -> None:
        super().__init__()
        self.config = config or AutoencoderConfig()
        literal = self.config.last == "literal"

        self.encoder_convs = nn.ModuleList(
            nn.Conv2d(c_in, c_out, KERNEL, padding=PADDING, bias=False)
            for c_in, c_out in itertools.pairwise(ENCODER_CHANNELS)
        )
        # At stride 1 a transposed convolution is a convolution with mirrored weights; it is kept
        # transposed so that the weights have the layout the table's names imply.
        self.decoder_convs = nn.ModuleList(
            nn.ConvTranspose2d(
                c_in, c_out, KERNEL, padding=PADDING, bias=c_out == 3 and not literal
            )
            for c_in, c_out in itertools.pairwise(DECODER_CHANNELS)
        )
        make_norm = SupportNorm if self.config.norm == "support" else group_norm
        self.encoder_norms = nn.ModuleList(make_norm(c) for c in ENCODER_CHANNELS[1:])
        self.decoder_norms = nn.ModuleList(
            make_norm(c) for c in DECODER_CHANNELS[1:] if c != 3 or literal
        )

    def forward(self, x: Tensor, moments: Moments | None = None) -> Tensor:
        return self.decode(self.encode(x, moments)[-1], moments)

    def support_moments(self, *support: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Moments of every normalised layer over the support, differentiable.

        Args:
            support: batches (K_i, 3, H_i, W_i), one per image size. They go through the network
                together, each layer normalised by its moments over all of their pixels.

        Returns:
            Layer name -> (mean, variance), each (C,). Empty for ``group``.
        """
        return self.read_support(*support)[1]

    def read_support(
        self, *support: Tensor
    ) -> tuple[list[tuple[list[Tensor], Tensor]], dict[str, tuple[Tensor, Tensor]]]:
        """``read`` of each batch of ``support_moments``, and the moments over all, in one pass."""
        record: dict[str, tuple[Tensor, Tensor]] = {}
        *stages, code = self._encode(list(support), None, record)
        rebuilt = self._decode(code, None, record)
        batches = [([stage[i] for stage in stages], x) for i, x in enumerate(rebuilt)]
        return batches, record

    def read_stages(
        self, count: int, *batches: Tensor, moments: Moments | None = None
    ) -> tuple[list[list[Tensor]], dict[str, tuple[Tensor, Tensor]]]:
        """The first ``count`` encoder stages of each batch, and nothing that comes after them.

        Without ``moments`` the batches (B_i, 3, H_i, W_i) are a support: they are normalised by
        moments over all of them, which are returned. Sides are multiples of 2^count.
        """
        for x in batches:
            check_input(x, 2**count)
        record: dict[str, tuple[Tensor, Tensor]] | None = {} if moments is None else None
        stages = self._stages(list(batches), count, moments, record)
        return [[stage[i] for stage in stages] for i in range(len(batches))], record or {}

    def read(
        self, x: Tensor, moments: Moments | None = None
    ) -> tuple[list[Tensor], Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """What the transformer reads, in one pass: the encoder's stages, the reconstruction and the
        moments.

        Without ``moments``, ``x`` is a support: it is normalised by its own, which are returned.
        """
        record: dict[str, tuple[Tensor, Tensor]] | None = {} if moments is None else None
        *stages, code = self._encode([x], moments, record)
        (rebuilt,) = self._decode(code, moments, record)
        return [stage for (stage,) in stages], rebuilt, record or {}

    def encode(self, x: Tensor, moments: Moments | None = None) -> list[Tensor]:
        """Outputs of the five encoder stages, (B, 32 * 2^i, H / 2^(i+1), W / 2^(i+1)), then the
        code (B, 512, H / 128, W / 128)."""
        return [stage for (stage,) in self._encode([x], moments, None)]

    def decode(self, code: Tensor, moments: Moments | None = None) -> Tensor:
        """Code (B, 512, H / 128, W / 128) -> reconstruction (B, 3, H, W)."""
        (rebuilt,) = self._decode([code], moments, None)
        return rebuilt

    # Below, a list holds one tensor per image size; any pass but that over a support has one.

    def _encode(
        self, images: list[Tensor], moments: Moments | None, record: Record
    ) -> list[list[Tensor]]:
        for x in images:
            check_input(x, SIZE_MULTIPLE)
        features = self._stages(images, len(self.encoder_convs), moments, record)
        # (B, 512, H / 128, W / 128): the code
        features.append([F.avg_pool2d(x, BOTTLENECK_POOL) for x in features[-1]])
        return features

    def _stages(
        self, images: list[Tensor], count: int, moments: Moments | None, record: Record
    ) -> list[list[Tensor]]:
        features = []
        # Pooling before the activation gives the same numbers (leaky ReLU is increasing) and
        # keeps a quarter of the activations.
        xs = images
        for i, conv in enumerate(self.encoder_convs[:count]):
            xs = [conv(x) for x in xs]  # (B, 32 * 2^i, H / 2^i, W / 2^i)
            xs = self._normalise(f"encoder.{i}", self.encoder_norms[i], xs, moments, record)
            # (B, 32 * 2^i, H / 2^(i+1), W / 2^(i+1))
            xs = [F.leaky_relu(F.max_pool2d(x, 2), self.config.slope) for x in xs]
            features.append(xs)
        return features

    def _decode(self, codes: list[Tensor], moments: Moments | None, record: Record) -> list[Tensor]:
        xs = codes
        for i, conv in enumerate(self.decoder_convs):
            # (B, 512 / 2^i, 16 * 2^i, ...) at 256, then (B, 256 / 2^i or 3, 16 * 2^i, ...)
            xs = [conv(self._upsample(x, 8 if i == 0 else 2)) for x in xs]
            if i < len(self.decoder_norms):
                xs = self._normalise(f"decoder.{i}", self.decoder_norms[i], xs, moments, record)
                xs = [F.leaky_relu(x, self.config.slope) for x in xs]
        return xs  # (B, 3, H, W)

    def _normalise(
        self,
        name: str,
        norm: nn.Module,
        xs: list[Tensor],
        moments: Moments | None,
        record: Record,
    ) -> list[Tensor]:
        if not isinstance(norm, SupportNorm):
            return [norm(x) for x in xs]
        if record is not None:
            record[name] = joint_moments([x.to(norm.weight.dtype) for x in xs])
            return [norm(x, record[name]) for x in xs]
        return [norm(x, None if moments is None else moments[name]) for x in xs]

    def _upsample(self, x: Tensor, factor: int) -> Tensor:
        if self.config.upsample == "nearest":
            return F.interpolate(x, scale_factor=factor, mode="nearest")
        return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


def check_input(x: Tensor, multiple: int) -> None:
    """Raise ValueError unless ``x`` is (B, 3, H, W) with sides that the autoencoder can halve and
    restore."""
    if x.dim() != 4 or x.shape[1] != 3:
        raise ValueError(f"the autoencoder takes images (B, 3, H, W), got {tuple(x.shape)}.")
    height, width = x.shape[2:]
    if height % multiple or width % multiple or not height or not width:
        raise ValueError(
            f"the autoencoder takes multiples of {multiple}, got {height} x {width}. "
            f"Resize or pad the image first."
        )


def joint_moments(xs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and variance (C,) over all pixels of tensors (B_i, C, H_i, W_i)."""
    sizes = [x.numel() / x.shape[1] for x in xs]
    total = sum(sizes)
    parts = [torch.var_mean(x, dim=(0, 2, 3), correction=0) for x in xs]
    mean = sum((size / total) * m for size, (_, m) in zip(sizes, parts, strict=True))
    spread = sum(
        (size / total) * (v + (m - mean) ** 2) for size, (v, m) in zip(sizes, parts, strict=True)
    )
    assert isinstance(mean, Tensor) and isinstance(spread, Tensor)
    return mean, spread
