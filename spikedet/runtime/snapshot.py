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
        self._tensors: list[tuple[dict[str, Any], str, Tensor | None, int, int]] = []
        self._places: list[tuple[dict[str, Any], int]] = []
        self._modules: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._settings: list[tuple[dict[str, Any], str, Any]] = []
        if graph is None:
            return
        self._edges = dict(graph.edges)
        for module in graph.modules():
            self._modules.append((module._modules, dict(module._modules)))
            for place in (module._parameters, module._buffers):
                self._places.append((place, len(place)))
                for name, tensor in place.items():
                    self._tensors.append((place, name, tensor, *_version(tensor)))
        for module in map(graph.module, graph.edges):
            own = module.__dict__
            self._settings += [(own, name, own[name]) for name in _settings(module)]

    def learns(self) -> bool:
        """Whether one of the tensors needs gradients."""
        return any(t is not None and t.requires_grad for _, _, t, _, _ in self._tensors)

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
        for place, name, tensor, pointer, version in self._tensors:
            if place.get(name) is not tensor:
                return False
            if tensor is not None and _version(tensor) != (pointer, version):
                return False
        return True


def _settings(module: nn.Module) -> tuple[str, ...]:
    """Names of the attributes that an engine has compiled and that are no tensors."""
    if isinstance(module, IFNeuron):
        return (*module.SETTINGS, *module.LATER_SETTINGS)
    return ("mode",) if isinstance(module, SpikingMaxPool) else ()


def _version(tensor: Tensor | None) -> tuple[int, int]:
    """Where a tensor lies, and how often it was changed in place."""
    if tensor is None:
        return 0, 0
    return tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version
