"""Translate the nodes of a graph to nodes of ONNX.

Nodes that depend on time are translated by subclasses, because they differ between the two forms.
Every node of the graph becomes a few ONNX nodes with its name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from spikedet.engines.views import NOWHERE, places
from spikedet.exporting.lowering import (
    each,
    is_max_pool,
    kept,
    padding_of,
    window_factors,
    windows,
)
from spikedet.exporting.source import Source, flat_outputs
from spikedet.graph.graph import INPUT, Node
from spikedet.graph.operations import (
    AVERAGES,
    RESHAPES,
    SHUFFLES,
    WEIGHTED,
    Add,
    ClippedReLU,
    Concatenate,
    Leaky,
    Pad,
    Permute,
    Scale,
    Select,
    Shift,
    Slice,
    Stack,
    Subtract,
    WeightedLayer,
)
from spikedet.graph.time import phases
from spikedet.neurons.correcting import CorrectingNeuron
from spikedet.neurons.functional import NO_SLOPE
from spikedet.neurons.layers import IFNeuron, MeanOverTime, SpikingMaxPool
from spikedet.neurons.quantize import QuantClip

State: TypeAlias = tuple[str, ...]  # names of the values that neurons keep between time steps

OPSET, IR = 18, 10
KNOWN = (
    *WEIGHTED, *RESHAPES, *SHUFFLES, *AVERAGES, nn.ReLU, ClippedReLU, Leaky,
    QuantClip, MeanOverTime, SpikingMaxPool, nn.MaxPool1d, nn.MaxPool2d, nn.Upsample, Pad, Permute,
    Slice, Select, Scale, Shift, Add, Subtract, Concatenate, Stack,
)  # fmt: skip


class Builder:
    """Builds an ONNX graph. Values are identified by their names."""

    def __init__(self, source: Source):
        self.source, self.graph = source, source.graph
        self.when = phases(self.graph)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.taken = {INPUT, *(name for name, _ in flat_outputs(self.graph.output))}
        self.shared: dict[tuple, str] = {}
        self.inputs = [self._value(INPUT, self.graph.shapes[INPUT][1:])]
        self.outputs: list[onnx.ValueInfoProto] = []
        self.values: dict[str, str] = {INPUT: INPUT}  # by node of the graph
        self.here = ""  # the node that is being written

    # ------------------------------------------------------------------ writing

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

    def model(self) -> onnx.ModelProto:
        """The whole model."""
        for node in self.graph:
            self.here = node.name
            inputs = [self.values[source] for source in node.inputs]
            self.values[node.name] = self.write(node, inputs)
        for name, source in flat_outputs(self.graph.output):
            self.nodes.append(helper.make_node("Identity", [self.values[source]], [name], name))
            self.outputs.append(self._value(name, self.graph.shapes[source][1:]))
        graph = helper.make_graph(
            self.nodes, "spikedet", self.inputs, self.outputs, list(self.constants.values())
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR,
            producer_name="spikedet",
        )
        facts = {"opset": OPSET, **self.metadata()}
        helper.set_model_props(model, {"spikedet": self.source.facts_json(**facts)})
        return model

    def metadata(self) -> dict[str, Any]:
        """Further entries of the metadata, beside the facts."""
        return {}

    @staticmethod
    def _value(name: str, shape: tuple[int, ...], kind: int = TensorProto.FLOAT) -> Any:
        return helper.make_tensor_value_info(name, kind, ["batch", *shape])

    # ------------------------------------------------------------------ nodes of the graph

    def write(self, node: Node, inputs: list[str]) -> str:
        """Add a node of the graph; returns the name of its value."""
        module, x = node.module, inputs[0]
        if isinstance(module, IFNeuron):
            return self.neuron(node, x)
        if isinstance(module, MeanOverTime):
            return self.mean(node, x)
        if isinstance(module, SpikingMaxPool) and module.mode == "count":
            return self.counted(node, x)
        return self.stateless(node, inputs)

    def neuron(self, node: Node, x: str) -> str:
        """Add a layer of neurons."""
        raise NotImplementedError

    def mean(self, node: Node, x: str) -> str:
        """Add a mean over time."""
        raise NotImplementedError

    def counted(self, node: Node, x: str) -> str:
        """Add max-pooling of spike counts."""
        raise NotImplementedError

    def stateless(self, node: Node, inputs: list[str]) -> str:
        """Add an operation that does not depend on time."""
        module, x = node.module, inputs[0]
        shape, out = self.graph.shapes[node.inputs[0]], self.graph.shapes[node.name]
        if isinstance(module, WEIGHTED):
            return self.weighted(module, x, len(shape))
        if isinstance(module, AVERAGES):
            return self.average(module, x, shape, out)
        if is_max_pool(module):
            return self.max_pool(module, x, shape, out)
        if isinstance(module, RESHAPES):
            return self.reshape(x, out)
        if isinstance(module, SHUFFLES):
            return self.shuffle(module, x, shape, out)
        if isinstance(module, Slice | Pad | nn.Upsample):
            return self.move(module, x, shape)
        if isinstance(module, Select):
            axis = module.dim % len(shape)
            index = np.array(module.index % shape[axis], np.int64)
            return self.op("Gather", x, self.constant(index, "index"), axis=axis)
        if isinstance(module, Permute):
            return self.op("Transpose", x, perm=[d % len(out) for d in module.dims])
        if isinstance(module, Concatenate):
            return self.op("Concat", *inputs, axis=module.dim)
        if isinstance(module, Stack):
            axis = module.dim % len(out)
            wide = (*out[:axis], 1, *out[axis + 1 :])
            return self.op("Concat", *(self.reshape(y, wide) for y in inputs), axis=axis)
        if isinstance(module, Add | Subtract):
            for other in inputs[1:]:
                x = self.op("Add" if isinstance(module, Add) else "Sub", x, other)
            return x
        if isinstance(module, Scale):
            return self.op("Mul", x, self.constant(module.factor, "factor"))
        if isinstance(module, Shift):
            return self.op("Add", x, self.constant(module.offset, "offset"))
        return self.activation(module, x, len(shape))

    def activation(self, module: nn.Module, x: str, ndim: int) -> str:
        if isinstance(module, nn.ReLU):
            return self.op("Relu", x)
        if isinstance(module, ClippedReLU):
            return self.op("Clip", x, self.number(0.0), self.number(module.top))
        if isinstance(module, Leaky):
            slope = self.channels(torch.tensor(module.slope), ndim)
            return self.op("PRelu", x, self.constant(slope[0] if slope.ndim else slope, "slope"))
        assert isinstance(module, QuantClip)
        threshold = self.channels(module.threshold.detach().abs().clamp(min=1e-6), ndim)
        slope = self.channels(torch.tensor(module.slope), ndim)
        z = self.op("Mul", x, self.constant(1 / threshold, "inverse"))
        z = self.op("Mul", z, self.number(float(module.steps)))
        level = self.op("Floor", self.op("Add", z, self.number(0.5)))
        signed = bool((slope > 0).any())
        if bool(((slope > 0) & (slope < 1)).any()) or (signed and slope.ndim):
            below = self.op("Sub", self.number(-0.5), z)
            below = self.op("Floor", self.op("Mul", below, self.constant(slope, "slope")))
            below = self.op("Neg", self.op("Max", below, self.number(0.0)))
            leaks = self.op("Less", z, self.number(0.0))
            if slope.ndim:
                leaks = self.op("And", leaks, self.constant(slope != 1, "leaks"))
            level = self.op("Where", leaks, below, level)
        level = self.op("Div", level, self.number(float(module.steps)))
        least = self.number(-1.0 if signed else 0.0)
        level = self.op("Clip", level, least, self.number(1.0))
        return self.op("Mul", level, self.constant(threshold, "threshold"))

    def weighted(self, layer: WeightedLayer, x: str, ndim: int) -> str:
        weight = layer.weight.detach()
        bias = [] if layer.bias is None else [self.constant(layer.bias, "bias")]
        if isinstance(layer, nn.Linear):
            if ndim == 2:
                return self.op("Gemm", x, self.constant(weight, "weight"), *bias, transB=1)
            x = self.op("MatMul", x, self.constant(weight.T.contiguous(), "weight"))
            return self.op("Add", x, *bias) if bias else x
        pads = padding_of(layer)
        attributes: dict[str, Any] = {
            "kernel_shape": list(layer.kernel_size),
            "strides": list(layer.stride),
            "dilations": list(layer.dilation),
            "pads": [p for p, _ in pads] + [p for _, p in pads],
            "group": layer.groups,
        }
        kind = "Conv"
        if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d):
            kind, attributes["output_padding"] = "ConvTranspose", list(layer.output_padding)
        return self.op(kind, x, self.constant(weight, "weight"), *bias, **attributes)

    def average(self, module: nn.Module, x: str, shape: tuple, out: tuple) -> str:
        """Add average pooling: one pooling if all windows are alike, else a matrix per axis."""
        if (pooled := self.alike(module, x, shape, out)) is not None:
            return pooled
        wide, factors = kept(module, shape, out), window_factors(module, shape)
        lines = windows(module, shape, wide)
        whole = all(line == [list(range(shape[axis]))] for axis, line in lines)
        if whole:
            axes = self.constant(np.array([axis for axis, _ in lines], np.int64), "axes")
            x = self.op("ReduceSum", x, axes, keepdims=1)
        else:
            for axis, line in lines:
                chosen = torch.zeros(len(line), shape[axis])
                for row, taken in enumerate(line):
                    chosen[row, taken] = 1
                if axis == len(shape) - 1:
                    x = self.op("MatMul", x, self.constant(chosen.T.contiguous(), "windows"))
                else:
                    x = self.op("MatMul", self.constant(chosen, "windows"), x)
        if bool((factors == factors.flatten()[0]).all()):
            factors = factors.flatten()[0]
        if not bool((factors == 1).all()):
            x = self.op("Mul", x, self.constant(factors, "factor"))
        return x if out == wide else self.reshape(x, out)

    def alike(self, module: nn.Module, x: str, shape: tuple, out: tuple) -> str | None:
        """Add an average whose windows all have the same size; None if they differ."""
        dims = len(shape) - 2
        if isinstance(module, nn.AvgPool1d | nn.AvgPool2d):
            kernel, stride = each(module.kernel_size, dims), each(module.stride, dims)
            padding = each(module.padding, dims)
            apart = any(padding) and not module.count_include_pad
            if module.ceil_mode or apart or getattr(module, "divisor_override", None):
                return None
        elif isinstance(module, nn.AdaptiveAvgPool1d | nn.AdaptiveAvgPool2d):
            if any(size % parts for size, parts in zip(shape[2:], out[2:], strict=True)):
                return None
            kernel = stride = tuple(
                size // parts for size, parts in zip(shape[2:], out[2:], strict=True)
            )
            padding = (0,) * dims
        else:
            return None
        return self.op(
            "AveragePool", x, kernel_shape=list(kernel), strides=list(stride),
            pads=[*padding, *padding], count_include_pad=1,
        )  # fmt: skip

    def max_pool(self, module: nn.Module, x: str, shape: tuple, out: tuple) -> str:
        dims = len(shape) - 2
        kernel, stride = each(module.kernel_size, dims), each(module.stride, dims)
        begin, dilation = each(module.padding, dims), each(module.dilation, dims)
        end = [  # as much as the last window needs, so that ceil_mode is settled
            max(0, (out[2 + i] - 1) * stride[i] + dilation[i] * (kernel[i] - 1) + 1 - begin[i])
            for i in range(dims)
        ]
        end = [max(0, whole - size) for whole, size in zip(end, shape[2:], strict=True)]
        if any(behind >= k for behind, k in zip(end, kernel, strict=True)):  # no MaxPool has that
            pads = np.array([0, 0, *begin, 0, 0, *end], np.int64)
            x = self.op("Pad", x, self.constant(pads, "pads"), self.number(-np.inf))
            begin, end = (0,) * dims, [0] * dims
        return self.op(
            "MaxPool", x, kernel_shape=list(kernel), strides=list(stride),
            dilations=list(dilation), pads=[*begin, *end],
        )  # fmt: skip

    def move(self, module: nn.Module, x: str, shape: tuple) -> str:
        """Add an operation that selects entries along axes and adds zeros."""
        for axis, taken in places(module, shape):
            before = next((i for i, place in enumerate(taken) if place != NOWHERE), len(taken))
            inside = [place for place in taken if place != NOWHERE]
            behind = len(taken) - before - len(inside)
            if inside != list(range(shape[axis])):
                index = self.constant(np.array(inside, np.int64), "places")
                x = self.op("Gather", x, index, axis=axis)
            if before or behind:
                pads = np.array([before, behind], np.int64)
                axes = self.constant(np.array([axis], np.int64), "axes")
                x = self.op("Pad", x, self.constant(pads, "pads"), "", axes)
        return x

    def shuffle(self, module: nn.Module, x: str, shape: tuple, out: tuple) -> str:
        if isinstance(module, nn.PixelShuffle):
            return self.op("DepthToSpace", x, blocksize=module.upscale_factor, mode="CRD")
        _, channels, height, width = shape
        wide: tuple[Any, ...]
        if isinstance(module, nn.PixelUnshuffle):
            r = module.downscale_factor
            wide, axes = (1, channels, height // r, r, width // r, r), [0, 1, 3, 5, 2, 4]
        else:
            groups = module.groups
            wide, axes = (1, groups, channels // groups, height, width), [0, 2, 1, 3, 4]
        return self.reshape(self.op("Transpose", self.reshape(x, wide), perm=axes), out)

    # ------------------------------------------------------------------ small things

    def reshape(self, x: str, shape: tuple) -> str:
        """Add a change of shape for [N, ...]; N stays."""
        size = np.array([0, *shape[1:]], np.int64)
        return self.op("Reshape", x, self.constant(size, "shape"))

    def number(self, value: float) -> str:
        return self.constant(np.array(value, np.float32), "number")

    @staticmethod
    def channels(value: Tensor, ndim: int) -> Tensor:
        """Reshape a scalar, [C] or [C, H, W] so that it broadcasts to [B, C, ...]."""
        value = value.detach().float()
        return value.view(1, -1, *[1] * (ndim - 2)) if value.ndim == 1 else value

    def initial(self, node: Node) -> str:
        """The initial potentials of a layer of neurons."""
        initial, ndim = self.graph.neuron(node.name).initial, len(self.graph.shapes[node.name])
        return self.constant(self.channels(initial, ndim), "initial")

    def start(self, node: Node) -> dict[str, str]:
        """The state of neurons before the first step: potentials, and counts if they have them."""
        state = {"potential": self.initial(node)}
        if isinstance(node.module, CorrectingNeuron):
            state["counts"] = self.number(0.0)
        return state

    def fire(self, node: Node, ndim: int) -> Callable[[State, str], tuple[str, State]]:
        """A function for one time step of neurons: (state, current) -> (output, state)."""
        module = self.graph.neuron(node.name)
        if isinstance(module, CorrectingNeuron):
            return self._correct(module, ndim)
        theta = module.threshold.detach()
        threshold = self.constant(self.channels(theta, ndim), "threshold")
        slope = torch.tensor(module.slope, dtype=torch.float32)
        slope = torch.where(slope > NO_SLOPE, slope, torch.zeros_like(slope))
        signed = bool((slope > 0).any())
        depth = theta / slope.clamp(min=NO_SLOPE)
        bound = torch.where((slope > 0) & (slope < 1), -depth, -torch.inf)
        linear = slope == 1
        if signed:
            lower = self.constant(self.channels(bound, ndim), "lower")
            up = self.constant(self.channels(torch.where(slope > 0, depth, 0.0), ndim), "up")
        if bool(linear.any()):
            whether = self.constant(self.channels(linear, ndim) == 1, "linear")

        def step(state: State, current: str) -> tuple[str, State]:
            u = self.op("Add", state[0], current)
            fired = self.cast(self.op("GreaterOrEqual", u, threshold))
            after = self.op("Sub", u, self.op("Mul", fired, threshold))
            if signed:
                below = self.op("LessOrEqual", u, lower)
                if bool(linear.any()):
                    under = self.op("And", self.op("Less", u, self.number(0.0)), whether)
                    below = self.op("Or", below, under)
                below = self.cast(below)
                after = self.op("Add", after, self.op("Mul", below, up))
                fired = self.op("Sub", fired, below)
            sent = fired if module.folded else self.op("Mul", fired, threshold)
            return sent, (after,)

        return step

    def _correct(
        self, module: CorrectingNeuron, ndim: int
    ) -> Callable[[State, str], tuple[str, State]]:
        """`fire` of neurons that correct themselves. The state is potentials and counts."""
        theta = module.threshold.detach()
        threshold = self.constant(self.channels(theta, ndim), "threshold")
        lower = self.constant(self.channels(-module.margin * theta, ndim), "lower")

        def step(state: State, current: str) -> tuple[str, State]:
            potential, counts = state
            u = self.op("Add", potential, current)
            above = self.cast(self.op("GreaterOrEqual", u, threshold))
            below = self.op("Less", u, lower)
            below = self.op("And", below, self.op("Greater", counts, self.number(0.0)))
            fired = self.op("Sub", above, self.cast(below))
            change = self.op("Mul", fired, threshold)
            sent = fired if module.folded else change
            return sent, (self.op("Sub", u, change), self.op("Add", counts, fired))

        return step

    def cast(self, x: str) -> str:
        return self.op("Cast", x, to=TensorProto.FLOAT)
