"""The ONNX graph of an adapted model, from images at a working size to raw maps.

Tracing a model takes more than a second. The graphs of the presets as they are shipped are inside
the package, traced with every weight, memory bank and statistic as an input of free size
(``tools/trace_graphs.py``). A detector puts its own tensors in, which takes 10 ms.
"""

from __future__ import annotations

import io
import logging
import warnings
from importlib import resources
from typing import Any

import torch
from torch import Tensor, nn

from metaformer.detection.preset import Adapted
from metaformer.io.extras import need

OPSET = 18
IR_VERSION = 9
"""Old, so that older runtimes read it. Tested with onnxruntime 1.32 and OpenVINO 2026.4."""
GRAPHS = "metaformer.detection.engines.graphs"


class UnsupportedExportError(ValueError):
    """The model has an operation that ONNX does not."""


def graph_of(adapted: Adapted[Any], size_multiple: int) -> Any:
    """From the working size to the raw map.

    ``images`` (N, 3, H, W) float32 in [0, 1] -> ``raw_maps`` (N, M, h, w), M 1 or 2. Every size but
    3 and M is free.

    Raises:
        UnsupportedExportError: ONNX lacks an operation of the model; the message names it.
        MissingExtraError: onnx is not installed.
    """
    found = shipped_graph(adapted)
    if found is not None:
        return found
    images = torch.rand(2, 3, 4 * size_multiple, 5 * size_multiple)
    return encoded(adapted.as_module().eval(), (images,), ["images"], {})


def shipped_graph(adapted: Adapted[Any]) -> Any:
    """The graph inside the package with the model's tensors; None if none fits."""
    if adapted.graph is None:
        return None
    template = resources.files(GRAPHS).joinpath(f"{adapted.graph}.onnx").read_bytes()
    return filled(template, adapted.as_module())


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def filled(template: bytes, module: nn.Module) -> Any:
    """The graph with a model's own tensors; None if it is of another model, or they are on another
    device."""
    onnx = need("onnx")
    model, tensors = onnx.load_model_from_string(template), tensors_of(module)
    inputs = {value.name: value for value in model.graph.input}
    images = inputs.pop("images")
    on_cpu = all(tensor.device.type == "cpu" for tensor in tensors.values())
    if not on_cpu or not set(inputs) <= set(tensors):  # what is not read is no input
        return None
    del model.graph.input[:]
    model.graph.input.append(images)
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(tensor.detach().numpy(), name)
        for name, tensor in tensors.items()
        if name in inputs
    )
    return model


def encoded(
    module: nn.Module, inputs: tuple[Tensor, ...], names: list[str], free: dict[str, Any]
) -> Any:
    """Trace ``module``. Raises: UnsupportedExportError: ONNX lacks an operation of it."""
    onnx = need("onnx")
    buffer: Any = io.BytesIO()  # torch types it as a path, and takes both
    sizes = {"images": {0: "N", 2: "H", 3: "W"}, "raw_maps": {0: "N", 2: "h", 3: "w"}}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer warns of checks, which hold for every size
        try:
            torch.onnx.export(
                module,
                inputs,
                buffer,  # the tracing exporter takes a buffer
                input_names=names,
                output_names=["raw_maps"],
                dynamic_axes={**sizes, **free},
                opset_version=OPSET,
                dynamo=False,
            )
        except torch.onnx.errors.UnsupportedOperatorError as error:
            raise UnsupportedExportError(f"ONNX cannot express this model: {error}") from error
    model = onnx.load_model_from_string(buffer.getvalue())
    model.ir_version = IR_VERSION
    return model
