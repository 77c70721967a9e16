"""The transformer (T): reads gap tokens beside normal ones, and corrects an anomaly map.

The layers are ours. The paper says that the transformer explores the reconstruction gap, attending
by the response map. Each query token is rebuilt by attention from the *values* of the support's
tokens: what normal tokens can rebuild is normal, and what is left over is a second gap beside
that of the autoencoder. The response map biases attention, ``logits + strength * log(R + eps)``,
and gates the output softly; textures have no foreground, so it never multiplies the map hard. Out
come a correction of the map, finer than the tokens, and one of the autoencoder's reconstruction.

Attention is written out. PyTorch's fused kernels have no second derivative, which MAML needs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RESPONSE_EPS = 1e-3
"""Keeps the logarithm of the response map finite; the least response then counts as a bias of -6.9
times the strength."""
WEAK_STRENGTH = -4.0
"""Start of the bias, before softplus: 0.018, so that the response map is an offer and not yet a
rule."""
Response = Literal["none", "gate", "bias", "both"]
"""What the response map does: nothing, gate the map, bias the attention's keys, or both."""
FREQUENCIES = (1, 2, 4)
"""Waves across the image by which a place is told."""
BLOCK_LOGITS = 2**19
"""Logits in work at once when no gradient is asked for: 2 MB, which stay in a processor's cache
through softmax and product. All at once (64 MB for four support images) it took 2.5 times as long
(``benchmarks.speed.engines``)."""


@dataclass(frozen=True)
class GapTransformerConfig:
    """Size of the transformer."""

    channels: int
    """Length of an incoming token."""
    cues: int = 1
    """Numbers that come with a token and say how unusual it is: distances and gaps."""
    fine: int = 2
    """The correction has ``fine`` x ``fine`` values for each token."""
    cell: int = 8
    """Pixels along a token's side, for the refined reconstruction."""
    width: int = 96
    heads: int = 4
    layers: int = 2
    support_attention: bool = True
    """Off for the ablation without support: the transformer then sees the query alone."""
    response: Response = "both"

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width % self.heads:
            raise ValueError(
                f"width: found {self.width} with {self.heads} heads; accepted are multiples of "
                f"the number of heads."
            )
        if self.response not in ("none", "gate", "bias", "both"):
            raise ValueError(
                f"response: found {self.response!r}; accepted are 'none', 'gate', 'bias' and "
                f"'both'."
            )


@dataclass(frozen=True)
class GapOutput:
    """The transformer's output for B images of N tokens."""

    correction: Tensor
    """(B, N, fine * fine): to be added to the anomaly map, row by row within a token."""
    gate: Tensor
    """(B, N) in [0, 1]: to be multiplied with the map."""
    residual: Tensor
    """(B, N, 3 * cell * cell): to be added to the autoencoder's reconstruction, channel by
    channel."""
    rebuilt: Tensor
    """(B, N, channels): each token as attention rebuilds it from the support's tokens."""


class ResponseBias(nn.Module):
    """``strength * log(R + eps)`` for each head, the strength learned and never negative."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.raw_strength = nn.Parameter(torch.full((heads,), WEAK_STRENGTH))

    def forward(self, response: Tensor) -> Tensor:
        """Response (B, K) of the keys -> bias (B, heads, 1, K)."""
        strength = F.softplus(self.raw_strength)[:, None, None]  # (heads, 1, 1)
        return strength * torch.log(response + RESPONSE_EPS)[:, None, None, :]


class Attention(nn.Module):
    """Multi-head attention, differentiable twice."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.bias = ResponseBias(heads)
        # Equal at first, so that each token attends to those like it.
        self.key.load_state_dict(self.query.state_dict())

    def forward(
        self, queries: Tensor, keys: Tensor, response: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Queries (B, N, W), keys (B, K, W), response (B, K) of the keys -> attended (B, N, W) and
        the attention's weights averaged over the heads (B, N, K)."""
        q, k, v = (
            self._split(self.query(queries)),
            self._split(self.key(keys)),
            self._split(self.value(keys)),
        )  # (B, heads, N or K, W / heads)
        q = q / math.sqrt(q.shape[-1])  # before the product: W / heads numbers a query, not K
        bias = None if response is None else self.bias(response)
        if torch.is_grad_enabled():
            attended, weights = attend(q, k, v, bias)
        else:
            block = max(1, BLOCK_LOGITS // k.shape[:-1].numel())
            parts = [attend(part, k, v, bias) for part in q.split(block, dim=2)]
            attended = torch.cat([part for part, _ in parts], dim=2)
            weights = torch.cat([part for _, part in parts], dim=1)
        return self.out(attended.transpose(1, 2).flatten(2)), weights

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Scaled queries (B, heads, N, D), keys and values (B, heads, K, D), bias (B, heads, 1, K) ->
    attended (B, heads, N, D) and the weights averaged over the heads (B, N, K)."""
    logits = q @ k.transpose(-1, -2)  # (B, heads, N, K)
    if bias is not None:
        logits = logits + bias
    weights = logits.softmax(-1)
    return weights @ v, weights.mean(1)


class Layer(nn.Module):
    """Attention among the query's tokens, then a perceptron; both residual, normalised before."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor, response: Tensor | None) -> Tensor:
        normed = self.attention_norm(x)
        x = x + self.attention(normed, normed, response)[0]
        rest: Tensor = self.mlp(self.mlp_norm(x))
        return x + rest


class GapTransformer(nn.Module):
    """The transformer over tokens of any kind: patches with their gaps, or tokens of a backbone.

    At the start of training corrections are zero and the gate is open, so that the transformer
    cannot begin worse than the map that it corrects.
    """

    def __init__(self, config: GapTransformerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.embed = nn.Linear(config.channels, width)
        self.place = nn.Linear(4 * len(FREQUENCIES), width, bias=False)
        nn.init.zeros_(self.place.weight)  # parts move; place counts only once it has proved to
        self.normal_norm = nn.LayerNorm(width)
        self.normal = Attention(width, config.heads)
        self.embed_gap = nn.Linear(config.channels, width)
        self.embed_cues = nn.Linear(config.cues, width)
        self.layers = nn.ModuleList(Layer(width, config.heads) for _ in range(config.layers))
        self.out_norm = nn.LayerNorm(width)
        self.correction = nn.Linear(width, config.fine**2)
        self.residual = nn.Linear(width, 3 * config.cell**2)
        for head in (self.correction, self.residual):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        self.openness = nn.Parameter(torch.ones(()))

    def forward(
        self,
        tokens: Tensor,
        cues: Tensor,
        positions: Tensor,
        support: Tensor,
        support_positions: Tensor,
        response: Tensor | None = None,
        support_response: Tensor | None = None,
    ) -> GapOutput:
        """Read B images against a support.

        Args:
            tokens: (B, N, channels) of the images in question.
            cues: (B, N, cues) how unusual each token is so far.
            positions: (N, 2) row and column of each token, in [0, 1].
            support: (M, channels) tokens of all support images.
            support_positions: (M, 2).
            response: (B, N) response map in [0, 1] at each token; None counts as 1 everywhere.
            support_response: (M,) the same for the support.

        Raises:
            ValueError: shapes do not fit each other.
        """
        count = len(tokens)
        check_tokens(tokens, cues, positions, support, support_positions, self.config)
        keyed = response if self.config.response in ("bias", "both") else None
        gating = response if self.config.response in ("gate", "both") else None

        x = self.embed(tokens) + self.place(waves(positions))  # (B, N, W)
        if self.config.support_attention:
            known = self.normal_norm(self.embed(support) + self.place(waves(support_positions)))
            known = known.expand(count, -1, -1)  # (B, M, W)
            bias = None
            if keyed is not None and support_response is not None:
                bias = support_response.expand(count, -1)  # (B, M)
            attended, weights = self.normal(self.normal_norm(x), known, bias)
            rebuilt = weights @ support  # (B, N, channels): a mean of normal tokens
            x = x + attended + self.embed_gap((tokens - rebuilt).abs())
        else:
            rebuilt = tokens
        x = x + self.embed_cues(cues)
        for layer in self.layers:
            x = layer(x, keyed)
        x = self.out_norm(x)  # (B, N, W)
        return GapOutput(
            correction=self.correction(x),
            gate=self._gate(tokens, gating),
            residual=self.residual(x),
            rebuilt=rebuilt,
        )

    def _gate(self, tokens: Tensor, response: Tensor | None) -> Tensor:
        """``openness + (1 - openness) * R``, (B, N)."""
        if response is None:
            return tokens.new_ones(tokens.shape[:2])
        # Kept in [0, 1], but a gradient passes at the ends too, or it could never come back.
        inside = self.openness.clamp(0, 1)
        openness = self.openness + (inside - self.openness).detach()
        return openness + (1 - openness) * response


def waves(positions: Tensor) -> Tensor:
    """Places (N, 2) in [0, 1] -> sines and cosines (N, 4 * len(FREQUENCIES))."""
    angles = torch.cat([math.pi * frequency * positions for frequency in FREQUENCIES], dim=-1)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def grid_positions(height: int, width: int) -> Tensor:
    """(height * width, 2) row and column of the cells' centres, in [0, 1], row by row."""
    rows = (torch.arange(height) + 0.5) / height
    columns = (torch.arange(width) + 0.5) / width
    return torch.cartesian_prod(rows, columns)


def check_tokens(
    tokens: Tensor,
    cues: Tensor,
    positions: Tensor,
    support: Tensor,
    support_positions: Tensor,
    config: GapTransformerConfig,
) -> None:
    """Raise ValueError unless the shapes are those that ``GapTransformer.forward`` names."""
    channels = config.channels
    if tokens.dim() != 3 or tokens.shape[2] != channels:
        raise ValueError(
            f"the transformer takes tokens (B, N, {channels}), got {tuple(tokens.shape)}."
        )
    if support.dim() != 2 or support.shape[1] != channels or not len(support):
        raise ValueError(
            f"the transformer takes support tokens (M, {channels}), got {tuple(support.shape)}."
        )
    expected = {
        "cues": (cues, (*tokens.shape[:2], config.cues)),
        "positions": (positions, (tokens.shape[1], 2)),
        "support_positions": (support_positions, (len(support), 2)),
    }
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"the transformer takes {name} of shape {shape}, got {tuple(tensor.shape)}."
            )
