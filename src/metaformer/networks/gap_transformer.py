"""The transformer (T): looks at an image beside its support and corrects the core's anomaly map.

A distance to the nearest support patch is a number without an opinion: at stride 8 it marks a pit
of three pixels, at stride 32 a crack across the image, and no fixed weights serve both. The
transformer sees the distances of all strides, each against what the support's own images show when
left out; the gap between the query's features and what soft attention rebuilds of them from the
support's; and the features themselves, standardised by the support. Out comes a correction of the
logarithm of the core's map. It is zero at the start of training, so that the transformer cannot
begin worse than the core.

The interface knows no backbone: any channels at strides 8 and 16, any list of distances.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.networks.support_description import (
    CLIP,
    COARSE,
    FINE,
    FLOOR,
    SupportDescription,
    standardised,
)

RESPONSE_EPS = 1e-3
BOUND = 2.0
"""Largest correction of a logarithm, either way."""
BOUND_WHERE_SURE = 0.5
"""Largest one downwards where the core is far above all that the support shows: what nobody has
seen before, such as a blank frame, must not be explained away."""
SURE = (math.log(1.5), 6.0)
"""Where the bound changes, as logarithm of core over the support's loudest, and how steeply."""


@dataclass(frozen=True)
class GapTransformerConfig:
    channels: Mapping[int, int]
    """Channels of the feature maps at strides 8 and 16."""
    distances: int
    """Number of distance maps beside the core's map."""
    gaps: int = 0
    """Number of maps of the gap between an image and its reconstruction, behind the distances."""
    width: int = 96
    heads: int = 4
    fine_width: int = 40
    gap_width: int = 16
    appearance_width: int = 12
    """What is kept of a patch's gap and of its standardised features, in numbers."""
    appearance_dropout: float = 0.5
    """In training, of the features' channels: raw appearance does not carry over to products."""


class Rebuild(nn.Module):
    """Features rebuilt from the support's by soft attention over squared distances.

    ``trust`` weights the support image that fits the query best: if it is large, only that image
    is used.
    """

    def __init__(self) -> None:
        super().__init__()
        self.raw_sharpness = nn.Parameter(torch.tensor(8.0))
        self.raw_trust = nn.Parameter(torch.tensor(0.0))

    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        """Standardised queries (B, N, C) and keys (k, m, C) -> (B, N, C)."""
        images, each, channels = keys.shape
        flat = keys.flatten(0, 1)  # (k * m, C)
        scale = F.softplus(self.raw_sharpness) / channels
        # Minus the squared distance, sharpened, but for what is the same for all keys.
        logits = F.linear(query, 2 * scale * flat, -scale * flat.square().sum(1))  # (B, N, k * m)
        # Reshaped to sizes that an exported graph leaves free.
        of_image = logits.reshape(*logits.shape[:2], images, each)  # (B, N, k, m)
        fit = of_image.amax(3).mean(1)  # (B, k)
        bias = F.softplus(self.raw_trust) * (fit - fit.amax(1, keepdim=True))  # 0 for the best
        return (of_image + bias[:, None, :, None]).flatten(2).softmax(2) @ flat


class SelfAttention(nn.Module):
    """A layer of self-attention and a perceptron; keys are biased by the response map."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.to_qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.raw_strength = nn.Parameter(torch.tensor(-2.0))
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor, response: Tensor | None) -> Tensor:
        """Tokens (B, N, W), response (B, N) in [0, 1] -> (B, N, W)."""
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in self.to_qkv(self.norm(x)).chunk(3, dim=2)
        )  # (B, heads, N, W / heads) each
        logits = (q / math.sqrt(q.shape[3])) @ k.transpose(2, 3)  # (B, heads, N, N)
        if response is not None:
            strength = F.softplus(self.raw_strength)
            logits = logits + strength * (response + RESPONSE_EPS).log()[:, None, None]
        x = x + self.out((logits.softmax(3) @ v).transpose(1, 2).flatten(2))
        rest: Tensor = self.mlp(x)
        return x + rest


class GapTransformer(nn.Module):
    """The transformer; see the module's text. The score of an image does not depend on its
    batch."""

    def __init__(self, config: GapTransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.reads_gap = True
        """Set to False, the network does not know where features differ from what is rebuilt of
        them, nor where an image differs from its reconstruction: to see what the gap is worth."""
        width, fine = config.width, config.fine_width
        strides = (FINE, COARSE)
        self.rebuild = nn.ModuleDict({str(s): Rebuild() for s in strides})
        self.gap = nn.ModuleDict(
            {str(s): nn.Linear(config.channels[s], config.gap_width) for s in strides}
        )
        self.appearance = nn.ModuleDict(
            {str(s): nn.Linear(config.channels[s], config.appearance_width) for s in strides}
        )
        maps = config.distances + config.gaps + 1
        of_patch = config.gap_width + 1 + config.appearance_width
        self.fine_in = nn.Conv2d(maps + of_patch + 1, fine, 1)
        self.coarse_in = nn.Conv2d(2 * maps + of_patch + 2, width, 1)
        self.coarse_conv = nn.Conv2d(width, width, 3, padding=1)
        self.attention = SelfAttention(width, config.heads)
        self.down_width = nn.Linear(width, fine)
        self.fine_conv = nn.Conv2d(fine, fine, 3, padding=1)
        self.fine_conv_2 = nn.Conv2d(fine, fine, 3, padding=1)
        self.narrow = nn.Conv2d(fine, 16, 1)
        self.out_conv = nn.Conv2d(16, 16, 3, padding=1)
        self.out = nn.Conv2d(16, 1, 1)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self,
        features: Mapping[int, Tensor],
        distances: Tensor,
        core: Tensor,
        support: SupportDescription,
        response: Tensor | None = None,
    ) -> Tensor:
        """Correction of the logarithm of the core's map, (B, 1, 2 h, 2 w).

        Args:
            features: stride -> (B, C, h_s, w_s) of the query images.
            distances: (B, D, h, w) to the nearest support patch, then the gaps, not negative, on
                the grid of stride 8.
            core: (B, 1, h, w) the core's map, positive.
            support: of ``describe_support``.
            response: (B, 1, any, any) response map in [0, 1], 1 on the object; None biases nothing.
        """
        size = (features[FINE].shape[2], features[FINE].shape[3])
        coarse_size = (features[COARSE].shape[2], features[COARSE].shape[3])
        log_core = (core + FLOOR).log()
        logs = torch.cat([(distances.clamp_min(0) + FLOOR).log(), log_core], dim=1)
        centre, spread = support.log_mean[:, None, None], support.log_deviation[:, None, None]
        logs = ((logs - centre) / spread).clamp(-CLIP, CLIP) / 2  # (B, D + 1, h, w)
        if self.config.gaps and not self.reads_gap:
            distances_only = self.config.distances
            gaps = torch.zeros_like(logs[:, distances_only:-1])
            logs = torch.cat([logs[:, :distances_only], gaps, logs[:, -1:]], dim=1)
        if response is None:
            fine_response = torch.zeros_like(core)
            coarse_response = torch.zeros_like(features[COARSE][:, :1])
            key_response = None
        else:
            fine_response = F.interpolate(response, size, mode="bilinear")
            coarse_response = F.interpolate(response, coarse_size, mode="bilinear")
            key_response = coarse_response.flatten(1)  # (B, N)

        fine = torch.cat([logs, self._patches(features, support, FINE), fine_response], dim=1)
        mean = F.interpolate(F.avg_pool2d(logs, 2, ceil_mode=True), coarse_size)
        highest = F.interpolate(F.max_pool2d(logs, 2, ceil_mode=True), coarse_size)
        images = torch.ones_like(support.keys[COARSE][:, 0, 0]).sum()
        shots = (images.log2() / 3).expand_as(coarse_response)
        patches = self._patches(features, support, COARSE)
        coarse = torch.cat([mean, highest, patches, coarse_response, shots], dim=1)

        x = self.coarse_in(coarse)  # (B, W, h / 2, w / 2)
        x = x + self.coarse_conv(F.gelu(x))
        tokens = self.attention(x.flatten(2).transpose(1, 2), key_response)  # (B, N, W)
        x = self.down_width(tokens).transpose(1, 2).unflatten(2, coarse_size)
        y = self.fine_in(fine) + F.interpolate(x, size, mode="bilinear")  # (B, F, h, w)
        y = y + self.fine_conv(F.gelu(y))
        y = y + self.fine_conv_2(F.gelu(y))
        y = F.interpolate(self.narrow(F.gelu(y)), scale_factor=2, mode="bilinear")
        raw = self.out(F.gelu(self.out_conv(y)))  # (B, 1, 2 h, 2 w)
        correction = bounded(raw, enlarged(log_core), support.loudest)
        # A correction says where to look within the image. The level of the image is the core's:
        # what the transformer would add to it differs between good images, and lost images their
        # order. The shipped weights were trained without this.
        if self.training:
            return correction
        centred = correction - correction.mean((2, 3), keepdim=True)
        return torch.maximum(centred, -most_downwards(enlarged(log_core), support.loudest))

    def _patches(
        self, features: Mapping[int, Tensor], support: SupportDescription, stride: int
    ) -> Tensor:
        """(B, G + 1 + A, h, w): the gap in a few numbers and in one, and the appearance."""
        x = features[stride]
        size, name = (x.shape[2], x.shape[3]), str(stride)
        rows = standardised(
            x.flatten(2).transpose(1, 2), support.mean[stride], support.deviation[stride]
        )  # (B, N, C)
        gap = (rows - self.rebuild[name](rows, support.keys[stride])).abs()
        size_of_gap = (gap.square().mean(2, keepdim=True) + 1e-3).log()
        seen = rows
        if self.training and self.config.appearance_dropout > 0:
            share = self.config.appearance_dropout
            seen = F.dropout1d(rows.transpose(1, 2), share).transpose(1, 2)  # whole channels
        found = [self.gap[name](gap), size_of_gap]
        if not self.reads_gap:
            found = [part.mean(1, keepdim=True).expand_as(part) for part in found]
        found.append(self.appearance[name](seen))
        return torch.cat(found, dim=2).transpose(1, 2).unflatten(2, size)


def bounded(raw: Tensor, log_core: Tensor, loudest: Tensor) -> Tensor:
    """``raw`` within ``BOUND``; downwards within less where the core is sure."""
    down = most_downwards(log_core, loudest)
    bound = torch.where(raw < 0, down, torch.full_like(down, BOUND))
    return bound * torch.tanh(raw / bound)


def most_downwards(log_core: Tensor, loudest: Tensor) -> Tensor:
    """Largest correction downwards, above 0, by the logarithm of the core's map."""
    where, steepness = SURE
    sure = torch.sigmoid(steepness * (log_core - loudest - where))
    return BOUND + (BOUND_WHERE_SURE - BOUND) * sure


def enlarged(maps: Tensor) -> Tensor:
    """(B, 1, h, w) of stride 8 to stride 4."""
    return F.interpolate(maps, scale_factor=2, mode="bilinear")


def corrected(core: Tensor, correction: Tensor, size: float = 1.0) -> Tensor:
    """The core's map (B, 1, h, w) with ``size`` of the correction (B, 1, 2 h, 2 w): the final map,
    (B, 1, 2 h, 2 w)."""
    return (enlarged((core + FLOOR).log()) + size * correction).exp()
