"""Feature distillation: train the activations of a network towards those of its float network.

The outputs of a detector say something about the few places with objects. The activations of all
layers say something about every place. So the network needs fewer training steps, and each layer
learns which of its errors matter. The idea is that of FitNets (Romero et al., ICLR 2015). No layer
is needed in between, because both networks have the same layers. It is not in the paper.

In stage I the activations are quantised. In stage II they are firing rates times thresholds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from spikedet.errors import UsageError
from spikedet.graph.graph import INPUT, Graph, Node
from spikedet.graph.operations import ACTIVATIONS
from spikedet.graph.structure import fill
from spikedet.neurons.layers import IFNeuron, per_channel
from spikedet.neurons.quantize import QuantClip
from spikedet.runtime.passes import Pass
from spikedet.runtime.watch import watching

_seen: ContextVar[dict[str, Tensor] | None] = ContextVar("features", default=None)


class Features:
    """The distance of the activations of a network to those of a teacher, as a loss.

    Args:
        network: Stage-I or spiking graph. Every quantiser that is compared gets a forward hook. The
            hook does something only inside `watched`, and only in the thread of that `with` block.
        teacher: Float or stage-I graph in evaluation mode. Layers with the same name and number of
            channels are compared.
        weight: Weight of the loss.

    Attributes:
        names: Names of the layers that are compared.

    Raises:
        UsageError: The teacher is not a graph, or no layer is the same.
    """

    def __init__(self, network: Graph, teacher: nn.Module, weight: float = 1.0):
        if not isinstance(teacher, Graph):
            raise UsageError(f"the teacher is a {type(teacher).__name__}; expected a graph")
        self.network, self.teacher, self.weight = network, teacher, weight
        self.names = {
            node.name
            for node in network.of((IFNeuron, QuantClip))
            if node.name in teacher
            and isinstance(teacher.module(node.name), ACTIVATIONS)
            and _channels(teacher, node.name) == _channels(network, node.name)
        }
        if not self.names:
            raise UsageError(
                "the teacher has no layer of the network, so its activations cannot be distilled; "
                "use the float network that this one was made from"
            )
        for node in network.of((QuantClip,)):
            if node.name in self.names:
                node.module.register_forward_hook(_hook(node.name))

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
        """Watch the network inside the `with` block.

        Yields:
            A dict. After the block it has the activations of the layers that are compared, by name,
            with gradients. Those of neurons are firing rates times thresholds.
        """
        values: dict[str, Tensor] = {}
        steps: dict[str, int] = {}

        def watch(now: Pass, node: Node, inputs: Sequence[Tensor], spikes: Tensor) -> None:
            if node.name in self.names:
                total = spikes.float().unflatten(0, (now.steps, -1)).sum(0)
                values[node.name] = values.get(node.name, 0) + total
                steps[node.name] = steps.get(node.name, 0) + now.steps

        token = _seen.set(values)
        try:
            with watching(self.network, watch):
                yield values
        finally:
            _seen.reset(token)
        for name, number in steps.items():
            neuron = self.network.neuron(name)
            worth = per_channel(neuron.threshold, values[name].ndim) if neuron.folded else 1.0
            values[name] = values[name] / number * worth

    def distance(self, own: dict[str, Tensor], wanted: dict[str, Tensor]) -> Tensor:
        """The distance of the activations that `watched` gave to those of `teach`, a scalar.

        In each layer it is the mean squared difference, divided by the mean square of the wanted
        activations. The result is the mean over the layers. The threshold of a neuron is not
        trained, so activations beyond the threshold count as the threshold there.
        """
        return torch.stack([self._error(name, own[name], wanted[name]) for name in own]).mean()

    def loss(self, own: dict[str, Tensor], wanted: dict[str, Tensor]) -> Tensor:
        """The weight times the distance."""
        return self.weight * self.distance(own, wanted)

    def _error(self, name: str, own: Tensor, wanted: Tensor) -> Tensor:
        module = self.network.module(name)
        if isinstance(module, IFNeuron):
            threshold = per_channel(module.threshold, own.ndim)
            wanted = wanted.clamp(-threshold, threshold)
        return (own - wanted).square().mean() / wanted.square().mean().clamp(min=1e-12)


def watched(features: Features | None) -> AbstractContextManager[dict[str, Tensor]]:
    """`features.watched()`, or an empty dict without features."""
    return nullcontext({}) if features is None else features.watched()


def taught(
    features: Features | None, teacher: Callable[[Tensor], Any], pictures: Tensor
) -> tuple[Any, dict[str, Tensor]]:
    """`features.teach(pictures)`, or the outputs of the teacher and an empty dict."""
    return (teacher(pictures), {}) if features is None else features.teach(pictures)


def _channels(graph: Graph, name: str) -> tuple[int, int]:
    """The number of channels of a layer, and of its dimensions."""
    shape = graph.shapes[name]
    return shape[1], len(shape)


def _hook(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
    """A forward hook of a quantiser. It is a plain function, so copies of a graph share it."""

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        seen = _seen.get()
        if seen is not None:
            seen[name] = output.float()

    return keep
