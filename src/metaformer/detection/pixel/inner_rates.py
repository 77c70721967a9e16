"""Learned step sizes of the autoencoder's adaptation (LSLR of MAML++, Antoniou et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from metaformer.networks.autoencoder import Autoencoder

LARGEST_GRADIENT = 1.0
"""Longer gradients are shrunk to this norm: on a flat support some layers have next to no variance
to be normalised by, and a plain step would throw the autoencoder far off."""


class InnerRates(nn.Module):
    """Learned inner rates, one per parameter tensor and step (LSLR of MAML++)."""

    def __init__(self, autoencoder: Autoencoder, steps: int, inner_lr: float) -> None:
        super().__init__()
        if steps < 1:
            raise ValueError(f"steps: found {steps}; accepted are 1 and more.")
        self.names = tuple(name for name, _ in adapted_parameters(autoencoder))
        self.rates = nn.Parameter(torch.full((len(self.names), steps), inner_lr))

    @property
    def steps(self) -> int:
        return self.rates.shape[1]


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Euclidean norm over all tensors."""
    return torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()


def adapted_parameters(autoencoder: Autoencoder) -> list[tuple[str, nn.Parameter]]:
    """The parameters that the inner loop moves: convolutions, not the norms' scale and shift,
    which stay meta-parameters as in MAML++."""
    return [
        (name, parameter)
        for name, parameter in autoencoder.named_parameters()
        if "_norms." not in name
    ]
