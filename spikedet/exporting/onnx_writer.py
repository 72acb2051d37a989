"""Write a graph of ONNX, node by node. Nothing here knows the operations of spikedet."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

OPSET, IR = 18, 10


class Writer:
    """Writes an ONNX graph. Values are identified by their names.

    Args:
        taken: Names that nodes and constants may not have.

    Attributes:
        here: Start of the names of what is added: the name of the node that is being translated.
        inputs, outputs: Inputs and outputs of the graph.
    """

    def __init__(self, taken: set[str]):
        self.taken, self.here = taken, ""
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.shared: dict[tuple, str] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def free(self, wanted: str) -> str:
        """A free name, similar to this one."""
        name, number = wanted, 0
        while name in self.taken:
            number += 1
            name = f"{wanted}_{number}"
        self.taken.add(name)
        return name

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output; returns the name of the output."""
        return self.ops(kind, 1, *inputs, **attributes)[0]

    def ops(self, kind: str, number: int, *inputs: str, **attributes: Any) -> list[str]:
        """Add a node with several outputs; returns their names."""
        name = self.free(f"{self.here}/{kind}")
        outputs = [name] if number == 1 else [self.free(f"{name}:{i}") for i in range(number)]
        self.nodes.append(helper.make_node(kind, list(inputs), outputs, name, **attributes))
        return outputs

    def constant(self, value: Any, name: str = "constant") -> str:
        """Add a constant tensor. Equal tensors are stored once."""
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self.shared:
            self.shared[key] = self.free(f"{self.here}.{name}")
            tensor = numpy_helper.from_array(np.array(array, order="C"), self.shared[key])
            self.constants[self.shared[key]] = tensor
        return self.shared[key]

    def number(self, value: float) -> str:
        """Add a constant scalar."""
        return self.constant(np.array(value, np.float32), "number")

    def reshape(self, x: str, shape: tuple) -> str:
        """Add a change of shape for [N, ...]; N stays."""
        size = np.array([0, *shape[1:]], np.int64)
        return self.op("Reshape", x, self.constant(size, "shape"))

    def cast(self, x: str) -> str:
        """Add a conversion to float32."""
        return self.op("Cast", x, to=TensorProto.FLOAT)

    def output(self, value: str, name: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
        """Give a value the name of an output, [batch, *shape]; returns the output."""
        self.nodes.append(helper.make_node("Identity", [value], [name], name))
        return self.declared(name, shape)

    def finish(self, metadata: str) -> onnx.ModelProto:
        """The model of this graph. `metadata` is JSON."""
        graph = helper.make_graph(
            self.nodes, "spikedet", self.inputs, self.outputs, list(self.constants.values())
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR,
            producer_name="spikedet",
        )
        helper.set_model_props(model, {"spikedet": metadata})
        return model

    @staticmethod
    def declared(name: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
        """Declare an input or an output, [batch, *shape] float32."""
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])
