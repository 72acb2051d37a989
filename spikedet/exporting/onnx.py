"""Export to ONNX: float, quantised and spiking networks.

Pictures are [batch, ...] with any batch size. A spiking network has one of two forms:

unrolled   all T time steps, folded into the batch. Inputs: pictures. Outputs: the outputs after T.
step       one time step. Inputs: the picture, the number of steps before, and the state. Outputs:
           the outputs after this step, and the new state. At t = 0 the state is not read; pass
           zeros.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor

from spikedet.errors import UsageError
from spikedet.exporting.onnx_neurons import fire, start
from spikedet.exporting.onnx_nodes import KNOWN, Builder
from spikedet.exporting.registry import refuse
from spikedet.exporting.source import Source
from spikedet.graph.graph import Node
from spikedet.graph.time import CONSTANT
from spikedet.neurons.correcting import CorrectingNeuron
from spikedet.neurons.layers import IFNeuron, MeanOverTime

FORMS = ("unrolled", "step")


def build(source: Source, form: str | None = None) -> tuple[bytes, list[str]]:
    """Make the file of a network of any stage (see `registry.Exporter`).

    Args:
        source: The network.
        form: Form of a spiking network: `unrolled` or `step`. None: `unrolled`.

    Raises:
        UsageError: The form does not exist, or the network has no time steps.
        ExportError: Some nodes are not supported. The message names all of them.
    """
    spiking = source.stage == "snn"
    if form is not None and not spiking:
        raise UsageError(f"form is {form!r}; a network of stage {source.stage} has no time steps")
    form = form or "unrolled"
    if form not in FORMS:
        raise UsageError(f"form is {form!r}; expected {' or '.join(FORMS)}")
    refuse("ONNX", [(n.name, _why(n)) for n in source.graph if not _is_known(n)])
    model = (_Step(source) if spiking and form == "step" else _Whole(source)).model()
    onnx.checker.check_model(model)
    notes = []
    if spiking and form == "step":
        notes.append(
            "call this network in a loop over t = 0, 1, ..., and pass each output NAME_next as the "
            "input NAME of the next call; the layers before the first neurons run in every step"
        )
    return model.SerializeToString(deterministic=True), notes


def _is_known(node: Node) -> bool:
    if isinstance(node.module, IFNeuron):
        return type(node.module) in (IFNeuron, CorrectingNeuron)
    return isinstance(node.module, KNOWN)


def _why(node: Node) -> str:
    if isinstance(node.module, IFNeuron):
        return f"a neuron of another kind ({type(node.module).__name__})"
    return f"a {node.kind}"


class _Whole(Builder):
    """A network in one run. The T time steps of a spiking network are in the batch."""

    @property
    def T(self) -> int:
        """Number of time steps of a spiking network."""
        assert self.source.T is not None
        return self.source.T

    def neuron(self, node: Node, x: str) -> str:
        neuron, ndim, T = self.graph.neuron(node.name), len(self.graph.shapes[node.name]), self.T
        step = fire(self, neuron, ndim)
        constant = self.when[node.inputs[0]] == CONSTANT
        currents = [x] * T if constant else self.steps(x)
        state = tuple(start(self, neuron, ndim).values())
        sent = []
        for current in currents:
            spikes, state = step(state, current)
            sent.append(spikes)
        return self.op("Concat", *sent, axis=0) if T > 1 else sent[0]

    def counted(self, node: Node, x: str) -> str:
        shape, out = self.graph.shapes[node.inputs[0]], self.graph.shapes[node.name]
        sent, counts, largest = [], "", ""
        for now in self.steps(x):
            counts = self.op("Add", counts, now) if counts else now
            pooled = self.max_pool(node.module, counts, shape, out)
            sent.append(self.op("Sub", pooled, largest) if largest else pooled)
            largest = pooled
        return self.op("Concat", *sent, axis=0) if len(sent) > 1 else sent[0]

    def mean(self, node: Node, x: str) -> str:
        T, shape = self.T, self.graph.shapes[node.name]
        weights = step_weights(readout_of(node), T)
        weights = (weights / weights.sum()).view(-1, *[1] * len(shape))
        size = np.array([T, -1, *shape[1:]], np.int64)
        x = self.op("Reshape", x, self.constant(size, "shape"))
        x = self.op("Mul", x, self.constant(weights, "weights"))
        axes = self.constant(np.array([0], np.int64), "axes")
        return self.op("ReduceSum", x, axes, keepdims=0)

    def steps(self, x: str) -> list[str]:
        """Split [T*B, ...] into its time steps."""
        T = self.T
        return self.ops("Split", T, x, axis=0, num_outputs=T) if T > 1 else [x]

    def metadata(self) -> dict[str, Any]:
        return {"form": "unrolled"} if self.source.stage == "snn" else {}


class _Step(Builder):
    """One time step of a spiking network, with its state as inputs and outputs."""

    def __init__(self, source: Source):
        super().__init__(source)
        self.states: list[dict[str, Any]] = []
        self.later: list[onnx.ValueInfoProto] = []  # outputs behind those of the network
        self.taken.add("t")
        self.inputs.append(helper.make_tensor_value_info("t", TensorProto.INT64, []))
        self.here = "t"
        zero = self.constant(np.array(0, np.int64), "zero")
        self.first = self.op("Equal", "t", zero)

    def state(self, node: Node, kind: str, shape: tuple, start: str) -> str:
        """The state from the previous time step, or `start` in the first one."""
        name = self.free(f"{node.name}.{kind}")
        self.inputs.append(self.declared(name, shape[1:]))
        self.states.append({"name": name, "next": f"{name}_next", "shape": [None, *shape[1:]]})
        return self.op("Where", self.first, start, name)

    def hand_on(self, value: str, place: int = -1) -> None:
        """Set the new value of a state, counted from the last one that `state` returned."""
        state = self.states[place]
        self.taken.add(state["next"])
        self.later.append(self.output(value, state["next"], tuple(state["shape"][1:])))

    def neuron(self, node: Node, x: str) -> str:
        neuron, shape = self.graph.neuron(node.name), self.graph.shapes[node.name]
        first = start(self, neuron, len(shape))
        before = tuple(self.state(node, kind, shape, value) for kind, value in first.items())
        spikes, after = fire(self, neuron, len(shape))(before, x)
        for place, value in enumerate(after, -len(after)):
            self.hand_on(value, place)
        return spikes

    def counted(self, node: Node, x: str) -> str:
        shape, out = self.graph.shapes[node.inputs[0]], self.graph.shapes[node.name]
        counts = self.op("Add", self.state(node, "counts", shape, self.number(0.0)), x)
        self.hand_on(counts)
        before = self.state(node, "largest", out, self.number(0.0))
        largest = self.max_pool(node.module, counts, shape, out)
        self.hand_on(largest)
        return self.op("Sub", largest, before)

    def mean(self, node: Node, x: str) -> str:
        """The weighted mean so far: the weighted sum divided by the sum of the weights."""
        shape, readout = self.graph.shapes[node.name], readout_of(node)
        weights = step_weights(readout, readout.steps or 1)
        last = self.constant(np.array(len(weights) - 1, np.int64), "last")
        index = self.op("Min", "t", last)
        weight = self.op("Gather", self.constant(weights, "weights"), index, axis=0)
        mass = self.op("Gather", self.constant(weights.cumsum(0), "masses"), index, axis=0)
        more = self.op("Cast", self.op("Sub", "t", index), to=TensorProto.FLOAT)
        mass = self.op("Add", mass, self.op("Mul", more, self.number(weights[-1].item())))
        total = self.state(node, "sum", shape, self.number(0.0))
        total = self.op("Add", total, self.op("Mul", x, weight))
        self.hand_on(total)
        return self.op("Div", total, mass)

    def model(self) -> onnx.ModelProto:
        model = super().model()
        model.graph.output.extend(self.later)
        return model

    def metadata(self) -> dict[str, Any]:
        return {"form": "step", "states": self.states}


def readout_of(node: Node) -> MeanOverTime:
    """The mean over time of a node."""
    assert isinstance(node.module, MeanOverTime)
    return node.module


def step_weights(module: MeanOverTime, steps: int) -> Tensor:
    """The weight of each of the first time steps, [steps]."""
    if module.log_weights is None:
        return torch.ones(steps)
    now = torch.arange(steps).clamp(max=len(module.log_weights) - 1)
    return module.log_weights.detach()[now].exp()
