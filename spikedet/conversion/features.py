"""Feature distillation: train the firing rates of a spiking network towards float activations.

The outputs of a detector say something about the few places with objects. The activations of all
layers say something about every place. So a spiking network learns faster from them, and each layer
learns which of its errors matter. The idea is that of FitNets (Romero et al., ICLR 2015). No layer
is needed in between, because both networks have the same layers. It is not in the paper.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from spikedet.errors import UsageError
from spikedet.graph.graph import INPUT, Graph, Node
from spikedet.graph.operations import ACTIVATIONS
from spikedet.graph.structure import fill
from spikedet.neurons.layers import IFNeuron, per_channel
from spikedet.runtime.passes import Pass
from spikedet.runtime.watch import watching


class Features:
    """The distance of the firing rates of a spiking network to the activations of a teacher.

    Args:
        spiking: Spiking graph.
        teacher: Float or stage-I graph in evaluation mode. Layers with the same name and number of
            channels are compared.

    Raises:
        UsageError: The teacher is not a graph, or no layer is the same.
    """

    def __init__(self, spiking: Graph, teacher: nn.Module):
        if not isinstance(teacher, Graph):
            raise UsageError(f"the teacher is a {type(teacher).__name__}; expected a graph")
        self.spiking, self.teacher = spiking, teacher
        self.names = {
            node.name
            for node in spiking.of((IFNeuron,))
            if node.name in teacher
            and isinstance(teacher.module(node.name), ACTIVATIONS)
            and _channels(teacher, node.name) == _channels(spiking, node.name)
        }
        if not self.names:
            raise UsageError(
                "the teacher has no layer of the network, so its activations cannot be distilled; "
                "use the float network that the spiking one was made from"
            )
        self._wanted: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}
        self._steps: dict[str, int] = {}

    @torch.no_grad()
    def outputs(self, pictures: Tensor) -> Any:
        """Run the teacher for pictures [B, ...], and remember its activations.

        Returns:
            The outputs of the teacher.
        """
        graph = self.teacher
        values = graph.run(graph.edges, {INPUT: pictures}, {*graph.outputs, *self.names})
        self._wanted = {name: values[name].float() for name in self.names}
        return fill(graph.output, values)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watch a run of the spiking network, on the pictures of the last call of `outputs`."""
        self._sums, self._steps = {}, {}
        with watching(self.spiking, self._watch):
            yield

    def distance(self) -> Tensor:
        """The distance in the last watched run, a scalar with a gradient.

        In each layer it is the mean squared difference of activations and firing rates (times the
        threshold), divided by the mean square of the activations. Activations beyond the threshold
        count as the threshold, as no rate can be higher. The result is the mean over the layers.
        """
        each = []
        for name, total in self._sums.items():
            threshold = per_channel(self.spiking.neuron(name).threshold, total.ndim)
            wanted = self._wanted[name].clamp(-threshold, threshold)
            error = total / self._steps[name] - wanted
            each.append(error.square().mean() / wanted.square().mean().clamp(min=1e-12))
        return torch.stack(each).mean()

    def _watch(self, now: Pass, node: Node, inputs: Sequence[Tensor], spikes: Tensor) -> None:
        if node.name not in self.names:
            return
        neuron = self.spiking.neuron(node.name)
        total = spikes.float().unflatten(0, (now.steps, -1)).sum(0)
        if neuron.folded:
            total = total * per_channel(neuron.threshold, total.ndim)
        self._sums[node.name] = self._sums.get(node.name, 0) + total
        self._steps[node.name] = self._steps.get(node.name, 0) + now.steps


def _channels(graph: Graph, name: str) -> tuple[int, int]:
    """The number of channels of a layer, and of its dimensions."""
    shape = graph.shapes[name]
    return shape[1], len(shape)
