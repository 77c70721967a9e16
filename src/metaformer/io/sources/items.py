"""All images of what the user names, one after the other."""

from __future__ import annotations

from collections.abc import Iterator

from metaformer.io.sources.readers import Item, fetch, read_shard
from metaformer.io.sources.shards import Sources, shards


class NamedBytes(bytes):
    """An encoded image that knows what it is called, for messages and records."""

    name: str

    def __new__(cls, content: bytes, name: str) -> NamedBytes:
        made = super().__new__(cls, content)
        made.name = name
        return made


def items_of(sources: Sources) -> Iterator[Item]:
    """The images of ``sources`` in order, those behind addresses fetched.

    Raises: as ``shards``.
    """
    for shard in shards(sources):
        yield from map(fetch, read_shard(shard, lambda name: True))
