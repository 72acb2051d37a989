"""Translate the nodes of a graph to nodes of ONNX.

Nodes that depend on time are translated by subclasses, because they differ between the two forms.
Every node of the graph becomes a few ONNX nodes with its name.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from spikedet.engines.views import NOWHERE, places
from spikedet.exporting.lowering import (
    channels,
    each,
    is_max_pool,
    kept,
    padding_of,
    window_factors,
    windows,
)
from spikedet.exporting.onnx_writer import OPSET, Writer
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
from spikedet.neurons.layers import IFNeuron, MeanOverTime, SpikingMaxPool
from spikedet.neurons.quantize import QuantClip

KNOWN = (
    *WEIGHTED, *RESHAPES, *SHUFFLES, *AVERAGES, nn.ReLU, ClippedReLU, Leaky,
    QuantClip, MeanOverTime, SpikingMaxPool, nn.MaxPool1d, nn.MaxPool2d, nn.Upsample, Pad, Permute,
    Slice, Select, Scale, Shift, Add, Subtract, Concatenate, Stack,
)  # fmt: skip


class Builder(Writer):
    """Translates the graph of a network, node by node.

    Args:
        source: The network.

    Attributes:
        values: Names of the values of the nodes that are translated already.
    """

    def __init__(self, source: Source):
        self.source, self.graph = source, source.graph
        super().__init__({INPUT, *(name for name, _ in flat_outputs(self.graph.output))})
        self.when = phases(self.graph)
        self.inputs = [self.declared(INPUT, self.graph.shapes[INPUT][1:])]
        self.values: dict[str, str] = {INPUT: INPUT}

    def model(self) -> onnx.ModelProto:
        """The whole model."""
        for node in self.graph:
            self.here = node.name
            inputs = [self.values[source] for source in node.inputs]
            self.values[node.name] = self.write(node, inputs)
        for name, source in flat_outputs(self.graph.output):
            shape = self.graph.shapes[source][1:]
            self.outputs.append(self.output(self.values[source], name, shape))
        return self.finish(self.source.facts_json(opset=OPSET, **self.metadata()))

    def metadata(self) -> dict[str, Any]:
        """Further entries of the metadata, beside the facts."""
        return {}

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
            slope = channels(torch.tensor(module.slope), ndim)
            return self.op("PRelu", x, self.constant(slope[0] if slope.ndim else slope, "slope"))
        assert isinstance(module, QuantClip)
        threshold = channels(module.threshold.detach().abs().clamp(min=1e-6), ndim)
        slope = channels(torch.tensor(module.slope), ndim)
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
