"""A network as a graph of known operations.

A graph is an `nn.Module` that runs and trains like any other module. It contains nothing of the
original network class. The operations keep the names of their original modules, so the tensors keep
their names too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from spikedet.errors import UsageError
from spikedet.graph.operations import WEIGHTED, WeightedLayer, kind_of
from spikedet.graph.structure import fill, names_in, rename
from spikedet.neurons.layers import IFNeuron

Module = TypeVar("Module", bound=nn.Module)
INPUT = "input"  # name of the input of a network
_EMPTY = nn.Module()  # operations must not have the name of one of its attributes


@dataclass(frozen=True)
class Node:
    """One operation of a graph.

    Attributes:
        name: Name, unique in the graph.
        inputs: Names of the nodes that it reads, or `INPUT`.
        module: The operation.
    """

    name: str
    inputs: tuple[str, ...]
    module: nn.Module

    @property
    def kind(self) -> str:
        """Name of the kind of operation (see `operations.KINDS`)."""
        return kind_of(self.module).name


class Graph(nn.Module):
    """A network of known operations.

    Attributes:
        layers: The operations, by the names of their nodes. The names in its state dict are the
            names of the tensors.
        edges: Names of the inputs of each node. The nodes are in the order of execution.
        output: The structure that the network returns, with names of nodes in place of tensors.
        shapes: Output shape of each node for one picture, [1, ...], at the picture size of the
            recording. `INPUT` has the shape of the picture.
        fixed: Dimensions of the pictures in which only the recorded size is possible. Empty also
            means that they are not known, as in files of earlier versions.
        sources: The tensor of the network that a tensor of a recorded layer is a copy of. Both are
            named as in a state dict. Tensors that were computed are not in it. It is not stored.

    Shape:
        [B, ...] -> the same structure as the recorded network returned
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Module()
        self._looked_up: dict[str, nn.Module] = {}  # what `module` has looked up
        self.edges: dict[str, tuple[str, ...]] = {}
        self.output: Any = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.fixed: tuple[int, ...] = ()
        self.sources: dict[str, str] = {}

    # ------------------------------------------------------------------ reading

    def __iter__(self) -> Iterator[Node]:
        """The nodes in the order of execution."""
        return iter([self.node(name) for name in self.edges])

    def __len__(self) -> int:
        return len(self.edges)

    def __contains__(self, name: str) -> bool:
        return name in self.edges

    def node(self, name: str) -> Node:
        """Return the node with this name.

        Raises:
            KeyError: There is no such node.
        """
        return Node(name, self.edges[name], self.module(name))

    def module(self, name: str) -> nn.Module:
        """The operation of a node."""
        if name not in self._looked_up:
            self._looked_up[name] = self.layers.get_submodule(name)
        return self._looked_up[name]

    def neuron(self, name: str) -> IFNeuron:
        """The layer of neurons with this name."""
        module = self.module(name)
        assert isinstance(module, IFNeuron)
        return module

    def weighted(self, name: str) -> WeightedLayer:
        """The convolution or linear layer with this name."""
        module = self.module(name)
        assert isinstance(module, WEIGHTED)
        return module

    def only(self, kind: type[Module]) -> list[Module]:
        """All operations of one class, in the order of execution."""
        return [node.module for node in self if isinstance(node.module, kind)]

    def of(self, kinds: tuple[type, ...]) -> list[Node]:
        """All nodes whose operation is of one of these classes, in the order of execution."""
        return [node for node in self if isinstance(node.module, kinds)]

    @property
    def outputs(self) -> list[str]:
        """Names of the nodes that the network returns."""
        return names_in(self.output)

    def readers(self) -> dict[str, list[str]]:
        """The names of the nodes that read each node.

        If a node reads another twice, its name is in the list twice.
        """
        readers: dict[str, list[str]] = {name: [] for name in (INPUT, *self.edges)}
        for name, inputs in self.edges.items():
            for source in inputs:
                readers[source].append(name)
        return readers

    # ------------------------------------------------------------------ writing

    def add(self, name: str, module: nn.Module, inputs: Iterable[str], before: str = "") -> str:
        """Add a node at the end, or before another node.

        Args:
            name: Wanted name. If it is used already, a number is added to it.
            module: The operation.
            inputs: Names of the nodes that it reads.
            before: Name of the node to insert it before. Empty: add it at the end.

        Returns:
            The name of the new node.
        """
        name = self._free(name)
        _put(self.layers, name, module)
        inputs = tuple(inputs)
        if not before:
            self.edges[name] = inputs
            return name
        order = list(self.edges.items())
        self.edges.clear()
        for other, sources in order:
            if other == before:
                self.edges[name] = inputs
            self.edges[other] = sources
        return name

    def replace(self, name: str, module: nn.Module) -> None:
        """Replace the operation of a node. The new operation gets the mode of the old one."""
        module.train(self.module(name).training)
        parent, _, child = name.rpartition(".")
        setattr(self.layers.get_submodule(parent), child, module)
        self._looked_up.pop(name, None)

    def insert_behind(self, name: str, new: str, module: nn.Module) -> str:
        """Insert the node `new` after a node. The readers of the old node then read the new one.

        Returns:
            The name of the new node.
        """
        order = list(self.edges)
        place = order.index(name) + 1
        before = order[place] if place < len(order) else ""
        module.train(self.module(name).training)
        inserted = self.add(new, module, [name], before)
        self.redirect(name, inserted, except_for={inserted})
        if name in self.shapes:
            self.shapes[inserted] = self.shapes[name]
        return inserted

    def insert_between(self, source: str, reader: str, new: str, module: nn.Module) -> str:
        """Insert the node `new` between `source` and one of its readers. Other readers stay.

        Returns:
            The name of the new node.
        """
        module.train(self.training)
        inserted = self.add(new, module, [source], before=reader)
        self.edges[reader] = tuple(inserted if s == source else s for s in self.edges[reader])
        self.shapes[inserted] = self.shapes[source]
        return inserted

    def remove(self, name: str) -> None:
        """Remove a node with one input. Its readers then read that input."""
        (source,) = self.edges[name]
        del self.edges[name]
        self.shapes.pop(name, None)
        self.redirect(name, source)
        parent, _, child = name.rpartition(".")
        delattr(self.layers.get_submodule(parent), child)
        self._looked_up.pop(name, None)

    def redirect(self, old: str, new: str, except_for: Collection[str] = ()) -> None:
        """Make all readers of `old` read `new`, except those in `except_for`."""
        for name, inputs in self.edges.items():
            if name not in except_for:
                self.edges[name] = tuple(new if source == old else source for source in inputs)
        self.output = rename(self.output, lambda name: new if name == old else name)

    def _free(self, name: str) -> str:
        """A free name for a node, similar to this one."""
        parts = name.split(".")
        for end in range(1, len(parts)):
            # an operation inside of that one's module, or a name that modules have for something
            if ".".join(parts[:end]) in self.edges or hasattr(_EMPTY, parts[end - 1]):
                name = f"{'.'.join(parts[:end])}_{'_'.join(parts[end:])}"
                break
        wanted, number = name, 0
        while self.taken(wanted):
            number += 1
            wanted = f"{name}_{number}"
        return wanted

    def taken(self, name: str) -> bool:
        """Whether a name cannot be used for a new node."""
        if not name or name == INPUT or any(hasattr(_EMPTY, part) for part in name.split(".")):
            return True
        return any(
            name == other or name.startswith(other + ".") or other.startswith(name + ".")
            for other in self.edges
        )

    # ------------------------------------------------------------------ running

    def forward(self, pictures: Tensor) -> Any:
        """Compute the outputs of the network for pictures [B, ...].

        Raises:
            UsageError: See `expect_size`.
        """
        self.expect_size(pictures)
        values = self.run(self.edges, {INPUT: pictures}, self.outputs)
        return fill(self.output, values)

    def expect_size(self, pictures: Tensor) -> None:
        """Check that the graph computes what its network computes for pictures of this size.

        Raises:
            UsageError: They have another size in one of the dimensions `fixed`.
        """
        if not self.fixed:
            return
        shape, recorded = pictures.shape, self.shapes[INPUT]
        if len(shape) != len(recorded) or any(shape[d] != recorded[d] for d in self.fixed):
            sizes = [str(n) if d in self.fixed else "any" for d, n in enumerate(recorded)]
            raise UsageError(
                f"the input is {list(shape)}; this network was recorded for "
                f"[{', '.join(['B', *sizes[1:]])}] and takes no other size"
            )

    def run(
        self,
        names: Iterable[str],
        known: Mapping[str, Tensor],
        wanted: Collection[str],
        call: Callable[[Node, list[Tensor]], Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Run some of the nodes.

        Args:
            names: Names of the nodes to run, in the order of execution.
            known: Values that the nodes may read, by name.
            wanted: Names of the values to return. Other values are deleted after their last use.
            call: `call(node, inputs)` computes the value of a node. None: call its module.

        Returns:
            The wanted values by name.
        """
        names = list(names)
        values = dict(known)
        last = {source: name for name in names for source in self.edges[name]}
        ends: dict[str, list[str]] = {}
        for source, name in last.items():
            ends.setdefault(name, []).append(source)
        for name in names:
            inputs = [values[source] for source in self.edges[name]]
            if call is None:
                values[name] = self.module(name)(*inputs)
            else:
                values[name] = call(self.node(name), inputs)
            for source in ends.get(name, ()):
                if source not in wanted:
                    del values[source]
        return {name: values[name] for name in wanted}

    @torch.no_grad()
    def measure_shapes(self, example: Tensor) -> None:
        """Run one picture [1, ...], and store the shapes of all nodes in `shapes`."""
        self.shapes = {INPUT: tuple(example.shape)}

        def call(node: Node, inputs: list[Tensor]) -> Tensor:
            value = node.module(*inputs)
            self.shapes[node.name] = tuple(value.shape)
            return value

        mode = self.training
        self.eval()
        self.run(self.edges, {INPUT: example}, (), call)
        self.train(mode)


def _put(network: nn.Module, name: str, module: nn.Module) -> None:
    """Add a module under a dotted name. Missing parent modules are added as empty modules."""
    parent = network
    *path, child = name.split(".")
    for step in path:
        if not hasattr(parent, step):
            parent.add_module(step, nn.Module())
        parent = parent.get_submodule(step)
    parent.add_module(child, module)
