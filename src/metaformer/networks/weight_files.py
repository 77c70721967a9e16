"""Weights from safetensors files, with checks that name what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor

Network = TypeVar("Network")


def load_weights(
    what: str,
    name: str,
    make: Callable[[dict[str, Tensor]], Network],
    refusal: type[ValueError],
    folder: Path | None,
) -> Network:
    """A network of the preset from what ``metaformer pretrain`` wrote, or from the package.

    Args:
        what: the network, as the command calls it.
        name: of the file.
        refusal: raised with a message if the file is missing or ``make`` cannot use it.
    """
    place = resources.files("metaformer.networks.weights") if folder is None else folder
    try:
        return make(load_safetensors((place / name).read_bytes()))
    except Exception as error:
        raise refusal(
            f"{place}: the weights of the {what} cannot be used ({error}). Expected is {name} as "
            f"`metaformer pretrain {what}` writes it."
        ) from error


def refuse_not_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raises: ValueError: a weight is NaN or infinite; the message names the tensor."""
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} holds values that are not finite")
