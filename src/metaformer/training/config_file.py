"""Reading the YAML of a training: one key a field, and what is wrong with it by name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml


def read_config(path: Path | str, kind: type[Any], *, needed: Iterable[str]) -> dict[str, Any]:
    """The content of a configuration for the dataclass ``kind``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no YAML mapping, or a key is unknown or missing; the message names it.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file. Examples are in configs/.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not readable as YAML ({error}).") from error
    return check_keys(path, content, kind, needed=needed)


def check_keys(
    path: Path | str, content: Any, kind: type[Any], *, needed: Iterable[str] = ()
) -> dict[str, Any]:
    """``content`` if it has keys of the dataclass ``kind`` alone, and all that are ``needed``.

    Raises: ValueError: as ``read_config``.
    """
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected keys and values, found {type(content).__name__}.")
    known = sorted(field.name for field in fields(kind))
    for key in sorted(map(str, set(content) - set(known))):
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
        advice = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{path}: unknown key {key!r}.{advice} Known: {', '.join(known)}.")
    for key in sorted(set(needed) - set(content)):
        raise ValueError(f"{path}: key {key!r} is missing.")
    return dict(content)
