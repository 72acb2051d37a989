"""What handlers work with: signals, and the recorder that adds their operations to a graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from spikedet.errors import ConversionError
from spikedet.graph.advice import name_of
from spikedet.graph.graph import Graph
from spikedet.graph.operations import FLOAT_ACTIVATIONS


@dataclass(frozen=True)
class Signal:
    """The value of a node: a tensor that depends on the picture.

    Attributes:
        name: Name of the node.
        shape: Shape [B, ...]. The first entry is symbolic.
    """

    name: str
    shape: tuple[Any, ...]

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)


class Recorder:
    """Records the operations of a network in a graph.

    Args:
        network: The network. Errors name its class.

    Attributes:
        graph: The graph so far.
        values: Values of the exported nodes so far: signals, constant tensors, numbers, lists of
            them.
        origin: Names of the parameters and buffers of the network, by the ids of their tensors.
    """

    def __init__(self, network: nn.Module):
        self.network, self.graph = network, Graph()
        self.values: dict[fx.Node, Any] = {}
        self.origin: dict[int, str] = {}

    def where(self, node: fx.Node) -> str:
        """Name of the module that an operation runs in, and its class."""
        path, kind = self.place(node)
        return f"{path or type(self.network).__name__} ({kind.rpartition('.')[2]})"

    def place(self, node: fx.Node) -> tuple[str, str]:
        """Dotted name and class of the module that an operation runs in."""
        stack = [entry for entry in (node.meta.get("nn_module_stack") or {}).values() if entry]
        stack = [(path, kind) for path, kind in stack if not path.startswith("_empty_nn")]
        if not stack:
            return "", type(self.network).__name__
        path, kind = stack[-1]
        kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
        return path.replace("L['self'].", "").split("@")[0], kind

    def name(self, node: fx.Node, tensor: Tensor | None = None) -> str:
        """A name for the node of an operation: that of its module, or of a parameter's module."""
        origin = self.origin.get(id(tensor), "") if tensor is not None else ""
        if "." in origin:
            return origin.rpartition(".")[0]
        path, kind = self.place(node)
        if path and kind.startswith("torch.nn.modules.") and ".container." not in kind:
            return path
        short = name_of(node.target).strip("_")
        return f"{path}.{short}" if path else short

    def emit(
        self,
        node: fx.Node,
        module: nn.Module,
        *inputs: Signal,
        name: str | None = None,
        shape: tuple[Any, ...] | None = None,
    ) -> Signal:
        """Add an operation to the graph.

        Args:
            node: The exported node that it comes from.
            module: The operation.
            inputs: Its inputs.
            name: Wanted name. None: the result of `name`.
            shape: Shape of its output. None: the shape of `node`.
        """
        sources = [signal.name for signal in inputs]
        if isinstance(module, FLOAT_ACTIVATIONS) and inputs[0].ndim < 2:
            raise self.refuse(
                node,
                "an activation of one number for each picture, [B], has no channels; keep the "
                "dimension, [B, 1], and squeeze it behind the activation",
            )
        name = name or self.name(node)
        added = self.graph.add(name, module, sources)
        if shape is None:
            shape = tuple(node.meta["val"].shape)
        return Signal(added, shape)

    def copied(self, layer: Signal, **tensors: Tensor | None) -> Signal:
        """Note which tensors of the network a layer has copies of.

        Args:
            layer: The output of the layer.
            tensors: Tensors by their names in the layer.

        Returns:
            The output of the layer.
        """
        for name, tensor in tensors.items():
            if id(tensor) in self.origin:
                self.graph.sources[f"{layer.name}.{name}"] = self.origin[id(tensor)]
        return layer

    def refuse(self, node: fx.Node, reason: str) -> ConversionError:
        """An error that names the place and the operation."""
        return ConversionError(f"{self.where(node)}: {reason}")
