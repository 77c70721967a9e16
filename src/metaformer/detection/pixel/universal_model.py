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

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.detection.nearest_neighbors import as_columns, nearest_distance
from metaformer.detection.pixel.encoder_output import (
    CELL,
    FINE,
    LEVELS,
    TOKEN_CHANNELS,
    EncoderOutput,
    main_gap,
)
from metaformer.detection.pixel.support_memory import SupportMemory
from metaformer.networks.autoencoder import Autoencoder, AutoencoderConfig
from metaformer.networks.instance_prior import InstancePrior
from metaformer.networks.pixel_transformer import (
    GapTransformer,
    GapTransformerConfig,
    Response,
    grid_positions,
)

CUES = len(LEVELS) + 2
"""A token's log distance at each level, its log gap, and the log number of support images."""
FLOOR = 0.05
"""Keeps the logarithm of a ratio finite where a token is the same as one of the support."""
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
