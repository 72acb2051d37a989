"""Watch the runs of spiking networks: count their spikes, or look at every output."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

from spikedet.errors import UsageError
from spikedet.graph.graph import Graph, Node
from spikedet.neurons.layers import IFNeuron, SpikingMaxPool, count_spikes
from spikedet.runtime.passes import Pass

Watcher = Callable[[Pass, Node, Sequence[Tensor], Tensor], None]
_watchers: ContextVar[tuple[tuple[Graph, Watcher], ...]] = ContextVar("watchers", default=())


@contextmanager
def watching(graph: Graph, watcher: Watcher) -> Iterator[None]:
    """Call `watcher(pass, node, inputs, output)` each time a temporal node of a graph has run.

    This holds inside the `with` block, and only in the current thread.
    """
    before = _watchers.get()
    _watchers.set((*before, (graph, watcher)))
    try:
        yield
    finally:
        _watchers.set(before)


def watchers_of(graph: Graph) -> list[Watcher]:
    """The watchers of a graph in the current thread."""
    return [watcher for watched, watcher in _watchers.get() if watched is graph]


@dataclass
class EachSpike:
    """A watcher that gets all spikes. It works with every engine.

    Attributes:
        take: Function that is called after every part of a run, for each node that fires (neurons
            and pooling of spikes). Its arguments are the name of the node, the first time step of
            the part (counted from 0), and the output of the node, [steps*B, ...].
    """

    take: Callable[[str, int, Tensor], None]

    def __call__(self, now: Pass, node: Node, inputs: Sequence[Tensor], sent: Tensor) -> None:
        """Watch a run (see `watching`)."""
        if isinstance(node.module, IFNeuron | SpikingMaxPool):
            self.take(node.name, now.done, sent)


class SpikeRates:
    """Spike counts of all watched runs, by layer and time step.

    Each spike counts as one, whatever its sign and amplitude.
    """

    def __init__(self) -> None:
        self._spikes: dict[str, dict[int, Tensor]] = {}  # by layer and step, float64
        self._size: dict[str, dict[int, int]] = {}  # neurons of all pictures

    def __call__(self, now: Pass, node: Node, inputs: Sequence[Tensor], spikes: Tensor) -> None:
        """Watch a run (see `watching`)."""
        if not isinstance(node.module, IFNeuron):
            return
        counts = count_spikes(spikes.detach()).view(now.steps, -1).sum(1, dtype=torch.float64)
        self.add(node.name, now.done, counts, spikes.numel() // now.steps)

    def add(self, name: str, first: int, counts: Tensor, neurons: int) -> None:
        """Add the spikes of a layer in several time steps.

        Args:
            name: Name of the layer's node.
            first: The first time step, counted from 0.
            counts: Number of spikes in each time step, [steps] float64.
            neurons: Number of neurons in the layer, summed over all pictures.
        """
        layer = self._spikes.setdefault(name, {})
        size = self._size.setdefault(name, {})
        for step, count in enumerate(counts, first):
            layer[step] = layer.get(step, 0) + count
            size[step] = size.get(step, 0) + neurons

    def mean(self, t: int | None = None) -> float:
        """Mean spike rate of all layers, in spikes per neuron and time step.

        Args:
            t: Use the first t time steps of each run. None: all time steps.

        Raises:
            UsageError: No run was watched, or one of the runs has fewer than t steps.
        """
        return self._rate(self._spikes, t)

    def by_layer(self, t: int | None = None) -> dict[str, float]:
        """Spike rate of each layer, in spikes per neuron and step, in the order of execution.

        `t` is as in `mean`.
        """
        return {name: self._rate([name], t) for name in self._spikes}

    def _rate(self, layers: Iterable[str], t: int | None) -> float:
        spikes, size = 0.0, 0
        for name in layers:
            steps, sizes = self._spikes[name], self._size[name]
            shortest = sum(neurons == sizes[0] for neurons in sizes.values())
            if t is not None and not 1 <= t <= shortest:  # a step that some run does not have
                raise UsageError(f"rates of {t!r} steps; expected 1 to {shortest}")
            for step in range(len(steps) if t is None else t):
                spikes += float(steps[step])
                size += self._size[name][step]
        if not size:
            raise UsageError("no pass was counted yet; run the network inside the with block")
        return spikes / size


def counts_callback(watchers: Sequence[SpikeRates]) -> Callable[[str, int, Tensor, int], None]:
    """The function with which an engine reports spike counts to all `watchers`."""

    def on_counts(name: str, first: int, counts: Tensor, neurons: int) -> None:
        for rates in watchers:
            rates.add(name, first, counts, neurons)

    return on_counts


def spikes_callback(watchers: Sequence[EachSpike]) -> Callable[[str, int, Tensor], None]:
    """The function with which an engine reports spikes to all `watchers`."""

    def on_spikes(name: str, first: int, spikes: Tensor) -> None:
        for watcher in watchers:
            watcher.take(name, first, spikes)

    return on_spikes
