"""Check whether a graph has changed since an engine compiled it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from spikedet.graph.graph import Graph
from spikedet.neurons.layers import IFNeuron, SpikingMaxPool


class Snapshot:
    """A record of a graph's tensors, edges, neurons and poolings, to detect later changes.

    It is compared before every run, which takes microseconds.

    Args:
        graph: The graph in its current state.
    """

    def __init__(self, graph: Graph | None = None):
        self.graph = graph
        self._edges: dict[str, tuple[str, ...]] = {}
        self._entries: list[tuple[dict[str, Any], str, Tensor | None]] = []
        self._places: list[tuple[dict[str, Any], int]] = []
        self._modules: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._settings: list[tuple[dict[str, Any], str, Any]] = []
        self._tensors: list[Tensor] = []
        self._counted: list[Tensor] = []  # those that count their changes
        if graph is None:
            return
        self._edges = dict(graph.edges)
        for module in graph.modules():
            self._modules.append((module._modules, dict(module._modules)))
            for place in (module._parameters, module._buffers):
                self._places.append((place, len(place)))
                self._entries += [(place, name, tensor) for name, tensor in place.items()]
        self._tensors = [tensor for _, _, tensor in self._entries if tensor is not None]
        self._counted = [tensor for tensor in self._tensors if not tensor.is_inference()]
        self._pointers, self._versions = self._now()
        for module in map(graph.module, graph.edges):
            own = module.__dict__
            self._settings += [(own, name, own[name]) for name in _settings(module)]

    def learns(self) -> bool:
        """Whether one of the tensors needs gradients."""
        return any(tensor.requires_grad for tensor in self._tensors)

    def _now(self) -> tuple[list[int], list[int]]:
        """Where the tensors lie, and how often they were changed in place."""
        pointers = [tensor.data_ptr() for tensor in self._tensors]
        return pointers, [tensor._version for tensor in self._counted]

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy holds of nothing: its engine has to be compiled."""
        return type(self), ()

    def holds(self, graph: Graph) -> bool:
        """Whether a graph is what it was, but for changes through `.data` of the same memory."""
        if self.graph is not graph or self._edges != graph.edges:
            return False
        for place, size in self._places:
            if len(place) != size:
                return False
        for place, before in self._modules:
            if place != before:
                return False
        for own, name, value in self._settings:
            if own[name] != value:
                return False
        for place, name, tensor in self._entries:
            if place.get(name) is not tensor:
                return False
        return self._now() == (self._pointers, self._versions)


def _settings(module: nn.Module) -> tuple[str, ...]:
    """Names of the attributes that an engine has compiled and that are no tensors."""
    if isinstance(module, IFNeuron):
        return (*module.SETTINGS, *module.LATER_SETTINGS)
    return ("mode",) if isinstance(module, SpikingMaxPool) else ()
