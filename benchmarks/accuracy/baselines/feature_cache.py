"""Backbone features kept between fits, for accuracy tables of many methods, shots and seeds.

The frozen backbone gives the same features of the same pixels whoever asks, and a table asks for
each test image once for every number of shots and every seed. Times taken with it mean nothing.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict

import torch
from torch import Tensor, nn

_budget = 0  # bytes a network; 0: nothing is kept

Maps = dict[int, Tensor] | list[Tensor]


def keep_features(megabytes: int) -> None:
    """From now on each network given to ``remembering`` keeps its features, so much memory."""
    global _budget
    _budget = megabytes * 2**20


def keeps_features() -> bool:
    return _budget > 0


def remembering(network: nn.Module, finest: int = 0) -> nn.Module:
    """The network itself, or, after ``keep_features``, one that computes each image once.

    ``finest``: finest stride wanted of a network that gives maps by stride; finer ones, each larger
    than all coarser together, are dropped.
    """
    return Remembering(network, _budget, finest) if _budget else network


class Remembering(nn.Module):
    """(B, 3, H, W) -> what ``network`` gives: maps (B, C, h, w) by stride, or a list of them."""

    def __init__(self, network: nn.Module, budget: int, finest: int = 0) -> None:
        super().__init__()
        self.network = network
        self.channels: dict[int, int] = getattr(network, "channels", {})
        self.budget, self.finest = budget, finest
        self.used = 0
        self.kept: OrderedDict[bytes, Maps] = OrderedDict()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Maps:
        each = [self._of_one(image[None]) for image in images]
        first = each[0]
        if isinstance(first, dict):
            return {stride: torch.cat([maps[stride] for maps in each]) for stride in first}
        return [torch.cat([maps[i] for maps in each]) for i in range(len(first))]

    def _of_one(self, image: Tensor) -> Maps:
        pixels = image.contiguous().numpy()
        key = hashlib.blake2b(pixels.data, digest_size=16).digest() + str(pixels.shape).encode()
        if key in self.kept:
            self.kept.move_to_end(key)
            return self.kept[key]
        maps = self.network(image)
        if isinstance(maps, dict):
            maps = {stride: features for stride, features in maps.items() if stride >= self.finest}
        self.kept[key] = maps
        self.used += _size(maps)
        while self.used > self.budget and len(self.kept) > 1:
            _, oldest = self.kept.popitem(last=False)
            self.used -= _size(oldest)
        return maps


def _size(maps: Maps) -> int:
    values = maps.values() if isinstance(maps, dict) else maps
    return sum(features.numel() * features.element_size() for features in values)
