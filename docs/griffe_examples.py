"""Shows the ``>>>`` lines of a docstring as code: Markdown takes them for quotations."""

from __future__ import annotations

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"(?:^>>> .*\n?)+", re.MULTILINE)


class ExamplesAsCode(griffe.Extension):
    """Found by mkdocstrings through ``mkdocs.yml``."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = EXAMPLE.sub(as_code, obj.docstring.value)


def as_code(match: re.Match[str]) -> str:
    return "```python\n" + re.sub(r"^>>> ", "", match[0], flags=re.MULTILINE).rstrip() + "\n```\n"
