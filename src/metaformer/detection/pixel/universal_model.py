"""The universal model: the autoencoder, the prior and the transformer in one forward pass, top to
bottom.

The autoencoder (A), fitted to a support, rebuilds an image. The gap between both, and the distance
of the autoencoder's features to the support's, make a first map of what is unusual; the transformer
(T) reads gap and features beside those of the support, led by the response map (R) of the prior
(P), and corrects map and reconstruction.

The paper names the three parts and their roles. What is a token, the first map and how the
transformer corrects it are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.detection.nearest_neighbors import as_columns, nearest_distance
from metaformer.detection.pixel.reconstruction_error import GAP_CHANNELS, gap_channels
from metaformer.networks.autoencoder import ENCODER_CHANNELS, Autoencoder, AutoencoderConfig
from metaformer.networks.instance_prior import InstancePrior
from metaformer.networks.pixel_transformer import (
    GapTransformer,
    GapTransformerConfig,
    Response,
    grid_positions,
)

LEVELS = (4, 8, 16)
"""Strides of the encoder stages that are compared with the support's."""
STAGES = (2, 4, 8, 16, 32)
"""Strides of the autoencoder's encoder stages."""
CELL = 8
"""Pixels along the side of a token of the transformer."""
FINE = 4
"""Pixels along the side of a value of the map."""
COMPARED_STAGES = STAGES.index(max(LEVELS)) + 1
"""Stages that the comparison with the support needs, from the first."""
LEVEL_CHANNELS = dict(zip(STAGES, ENCODER_CHANNELS[1:], strict=True))
TOKEN_CHANNELS = sum(LEVEL_CHANNELS[level] for level in LEVELS) + GAP_CHANNELS * (CELL // FINE) ** 2
CUES = len(LEVELS) + 2
"""A token's log distance at each level, its log gap, and the log number of support images."""
LEAST_SCALE = 0.01
"""Added to the units that distance and gap are measured in, near zero on a flat support."""
FLOOR = 0.05
"""Keeps the logarithm of a ratio finite where a token is the same as one of the support."""
SCALE_QUERIES, SCALE_MEMORY = 320, 8192
"""Where the support is compared with itself, this many tokens of an image stand for all of it, and
this many for all other images together; evenly spread."""
GAP_WEIGHT = 1 / 3
"""Weight of the gap in the first map, at the start of training; the levels share the rest."""


@dataclass(frozen=True)
class UniversalConfig:
    """Size and variant of the model."""

    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    width: int = 96
    heads: int = 4
    layers: int = 2
    transformer: bool = True
    """Off for the ablation without the transformer: the first map is the last."""
    support_attention: bool = True
    response: Response = "both"

    def gap_transformer(self) -> GapTransformerConfig:
        return GapTransformerConfig(
            channels=TOKEN_CHANNELS,
            cues=CUES,
            fine=CELL // FINE,
            cell=CELL,
            width=self.width,
            heads=self.heads,
            layers=self.layers,
            support_attention=self.support_attention,
            response=self.response,
        )


@dataclass(frozen=True)
class EncoderOutput:
    """Features, reconstruction gap and response map of B images of one size."""

    features: dict[int, Tensor]
    """Stride -> (B, C, h, w), unit length over C."""
    gap: Tensor | None
    """(B, GAP_CHANNELS, H / 4, W / 4), see ``gap_channels``; where the transformer is not to be
    asked, the absolute difference alone, (B, 3, H / 4, W / 4); None where it has no share in the
    map."""
    rebuilt: Tensor | None
    """(B, 3, H, W) in [-1, 1]; None where the gap is."""
    response: Tensor | None
    """(B, H / 8, W / 8): the response map in [0, 1]; None where the transformer is not to be
    asked."""
    images: Tensor | None = None
    """(B, 3, H, W) in [-1, 1]: what was read."""

    def tokens(self) -> Tensor:
        """(B, N, TOKEN_CHANNELS), N = H / 8 * W / 8, row by row.

        Raises:
            ValueError: the images were read without the response map.
        """
        if self.response is None or self.gap is None:
            raise ValueError(
                "The transformer needs the response map and all of the gap: read the images with a "
                "response."
            )
        size = self.response.shape[1:]
        parts = [
            F.interpolate(grid, size, mode="area" if level < CELL else "bilinear")
            * grid.shape[1] ** 0.5  # entries about 1, whatever the number of channels
            for level, grid in self.features.items()
        ]
        parts.append(F.pixel_unshuffle(self.gap, CELL // FINE))
        return torch.cat(parts, dim=1).flatten(2).transpose(1, 2)


@dataclass(frozen=True)
class SupportMemory:
    """What the model stores of the support images."""

    tokens: Tensor
    """(M, TOKEN_CHANNELS) for the transformer's attention; none, M = 0, where the transformer is
    not to be asked."""
    positions: Tensor
    """(M, 2)."""
    response: Tensor
    """(M,)."""
    features: dict[int, Tensor]
    """Stride -> (N, C), unit length."""
    distance_scale: Tensor
    """(levels + 1,): mean distance of one support image to the others, and mean gap: the units
    that distance and gap are measured in. (levels,) where the gap has no share in the map."""
    images: int
    """How many images the support has."""
    templates: tuple[Tensor, ...] = ()
    """Support images (3, H, W) in [-1, 1] to compare with pixel by pixel, where that is asked."""


@dataclass(frozen=True)
class Output:
    """Anomaly maps and reconstructions of B images."""

    anomaly: Tensor
    """(B, H / 4, W / 4): about 1 where all is normal."""
    first: Tensor
    """The same before the transformer."""
    refined: Tensor | None
    """(B, 3, H, W): the reconstruction after the transformer; None where the images were not
    rebuilt."""


class UniversalModel(nn.Module):
    """The autoencoder, the transformer and how their maps are mixed. The prior is given from
    outside: it is frozen."""

    def __init__(self, config: UniversalConfig | None = None) -> None:
        super().__init__()
        self.config = config or UniversalConfig()
        self.autoencoder = Autoencoder(self.config.autoencoder)
        self.transformer = (
            GapTransformer(self.config.gap_transformer()) if self.config.transformer else None
        )
        shares = torch.full((len(LEVELS) + 1,), (1 - GAP_WEIGHT) / len(LEVELS))
        shares[-1] = GAP_WEIGHT
        self.mix = nn.Parameter(shares.log())
        # Map -> logit of a defect, for the loss alone: anomaly 1 is normal, 3 is none.
        self.slope = nn.Parameter(torch.tensor(2.0))
        self.offset = nn.Parameter(torch.tensor(2.0))

    def logits(self, anomaly: Tensor) -> Tensor:
        """Map, any shape -> logit of a defect, the same shape."""
        return F.softplus(self.slope) * (anomaly - self.offset)

    def forward(self, query: EncoderOutput, memory: SupportMemory) -> Output:
        """Compare images with a support; the transformer is left out where they were read without
        the response map."""
        ratios = self.ratios(query, memory)  # levels or one more maps (B, h, w), each at its stride
        fine = query.features[FINE].shape[2:]
        shares = self.mix[: len(ratios)].softmax(0)
        # A doubling counts as much at any level; 1 where a ratio is 1.
        layers = torch.stack([torch.log2(1 + _resize(ratio, fine)) for ratio in ratios], dim=1)
        first = (layers * shares[:, None, None]).sum(1)  # (B, H / 4, W / 4)
        if self.transformer is None or query.response is None or query.rebuilt is None:
            return Output(first, first, query.rebuilt)

        rows, columns = size = query.response.shape[1:]
        log_ratios = [torch.log(_resize(ratio, size) + FLOOR) for ratio in ratios]
        count = torch.full_like(log_ratios[0], float(memory.images)).log()
        cues = torch.stack([*log_ratios, count], dim=-1).flatten(1, 2)  # (B, N, CUES)
        out = self.transformer(
            query.tokens(),
            cues,
            grid_positions(rows, columns).to(first.device),
            memory.tokens,
            memory.positions,
            query.response.flatten(1),
            memory.response,
        )
        grid = out.correction.transpose(1, 2).unflatten(2, (rows, columns))  # (B, 4, rows, columns)
        correction = F.pixel_shuffle(grid, CELL // FINE)[:, 0]  # (B, H / 4, W / 4)
        gate = _resize(out.gate.unflatten(1, (rows, columns)), fine)
        residual = out.residual.transpose(1, 2).unflatten(2, (rows, columns))
        refined = query.rebuilt + F.pixel_shuffle(residual, CELL)  # (B, 3, H, W)
        return Output((first + correction) * gate, first, refined)

    def ratios(self, query: EncoderOutput, memory: SupportMemory) -> list[Tensor]:
        """Distance at each level and, if it was read, gap, each (B, h, w), in units of what is
        typical."""
        maps = []
        units = memory.distance_scale[: len(LEVELS)]
        for unit, (level, grid) in zip(units, query.features.items(), strict=True):
            cells = grid.flatten(2).transpose(1, 2).flatten(0, 1)  # (B * h * w, C)
            distance = nearest_distance(
                cells, as_columns(memory.features[level], euclidean=False), euclidean=False
            )
            maps.append(distance.reshape(grid.shape[0], *grid.shape[2:]) / unit)
        if query.gap is not None:
            maps.append(main_gap(query) / memory.distance_scale[-1])
        return maps


def to_encoder_output(
    images: Tensor, stages: Sequence[Tensor], rebuilt: Tensor | None, response: Tensor | None
) -> EncoderOutput:
    """Put together what the autoencoder and the prior say; what only the transformer reads is left
    out without ``response``.

    Args:
        images: (B, 3, H, W) in [-1, 1].
        stages: the autoencoder's encoder stages, (B, C, H / 2^(i+1), W / 2^(i+1));
            ``COMPARED_STAGES`` or more.
        rebuilt: (B, 3, H, W), or None if the gap is to have no share.
        response: the response map, (B, 1, H, W) in [0, 1], or None.
    """
    features = {
        stride: F.normalize(stage.float(), dim=1)
        for stride, stage in zip(STAGES, stages, strict=False)
        if stride in LEVELS
    }
    if rebuilt is None:
        return EncoderOutput(features, None, None, None, images)
    rebuilt = rebuilt.float()
    if response is None:
        gap = F.avg_pool2d((images - rebuilt).abs(), FINE)
        return EncoderOutput(features, gap, rebuilt, None, images)
    gap = F.avg_pool2d(gap_channels(images, rebuilt), FINE)
    return EncoderOutput(features, gap, rebuilt, F.avg_pool2d(response.float(), CELL)[:, 0], images)


def crop(encoded: EncoderOutput, height: int, width: int) -> EncoderOutput:
    """Without what was padded at the bottom and on the right; multiples of 16 are left."""
    return EncoderOutput(
        {
            stride: grid[:, :, : height // stride, : width // stride]
            for stride, grid in encoded.features.items()
        },
        None if encoded.gap is None else encoded.gap[:, :, : height // FINE, : width // FINE],
        None if encoded.rebuilt is None else encoded.rebuilt[:, :, :height, :width],
        None
        if encoded.response is None
        else encoded.response[:, : height // CELL, : width // CELL],
        None if encoded.images is None else encoded.images[:, :, :height, :width],
    )


def build_memory(
    support: Sequence[EncoderOutput], distance_scale: Tensor | None = None
) -> SupportMemory:
    """Keep a support, given as encoder outputs of one or more images each; differentiable.

    Args:
        distance_scale: units, as in ``SupportMemory``, where they are not to be this support's own.
    """
    features = {
        level: [
            image.flatten(1).T for encoded in support for image in encoded.features[level]
        ]  # of (h * w, C)
        for level in LEVELS
    }
    if distance_scale is None:
        units = [mean_distance_between(features[level]) for level in LEVELS]
        gaps = [main_gap(encoded).flatten() for encoded in support if encoded.gap is not None]
        if gaps:
            units.append(torch.cat(gaps).mean())
        distance_scale = torch.stack(units) + LEAST_SCALE
    tokens, positions, response = (
        [distance_scale.new_zeros(0, TOKEN_CHANNELS)],
        [distance_scale.new_zeros(0, 2)],
        [],
    )
    for encoded in support:
        if encoded.response is not None:
            tokens.append(encoded.tokens().flatten(0, 1))
            grid = grid_positions(*encoded.response.shape[1:]).to(distance_scale.device)
            positions.append(grid.repeat(len(encoded.response), 1))
            response.append(encoded.response.flatten())
    return SupportMemory(
        tokens=torch.cat(tokens),
        positions=torch.cat(positions),
        response=torch.cat([distance_scale.new_zeros(0), *response]),
        features={level: torch.cat(images) for level, images in features.items()},
        distance_scale=distance_scale,
        images=sum(len(encoded.features[FINE]) for encoded in support),
    )


def mean_distance_between(images: Sequence[Tensor]) -> Tensor:
    """Mean distance of each image's features (n, C) to the nearest of the others'.

    One image is compared with itself, one half with the other.
    """
    if len(images) == 1:
        half = len(images[0]) // 2
        images = [images[0][:half], images[0][half:]]
    distances, rows, start = [], torch.cat(list(images)), 0
    for image in images:
        others = spread(torch.arange(len(rows) - len(image)), SCALE_MEMORY)
        others = others + len(image) * (others >= start)  # this image's own rows are skipped
        distances.append(
            nearest_distance(
                spread(image, SCALE_QUERIES),
                as_columns(rows[others], euclidean=False),
                euclidean=False,
            )
        )
        start += len(image)
    return torch.cat(distances).mean()


def spread(rows: Tensor, most: int) -> Tensor:
    """At most ``most`` of the rows (n, C), evenly spread."""
    return rows[:: -(-len(rows) // most)]


def main_gap(encoded: EncoderOutput) -> Tensor:
    """(B, H / 4, W / 4): mean absolute difference of image and reconstruction."""
    assert encoded.gap is not None
    difference = encoded.gap if encoded.response is None else encoded.gap[:, 6:9]
    return difference.mean(1)


def respond(prior: InstancePrior, images: Tensor) -> Tensor:
    """The response map (B, 1, H, W) of images (B, 3, H, W) in [-1, 1], without a gradient."""
    with torch.no_grad():
        return prior((images + 1) / 2)


def _resize(grid: Tensor, size: tuple[int, ...] | torch.Size) -> Tensor:
    """(B, h, w) -> (B, *size)."""
    if grid.shape[1:] == tuple(size):
        return grid
    mode = "area" if grid.shape[1] > size[0] else "bilinear"
    return F.interpolate(grid[:, None], tuple(size), mode=mode)[:, 0]
