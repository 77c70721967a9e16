"""The meta-learned metric of the ``feature`` preset: in which space tokens are compared.

A product is adapted to by remembering its tokens, so what can be learned beforehand, from other
products, is how distances are to be read. Three readings of a backbone's features are mapped
linearly:

* ``8``, ``16``: single tokens of these strides, compared by direction (cosine), which light does
  not change;
* ``pooled``: means of 3 x 3 cells of both strides, compared by Euclidean distance as PatchCore
  does (Roth et al. 2022; zeros beyond the border quieten it), which also sees how strong features
  are.

The map is the weighted geometric mean of both kinds, which needs no common unit. Trained on
episodes of unlabelled photos (``training/metric/train.py``); ours, not the paper's. Before training
the maps keep distances, so it starts as the comparison without learning.

Beside what is learned are readings of the features as they are (``Shares``): stride 32 by
direction and by Euclidean distance, wider means of strides 8 and 16, and stride 8 at the same place
of other images. They mark pixels better than what is learned does alone
(``docs/decisions/05-fusion-weights.md``, ``06-position.md``).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.networks.weight_files import load_weights, refuse_not_finite

FINE, COARSE, POOLED = "8", "16", "pooled"
READINGS = (FINE, COARSE, POOLED)
"""What is learned."""
CONTEXT, CONTEXT_STRIDE, CONTEXT_CHANNELS = "32", 32, 192
"""The first block of stride 32: what a larger part looks like. Compared by direction."""
PART, PART_LENGTH = "part", 44.0
"""The same block by Euclidean distance; features are divided by their length, about."""
WIDE, WIDE_CHANNELS, WIDE_LENGTHS = "wide", 96, {8: 38.0, 16: 80.0}
"""Means of 4 x 4 cells of stride 8 and of 3 x 3 of stride 16, on the grid of stride 16, in their
principal directions on photos. The features of each stride are divided by a number that makes
stride 8 count half more than stride 16, and both together about 1 long."""
RAW = "raw"
"""Features of stride 8 as they are, divided by the length that wide tokens count them by. Compared
with what other images show at the same place, not with the nearest token anywhere."""
HERE = "here"
"""Not a reading of its own: tokens of stride 8, compared with those around the same place."""
SEARCHED = (*READINGS, WIDE, CONTEXT, PART)
"""What is compared with the nearest token wherever it lies; the finest grid first."""
ALL_READINGS = (*SEARCHED, RAW)
EUCLIDEAN = frozenset({POOLED, WIDE, PART, RAW})
"""Readings compared by Euclidean distance; the others by direction."""
CHANNELS = {8: 40, 16: 112}
"""Of EfficientNet-Lite0, the only backbone with a learned metric."""
POOLED_CHANNELS = 64
"""Kept of 152: the comparison of pooled tokens is the most work of all."""
POOL = 3
POOLED_LENGTH = 50.0
"""Of a typical pooled token, measured on the photos; they are divided by it."""
START_SHARES = (0.5, 1.0)
"""Of strides 8 and 16 in the cosine distance, as in the comparison without learning."""
IMAGES_A_POWER, MANY = 4, 16
"""What places say counts to the power of 1, and of 1 more for so many images, up to ``MANY``: more
are not asked what they show at a place (``docs/decisions/06-position.md``)."""
TINY = 1e-9
"""What sums of shares may be off by."""
FLOOR = 1e-3
"""Added to distances: logarithms of near zero would outvote the rest."""

WEIGHTS, CARD = "metric.safetensors", "metric.json"


class MetricWeightsError(ValueError):
    """Weights that cannot be used; the message says which and why."""


@dataclass(frozen=True)
class Shares:
    """How distances make one map: exponents of a product, which sum to 1 with that of the cosine
    distance. What is compared at the same place (``here``, ``raw``) takes its exponents of the
    whole; those of the rest are of what it leaves."""

    pooled: float | None = None
    """Of pooled tokens. None: what the metric has learned (0.495)."""
    wide: float = 0.0
    """Of wide tokens, with many normal images."""
    part: float = 0.0
    """A reading that no map has a share of is not computed."""
    context: float = 0.0
    """What of stride 32 is added to the cosine distance of strides 8 and 16, for each 1 of it."""
    context_added: float = 0.0
    """What ``context`` grows by with very many normal images, for each 1 of it; from ``MANY`` of
    them on, when it is half of that."""
    here: float = 0.0
    """Of tokens of stride 8 around the same place, where places say all
    (``detection/feature/position_memory.py``)."""
    raw: float = 0.0
    """Of the features of stride 8 at the same place."""

    def __post_init__(self) -> None:
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        amounts = [value for value in given.values() if value is not None]
        exponents = self.wide + self.part + (0.5 if self.pooled is None else self.pooled)
        are_amounts = all(math.isfinite(value) and value >= 0 for value in amounts)
        if not are_amounts or max(exponents, self.here + self.raw) > 1 + TINY:
            raise ValueError(
                f"shares of a map: found {given}; accepted are numbers of 0 and more, those of "
                f"pooled (None counts as a half), wide and part with a sum of 1 at most, and those "
                f"of here and raw."
            )

    def given(self, images: int, alignment: float) -> Shares:
        """With so many normal images, on which places say so much (0 to 1).

        Of one image, wide tokens cannot tell a defect from other light, and of a few not well. What
        they lack goes in halves to pooled tokens and to directions. The more images, the more is
        known of what is normal anywhere, and the more a place must say to be worth asking; and
        the more is known of larger parts, whose looks vary most.
        """
        lacking = self.wide / images
        pooled = None if self.pooled is None else self.pooled + lacking / 2
        here = self.here * alignment ** (1 + min(images, MANY) / IMAGES_A_POWER)
        known = images / (images + MANY) if images >= MANY else 0.0
        context = self.context * (1 + self.context_added * known)
        return replace(self, wide=self.wide - lacking, pooled=pooled, here=here, context=context)

    @property
    def readings(self) -> tuple[str, ...]:
        """Whose distances it takes, the finest grid first."""
        asked = {*READINGS, *self.unlearned} | ({CONTEXT} if self.context else set())
        if self.placed:
            asked.add(RAW)
        return tuple(name for name in ALL_READINGS if name in asked)

    @property
    def unlearned(self) -> dict[str, float]:
        """Exponents of what is compared by Euclidean distance as it is, above 0."""
        return {name: share for name, share in ((WIDE, self.wide), (PART, self.part)) if share}

    @property
    def placed(self) -> dict[str, float]:
        """Exponents of what is compared at the same place, above 0."""
        return {name: share for name, share in ((HERE, self.here), (RAW, self.raw)) if share}


LEARNED = Shares()
"""The map that the metric was trained to make."""


class TokenMetric(nn.Module):
    """Features of the backbone -> tokens, and their distances -> one map."""

    wide: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.maps: Mapping[str, nn.Linear] = nn.ModuleDict(  # type: ignore[assignment]
            {
                FINE: nn.Linear(CHANNELS[8], CHANNELS[8], bias=False),
                COARSE: nn.Linear(CHANNELS[16], CHANNELS[16], bias=False),
                POOLED: nn.Linear(sum(CHANNELS.values()), POOLED_CHANNELS, bias=False),
            }
        )
        for reading in (FINE, COARSE):
            nn.init.eye_(self.maps[reading].weight)
        self.log_shares = nn.Parameter(torch.tensor(START_SHARES).log())
        self.balance = nn.Parameter(torch.zeros(()))
        self.register_buffer("wide", torch.eye(WIDE_CHANNELS, sum(CHANNELS.values())))

    @torch.no_grad()
    def start_pooled(self, pooled: Tensor) -> None:
        """Begin the map of pooled tokens (N, 152) with their principal directions."""
        self.maps[POOLED].weight.copy_(principal_directions(pooled, POOLED_CHANNELS))

    def fit_wide(self, wide: Tensor) -> None:
        """Keep wide tokens (N, 152) by their principal directions. Nothing else is learned."""
        self.wide.copy_(principal_directions(wide, WIDE_CHANNELS))

    def channels(self, reading: str) -> int:
        """Length of the tokens of ``reading``."""
        if reading in (CONTEXT, PART):
            return CONTEXT_CHANNELS
        if reading == WIDE:
            return WIDE_CHANNELS
        if reading == RAW:
            return CHANNELS[8]
        return len(self.maps[reading].weight)

    def forward(
        self, features: dict[int, Tensor], readings: Collection[str] = READINGS
    ) -> dict[str, Tensor]:
        """{8: (B, 40, h, w), 16: (B, 112, h / 2, w / 2)} -> reading -> (B, C, ...) tokens, of unit
        length where they are compared by direction.

        Args:
            features: with 32, (B, 192, h / 4, w / 4), where a reading of that stride is asked for.
            readings: which ones besides what is learned.
        """
        fine = self._map(FINE, F.normalize(features[8], dim=1))  # (B, 40, h, w)
        coarse = self._map(COARSE, F.normalize(features[16], dim=1))  # (B, 112, h / 2, w / 2)
        pooled = self._map(POOLED, pool(features))  # (B, 64, h, w)
        tokens = {
            FINE: F.normalize(fine, dim=1),
            COARSE: F.normalize(coarse, dim=1),
            POOLED: pooled,
        }
        if WIDE in readings:
            wide = pool_wide(features)  # (B, 152, h / 2, w / 2)
            tokens[WIDE] = mapped(wide, self.wide)  # (B, 96, h / 2, w / 2)
        if CONTEXT in readings:
            tokens[CONTEXT] = F.normalize(features[CONTEXT_STRIDE], dim=1)  # (B, 192, h / 4, w / 4)
        if PART in readings:
            tokens[PART] = features[CONTEXT_STRIDE] / PART_LENGTH  # (B, 192, h / 4, w / 4)
        if RAW in readings:
            tokens[RAW] = features[8] / WIDE_LENGTHS[8]  # (B, 40, h, w)
        return tokens

    def _map(self, reading: str, x: Tensor) -> Tensor:
        return mapped(x, self.maps[reading].weight)

    def shares(self) -> tuple[Tensor, Tensor]:
        """(2,) weights of strides 8 and 16 in the cosine distance, summing to 1; and the exponent
        of the Euclidean one, in (0, 1)."""
        return self.log_shares.softmax(0), self.balance.sigmoid()

    def join(self, distances: dict[str, Tensor], shares: Shares = LEARNED) -> Tensor:
        """Reading -> (..., h, w) distances on one grid -> (..., h, w) the map, above 0."""
        weights, exponent = self.shares()
        if shares.pooled is not None:
            exponent = torch.full_like(exponent, shares.pooled)
        cosine = weights[0] * distances[FINE] + weights[1] * distances[COARSE]
        if shares.context:
            cosine = (cosine + shares.context * distances[CONTEXT]) / (1 + shares.context)
        rest = 1 - exponent - shares.wide - shares.part
        joined = (cosine + FLOOR) ** rest * (distances[POOLED] + FLOOR) ** exponent
        for reading, share in shares.unlearned.items():
            joined = joined * (distances[reading] + FLOOR) ** share
        if shares.placed:
            joined = joined ** (1 - sum(shares.placed.values()))
        for reading, share in shares.placed.items():
            joined = joined * (distances[reading] + FLOOR) ** share
        return joined


def mapped(x: Tensor, weight: Tensor) -> Tensor:
    """(B, C, h, w) cell by cell times (D, C) -> (B, D, h, w); channels last is fastest."""
    return F.linear(x.permute(0, 2, 3, 1), weight).permute(0, 3, 1, 2)


def pool(features: dict[int, Tensor]) -> Tensor:
    """Means of 3 x 3 cells of both strides, on the finer grid, about 1 long; zeros beyond the
    border."""
    coarse = F.interpolate(features[16], features[8].shape[2:], mode="bilinear")
    both = torch.cat([features[8], coarse], dim=1)  # (B, 152, h, w)
    return F.avg_pool2d(both / POOLED_LENGTH, POOL, stride=1, padding=POOL // 2)


def pool_wide(features: dict[int, Tensor]) -> Tensor:
    """(B, 152, h / 2, w / 2) wider means, stride 8 the louder; zeros beyond the border."""
    fine = F.avg_pool2d(features[8] / WIDE_LENGTHS[8], 4, stride=2, padding=1)
    coarse = F.avg_pool2d(features[16] / WIDE_LENGTHS[16], POOL, stride=1, padding=POOL // 2)
    return torch.cat([fine, coarse], dim=1)


def principal_directions(tokens: Tensor, count: int) -> Tensor:
    """Tokens (N, C) -> (count, C), the direction they vary most in first."""
    centred = tokens - tokens.mean(0)
    _, directions = torch.linalg.eigh(centred.T @ centred / len(tokens))  # ascending
    return directions.flip(1)[:, :count].T.contiguous()


def load_metric(folder: Path | None = None) -> TokenMetric:
    """The metric with its weights, frozen.

    Args:
        folder: what ``metaformer pretrain metric`` wrote; None for the package's own.

    Raises:
        MetricWeightsError: the file is missing or damaged, or holds something else.
    """
    return load_weights("metric", WEIGHTS, metric_from_tensors, MetricWeightsError, folder)


def metric_from_tensors(tensors: dict[str, Tensor]) -> TokenMetric:
    """Raises: ValueError, RuntimeError: names, shapes or values are not those of a metric."""
    refuse_not_finite(tensors)
    metric = TokenMetric()
    before_wide = {"wide": metric.wide}  # of a file from before there were such tokens
    metric.load_state_dict(before_wide | tensors)
    return metric.requires_grad_(False).eval()
