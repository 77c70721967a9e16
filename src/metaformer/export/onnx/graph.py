"""A small writer of ONNX graphs: each call or operator adds one node and returns its output.

For the parts of a detector that are not traced from PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaformer.detection.engines.graph import IR_VERSION, OPSET
from metaformer.io.extras import need


@dataclass(frozen=True)
class Value:
    """A tensor in a graph. Numbers that it is combined with become float32 constants."""

    graph: Graph
    name: str

    def __add__(self, other: Operand) -> Value:
        return self.graph.op("Add", self, other)

    def __sub__(self, other: Operand) -> Value:
        return self.graph.op("Sub", self, other)

    def __rsub__(self, other: Operand) -> Value:
        return self.graph.op("Sub", other, self)

    def __mul__(self, other: Operand) -> Value:
        return self.graph.op("Mul", self, other)

    def __truediv__(self, other: Operand) -> Value:
        return self.graph.op("Div", self, other)

    def floor(self) -> Value:
        return self.graph.op("Floor", self)

    def round(self) -> Value:
        return self.graph.op("Round", self)

    def unsqueeze(self, axis: int) -> Value:
        return self.graph.op("Unsqueeze", self, self.graph.integers(axis))

    def transpose(self, *axes: int) -> Value:
        return self.graph.op("Transpose", self, perm=axes)

    def cast(self, to: Any) -> Value:
        kind = self.graph.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(to))
        return self.graph.op("Cast", self, to=kind)

    def side(self, axis: int) -> Value:
        """Length of one axis, an int64 vector of one."""
        return self.graph.op("Shape", self, start=axis, end=axis + 1)


Operand = Value | float | None
"""None is an input that is left out."""
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

    def given(self, name: str) -> Value:
        """An input of the graph."""
        return Value(self, name)

    def constant(self, array: NDArray[Any]) -> Value:
        """Store a tensor in the file."""
        name = f"{self.prefix}constant_{len(self.constants)}"
        self.constants.append(self.onnx.numpy_helper.from_array(array, name))
        return Value(self, name)

    def number(self, value: float) -> Value:
        """A float32 scalar."""
        return self.constant(np.array(value, np.float32))

    def integers(self, *values: int) -> Value:
        """An int64 vector."""
        return self.constant(np.array(values, np.int64))

    def op(self, kind: str, *inputs: Operand, **attributes: Any) -> Value:
        """Add a node with one output."""
        names = []
        for operand in inputs:
            value = self.number(operand) if isinstance(operand, (int, float)) else operand
            names.append("" if value is None else value.name)
        name = self.new_name(kind)
        self.nodes.append(self.onnx.helper.make_node(kind, names, [name], name, **attributes))
        return Value(self, name)

    def new_name(self, kind: str) -> str:
        self.named += 1
        return f"{self.prefix}{kind.lower()}_{self.named}"

    def describe(self, name: str, kind: Any, shape: Sequence[str | int]) -> Any:
        helper = self.onnx.helper
        element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
        return helper.make_tensor_value_info(name, element, list(shape))

    def resize(self, x: Value, height: Value, width: Value) -> Value:
        """(N, C, h, w) -> (N, C, height, width), bilinear between pixel centres, as PyTorch
        (``align_corners=False``) and OpenCV do."""
        sizes = self.op("Concat", self.op("Shape", x, start=0, end=2), height, width, axis=0)
        return self.op(
            "Resize",
            x,
            None,
            None,
            sizes,
            mode="linear",
            coordinate_transformation_mode="half_pixel",
        )

    def model(self, inputs: Mapping[str, tuple[Any, Sequence[str | int]]], outputs: Outputs) -> Any:
        """The finished model, checked.

        Args:
            inputs: name -> (numpy type, shape; a name stands for a free side).
            outputs: see ``Outputs``.
        """
        helper = self.onnx.helper
        public = {value.name: name for value, name, _, _ in outputs}
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
