"""Tensors by name as buffers of a module, so that whoever traces, moves or lists it finds them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


class NamedBuffers(nn.Module):
    """A mapping of names, which may have dots, to tensors."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.names = tuple(tensors)
        for name, tensor in tensors.items():
            self.register_buffer(leaf(name), tensor)

    def tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, leaf(name)) for name in self.names}


def leaf(name: str) -> str:
    """A buffer's name has no dots."""
    return name.replace(".", "_")


def under(start: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those whose names begin with ``start``, without it."""
    return {n[len(start) :]: t for n, t in tensors.items() if n.startswith(start)}
