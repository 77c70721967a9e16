"""Finds the weights of other backbones in files; downloads only when asked to.

Looked for in this order: the file given, the folder that the environment variable
``METAFORMER_WEIGHTS`` names, the user's Hugging Face cache. Only safetensors are read; a pickle can
run code when it is loaded and is refused with the command that converts it.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

FOLDER_VARIABLE = "METAFORMER_WEIGHTS"
PICKLE_STARTS = (b"PK\x03\x04", b"\x80")
"""First bytes of what ``torch.save`` writes today (a zip of pickles) and wrote once (a pickle)."""


class BackboneError(ValueError):
    """A backbone cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class HubFile:
    """A file on the Hugging Face hub."""

    repository: str
    filename: str

    @property
    def url(self) -> str:
        return f"https://huggingface.co/{self.repository}/resolve/main/{self.filename}"


@dataclass(frozen=True)
class WeightsFile:
    """A file that was found, with the SHA-256 of its bytes in hexadecimal."""

    path: Path
    sha256: str


def find_weights(
    name: str,
    hub: HubFile | None,
    *,
    file: Path | None = None,
    sha256: str | None = None,
    download: bool = False,
) -> WeightsFile:
    """The weights of backbone ``name``.

    Args:
        hub: where they are published; None if nowhere that can be read.
        file: take this file and look nowhere else.
        sha256: accept only a file with this digest: the one a detector was made with.
        download: fetch from ``hub`` if the file is nowhere else.

    Raises:
        BackboneError: no such file, or none with this digest, or the download failed.
    """
    if file is not None:
        if not file.is_file():
            raise BackboneError(f"{file}: no such file of weights for {name}.")
        found = WeightsFile(file, digest(file))
        if sha256 not in (None, found.sha256):
            raise BackboneError(
                f"{file}: not the weights of {name} that the detector was made with (SHA-256 "
                f"{found.sha256[:12]}..., needed is {sha256}). Give that file, or adapt again."
            )
        return found

    looked: list[str] = []
    for path in _places(name, hub, looked):
        found = WeightsFile(path, digest(path))
        if sha256 in (None, found.sha256):
            return found
        looked.append(f"{path} has another SHA-256 ({found.sha256[:12]}...)")
    if download and hub is not None:
        found = WeightsFile(path := _download(name, hub), digest(path))
        if sha256 in (None, found.sha256):
            return found
        looked.append(f"{hub.url} now has another SHA-256 ({found.sha256[:12]}...)")
    raise BackboneError(_missing(name, hub, sha256, looked))


def digest(path: Path) -> str:
    """SHA-256 of a file's bytes in hexadecimal."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        BackboneError: it is a pickle, which is never loaded, or not readable as safetensors.
    """
    with path.open("rb") as content:
        is_pickle = content.read(4).startswith(PICKLE_STARTS)
    if is_pickle:
        target = path.with_suffix(".safetensors")
        raise BackboneError(
            f"{path}: a PyTorch pickle. Pickles can run code when they are loaded and are never "
            f"read here. If you trust where it comes from, convert it once:\n"
            f'  python -c "import torch; from safetensors.torch import save_file; '
            f"s = torch.load('{path}', map_location='cpu', weights_only=True); "
            f"s = s.get('state_dict', s.get('model', s)); "
            f"save_file({{k: v.clone() for k, v in s.items()}}, '{target}')\""
        )
    try:
        return load_file(path)
    except SafetensorError as error:
        raise BackboneError(
            f"{path}: not a readable safetensors file ({error}). It may be cut short; only "
            f"safetensors are accepted."
        ) from error


def _places(name: str, hub: HubFile | None, looked: list[str]) -> list[Path]:
    """Files that may be it; where there are none is told in ``looked``."""
    found = []
    folder = os.environ.get(FOLDER_VARIABLE)
    if not folder:
        looked.append(f"{FOLDER_VARIABLE} is not set")
    else:
        path = Path(folder) / f"{name}.safetensors"
        if path.is_file():
            found.append(path)
        else:
            looked.append(f"there is no {path} ({FOLDER_VARIABLE})")
    if hub is not None:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(hub.repository, hub.filename)
        if isinstance(cached, str):
            found.append(Path(cached))
        else:
            looked.append(f"the Hugging Face cache has no {hub.repository}/{hub.filename}")
    return found


def _download(name: str, hub: HubFile) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(hf_hub_download(hub.repository, hub.filename))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise BackboneError(
            f"{name}: {hub.url} could not be downloaded ({error}). Fetch it elsewhere and give it "
            f"with --backbone-weights FILE (backbone_weights= in Python)."
        ) from error


def _missing(name: str, hub: HubFile | None, sha256: str | None, looked: list[str]) -> str:
    wanted = f" with SHA-256 {sha256}" if sha256 else ""
    advice = (
        f"Give the file with --backbone-weights FILE (backbone_weights= in Python), or put it as "
        f"{name}.safetensors into a folder and set {FOLDER_VARIABLE} to that folder."
    )
    if hub is not None:
        advice += (
            f" It is published at {hub.url}; with a network, `hf download {hub.repository} "
            f"{hub.filename}` puts it into the cache, and so do --download on adapt and evaluate "
            f"and download=True in Python."
        )
    return f"{name}: its weights{wanted} are not on this machine: {'; '.join(looked)}. {advice}"
