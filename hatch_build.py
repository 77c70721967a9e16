"""The page of the package on an index: links of the README that lead somewhere, and addresses.

A page on an index has no repository around it, so links and pictures that are relative there lead
nowhere. With METAFORMER_REPOSITORY set when the package is built, to the address at which files of
the repository are shown (https://.../blob/main), links get it in front and the addresses of the
project are named. Without it links become their text and pictures are left out.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"^<!--.*?-->\n", re.MULTILINE)


class IndexPage(MetadataHookInterface):
    """Fills in ``readme`` and ``urls``, which ``pyproject.toml`` names as dynamic."""

    PLUGIN_NAME = "custom"

    def update(self, metadata: dict[str, Any]) -> None:
        repository = os.environ.get("METAFORMER_REPOSITORY", "").rstrip("/")
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        content = for_index(text, repository)
        metadata["readme"] = {"content-type": "text/markdown", "text": content}
        metadata["urls"] = urls(repository)


def urls(repository: str) -> dict[str, str]:
    """The project's addresses; METAFORMER_SITE_URL is that of the documentation."""
    found = {}
    if repository:
        found = {"Source": repository, "Changes": f"{repository}/CHANGELOG.md"}
    if site := os.environ.get("METAFORMER_SITE_URL"):
        found["Documentation"] = site
    return found


def for_index(text: str, repository: str) -> str:
    """A README whose links lead somewhere on a page without the repository; code is left alone."""

    def absolute(match: re.Match[str]) -> str:
        image, words, target = match.groups()
        if ":" in target or target.startswith("#"):
            return match[0]
        if not repository:
            return "" if image else words
        raw = f"{repository}/{target}?raw=true" if image else f"{repository}/{target}"
        return f"{image}[{words}]({raw})"

    parts, end = [], 0
    for fence in FENCE.finditer(text):
        parts += [LINK.sub(absolute, text[end : fence.start()]), fence[0]]
        end = fence.end()
    return COMMENT.sub("", "".join([*parts, LINK.sub(absolute, text[end:])]))
