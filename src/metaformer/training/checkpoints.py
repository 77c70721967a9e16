"""Checkpoints that survive ``kill -9``: one safetensors file, written atomically, no pickle.

The tensors are the file's tensors; everything else (step, configuration, log position) is JSON in
its metadata, so that the two can never come from different moments.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from metaformer.io.atomic_files import atomic_path
from metaformer.networks.named_buffers import under

_RECORD = "record"


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged or belongs to another configuration."""


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Replace ``path`` by ``tensors`` and the JSON-able ``record`` in one step."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(plain, str(temporary), metadata={_RECORD: json.dumps(dict(record))})


def check_new(path: Path, *, resume: bool) -> None:
    """Raises: CheckpointError: nothing to resume, or a new run would replace ``path``."""
    if resume and not path.is_file():
        raise CheckpointError(f"{path}: nothing to resume. Start without --resume.")
    if path.is_file() and not resume:
        raise CheckpointError(
            f"{path}: a run is here already. Continue it with --resume or choose another output."
        )


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the record of a file written by ``save_checkpoint``.

    Raises:
        CheckpointError: no such file, or not readable as a checkpoint.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no checkpoint here. Start without resuming.")
    try:
        with safe_open(str(path), framework="pt") as file:
            record = json.loads(file.metadata()[_RECORD])
            return {name: file.get_tensor(name) for name in file.keys()}, record  # noqa: SIM118
    except Exception as error:
        raise CheckpointError(
            f"{path}: not a readable checkpoint ({error}). Delete it and start again, or restore "
            f"a copy."
        ) from error


def module_tensors(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    """State of ``module`` with ``prefix.`` before each name."""
    return {f"{prefix}.{name}": tensor for name, tensor in module.state_dict().items()}


def restore_module(prefix: str, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Undo ``module_tensors``.

    Raises:
        CheckpointError: names or shapes differ from those of ``module``.
    """
    try:
        module.load_state_dict(under(f"{prefix}.", tensors))
    except RuntimeError as error:
        raise CheckpointError(
            f"the checkpoint's {prefix} does not fit the configured network: {error}. Resume with "
            f"the configuration the run began with."
        ) from error


def optimiser_tensors(prefix: str, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Moments and step counts of ``optimiser``, as ``prefix.<parameter index>.<name>``."""
    state = optimiser.state_dict()["state"]
    return {
        f"{prefix}.{index}.{name}": torch.as_tensor(value)
        for index, entries in state.items()
        for name, value in entries.items()
    }


def restore_optimiser(
    prefix: str, optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Undo ``optimiser_tensors``; learning rates stay as ``optimiser`` has them."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in under(f"{prefix}.", tensors).items():
        index, entry = name.split(".", 1)
        state.setdefault(int(index), {})[entry] = tensor
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": state, "param_groups": groups})
