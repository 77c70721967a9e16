"""Reading the YAML of a training: one key a field, and what is wrong with it by name."""

from __future__ import annotations

import difflib
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from metaformer.io.atomic_files import read_text

Config = TypeVar("Config")


def read_config(path: Path | str, kind: type[Config]) -> Config:
    """A configuration of the dataclass ``kind``.

    Raises:
        FileNotFoundError: there is no such file.
        NotAFileError: a folder, pipe or device.
        ValueError: it is no YAML mapping, a key is unknown or missing, or a value is not accepted;
            the message names the file and the key.
    """
    try:
        content = yaml.safe_load(read_text(path))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file. Examples are in configs/.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not readable as YAML ({error}).") from error
    check_keys(str(path), content, kind)
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] != "value_error":  # those name what they found themselves
            message = f"found {first['input']!r}. {message}."
        raise ValueError(f"{path}: {key + ': ' if key else ''}{message}") from error


def check_keys(where: str, content: Any, kind: type[Any]) -> None:
    """Raises: ValueError: ``content`` has other keys than the fields of ``kind``, or lacks one; the
    same of fields that are dataclasses themselves."""
    if not isinstance(content, dict):
        raise ValueError(f"{where}: expected keys and values, found {type(content).__name__}.")
    known = {field.name: field for field in fields(kind)}
    for key in sorted(map(str, set(content) - set(known))):
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
        advice = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"{where}: unknown key {key!r}.{advice} Known: {', '.join(sorted(known))}."
        )
    for name, field in sorted(known.items()):
        if name not in content and field.default is field.default_factory is MISSING:
            raise ValueError(f"{where}: key {name!r} is missing.")
    hints = get_type_hints(kind)
    for name in content:
        if is_dataclass(hints[name]):
            check_keys(f"{where}, {name}", content[name], hints[name])
