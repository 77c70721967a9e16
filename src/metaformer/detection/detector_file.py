"""The detector file: safetensors with a JSON header, written atomically, checked when read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from metaformer.io.atomic_files import atomic_path

EXPORTED = (".onnx", ".xml", ".bin")
"""Endings of what `metaformer export` writes."""
FORMAT = "metaformer-detector"
FORMAT_VERSION = 1
"""Raised whenever an older program could not read a newer file."""


class DetectorFileError(ValueError):
    """A detector file cannot be read; the message says why and what to do."""


def write_detector_file(
    path: Path, header: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> None:
    """Write header and tensors to one file; see ``Detector.save`` for errors."""
    text = json.dumps({"format": FORMAT, "format_version": FORMAT_VERSION, **header})
    with atomic_path(path) as temporary:
        try:
            save_file(
                {name: tensor.contiguous() for name, tensor in tensors.items()},
                temporary,
                metadata={"metaformer": text},
            )
        except SafetensorError as error:
            raise OSError(f"{path}: cannot be written ({error}). Is the disk full?") from error


def read_detector_file(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Header and tensors of a detector file, checked; see ``Detector.load`` for errors."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such detector file. Make one with `metaformer adapt FOLDER -o {path}`."
        )
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("metaformer")
            header = json.loads(text) if text else {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError, UnicodeDecodeError) as error:
        if path.suffix.lower() in EXPORTED:
            raise DetectorFileError(
                f"{path}: an exported model, not a detector. Give the .metaformer file it was made "
                f"of."
            ) from error
        raise DetectorFileError(
            f"{path}: not a readable detector file ({error}). It may be cut short or of another "
            f"kind; adapt again."
        ) from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise DetectorFileError(
            f"{path}: a safetensors file, but not a detector. Detectors are written by "
            f"`metaformer adapt`."
        )
    if header.get("format_version") != FORMAT_VERSION:
        raise DetectorFileError(
            f"{path}: detector format {header.get('format_version')}, this program reads "
            f"{FORMAT_VERSION}. Adapt again, or install the version that wrote it."
        )
    bad = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise DetectorFileError(
            f"{path}: NaN or infinite values in {', '.join(bad)}. The file is damaged; adapt again."
        )
    return header, tensors
