"""Translate an exported program into a graph, with the handlers of `table`.

An unknown operation is an error that names it. Values that do not depend on a picture (for example,
a weight computed from other weights) are computed once.
"""

from __future__ import annotations

import operator
import warnings
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map, tree_unflatten

from spikedet.errors import ConversionError
from spikedet.graph.advice import name_of, refusal
from spikedet.graph.graph import INPUT, Graph
from spikedet.graph.recorder import Recorder, Signal
from spikedet.graph.structure import Name
from spikedet.graph.table import HANDLERS

SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)  # computed from the size of the batch
# Operations that may be told the size of the batch, as in x.view(x.shape[0], -1).
_SIZED = {"view", "reshape", "_unsafe_view", "unflatten", "expand", "slice", "narrow", "split"}
_SIZED |= {"split_with_sizes"}


def translate(network: nn.Module, program: torch.export.ExportedProgram) -> Graph:
    """Make the graph of an exported network.

    Raises:
        ConversionError: An operation or an output cannot be translated.
    """
    return Translation(network, program).run()


class Translation:
    """The translation of one program, node by node."""

    def __init__(self, network: nn.Module, program: torch.export.ExportedProgram):
        self.program, self.recorder = program, Recorder(network)
        self.values = self.recorder.values
        self.batch: Any = None

    def run(self) -> Graph:
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
        self.recorder.graph.output = self._output()
        return self.recorder.graph

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
                raise ConversionError(refusal(self.recorder.where(node), node))

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
                self.recorder.origin[id(tensor)] = name
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
            raise ConversionError(refusal(self.recorder.where(node), node))
        if name_of(node.target) not in _SIZED and _symbolic(args, kwargs):
            raise self.recorder.refuse(
                node,
                f"{name_of(node.target)} computes with the number of pictures in the batch "
                "(x.shape[0], x.numel()); a spiking network also holds its time steps there, so "
                "use a fixed number",
            )
        signal = handler(self.recorder, node, *args, **kwargs)
        if isinstance(signal, Signal):
            self._expect_pictures_apart(node, signal)
        return signal

    def _known(self, value: Any) -> Any:
        return self.values[value] if isinstance(value, fx.Node) else value

    def _compute(self, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Compute the value of an operation that does not depend on a picture."""
        where = self.recorder.where(node)
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
                f"{self.recorder.where(node)}: {name_of(node.target)} gives {shape}, whose "
                "first dimension is not the batch; a spiking network also holds its time steps "
                "there, so keep the pictures apart, for example with x.flatten(1)"
            )


def _symbolic(args: list[Any], kwargs: dict[str, Any]) -> bool:
    """Whether an argument of an operation is a number that depends on the size of the batch."""
    return any(isinstance(leaf, SYMBOLIC) for leaf in tree_leaves((args, kwargs)))
