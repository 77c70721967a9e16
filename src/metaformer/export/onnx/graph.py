"""A small writer of ONNX graphs: one method call adds one node and returns its output's name.

For the parts of a detector that are not traced from PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from metaformer.detection.engines.graph import IR_VERSION, OPSET
from metaformer.io.extras import need

Value = str
"""Name of a tensor in the graph."""
Outputs = Sequence[tuple[Value, str, Any, Sequence[str | int]]]
"""(tensor, name given to it, numpy type, shape with names for free sides) of each output."""


class Graph:
    """Nodes and constants, in the order they were added."""

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        """Of the names of tensors, so that graphs can be joined."""
        self.onnx = need("onnx")
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.named = 0

    def constant(self, value: NDArray[Any] | np.float32 | Tensor) -> Value:
        """Store a tensor in the file."""
        array = value.detach().numpy() if isinstance(value, Tensor) else np.asarray(value)
        name = f"{self.prefix}constant_{len(self.constants)}"
        self.constants.append(self.onnx.numpy_helper.from_array(np.array(array, order="C"), name))
        return name

    def numbers(self, *values: float) -> Value:
        """A float32 vector, or a scalar when there is one value."""
        return self.constant(np.array(values[0] if len(values) == 1 else values, np.float32))

    def integers(self, *values: int) -> Value:
        """An int64 vector."""
        return self.constant(np.array(values, np.int64))

    def op(self, kind: str, *inputs: Value, **attributes: Any) -> Value:
        """Add a node with one output; an input that is left out is the empty name."""
        name = self.new_name(kind)
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def new_name(self, kind: str) -> Value:
        self.named += 1
        return f"{self.prefix}{kind.lower()}_{self.named}"

    def describe(self, name: str, kind: Any, shape: Sequence[str | int]) -> Any:
        helper = self.onnx.helper
        element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
        return helper.make_tensor_value_info(name, element, list(shape))

    def cast(self, x: Value, to: Any) -> Value:
        kind = self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(to))
        return self.op("Cast", x, to=kind)

    def side(self, x: Value, axis: int) -> Value:
        """Length of one axis, an int64 vector of one."""
        return self.op("Shape", x, start=axis, end=axis + 1)

    def cut(self, x: Value, starts: Value, ends: Value, axes: Sequence[int]) -> Value:
        """``x[starts:ends]`` along ``axes``."""
        return self.op("Slice", x, starts, ends, self.integers(*axes))

    def resize(self, x: Value, height: Value, width: Value) -> Value:
        """(N, C, h, w) -> (N, C, height, width), bilinear between pixel centres, as PyTorch
        (``align_corners=False``) and OpenCV do."""
        sizes = self.op("Concat", self.op("Shape", x, start=0, end=2), height, width, axis=0)
        return self.op(
            "Resize", x, "", "", sizes, mode="linear", coordinate_transformation_mode="half_pixel"
        )

    def model(
        self,
        inputs: Mapping[str, tuple[Any, Sequence[str | int]]],
        outputs: Outputs,
    ) -> Any:
        """The finished model, checked.

        Args:
            inputs: name -> (numpy type, shape; a name stands for a free side).
            outputs: see ``Outputs``.
        """
        helper = self.onnx.helper

        public = {value: name for value, name, _, _ in outputs}
        for node in self.nodes:
            node.input[:] = [public.get(name, name) for name in node.input]
            node.output[:] = [public.get(name, name) for name in node.output]
        graph = helper.make_graph(
            self.nodes,
            "metaformer",
            [self.describe(name, kind, shape) for name, (kind, shape) in inputs.items()],
            [self.describe(name, kind, shape) for _, name, kind, shape in outputs],
            self.constants,
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="metaformer",
        )
        self.onnx.checker.check_model(model, full_check=True)
        return model
