"""Export the integer network as one file for chips: tensors and a list of simple operations.

docs/export.md describes the layout. `reference.py` runs a file with numpy only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save
from torch import Tensor, nn

from spikedet.engines.integers import compile_integers, constant_nodes
from spikedet.engines.program import (
    Current,
    Move,
    Neuron,
    NoIntegers,
    Op,
    Plus,
    Pool,
    Program,
    Sums,
    Times,
    Weighted,
)
from spikedet.engines.views import places
from spikedet.errors import UsageError
from spikedet.exporting.lowering import (
    Shape,
    is_max_pool,
    kept,
    padding_of,
    window_factors,
    windows,
)
from spikedet.exporting.registry import ExportError, refuse
from spikedet.exporting.source import Source, flat_outputs
from spikedet.graph.graph import INPUT, Node
from spikedet.graph.operations import (
    AVERAGES,
    MOVES,
    RESHAPES,
    WEIGHTED,
    Add,
    Concatenate,
    Permute,
    Scale,
    Select,
    Shift,
    Stack,
    Subtract,
    WeightedLayer,
)
from spikedet.graph.time import READ, phases
from spikedet.neurons.layers import MeanOverTime

FORMAT = "spikedet-int8-1"
FLOATS = (*WEIGHTED, *MOVES, *AVERAGES, Add, Subtract, Scale, Shift, nn.MaxPool1d, nn.MaxPool2d)
ROUNDED = (
    "the file starts at the picture in float32; its first layers are rounded to integers "
    "once, and a program that sums them in another order may round a current to its neighbour"
)


def build(source: Source) -> tuple[bytes, list[str]]:
    """Make the file of a spiking network (see `registry.Exporter`)."""
    if source.stage != "snn":
        raise ExportError(f"int8 holds spiking networks; these are weights of stage {source.stage}")
    graph = source.graph
    try:
        program = compile_integers(graph)
    except NoIntegers as error:
        raise ExportError(f"int8 cannot say this network; nothing was written: {error}") from None
    steps = source.T or 0
    if steps > program.steps_most:
        raise UsageError(
            f"T is {source.T}; expected at most {program.steps_most}, which the integers can count"
        )
    when = phases(graph)
    behind = [n for n in graph if when[n.name] == READ and not isinstance(n.module, MeanOverTime)]
    floats = [graph.node(name) for name in constant_nodes(graph)] + behind
    unknown = [n for n in floats if not isinstance(n.module, FLOATS)]
    refuse("int8", [(n.name, f"a {n.kind} outside of the neurons") for n in unknown])
    return _File(source, program).bytes(behind), [ROUNDED]


class _File:
    """Collects the nodes and tensors of a file."""

    def __init__(self, source: Source, program: Program):
        self.source, self.program, self.graph = source, program, source.graph
        self.nodes: list[dict[str, Any]] = []
        self.names = {INPUT}
        self.tensors: dict[str, np.ndarray] = {}
        self.shapes: dict[str, Shape] = {INPUT: self.graph.shapes[INPUT]}

    def bytes(self, behind: list[Node]) -> bytes:
        """The whole file."""
        program = self.program
        known = {INPUT: INPUT}  # nodes of the graph -> names of the file
        for name in constant_nodes(self.graph):
            node = self.graph.node(name)
            known[name] = self._float(node, [known[s] for s in node.inputs])
        before, self.nodes = self.nodes, []
        ops: dict[str, str] = {}
        for op in program.ops.values():
            if op.name in program.running:
                ops[op.name] = self._integer(op, ops, known)
        steps, self.nodes = self.nodes, []
        summed: dict[str, str] = {}
        for mean, terms in program.means.items():
            readout = self.graph.module(mean)
            assert isinstance(readout, MeanOverTime)
            log_weights = readout.log_weights
            weights = torch.ones(1) if log_weights is None else log_weights.detach().exp()
            values = []
            for name, amplitude in terms:
                value = self._mean(name, mean, weights, ops, summed)
                if not bool((amplitude == 1).all()):
                    value = self._add(mean, "times", [value], {"factor": amplitude})
                values.append(value)
            known[mean] = values[0] if len(values) == 1 else self._add(mean, "plus", values)
        for node in behind:
            known[node.name] = self._float(node, [known[s] for s in node.inputs])
        header = {
            **self.source.facts,
            "size": list(self.graph.shapes[INPUT][1:]),
            "steps_most": program.steps_most,
            "before": before,
            "steps": steps,
            "behind": self.nodes,
            "results": {name: known[output] for name, output in flat_outputs(self.graph.output)},
        }
        metadata = {"format": FORMAT, "header": json.dumps(header, sort_keys=True)}
        return save(dict(sorted(self.tensors.items())), metadata)

    # ------------------------------------------------------------------ one node

    def _add(
        self,
        name: str,
        op: str,
        inputs: list[str],
        tensors: Mapping[str, Tensor | list[Any]] | None = None,
        shape: Shape | None = None,
        **options: Any,
    ) -> str:
        """Add a node. With shape None, it has the shape of its first input."""
        free, number = name, 0
        while free in self.names:
            number += 1
            free = f"{name}_{number}"
        self.names.add(free)
        for key, value in (tensors or {}).items():
            array = value.detach().numpy() if isinstance(value, Tensor) else np.array(value)
            array = array.astype(np.int32) if array.dtype == np.int64 else array
            self.tensors[f"{free}.{key}"] = np.array(array, order="C")
        self.nodes.append({"name": free, "op": op, "inputs": inputs, **options})
        self.shapes[free] = self.shapes[inputs[0]] if shape is None else tuple(shape)
        return free

    def _integer(self, op: Op, ops: dict[str, str], known: dict[str, str]) -> str:
        inputs = [ops[source] for source in op.inputs]
        if isinstance(op, Current):
            tensors = {"inverse": op.inverse, "limit": op.limit}
            return self._add(op.name, "round", [known[op.node]], tensors)
        if isinstance(op, Neuron):
            tensors = {"bias": op.bias, "threshold": op.threshold, "initial": op.initial}
            tensors["scale"] = op.scale
            if op.low is not None and op.up is not None:
                tensors |= {"low": op.low, "up": op.up}
            kind = "correcting_neuron" if op.corrects else "neuron"
            return self._add(op.name, kind, inputs, tensors)
        if isinstance(op, Weighted):
            return self._weighted(op.name, op.like, inputs, op.weight)
        if isinstance(op, Times):
            channels = op.factor.view(-1, *[1] * (len(self.shapes[inputs[0]]) - 2))
            return self._add(op.name, "times", inputs, {"factor": channels})
        if isinstance(op, Plus):
            tensors = {} if op.offset is None else {"offset": op.offset}
            return self._add(op.name, "plus", inputs, tensors)
        if isinstance(op, Pool):
            return self._pooled(op.name, op.module, inputs, "count_maximum")
        return self._linear(op, inputs)

    def _linear(self, op: Op, inputs: list[str]) -> str:
        """Add an operation that moves or sums values, of integers or of means."""
        if isinstance(op, Sums):
            return self._averaged(op.name, op.module, inputs, op.times, True)
        assert isinstance(op, Move)
        remaining = iter(inputs)
        sources = [
            self._add(op.name, "zeros", inputs[:1], shape=op.zeros[i], size=list(op.zeros[i][1:]))
            if i in op.zeros
            else next(remaining)
            for i in range(len(inputs) + len(op.zeros))
        ]
        return self._moved(op.name, op.module, sources)

    def _mean(
        self, name: str, node: str, weights: Tensor, ops: dict[str, str], summed: dict[str, str]
    ) -> str:
        """Add the mean over time of an operation of the program."""
        op = self.program.ops[name]
        if isinstance(op, Move | Sums):
            inputs = [self._mean(source, node, weights, ops, summed) for source in op.inputs]
            return self._linear(op, inputs)
        key = f"{node}:{name}"
        if key not in summed:
            summed[key] = self._add(key, "mean", [ops[name]], {"weights": weights})
        return summed[key]

    def _float(self, node: Node, inputs: list[str]) -> str:
        module, name = node.module, node.name
        if isinstance(module, WEIGHTED):
            return self._weighted(name, module, inputs, module.weight)
        if isinstance(module, AVERAGES):
            return self._averaged(name, module, inputs, 1, False)
        if is_max_pool(module):
            return self._pooled(name, module, inputs, "maximum")
        if isinstance(module, Add | Subtract):
            shape = self.graph.shapes[name]
            if isinstance(module, Add):
                return self._add(name, "plus", inputs, shape=shape)
            return self._add(name, "minus", inputs, shape=shape)
        if isinstance(module, Scale):
            return self._add(name, "times", inputs, {"factor": module.factor})
        if isinstance(module, Shift):
            return self._add(name, "plus", inputs, {"offset": module.offset})
        return self._moved(name, module, inputs)

    # ------------------------------------------------------------------ kinds of nodes

    def _weighted(self, name: str, like: WeightedLayer, inputs: list[str], weight: Tensor) -> str:
        tensors = {"weight": weight}
        if weight.is_floating_point() and like.bias is not None:
            tensors["bias"] = like.bias
        shape = tuple(like(torch.zeros(self.shapes[inputs[0]])).shape)
        if isinstance(like, nn.Linear):
            return self._add(name, "linear", inputs, tensors, shape)
        options: dict[str, Any] = {"stride": list(like.stride), "dilation": list(like.dilation)}
        options["padding"] = [list(pair) for pair in padding_of(like)]
        options["groups"] = like.groups
        if not isinstance(like, nn.ConvTranspose1d | nn.ConvTranspose2d):
            return self._add(name, "convolution", inputs, tensors, shape, **options)
        options["output_padding"] = list(like.output_padding)
        return self._add(name, "transposed_convolution", inputs, tensors, shape, **options)

    def _averaged(
        self, name: str, module: nn.Module, inputs: list[str], times: int, whole: bool
    ) -> str:
        """Add sums over windows, multiplied by a factor; `times` makes the factor an integer."""
        shape = self.shapes[inputs[0]]
        out = tuple(module(torch.zeros(shape)).shape)
        wide = kept(module, shape, out)
        factors = window_factors(module, shape) * times
        value = self._windowed(name, "sum", inputs, windows(module, shape, wide), wide)
        if whole:
            factors = factors.round().to(torch.int32)
        if not bool((factors == 1).all()):
            factors = factors if whole else factors.float()
            value = self._add(name, "times", [value], {"factor": factors})
        if out != wide:
            value = self._add(name, "reshape", [value], shape=out, size=list(out[1:]))
        return value

    def _pooled(self, name: str, module: nn.Module, inputs: list[str], op: str) -> str:
        shape = self.shapes[inputs[0]]
        pool = getattr(module, "pool", module)
        out = tuple(pool(torch.zeros(shape)).shape)
        if getattr(module, "mode", "step") == "step":
            op = "maximum"
        return self._windowed(name, op, inputs, windows(module, shape, out), out)

    def _windowed(self, name: str, op: str, inputs: list[str], lines: list, out: Shape) -> str:
        tensors: dict[str, list[Any]] = {}
        axes = []
        for axis, line in lines:
            longest = max(len(taken) for taken in line)
            tensors[f"axis{axis}"] = [taken + [-1] * (longest - len(taken)) for taken in line]
            axes.append(axis)
        return self._add(name, op, inputs, tensors, out, axes=axes)

    def _moved(self, name: str, module: nn.Module, inputs: list[str]) -> str:
        shapes = [self.shapes[source] for source in inputs]
        out = tuple(module(*[torch.zeros(shape) for shape in shapes]).shape)

        def reshape(source: str, shape: Shape) -> str:
            return self._add(name, "reshape", [source], shape=shape, size=list(shape[1:]))

        if isinstance(module, Concatenate | Stack):
            axis = module.dim % len(out)
            if isinstance(module, Stack):
                wide = (*out[:axis], 1, *out[axis + 1 :])
                inputs = [reshape(source, wide) for source in inputs]
            return self._add(name, "concatenate", inputs, shape=out, axis=axis)
        if isinstance(module, RESHAPES):
            return reshape(inputs[0], out)
        if isinstance(module, Permute):
            axes = [d % len(out) for d in module.dims]
            return self._add(name, "transpose", inputs, shape=out, axes=axes)
        if isinstance(module, Select):
            axis, size = module.dim % len(shapes[0]), shapes[0][module.dim]
            index = {f"axis{axis}": [module.index % size]}
            wide = tuple(1 if d == axis else n for d, n in enumerate(shapes[0]))
            return reshape(self._add(name, "take", inputs, index, wide, axes=[axis]), out)
        if isinstance(module, nn.PixelShuffle | nn.PixelUnshuffle):
            return self._shuffled(name, module, inputs[0], out)
        taken = places(module, shapes[0])
        if not taken:
            return inputs[0]
        tensors = {f"axis{axis}": line for axis, line in taken}
        return self._add(name, "take", inputs, tensors, out, axes=[axis for axis, _ in taken])

    def _shuffled(self, name: str, module: nn.Module, source: str, out: Shape) -> str:
        _, channels, height, width = self.shapes[source]
        r: Any
        if isinstance(module, nn.PixelShuffle):
            r = module.upscale_factor
            wide, axes = (1, channels // r**2, r, r, height, width), [0, 1, 4, 2, 5, 3]
        else:
            r = module.downscale_factor
            wide, axes = (1, channels, height // r, r, width // r, r), [0, 1, 3, 5, 2, 4]
        value = self._add(name, "reshape", [source], shape=wide, size=list(wide[1:]))
        turned = tuple(wide[axis] for axis in axes)
        value = self._add(name, "transpose", [value], shape=turned, axes=axes)
        return self._add(name, "reshape", [value], shape=out, size=list(out[1:]))
