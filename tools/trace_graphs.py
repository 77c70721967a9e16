"""Trace the graphs of both presets, without their weights, into the package.

    python -m tools.trace_graphs

To be run whenever what an adapted model computes changes; a test says so.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from metaformer import Metaformer
from metaformer.detection.engines.graph import encoded, tensors_of
from metaformer.export.verification import bundled_images
from metaformer.io.atomic_files import write_bytes

FOLDER = Path(__file__).parents[1] / "src/metaformer/detection/engines/graphs"


class WithTensors(nn.Module):
    """A module whose parameters and buffers are inputs. Does not change the module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.held = [copy.deepcopy(module).eval()]  # in a list: not to be found by the exporter
        self.names = list(tensors_of(module))

    def forward(self, images: Tensor, *tensors: Tensor) -> Tensor:
        (module,) = self.held
        for name, tensor in zip(self.names, tensors, strict=True):
            owner, _, leaf = name.rpartition(".")
            holder = module.get_submodule(owner)
            delattr(holder, leaf)
            setattr(holder, leaf, tensor)
        found: Tensor = module(images)
        return found


def template_of(module: nn.Module, size_multiple: int) -> bytes:
    """The graph of an adapted model without its tensors: they are inputs, buffers of free size."""
    inputs = WithTensors(module)
    tensors = tensors_of(module)
    buffers = dict(module.named_buffers())
    free = {
        name: {axis: f"{name}_{axis}" for axis in range(buffer.ndim)}
        for name, buffer in buffers.items()
        if buffer.ndim
    }
    images = torch.rand(2, 3, 4 * size_multiple, 5 * size_multiple)
    model = encoded(inputs, (images, *tensors.values()), ["images", *inputs.names], free)
    content: bytes = model.SerializeToString()
    return content


def main() -> None:
    for preset in ("feature", "pixel"):
        detector = Metaformer.from_pretrained(preset).adapt(bundled_images()[:3])
        content = template_of(detector.adapted.as_module(), detector.model.size_multiple)
        write_bytes(FOLDER / f"{preset}.onnx", content)
        print(f"{preset}: {len(content):,} bytes")


if __name__ == "__main__":
    main()
