"""The loss of imitating effect photos whose original photo is known (ours)."""

from __future__ import annotations

import torch
from torch import Tensor

from metaformer.networks.instance_prior import (
    EFFECTS,
    edit,
)


def imitation_gap(shown: Tensor, mattes: Tensor, made_with: Tensor) -> Tensor:
    """Distance of the prior's edits from the effect photos made of the same photos by software.

    Mean over all three effects of two measures, each free of how much the effect changes (defocus
    changes little and would not count beside black otherwise): the absolute difference against
    the mean change over the batch, and photo by photo against what the two edits keep, so that
    small objects count as much as large ones.

    Args:
        shown: photos (B, 3, S, S) before their effect.
        mattes: the prior's mattes for them (B, 1, S, S).
        made_with: mattes of the effect photos (B, 1, S, S).

    Returns:
        A scalar, 0 where the edits are the same, about 1 where they share nothing.
    """
    gap = torch.zeros((), device=shown.device)
    for effect in EFFECTS:
        change = (shown - edit(shown, effect)).abs().mean(dim=1, keepdim=True)  # (B, 1, S, S)
        imitated, made = mattes * change, made_with * change  # what either edit keeps
        difference = (imitated - made).abs()
        overall = difference.mean() / change.mean().clamp(min=1e-3)
        kept = (imitated + made).mean(dim=(1, 2, 3)).clamp(min=1e-4)  # (B,)
        gap = gap + (overall + (difference.mean(dim=(1, 2, 3)) / kept).mean()) / 2
    return gap / len(EFFECTS)
