"""Record the graph of a float network with `torch.export`.

`torch.export` runs the network once and records every operation, of modules, functions, methods and
in-place calls. The batch is a dynamic dimension, so operations that depend on the number of
pictures can be found. The package `table` translates each operation. An unknown operation is an
error that names it. Values that do not depend on a picture (for example, a weight computed from
other weights) are computed once during recording.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import operator
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves, tree_map, tree_unflatten

from spikedet.errors import ConversionError, message_of
from spikedet.graph.advice import name_of, refusal
from spikedet.graph.graph import INPUT, Graph
from spikedet.graph.operations import FLOAT_ACTIVATIONS
from spikedet.graph.structure import Name
from spikedet.graph.table import HANDLERS, Signal

Module = TypeVar("Module", bound=nn.Module)
SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)  # computed from the size of the batch
# Operations that may be told the size of the batch, as in x.view(x.shape[0], -1).
_SIZED = {"view", "reshape", "_unsafe_view", "unflatten", "expand", "slice", "narrow", "split"}
_SIZED |= {"split_with_sizes"}
BATCH = 3  # pictures of the recorded pass; an unusual size, so that it is easy to recognise


def record(network: nn.Module, example: Tensor) -> Graph:
    """Record the graph of a network.

    Every call of a layer becomes a separate operation with its own copy of the tensors, even if one
    layer is called several times.

    Args:
        network: The network. It, its buffers, its device and its mode are not changed. It is
            recorded in evaluation mode.
        example: Pictures [B, ...]. One picture is enough. The graph is recorded at their size. The
            graph is compared with the network on these pictures and on noise.

    Returns:
        The graph in evaluation mode, on the device of the network, with copies of its tensors.

    Raises:
        ConversionError: An operation has no spiking counterpart (the message names it and its
            place), the forward function cannot be recorded, or the network is not in float32.
    """
    pictures = _several(example)
    _expect_float32(network, example)
    with _evaluation(network), torch.no_grad():
        program = _export(network, pictures)
        graph = Recorder(network, program).build()
        graph.eval()
        for seen in (pictures, example):
            _expect_equal(graph, network, seen)
        graph.measure_shapes(pictures[:1])
        graph.fixed = _fixed(graph, network, pictures[:1])
    return graph


def _several(example: Tensor) -> Tensor:
    """Make `BATCH` pictures from these."""
    if not isinstance(example, Tensor) or example.ndim < 2 or not len(example):
        kind = list(example.shape) if isinstance(example, Tensor) else type(example).__name__
        raise ConversionError(f"the example is {kind}; expected a tensor of pictures [B, ...]")
    pictures = example.detach()[:1].expand(BATCH, *example.shape[1:]).clone()
    if pictures.is_floating_point():  # other pictures each, so that a mixture of them shows
        generator = torch.Generator().manual_seed(0)
        noise = torch.rand(pictures.shape, generator=generator).to(pictures)
        pictures = pictures + noise
    return pictures


def _expect_float32(network: nn.Module, example: Tensor) -> None:
    """Check that the network and its pictures are in float32, as graphs compute in float32.

    Raises:
        ConversionError: They have another number format.
    """
    named = (*network.named_parameters(), *network.named_buffers())
    kinds = {"pictures": example.dtype, **{name: tensor.dtype for name, tensor in named}}
    for name, kind in kinds.items():
        if kind.is_floating_point and kind != torch.float32:
            raise ConversionError(
                f"{type(network).__name__}: {name} in {str(kind).removeprefix('torch.')}; expected "
                "float32, so call .float() on the network and on the pictures"
            )


@contextmanager
def _evaluation(network: nn.Module) -> Iterator[None]:
    """Set the network to evaluation mode; afterwards, restore its modes and its buffers."""
    modes = {module: module.training for module in network.modules()}
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in modes
        for name, buffer in module._buffers.items()
        if buffer is not None and not is_lazy(buffer)
    ]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for module, name, buffer, value in buffers:
            if not torch.equal(buffer, value):
                buffer.detach().copy_(value)
            module._buffers[name] = buffer


def _export(network: nn.Module, pictures: Tensor) -> torch.export.ExportedProgram:
    """Export the network with a dynamic batch dimension and resolved in-place operations.

    Raises:
        ConversionError: The network cannot be exported.
    """
    kind = type(network).__name__
    batch = torch.export.Dim("batch", min=2)
    if not callable(network):
        raise ConversionError(f"{kind} is no network; expected a torch.nn.Module")
    try:
        with _quietly():
            program = torch.export.export(
                network, (pictures,), dynamic_shapes=({0: batch},), strict=False
            )
            if _ambiguous(program.graph):
                program = program.run_decompositions({})
    except ConversionError:
        raise
    except Exception as error:
        raise ConversionError(f"{kind}: {_why(error)}") from error
    return program


@contextmanager
def _quietly() -> Iterator[None]:
    """Suppress what torch.export prints if it cannot record a forward; the error repeats it."""
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _why(error: Exception) -> str:
    """One sentence about what torch.export could not record."""
    lowered = str(error).lower()
    if "data-dependent" in lowered or "data dependent" in lowered:
        return (
            "its forward branches on values, or reads them as numbers, which a graph cannot do; "
            "compute with tensors only"
        )
    if "constraints violated" in lowered or "specializ" in lowered:
        return (
            "its forward works for one batch size only; read the batch size with x.shape[0], not "
            "len(x), or flatten with x.flatten(1)"
        )
    return f"torch.export cannot record its forward ({message_of(error)})"


_VIEWS = {  # operations whose result may share the memory of their first input
    "H",
    "T",
    "_unsafe_view",
    "adjoint",
    "alias",
    "alpha_dropout",
    "chunk",
    "contiguous",
    "detach",
    "diagonal",
    "dropout",
    "dsplit",
    "expand",
    "expand_as",
    "feature_alpha_dropout",
    "feature_dropout",
    "flatten",
    "float",
    "getitem",
    "hsplit",
    "identity",
    "lift_fresh",
    "mH",
    "mT",
    "moveaxis",
    "movedim",
    "narrow",
    "numpy_T",
    "permute",
    "positive",
    "ravel",
    "reshape",
    "reshape_as",
    "select",
    "slice",
    "split",
    "split_with_sizes",
    "squeeze",
    "swapaxes",
    "swapdims",
    "t",
    "tensor_split",
    "to",
    "transpose",
    "type_as",
    "unbind",
    "unflatten",
    "unfold",
    "unsafe_chunk",
    "unsafe_split",
    "unsqueeze",
    "view",
    "view_as",
    "vsplit",
}


def _ambiguous(graph: fx.Graph) -> bool:
    """Whether an operation reads memory that was changed in place under another name.

    Then torch must resolve the in-place operations. This writes the sizes of views into the graph.
    Otherwise an in-place operation can be treated like an ordinary one.
    """
    order = {node: number for number, node in enumerate(graph.nodes)}
    root: dict[fx.Node, fx.Node] = {}  # whose memory a node shares
    family: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        name = name_of(node.target)
        inplace = name.endswith("_") and not name.endswith("__")
        source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        own = root.get(source, source) if (inplace or name in _VIEWS) and source else node
        root[node] = own
        family.setdefault(own, [own]).append(node)
    for node in graph.nodes:
        name = name_of(node.target)
        if not (name.endswith("_") and not name.endswith("__")):
            continue
        for other in family[root[node]]:
            made_before = order[other] < order[node]
            if made_before and any(order[user] > order[node] for user in other.users):
                return True
    return False


class Recorder:
    """Translates an exported program into a graph, node by node."""

    def __init__(self, network: nn.Module, program: torch.export.ExportedProgram):
        self.network, self.program = network, program
        self.graph = Graph()
        self.values: dict[fx.Node, Any] = {}  # signals, constant tensors, numbers, lists of them
        self.origin: dict[int, str] = {}  # names of parameters and buffers, by id
        self.batch: Any = None

    def build(self) -> Graph:
        needed = self._needed()
        self._place_inputs()
        self._refuse_unknown(needed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for node in self.program.graph.nodes:
                if node.op == "call_function" and node in needed:
                    self.values[node] = self._translate(node)
                elif node.op not in ("placeholder", "output", "call_function") and node in needed:
                    raise ConversionError(f"{node.name}: a {node.op} cannot be recorded")
        self.graph.output = self._output()
        return self.graph

    def _needed(self) -> set[fx.Node]:
        """The nodes that the outputs depend on."""
        needed: set[fx.Node] = set()
        waiting = [node for node in self.program.graph.nodes if node.op == "output"]
        while waiting:
            for source in waiting.pop().all_input_nodes:
                if source not in needed:
                    needed.add(source)
                    waiting.append(source)
        return needed

    def _refuse_unknown(self, needed: set[fx.Node]) -> None:
        """Check that all operations on signals are known.

        Raises:
            ConversionError: Names the first unknown operation, and says what to do instead.
        """
        signals = {node for node, value in self.values.items() if isinstance(value, Signal)}
        for node in self.program.graph.nodes:
            if node.op != "call_function" or not signals & set(node.all_input_nodes):
                continue
            if not isinstance(node.meta.get("val"), Tensor | list | tuple):
                continue  # a size
            signals.add(node)
            known = node.target is operator.getitem or name_of(node.target) in HANDLERS
            if node in needed and not known:
                raise ConversionError(refusal(self.where(node), node))

    def _place_inputs(self) -> None:
        signature = self.program.graph_signature
        named = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        tensors = {**self.program.state_dict, **self.program.constants}
        constants = signature.inputs_to_lifted_tensor_constants
        for node in self.program.graph.nodes:
            if node.op != "placeholder":
                continue
            if node.name in named or node.name in constants:
                name = named.get(node.name) or constants[node.name]
                tensor = tensors[name].detach()
                self.values[node] = tensor
                self.origin[id(tensor)] = name
            elif node.name in signature.user_inputs:
                shape = tuple(node.meta["val"].shape)
                self.batch = shape[0]
                self.values[node] = Signal(INPUT, shape)

    def _output(self) -> Any:
        """The structure that the network returns, with names in place of tensors."""
        spec = self.program.call_spec.out_spec
        node = next(node for node in self.program.graph.nodes if node.op == "output")
        outputs = []
        changed = len(node.args[0]) - spec.num_leaves  # buffers that a pass writes come first
        for value in node.args[0][changed:]:
            result = self.values[value] if isinstance(value, fx.Node) else value
            if isinstance(result, Signal):
                if result.name == INPUT:
                    raise ConversionError("the network returns the picture itself")
                result = Name(result.name)
            elif isinstance(result, Tensor):
                raise ConversionError(
                    f"an output {list(result.shape)} does not depend on the picture; do not "
                    "return it"
                )
            outputs.append(result)
        structure = tree_unflatten(outputs, spec)
        for leaf in tree_leaves(structure):
            if not (leaf is None or isinstance(leaf, Name | str | bool | int | float)):
                kind = type(leaf).__name__
                raise ConversionError(
                    f"the network returns a {kind}; expected tensors in dictionaries, lists, tuples"
                )
        if not any(isinstance(leaf, Name) for leaf in tree_leaves(structure)):
            raise ConversionError("the network returns no tensor that depends on the picture")
        return structure

    # ------------------------------------------------------------------ one node

    def _translate(self, node: fx.Node) -> Any:
        value = node.meta.get("val")
        if isinstance(value, SYMBOLIC + (int, float, bool)):
            return value
        args, kwargs = tree_map(self._known, (list(node.args), dict(node.kwargs)))
        if node.target is operator.getitem:
            part = args[0][args[1]]
            return part() if callable(part) else part
        if not any(isinstance(leaf, Signal) for leaf in tree_leaves((args, kwargs))):
            return self._compute(node, args, kwargs)
        handler = HANDLERS.get(name_of(node.target))
        if handler is None:
            raise ConversionError(refusal(self.where(node), node))
        if name_of(node.target) not in _SIZED and _symbolic(args, kwargs):
            raise self.refuse(
                node,
                f"{name_of(node.target)} computes with the number of pictures in the batch "
                "(x.shape[0], x.numel()); a spiking network also holds its time steps there, so "
                "use a fixed number",
            )
        signal = handler(self, node, *args, **kwargs)
        if isinstance(signal, Signal):
            self._expect_pictures_apart(node, signal)
        return signal

    def _known(self, value: Any) -> Any:
        return self.values[value] if isinstance(value, fx.Node) else value

    def _compute(self, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Compute the value of an operation that does not depend on a picture."""
        where = self.where(node)
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise ConversionError(f"{where}: random numbers have no spiking counterpart")
        if _symbolic(args, kwargs):
            raise ConversionError(
                f"{where}: a constant is made with the number of pictures in the batch (x.shape[0])"
                "; give it size 1 in that dimension, or use a fixed number"
            )
        kwargs = {k: v for k, v in kwargs.items() if k not in ("layout", "pin_memory")}
        assert callable(node.target)  # an operation, see `handlers`
        return node.target(*args, **kwargs)

    def _expect_pictures_apart(self, node: fx.Node, signal: Signal) -> None:
        """Check that an operation does not mix the pictures of a batch.

        Raises:
            ConversionError: The first dimension of its output is not the batch.
        """
        value = node.meta["val"]
        if isinstance(value, list | tuple):
            return  # its parts are looked at one by one
        if not value.ndim or str(value.shape[0]) != str(self.batch):
            shape = [str(size) for size in value.shape]
            raise ConversionError(
                f"{self.where(node)}: {name_of(node.target)} gives {shape}, whose "
                "first dimension is not the batch; a spiking network also holds its time steps "
                "there, so keep the pictures apart, for example with x.flatten(1)"
            )

    # ------------------------------------------------------------------ what handlers use

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


def _symbolic(args: list[Any], kwargs: dict[str, Any]) -> bool:
    """Whether an argument of an operation is a number that depends on the size of the batch."""
    return any(isinstance(leaf, SYMBOLIC) for leaf in tree_leaves((args, kwargs)))


def _expect_equal(graph: Graph, network: nn.Module, pictures: Tensor) -> None:
    """Check that a graph computes the same outputs as its network.

    Raises:
        ConversionError: The outputs differ. The message says by how much.
    """
    reason = _difference(network(pictures.clone()), graph(pictures.clone()))
    if reason:
        raise ConversionError(f"{type(network).__name__}: {reason}")


def _difference(wanted: Any, recorded: Any) -> str:
    """How the outputs of a graph differ from those of its network. Empty: they are equal."""
    for a, b in zip(tree_leaves(wanted), tree_leaves(recorded), strict=True):
        if not isinstance(a, Tensor):
            if a != b:
                return f"it returns {a!r} where its graph gives {b!r}"
            continue
        if a.shape != b.shape:
            return (
                f"it returns {list(a.shape)} where its graph gives {list(b.shape)}; x.squeeze() "
                "also removes the batch dimension of a single picture: name the dimensions, or use "
                "x.flatten(1)"
            )
        scale = a.abs().max().clamp(min=1e-6).item() if a.numel() else 1.0
        apart = (a - b).abs().max().item() / scale if a.numel() else 0.0
        if not apart <= 1e-3:
            return (
                f"its graph gives other outputs than the network "
                f"({apart:.2g} of the largest); its forward does something that one recorded pass "
                "cannot show, such as keeping a state between two passes"
            )
    return ""


def _fixed(graph: Graph, network: nn.Module, picture: Tensor) -> tuple[int, ...]:
    """The dimensions of a picture [1, ...] in which only the recorded size is possible.

    A recorded graph has numbers where the network may compute with the sizes of its input. So the
    graph is compared with the network at other sizes. A size is free if the network takes another
    one, and its graph gives the same outputs wherever it does.
    """
    with _quietly():
        with contextlib.suppress(Exception):  # what cannot be copied runs where it is
            # a copy, as passes may leave something behind; on the CPU, where errors end only a pass
            network, graph, picture = _on_cpu(network), _on_cpu(graph), picture.cpu()
        fixed = []
        for dim in range(1, picture.ndim):
            size = picture.shape[dim]
            same = [_same(graph, network, _sized(picture, dim, n)) for n in (2 * size, size + 1)]
            if False in same or True not in same:
                fixed.append(dim)
    return tuple(fixed)


def _on_cpu(network: Module) -> Module:
    return copy.deepcopy(network).cpu()


def _sized(picture: Tensor, dim: int, size: int) -> Tensor:
    """A picture of noise in the range of this one, with another size in one dimension."""
    shape = (*picture.shape[:dim], size, *picture.shape[dim + 1 :])
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    low, high = float(picture.min()), float(picture.max())
    return (low + (high - low + 1) * noise).to(picture)


def _same(graph: nn.Module, network: nn.Module, picture: Tensor) -> bool | None:
    """Whether a graph gives the outputs of its network. None: the network cannot take them."""
    try:
        wanted = network(picture.clone())
    except Exception:  # a forward may raise anything
        return None
    try:
        return not _difference(wanted, graph(picture.clone()))
    except Exception:
        return False
