"""The shipped weights of the autoencoder: found, checked, loaded."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor

from metaformer.detection.pixel.inner_rates import InnerRates
from metaformer.networks.autoencoder import Autoencoder, AutoencoderConfig
from metaformer.networks.named_buffers import under
from metaformer.networks.weight_files import refuse_not_finite

WEIGHTS, CARD = "universal.safetensors", "universal.json"
START, RATES = "autoencoder.", "inner_rates"
"""Names of the tensors. Files of earlier versions hold more, of parts that are gone."""


class UniversalWeightsError(ValueError):
    """Weights that cannot be used; the message says which and why."""


def load_universal(folder: Path | None = None) -> tuple[Autoencoder, InnerRates]:
    """The autoencoder with its weights, and the learned inner rates.

    Args:
        folder: what ``metaformer pretrain universal`` wrote; None for the package's own.

    Raises:
        UniversalWeightsError: the files are missing or damaged, or do not belong together.
    """
    place = resources.files("metaformer.networks.weights") if folder is None else folder
    try:
        weights = load_safetensors((place / WEIGHTS).read_bytes())
        card = json.loads((place / CARD).read_text(encoding="utf-8"))
        return universal_from_tensors(weights, card["config"])
    except Exception as error:
        raise UniversalWeightsError(
            f"{place}: the universal weights cannot be used ({error}). Expected are {WEIGHTS} and "
            f"{CARD} as `metaformer pretrain universal` writes them."
        ) from error


def universal_from_tensors(
    weights: dict[str, Tensor], config: dict[str, Any]
) -> tuple[Autoencoder, InnerRates]:
    """The autoencoder and its inner rates, as meta-training exports them.

    Raises:
        ValueError: a value is not finite.
    """
    state = {name: tensor.float() for name, tensor in under(START, weights).items()}
    rates = weights[RATES]  # (names, steps)
    refuse_not_finite({**state, RATES: rates})
    autoencoder = Autoencoder(AutoencoderConfig(**config["autoencoder"]))
    autoencoder.load_state_dict(state)
    autoencoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    inner = InnerRates(autoencoder, rates.shape[1], 0.0)
    inner.rates.data.copy_(rates)
    return autoencoder.requires_grad_(False).eval(), inner.requires_grad_(False)
