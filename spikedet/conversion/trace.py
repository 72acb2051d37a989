"""Record every operation of one forward pass, to convert what runs and not what was declared.

A functional `F.relu`, a soft-max inside a block or a module called twice do not show in
`network.named_modules()`; they show here. The record is a list of calls that can be run again,
piece by piece, which is how calibration advances one layer at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, resolve_name

from spikedet.conversion.quantize import QuantClip
from spikedet.errors import ConversionError
from spikedet.neurons.layers import IFNeuron, SpikingMaxPool, mean_over_time

WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, QuantClip, IFNeuron)
POOLS = (nn.MaxPool2d,)  # SpikingMaxPool is one
# Linear in their input, the same for a rate as for spikes.
LINEAR = (
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.Upsample,
    nn.Flatten,
    nn.Identity,
    nn.Dropout,
    nn.Dropout2d,
    nn.ZeroPad2d,
)
CONVERTIBLE = (nn.ReLU, nn.LeakyReLU, nn.ReLU6, nn.MaxPool2d)  # as named to the user
LEAVES = WEIGHTED + NORMS + ACTIVATIONS + POOLS + LINEAR
OURS = (QuantClip, IFNeuron, SpikingMaxPool)

LINEAR_FUNCTIONS = {
    torch.cat,
    torch.flatten,
    torch.add,
    torch.chunk,
    torch.split,
    torch.reshape,
    torch.permute,
    torch.mean,
    torch.unflatten,
    torch.concat,
    Tensor.add,
    Tensor.add_,
    Tensor.__add__,
    Tensor.__iadd__,
    Tensor.__radd__,
    Tensor.flatten,
    Tensor.view,
    Tensor.reshape,
    Tensor.permute,
    Tensor.transpose,
    Tensor.contiguous,
    Tensor.clone,
    Tensor.chunk,
    Tensor.split,
    Tensor.mean,
    Tensor.unflatten,
    Tensor.squeeze,
    Tensor.unsqueeze,
    Tensor.__getitem__,
    F.adaptive_avg_pool2d,
    F.avg_pool2d,
    F.pad,
    F.dropout,
    mean_over_time,
}
IN_PLACE = {Tensor.add_, Tensor.__iadd__}
# What they write or return cannot be followed.
UNTRACEABLE = {
    Tensor.__setitem__,
    Tensor.__array__,
    Tensor.__bool__,
    Tensor.__float__,
    Tensor.__int__,
    Tensor.item,
    Tensor.numpy,
    Tensor.tolist,
}


@dataclass(frozen=True)
class Slot:
    """The result of an earlier call, or the input (number 0)."""

    number: int


@dataclass
class Call:
    """One recorded operation.

    Attributes:
        where: Name of the module that was called, or of the one that called a function.
        module: The module, or None for a function.
        function: What to call.
        args, kwargs: Arguments, tensors replaced by `Slot`.
        result: The result in the same way.
    """

    where: str
    module: nn.Module | None
    function: Callable
    args: Any
    kwargs: Any
    result: Any

    @property
    def inputs(self) -> list[int]:
        """Numbers of the slots it reads."""
        return list(slots((self.args, self.kwargs)))


@dataclass
class Trace:
    """All calls of one forward pass, in order.

    Attributes:
        calls: The calls.
        output: The network's output, tensors replaced by `Slot`.
        shapes: Shape of the tensor in each slot.
    """

    calls: list[Call]
    output: Any
    shapes: dict[int, torch.Size]

    def of(self, kinds: tuple[type, ...]) -> list[Call]:
        """Calls of modules of the given kinds."""
        return [call for call in self.calls if isinstance(call.module, kinds)]

    def readouts(self) -> list[Call]:
        """Weighted layers that read spikes and from which no neuron is reached.

        Those that read the output of another one are none: it is the same in every step.
        """
        changing = self.over_time()
        return [call for call in self._last() if changing & set(call.inputs)]

    def _last(self) -> list[Call]:
        """Weighted layers from which no neuron is reached."""
        fed: set[int] = set()  # slots from which a neuron is reached through linear operations
        last = []
        for call in reversed(self.calls):
            out = set(slots(call.result))
            if isinstance(call.module, ACTIVATIONS) or out & fed:
                fed.update(call.inputs)
            elif isinstance(call.module, WEIGHTED):
                last.append(call)
        return last[::-1]

    def constant(self) -> list[Call]:
        """Weighted layers whose input is the picture itself: no neuron lies before them."""
        spiking: set[int] = set()
        first = []
        for call in self.calls:
            if isinstance(call.module, ACTIVATIONS) or spiking & set(call.inputs):
                spiking.update(slots(call.result))
            elif isinstance(call.module, WEIGHTED):
                first.append(call)
        return first

    def run_in_every_step(self) -> list[Call]:
        """Weighted layers that are neither before the first neuron nor behind the last."""
        changing = self.over_time()
        return [call for call in self.of(WEIGHTED) if changing & set(slots(call.result))]

    def over_time(self) -> set[int]:
        """Slots that hold another value in every time step, [T*B, ...] in a spiking network.

        The others are the same in every step: the picture and what is computed from it before the
        first neuron, and readouts and what is computed from them.
        """
        last = {id(call) for call in self._last()}
        changing: set[int] = set()
        for call in self.calls:
            spiking = isinstance(call.module, ACTIVATIONS) or changing & set(call.inputs)
            if spiking and id(call) not in last:
                changing.update(slots(call.result))
        return changing


def slots(value: Any) -> Iterator[int]:
    """Slot numbers in a nested value."""
    return (leaf.number for leaf in _leaves(value) if isinstance(leaf, Slot))


def fill(value: Any, tensors: dict[int, Tensor]) -> Any:
    """A nested value with its slots replaced by tensors."""
    if isinstance(value, Slot):
        return tensors[value.number]
    if isinstance(value, dict):
        return {key: fill(item, tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(fill(item, tensors) for item in value)
    return value


def store(result: Any, value: Any, tensors: dict[int, Tensor]) -> None:
    """Put what a call returned into the slots of its recorded result."""
    if isinstance(result, Slot):
        tensors[result.number] = value
    elif isinstance(result, dict):
        for key, item in result.items():
            store(item, value[key], tensors)
    elif isinstance(result, list | tuple):
        for item, part in zip(result, value, strict=True):
            store(item, part, tensors)


def trace(network: nn.Module, example: Tensor, strict: bool = True) -> Trace:
    """Record one forward pass without gradients.

    Args:
        network: Any network; its forward runs as it is.
        example: Input [B, C, H, W] of the shape that will be used.
        strict: Refuse what has no spiking counterpart, and what cannot be followed.

    Returns:
        The record.

    Raises:
        ConversionError: Names the operation that cannot be converted, and where it is.
    """
    recorder = _Recorder(strict)
    recorder.adopt(example)
    recorder.know([vars(module) for module in network.modules()])
    with torch.no_grad(), recorder.listening(network), recorder:
        output = network(example)
    if strict:
        recorder.expect_followed(type(network).__name__, output)
    return Trace(recorder.calls, recorder.replace(output), recorder.shapes)


class _Recorder(TorchFunctionMode):
    def __init__(self, strict: bool):
        super().__init__()
        self.strict = strict
        self.calls: list[Call] = []
        self.shapes: dict[int, torch.Size] = {}
        self.numbers: dict[int, int] = {}
        self.alive: list[Tensor] = []  # an id is unique only while its tensor lives
        self.path: list[tuple[str, str]] = []  # names and kinds of the modules around
        self.inside_leaf = False
        self.constants: dict[int, Tensor] = {}  # by id: what does not depend on the picture
        # storages that were changed in place: by what, and which slots were there before
        self.overwritten: dict[int, tuple[str, int]] = {}

    def adopt(self, tensor: Tensor) -> Slot:
        self.numbers[id(tensor)] = number = len(self.alive)
        self.alive.append(tensor)
        self.shapes[number] = tensor.shape
        return Slot(number)

    def replace(self, value: Any, new: bool = False) -> Any:
        """Tensors -> slots, fresh ones if `new`; else a tensor of unknown origin stays.

        What a call returns is new even if it is its input, passed on or changed in place: whoever
        reads that tensor later reads the result of this call.
        """
        if isinstance(value, Tensor):
            if new:
                return self.adopt(value)
            return Slot(self.numbers[id(value)]) if id(value) in self.numbers else value
        if isinstance(value, dict):
            return {key: self.replace(item, new) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.replace(item, new) for item in value)
        return value

    def know(self, value: Any) -> None:
        """The tensors of a nested value do not depend on the picture."""
        self.constants.update((id(tensor), tensor) for tensor in _tensors(value))

    def expect_followed(self, where: str, value: Any) -> None:
        """Refuse tensors of unknown origin, and those that were changed since by another name.

        Raises:
            ConversionError: There is one in a nested value.
        """
        for tensor in _tensors(value):
            if id(tensor) not in self.numbers and id(tensor) not in self.constants:
                raise ConversionError(
                    f"{where}: it cannot be followed how this tensor {list(tensor.shape)} was made "
                    "(a function of torch.jit leaves no trace); make it by modules and functions "
                    "of torch, or register it as a buffer if it is a constant"
                )
            by, slot = self.overwritten.get(_storage(tensor), ("", -1))
            if self.numbers.get(id(tensor), -1) < slot:
                raise ConversionError(
                    f"{where}: this reads what {by} changed in place, which cannot be followed; "
                    "set inplace=False there, or write x = x + y, and read the result where that "
                    "is meant"
                )

    def overwrite(self, where: str, changed: Any) -> None:
        """Whoever reads the storage of these tensors must do so by a slot that is yet to come."""
        for tensor in _tensors(changed):
            self.overwritten[_storage(tensor)] = (where, len(self.alive))

    def record(self, where: str, module, function, args, kwargs, result) -> None:
        seen = self.replace(args), self.replace(kwargs)
        if any(True for _ in slots(seen)) and _has_tensor(result):
            self.calls.append(Call(where, module, function, *seen, self.replace(result, new=True)))

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self.inside_leaf or not (_has_tensor(result) or func in UNTRACEABLE):
            return result
        where, kind = self.path[-1]
        if self.strict:
            self.expect_followed(f"{where} ({kind})", (args, kwargs))
        if not any(True for _ in slots((self.replace(args), self.replace(kwargs)))):
            self.know(result)
        else:
            if self.strict and func not in LINEAR_FUNCTIONS and not _nearest(func, kwargs):
                name = resolve_name(func) or getattr(func, "__name__", str(func))
                raise ConversionError(
                    f"{where} ({kind}): the function {name} has no spiking counterpart; use "
                    f"modules of {_names(CONVERTIBLE)}, or linear operations, instead"
                )
            if func in IN_PLACE or "out" in kwargs:
                self.overwrite(where, result)
            self.record(where, None, func, args, kwargs, result)
        return result

    @contextmanager
    def listening(self, network: nn.Module) -> Iterator[None]:
        """Wrap every module's forward: leaves are recorded whole, others give their names."""
        names: dict[nn.Module, str] = {}
        for name, module in network.named_modules():
            names.setdefault(module, name or type(network).__name__)
        own = {m: m.__dict__["forward"] for m in names if "forward" in m.__dict__}
        for module, name in names.items():
            module.forward = self.wrap(module, name, module.forward)
        try:
            yield
        finally:
            for module in names:
                del module.forward
            for module, forward in own.items():
                module.forward = forward

    def wrap(self, module: nn.Module, name: str, forward: Callable) -> Callable:
        leaf = isinstance(module, LEAVES)

        def wrapped(*args, **kwargs):
            if self.inside_leaf:
                return forward(*args, **kwargs)
            if not leaf:
                self.refuse_unknown(module, name)
                self.path.append((name, type(module).__name__))
                try:
                    return forward(*args, **kwargs)
                finally:
                    self.path.pop()
            if isinstance(module, nn.Upsample) and module.mode != "nearest" and self.strict:
                raise ConversionError(
                    f"{name}: up-sampling by {module.mode} makes values between spikes; "
                    "use mode='nearest'"
                )
            self.inside_leaf = True
            try:
                if self.strict:
                    expect_plain(module, name, forward)
                    self.expect_followed(name, (args, kwargs))
                with _not_in_place(module):
                    result = forward(*args, **kwargs)
                if isinstance(module, ACTIVATIONS) and getattr(module, "inplace", False):
                    self.overwrite(name, (args, kwargs))
            finally:
                self.inside_leaf = False
            self.record(name, module, module, args, kwargs, result)
            return result

        return wrapped

    def refuse_unknown(self, module: nn.Module, name: str) -> None:
        """A torch layer of another kind (an attention block, a sigmoid) is named."""
        kind = type(module)
        own = kind.__module__.startswith("torch.nn.modules")
        containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
        if not self.strict or not own or isinstance(module, containers):
            return
        advice = f"modules that have one are {_names(CONVERTIBLE)}"
        if kind.__module__.endswith(".activation") and kind is not nn.MultiheadAttention:
            advice = (
                "put torch.nn.ReLU() or torch.nn.LeakyReLU(0.1) in its place, in a network "
                "description as `activation: torch.nn.ReLU()`, and fine-tune"
            )
        raise ConversionError(f"{name}: {kind.__name__} has no spiking counterpart; {advice}")


def expect_plain(module: nn.Module, name: str, forward: Callable) -> None:
    """Refuse a leaf that does not compute what its kind does.

    Raises:
        ConversionError: Its forward is another one, or its weight is computed in every pass.
    """
    kind = next(kind for kind in LEAVES if isinstance(module, kind))
    plain = isinstance(module, OURS) or getattr(forward, "__func__", None) is kind.forward
    if isinstance(module, WEIGHTED + NORMS):
        plain &= {"weight", "bias"} <= module._parameters.keys()
    if not plain:
        raise ConversionError(
            f"{name}: this {kind.__name__} has a forward of its own or a parametrised weight (as "
            f"by weight_norm), which conversion would ignore; put a plain {kind.__name__} in its "
            "place, for instance by torch.nn.utils.parametrize.remove_parametrizations"
        )


@contextmanager
def _not_in_place(module: nn.Module) -> Iterator[None]:
    """Let a module return a tensor of its own, as the neurons that will stand in its place do."""
    inplace = getattr(module, "inplace", False)
    if inplace:
        module.inplace = False
    try:
        yield
    finally:
        if inplace:
            module.inplace = True


def _storage(tensor: Tensor) -> int:
    """The same number for all views of one tensor."""
    return tensor.untyped_storage()._cdata


def _nearest(func: Callable, kwargs: dict) -> bool:
    return func is F.interpolate and kwargs.get("mode", "nearest") == "nearest"


def _tensors(value: Any) -> Iterator[Tensor]:
    """Tensors in a nested value."""
    return (leaf for leaf in _leaves(value) if isinstance(leaf, Tensor))


def _leaves(value: Any) -> Iterator[Any]:
    """What the dictionaries, lists and tuples of a nested value hold."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _has_tensor(value: Any) -> bool:
    return any(True for _ in _tensors(value))


def _names(kinds: tuple[type, ...]) -> str:
    return ", ".join(kind.__name__ for kind in kinds)
