"""Export to NIR, the neuromorphic intermediate representation.

A NIR file has layers and integrate-and-fire neurons. NIR has no initial potentials, no soft reset
and no readout on the mean over time. These are stored in metadata, and the notes of `build` say so.
If a node cannot be stored in this way either, the export is refused.
"""

from __future__ import annotations

import io
from typing import Any

import nir
import numpy as np
import torch
from torch import Tensor, nn

from spikedet.errors import message_of
from spikedet.exporting.lowering import each
from spikedet.exporting.registry import ExportError, refuse
from spikedet.exporting.source import Source, flat_outputs
from spikedet.graph.graph import INPUT, Node
from spikedet.graph.operations import (
    Add,
    Concatenate,
    Mean,
    Reshape,
    Scale,
    Shift,
    Squeeze,
    Subtract,
)
from spikedet.neurons.correcting import CorrectingNeuron
from spikedet.neurons.layers import IFNeuron, MeanOverTime, SpikingMaxPool, per_channel

OUTPUT = "output"
RESET = (
    "every IF node resets by subtraction of v_threshold (in NIR it is set to v_reset); the "
    "metadata of the node has reset = subtract"
)
START = (
    "every IF node starts at the potential in its metadata, initial_potential (in NIR it starts at "
    "0)"
)
FIRES = "every IF node fires at v >= v_threshold (in NIR it fires at v > v_threshold)"
INPUTS = "the picture is the input of every step"
READOUT = "the result is the mean over T steps of the values at the output node"
WEIGHTED_READOUT = (
    "the result is a weighted mean over T steps of the values at the output node; step_weights in "
    "the metadata of the output node has the weight of each step"
)
WHY = {
    SpikingMaxPool: "max-pooling of spike counts",
    Concatenate: "a concatenation",
    nn.Upsample: "up-sampling",
    Subtract: "a difference",
    Shift: "a sum with a constant",
}


def build(source: Source) -> tuple[bytes, list[str]]:
    """Make the file of a spiking network (see `registry.Exporter`).

    Raises:
        ExportError: NIR cannot express some nodes. The message names all of them.
    """
    if source.stage != "snn":
        raise ExportError(f"NIR holds spiking networks; these are weights of stage {source.stage}")
    translated = _Translated(source)
    notes = [INPUTS, RESET, FIRES]
    if any(bool(neuron.initial.any()) for neuron in source.graph.only(IFNeuron)):
        notes.append(START)
    notes.append(READOUT if translated.step_weights is None else WEIGHTED_READOUT)
    metadata = {"spikedet": source.facts_json(), "not_in_nir": "\n".join(notes)}
    try:
        graph = nir.NIRGraph(translated.nodes, translated.edges, metadata=metadata)
    except ValueError as error:  # its own check of shapes
        reason = message_of(error)
        raise ExportError(
            f"NIR cannot express this network, so nothing was written: {reason}"
        ) from None
    file = io.BytesIO()
    nir.write(file, graph)
    return file.getvalue(), notes


class _Translated:
    """The nodes and edges of a NIR graph.

    Attributes:
        step_weights: Weight of each time step in the mean at the end. None if all are equal.
    """

    def __init__(self, source: Source):
        assert source.T is not None  # of a spiking network
        self.graph, self.T = source.graph, source.T
        shape = np.array(self.graph.shapes[INPUT][1:])
        self.nodes: dict[str, nir.NIRNode] = {INPUT: nir.Input({"input": shape})}
        self.edges: list[tuple[str, str]] = []
        self.values: dict[str, list[str]] = {INPUT: [INPUT]}  # the nodes whose sum a value is
        self.step_weights: Tensor | None = None
        refused = []
        for node in self.graph:
            try:
                self.values[node.name] = self._node(node)
            except _Refused as error:
                refused.append((node.name, str(error)))
                self.values[node.name] = []
        outputs = flat_outputs(self.graph.output)
        if len(outputs) != 1:
            names = ", ".join(name for name, _ in outputs)
            refused.append((OUTPUT, f"several outputs ({names})"))
        weights = [self._weights(mean) for mean in self.graph.only(MeanOverTime)]
        if any(not torch.equal(weights[0], other) for other in weights[1:]):
            refused.append((OUTPUT, "means over time in which steps count unequally"))
        refuse("NIR", refused)
        metadata: dict[str, Any] = {"time_steps": self.T}
        if weights and not bool((weights[0] == weights[0][0]).all()):
            self.step_weights = weights[0]
            metadata["step_weights"] = weights[0].numpy()
        last = outputs[0][1]
        shape = np.array(self.graph.shapes[last][1:])
        self.nodes[OUTPUT] = nir.Output({"output": shape}, metadata=metadata)
        self.edges += [(name, OUTPUT) for name in self.values[last]]

    def _weights(self, module: MeanOverTime) -> Tensor:
        """The weights of the T time steps, normalised to the sum 1."""
        weights = torch.ones(self.T)
        if module.log_weights is not None:
            now = torch.arange(self.T).clamp(max=len(module.log_weights) - 1)
            weights = module.log_weights.detach()[now].exp()
        return weights / weights.sum()

    def _add(self, node: Node, new: nir.NIRNode, sources: list[str], suffix: str = "") -> list[str]:
        """Add a NIR node after `sources`; returns a list with its name."""
        wanted = f"{node.name}{suffix}".replace(".", "_").replace("/", "_")
        name, number = wanted, 0
        while name in self.nodes or name == OUTPUT:
            number += 1
            name = f"{wanted}_{number}"
        new.metadata = {**new.metadata, "name": node.name}
        self.nodes[name] = new
        self.edges += [(source, name) for source in sources]
        return [name]

    def _node(self, node: Node) -> list[str]:
        """Add a node of the graph; returns the NIR nodes whose sum is its value."""
        module = node.module
        shape, out = self.graph.shapes[node.inputs[0]], self.graph.shapes[node.name]
        sources = self.values[node.inputs[0]]
        if isinstance(module, IFNeuron):
            return self._neuron(node, sources, out)
        if isinstance(module, MeanOverTime):
            return sources
        if isinstance(module, Add):
            return self._sum(node, shape)
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            return self._add(node, _convolution(module, shape), sources)
        if isinstance(module, nn.Linear) and len(shape) == 2:
            weight = _array(module.weight)
            if module.bias is None:
                return self._add(node, nir.Linear(weight), sources)
            return self._add(node, nir.Affine(weight, _array(module.bias)), sources)
        if isinstance(module, Scale):
            scale = _array(module.factor.expand(out)[0])
            return self._add(node, nir.Scale(scale), sources)
        if isinstance(module, nn.Flatten | Reshape | Squeeze) and len(out) == 2:
            return self._flattened(node, sources, shape)
        if isinstance(module, nn.AvgPool2d | nn.AdaptiveAvgPool2d | Mean):
            return self._averaged(node, sources, shape, out)
        for kind, why in WHY.items():
            if isinstance(module, kind):
                raise _Refused(why)
        raise _Refused(f"a {node.kind} of {list(shape[1:])}")

    def _neuron(self, node: Node, sources: list[str], shape: tuple[int, ...]) -> list[str]:
        module = node.module
        if isinstance(module, CorrectingNeuron):
            raise _Refused("neurons that take back spikes")
        if type(module) is not IFNeuron:
            raise _Refused(f"a neuron of another kind ({type(module).__name__})")
        if module.slope != 0:
            raise _Refused("neurons with a second threshold below 0, of a leaky ReLU")

        def full(value: Tensor) -> np.ndarray:
            each_one = per_channel(value.detach(), len(shape))
            return _array(each_one.expand(shape)[0])

        threshold = full(module.threshold)
        metadata: dict[str, Any] = {"reset": "subtract", "fires": "v >= v_threshold"}
        metadata["initial_potential"] = full(module.initial)
        ones, zeros = np.ones_like(threshold), np.zeros_like(threshold)
        spikes = self._add(node, nir.IF(ones, threshold, zeros, metadata=metadata), sources)
        if module.folded:
            return spikes
        return self._add(node, nir.Scale(threshold), spikes, "_amplitude")

    def _sum(self, node: Node, shape: tuple[int, ...]) -> list[str]:
        """Add a sum. In NIR, edges that end in one node are added."""
        if any(self.graph.shapes[source] != shape for source in node.inputs):
            raise _Refused("a sum of unlike shapes")
        names = [name for source in node.inputs for name in self.values[source]]
        if len(set(names)) != len(names):
            raise _Refused("a value added to itself")
        return names

    def _flattened(self, node: Node, sources: list[str], shape: tuple[int, ...]) -> list[str]:
        if len(shape) == 2:
            return sources
        flat = nir.Flatten({"input": np.array(shape[1:])}, start_dim=0, end_dim=-1)
        return self._add(node, flat, sources, "_flatten" if isinstance(node.module, Mean) else "")

    def _averaged(
        self, node: Node, sources: list[str], shape: tuple[int, ...], out: tuple[int, ...]
    ) -> list[str]:
        module = node.module
        if len(shape) != 4:
            raise _Refused("an average that is not one of windows in two dimensions")
        padding: tuple[int, ...] = (0, 0)
        if isinstance(module, nn.AvgPool2d):
            kernel, stride = each(module.kernel_size, 2), each(module.stride, 2)
            padding = each(module.padding, 2)
            apart = any(padding) and not module.count_include_pad
            if module.ceil_mode or apart or module.divisor_override:
                raise _Refused("averages of windows that are cut at the border")
        elif isinstance(module, Mean):
            if sorted(d % 4 for d in module.dims) != [2, 3]:
                raise _Refused("a mean over other dimensions than height and width")
            kernel = stride = shape[2:]
        else:
            if any(size % parts for size, parts in zip(shape[2:], out[2:], strict=True)):
                raise _Refused("averages of windows of unlike sizes")
            kernel = stride = tuple(
                size // parts for size, parts in zip(shape[2:], out[2:], strict=True)
            )
        pool = nir.AvgPool2d(np.array(kernel), np.array(stride), np.array(padding))
        names = self._add(node, pool, sources)
        if len(out) == 4:
            return names
        return self._flattened(node, names, (*shape[:2], 1, 1))


class _Refused(Exception):
    """NIR cannot express a node; the message says why."""


def _convolution(layer: nn.Conv1d | nn.Conv2d, shape: tuple[int, ...]) -> nir.NIRNode:
    if layer.groups > 1:
        raise _Refused("a convolution of several groups, which readers of NIR take for one")
    if len(set(layer.kernel_size)) > 1:
        raise _Refused("a kernel that is not square, whose shapes the nir package works out wrong")
    bias = layer.bias if layer.bias is not None else torch.zeros(layer.out_channels)
    padding = layer.padding if isinstance(layer.padding, str) else tuple(layer.padding)
    if isinstance(layer, nn.Conv2d):
        return nir.Conv2d(
            shape[2:], _array(layer.weight), tuple(layer.stride), padding, tuple(layer.dilation),
            1, _array(bias),
        )  # fmt: skip
    edge = padding if isinstance(padding, str) else padding[0]
    return nir.Conv1d(
        shape[2], _array(layer.weight), layer.stride[0], edge, layer.dilation[0], 1, _array(bias)
    )


def _array(tensor: Tensor) -> np.ndarray:
    return np.array(tensor.detach().float().numpy(), order="C")
