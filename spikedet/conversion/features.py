"""Feature distillation: train the firing rates of a spiking network towards float activations.

The outputs of a detector say something about the few places with objects. The activations of all
layers say something about every place. So a spiking network learns faster from them, and each layer
learns which of its errors matter. The idea is that of FitNets (Romero et al., ICLR 2015). No layer
is needed in between, because both networks have the same layers. It is not in the paper.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
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

    @torch.no_grad()
    def teach(self, pictures: Tensor) -> tuple[Any, dict[str, Tensor]]:
        """Run the teacher for pictures [B, ...].

        Returns:
            Its outputs, and the activations of the layers that are compared, by name.
        """
        graph = self.teacher
        values = graph.run(graph.edges, {INPUT: pictures}, {*graph.outputs, *self.names})
        return fill(graph.output, values), {name: values[name].float() for name in self.names}

    @contextmanager
    def watched(self) -> Iterator[dict[str, Tensor]]:
        """Watch the spiking network inside the `with` block.

        Yields:
            A dict. After the block it has the firing rates of the layers that are compared, times
            their thresholds, by name. They have gradients.
        """
        values: dict[str, Tensor] = {}
        steps: dict[str, int] = {}

        def watch(now: Pass, node: Node, inputs: Sequence[Tensor], spikes: Tensor) -> None:
            if node.name in self.names:
                total = spikes.float().unflatten(0, (now.steps, -1)).sum(0)
                values[node.name] = values.get(node.name, 0) + total
                steps[node.name] = steps.get(node.name, 0) + now.steps

        with watching(self.spiking, watch):
            yield values
        for name, total in values.items():
            neuron = self.spiking.neuron(name)
            worth = per_channel(neuron.threshold, total.ndim) if neuron.folded else 1.0
            values[name] = total / steps[name] * worth

    def distance(self, rates: dict[str, Tensor], activations: dict[str, Tensor]) -> Tensor:
        """The distance of what `watched` and `teach` gave, a scalar.

        In each layer it is the mean squared difference of activations and firing rates (times the
        threshold), divided by the mean square of the activations. Activations beyond the threshold
        count as the threshold, as no rate can be higher. The result is the mean over the layers.
        """
        each = []
        for name, rate in rates.items():
            threshold = per_channel(self.spiking.neuron(name).threshold, rate.ndim)
            wanted = activations[name].clamp(-threshold, threshold)
            error = (rate - wanted).square().mean()
            each.append(error / wanted.square().mean().clamp(min=1e-12))
        return torch.stack(each).mean()


def watched(features: Features | None) -> AbstractContextManager[dict[str, Tensor]]:
    """`features.watched()`, or an empty dict without features."""
    return nullcontext({}) if features is None else features.watched()


def _channels(graph: Graph, name: str) -> tuple[int, int]:
    """The number of channels of a layer, and of its dimensions."""
    shape = graph.shapes[name]
    return shape[1], len(shape)
