"""The transformer T of the ``feature`` preset: reads the gap of tokens beside that of normal ones.

The gap of a token is how far it is from what is remembered, in each reading of the metric. What gap
is normal differs from product to product, and from place to place on one: edges vary, a plain
surface does not. So T is shown the support too, each of its images as the others see it, and every
token of an image attends to those tokens and their gaps before it attends to its neighbours. Out
comes a correction of the logarithm of the map, zero before training, so that T cannot begin worse
than the map without it. Ours; the paper's T reads the gap of a reconstruction
(``networks/gap_transformer.py``). P's response map is not asked here: it would take a third of an
image's time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.networks.gap_transformer import Attention, Layer
from metaformer.networks.patch_metric import CHANNELS, COARSE, FINE, FLOOR, POOLED, POOLED_CHANNELS
from metaformer.networks.weight_files import load_weights, refuse_not_finite

WEIGHTS, CARD = "token_transformer.safetensors", "token_transformer.json"
FINE_CELLS = 4
"""Cells of stride 8 to a token of stride 16."""
CUES = 3 * FINE_CELLS + 1
"""Logarithms of a token's distances: 4 of stride 8, 4 pooled, 1 of stride 16, 4 of all joined."""
CUE_CENTRES = {FINE: -2.0, POOLED: -1.0, COARSE: -2.0}
MAP_CENTRE = -1.5
"""About the means of those logarithms on the photos."""
CONTEXT = 2
"""How many images the support has, and how loud the map is on them, both as logarithms."""
MOST_SHOTS = 4
"""More support images than this were not seen in training, and count as so many."""
BOUND = 1.0
"""Largest correction of a logarithm."""
TOKEN_GAIN = 3.0
"""Tokens of stride 16 are of unit length, in 112 channels; this brings them to the size of cues."""

Grids = Mapping[str, Tensor]
"""Reading -> (B, C, h, w) tokens, or (B, h, w) distances."""


class TransformerWeightsError(ValueError):
    """Weights that cannot be used; the message says which and why."""


@dataclass(frozen=True)
class TokenTransformerConfig:
    width: int = 48
    heads: int = 4
    layers: int = 2
    token_dropout: float = 0.3
    """In training, of what is seen of the tokens themselves: products look unlike photos, and the
    gaps must say most."""


@dataclass(frozen=True)
class SeenImage:
    """A support image as T sees it."""

    tokens: Tensor
    """(N, W) its tokens and their gaps, embedded."""
    loudness: float
    """Mean logarithm of the map that the other images give of it."""


class SupportLayer(nn.Module):
    """Attention to the support's tokens, then a layer among the image's own."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.query_norm, self.support_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_support = Attention(width, heads)
        self.layer = Layer(width, heads)

    def forward(self, x: Tensor, support: Tensor) -> Tensor:
        """x (B, N, W), support (1, M, W) -> (B, N, W)."""
        keys = self.support_norm(support).expand(len(x), -1, -1)
        attended, _ = self.to_support(self.query_norm(x), keys, None)
        found: Tensor = self.layer(x + attended, None)
        return found


class TokenTransformer(nn.Module):
    """Tokens and distances of images, and of a support -> correction of the map's logarithm."""

    def __init__(self, config: TokenTransformerConfig | None = None) -> None:
        super().__init__()
        self.config = config or TokenTransformerConfig()
        width, heads = self.config.width, self.config.heads
        self.embed_cues = nn.Linear(CUES, width)
        self.embed_context = nn.Linear(CONTEXT, width, bias=False)
        self.embed_coarse = nn.Linear(CHANNELS[16], width, bias=False)
        self.embed_pooled = nn.Linear(POOLED_CHANNELS, width, bias=False)
        self.token_dropout = nn.Dropout(self.config.token_dropout)
        self.layers = nn.ModuleList(SupportLayer(width, heads) for _ in range(self.config.layers))
        self.out_norm = nn.LayerNorm(width)
        self.correction = nn.Linear(width, FINE_CELLS)
        nn.init.zeros_(self.correction.weight)
        nn.init.zeros_(self.correction.bias)

    def embed(self, tokens: Grids, distances: Grids, logarithm: Tensor) -> Tensor:
        """Images, or support images as the others see them, embedded: (B, N, W), row by row.

        Args:
            tokens: (B, C, h, w) of the readings of stride 16, (B, C, 2 h, 2 w) of the finer ones.
            distances: the same without C.
            logarithm: (B, 2 h, 2 w) of the map that the distances give.
        """
        cues = torch.cat(
            [
                to_tokens(log_distance(distances, FINE)),
                to_tokens(log_distance(distances, POOLED)),
                log_distance(distances, COARSE).flatten(1)[..., None],
                to_tokens(logarithm - MAP_CENTRE),
            ],
            dim=2,
        )  # (B, N, 13)
        coarse = TOKEN_GAIN * tokens[COARSE].flatten(2).transpose(1, 2)  # (B, N, 112)
        pooled = F.avg_pool2d(tokens[POOLED], 2).flatten(2).transpose(1, 2)  # (B, N, 64)
        seen: Tensor = self.embed_cues(cues)
        seen = seen + self.token_dropout(self.embed_coarse(coarse))
        return seen + self.token_dropout(self.embed_pooled(pooled))

    def context(self, support: Sequence[SeenImage]) -> Tensor:
        """(W,) what is the same for all tokens of an episode."""
        shots = math.log(min(len(support), MOST_SHOTS)) - math.log(2)
        loudness = sum(image.loudness for image in support) / len(support) - MAP_CENTRE
        embedded: Tensor = self.embed_context(
            self.embed_context.weight.new_tensor((shots, loudness))
        )
        return embedded

    def forward(self, x: Tensor, support: Sequence[SeenImage], size: tuple[int, int]) -> Tensor:
        """Images of h x w tokens, embedded (B, h * w, W) -> (B, 2 h, 2 w) corrections.

        Args:
            support: one image or more.
            size: h and w.
        """
        context = self.context(support)
        known = torch.cat([image.tokens for image in support])[None] + context  # (1, M, W)
        x = x + context
        for layer in self.layers:
            x = layer(x, known)
        corrections = self.correction(self.out_norm(x)).transpose(1, 2)  # (B, 4, h * w)
        corrections = BOUND * torch.tanh(corrections / BOUND)
        return F.pixel_shuffle(corrections.unflatten(2, size), 2)[:, 0]


def log_distance(distances: Grids, reading: str) -> Tensor:
    return (distances[reading] + FLOOR).log() - CUE_CENTRES[reading]


def to_tokens(grid: Tensor) -> Tensor:
    """(B, 2 h, 2 w) -> (B, h * w, 4): the fine cells of each token."""
    return F.pixel_unshuffle(grid[:, None], 2).flatten(2).transpose(1, 2)


def load_token_transformer(folder: Path | None = None) -> TokenTransformer:
    """T with its weights, frozen.

    Args:
        folder: what ``metaformer pretrain transformer`` wrote; None for the package's own.

    Raises:
        TransformerWeightsError: the file is missing or damaged, or holds something else.
    """
    return load_weights(
        "transformer", WEIGHTS, transformer_from_tensors, TransformerWeightsError, folder
    )


def transformer_from_tensors(tensors: Mapping[str, Tensor]) -> TokenTransformer:
    """Raises: ValueError, RuntimeError: names, shapes or values are not those of a transformer."""
    refuse_not_finite(tensors)
    transformer = TokenTransformer()
    transformer.load_state_dict(dict(tensors))
    return transformer.requires_grad_(False).eval()
