"""Edited photos of earlier steps, for the critic."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from metaformer.networks.instance_prior import (
    EFFECTS,
)


class EffectPool:
    """Edited photos of earlier steps, so that the critic does not forget them (VEGAN)."""

    def __init__(self, slots: int, side: int) -> None:
        self.photos = torch.zeros(len(EFFECTS), slots, 3, side, side, dtype=torch.float16)
        self.used = torch.zeros(len(EFFECTS), dtype=torch.int64)

    def exchange(self, fakes: Tensor, effects: Tensor, rng: np.random.Generator) -> Tensor:
        """``fakes`` with about half of them swapped for older ones of the same effect."""
        out = fakes.clone()
        for i, effect in enumerate(effects.tolist()):
            slots = self.photos[effect]
            used = int(self.used[effect])
            if used < len(slots):
                slots[used] = fakes[i]
                self.used[effect] += 1
            elif rng.random() < 0.5:
                slot = int(rng.integers(len(slots)))
                out[i] = slots[slot].to(out)
                slots[slot] = fakes[i]
        return out
