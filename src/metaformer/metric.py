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
episodes of unlabelled photos (``training/metric.py``); ours, not the paper's. Before training the
maps keep distances, so it starts as the comparison without learning.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

FINE, COARSE, POOLED = "8", "16", "pooled"
READINGS = (FINE, COARSE, POOLED)
"""What is learned."""
CONTEXT, CONTEXT_STRIDE, CONTEXT_CHANNELS = "32", 32, 192
"""The first block of stride 32: what a larger part looks like. Compared by direction, as it is."""
CHANNELS = {8: 40, 16: 112}
"""Of EfficientNet-Lite0, the only backbone with a learned metric."""
POOLED_CHANNELS = 64
"""Kept of 152: the comparison of pooled tokens is the most work of all."""
POOL = 3
POOLED_LENGTH = 35.0
"""Of a typical pooled token, measured on the photos; they are divided by it."""
START_SHARES = (0.5, 1.0)
"""Of strides 8 and 16 in the cosine distance, as in the comparison without learning."""
FLOOR = 1e-3
"""Added to distances: logarithms of near zero would outvote the rest."""

WEIGHTS, CARD = "metric.safetensors", "metric.json"


class MetricWeightsError(ValueError):
    """Weights that cannot be used; the message says which and why."""


class TokenMetric(nn.Module):
    """Features of the backbone -> unit-length tokens, and their distances -> one map."""

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

    @torch.no_grad()
    def start_pooled(self, pooled: Tensor) -> None:
        """Begin the map of pooled tokens (N, 152) with their principal directions."""
        centred = pooled - pooled.mean(0)
        _, directions = torch.linalg.eigh(centred.T @ centred / len(pooled))  # ascending
        self.maps[POOLED].weight.copy_(directions.flip(1)[:, :POOLED_CHANNELS].T)

    def channels(self, reading: str) -> int:
        """Length of the tokens of ``reading``."""
        if reading == CONTEXT:
            return CONTEXT_CHANNELS
        return len(self.maps[reading].weight)

    def forward(self, features: dict[int, Tensor]) -> dict[str, Tensor]:
        """{8: (B, 40, h, w), 16: (B, 112, h / 2, w / 2)} -> reading -> (B, C, ...) tokens, of unit
        length where they are compared by direction. With {32: (B, 192, ...)} the context too."""
        fine = self._map(FINE, F.normalize(features[8], dim=1))  # (B, 40, h, w)
        coarse = self._map(COARSE, F.normalize(features[16], dim=1))  # (B, 112, h / 2, w / 2)
        pooled = self._map(POOLED, pool(features))  # (B, 64, h, w)
        tokens = {
            FINE: F.normalize(fine, dim=1),
            COARSE: F.normalize(coarse, dim=1),
            POOLED: pooled,
        }
        if CONTEXT_STRIDE in features:
            tokens[CONTEXT] = F.normalize(features[CONTEXT_STRIDE], dim=1)  # (B, 192, h / 4, w / 4)
        return tokens

    def _map(self, reading: str, x: Tensor) -> Tensor:
        return F.conv2d(x, self.maps[reading].weight[:, :, None, None])

    def shares(self) -> tuple[Tensor, Tensor]:
        """(2,) weights of strides 8 and 16 in the cosine distance, summing to 1; and the exponent
        of the Euclidean one, in (0, 1)."""
        return self.log_shares.softmax(0), self.balance.sigmoid()

    def join(
        self, distances: dict[str, Tensor], balance: float | None = None, context: float = 0.0
    ) -> Tensor:
        """Reading -> (..., h, w) distances on one grid -> (..., h, w) the map, above 0.

        Args:
            balance: exponent of the Euclidean distance in place of the learned one.
            context: what of stride 32 is added to the cosine distance, for each 1 of it.
        """
        weights, exponent = self.shares()
        if balance is not None:
            exponent = torch.full_like(exponent, balance)
        cosine = weights[0] * distances[FINE] + weights[1] * distances[COARSE]
        if context:
            cosine = (cosine + context * distances[CONTEXT]) / (1 + context)
        euclidean = distances[POOLED]
        return (cosine + FLOOR) ** (1 - exponent) * (euclidean + FLOOR) ** exponent


def pool(features: dict[int, Tensor]) -> Tensor:
    """Means of 3 x 3 cells of both strides, on the finer grid, about 1 long; zeros beyond the
    border."""
    coarse = F.interpolate(features[16], features[8].shape[2:], mode="bilinear")
    both = torch.cat([features[8], coarse], dim=1)  # (B, 152, h, w)
    return F.avg_pool2d(both / POOLED_LENGTH, POOL, stride=1, padding=POOL // 2)


def load_metric(folder: Path | None = None) -> TokenMetric:
    """The metric with its weights, frozen.

    Args:
        folder: what ``metaformer pretrain metric`` wrote; None for the package's own.

    Raises:
        MetricWeightsError: the file is missing or damaged, or holds something else.
    """
    place = resources.files("metaformer.weights") if folder is None else folder
    try:
        return metric_from_tensors(load_safetensors((place / WEIGHTS).read_bytes()))
    except Exception as error:
        raise MetricWeightsError(
            f"{place}: the weights of the metric cannot be used ({error}). Expected is {WEIGHTS} "
            f"as `metaformer pretrain metric` writes it."
        ) from error


def metric_from_tensors(tensors: dict[str, Tensor]) -> TokenMetric:
    """Raises: ValueError, RuntimeError: names, shapes or values are not those of a metric."""
    refuse_not_finite(tensors)
    metric = TokenMetric()
    metric.load_state_dict(tensors)
    return metric.requires_grad_(False).eval()


def refuse_not_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raises: ValueError: a weight is NaN or infinite; the message names the tensor."""
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} holds values that are not finite")
