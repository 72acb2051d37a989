"""Checkpoints: one safe file format for every stage, based on safetensors.

A file contains no code. Its header is JSON. It describes the task, the origin, and the network as a
graph (`graph.serialise`). So neither the original network class nor the conversion is needed to run
it. `load` checks everything before anything is built.

Weights with two or more dimensions may be stored in half precision. Weights that are exactly
integers times a scale are always stored as int8 with that scale. Thresholds, initial potentials,
biases and norms are stored in float32.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from spikedet.engines.program import NoIntegers
from spikedet.engines.rounding import IntegerWeight, Rounder
from spikedet.errors import WeightsError
from spikedet.files import write_atomic
from spikedet.graph.graph import Graph
from spikedet.graph.operations import FLOAT_ACTIVATIONS
from spikedet.graph.serialise import build, describe
from spikedet.graph.time import STEPWISE, phases
from spikedet.neurons.layers import IFNeuron, MeanOverTime
from spikedet.neurons.quantize import QuantClip

FORMAT, OLD_FORMAT = "spikedet-2", "spikedet-1"
FULL_PRECISION = ("threshold", "initial")
SCALE, AMPLITUDE = ".scale", ".amplitude"  # endings of tensor names, for int8 weights
STAGES = ("float", "qc", "snn")
MOST_STEPS, MOST_PIXELS, MOST_CLASSES = 65_536, 4096, 100_000
MOST_LOG_WEIGHT = 60.0  # largest log weight of a step: sums of exponentials stay finite, not 0
TYPES = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
TYPES |= {torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8}


@dataclass
class Checkpoint:
    """A network of any stage, as stored in a file.

    Attributes:
        stage: `float`, `qc` (quantise-clip, stage I) or `snn` (spiking).
        task: `detection` or `classification`. `none` for a network of `spikedet.save`.
        model: Network description.
        names: Class names.
        imgsz: Input side in pixels. For the task `none`: the largest side of the input.
        tensors: Tensors of the network by name: for a float network the state dict of its module,
            else that of `Graph.layers`.
        T: Time steps that it was made for. None for `float`.
        origin: How it was made: command, data, settings, parent.
        graph: The graph of the network, from `graph.serialise`. None for a float network that is
            built from its description.
        head: Description of a detector's outputs: `strides`, `reg_max`.
    """

    stage: str
    task: str
    model: dict[str, Any]
    names: tuple[str, ...]
    imgsz: int
    tensors: dict[str, Tensor]
    T: int | None = None
    origin: dict[str, Any] = field(default_factory=dict)
    graph: dict[str, Any] | None = None
    head: dict[str, Any] = field(default_factory=dict)

    @property
    def time_steps(self) -> int:
        """The number of time steps T.

        Raises:
            WeightsError: The network has no T, because it is float.
        """
        if self.T is None:
            raise WeightsError(f"these {self.stage} weights have no time steps")
        return self.T


def save(checkpoint: Checkpoint, path: Path, *, half: bool = False) -> None:
    """Write a checkpoint. If writing fails, no partial file is left.

    If weights of a spiking network are integers times scales (see `engines.rounding`), they are
    stored as int8 integers and float32 scales, without loss.

    Args:
        checkpoint: The checkpoint.
        path: File to write.
        half: Store tensors with two or more dimensions in half precision, except those with values
            too large for it.

    Raises:
        WeightsError: `imgsz` is not a side that the graph can take.
    """
    _expect_side(checkpoint)
    tensors = {}
    integers = _integer_weights(checkpoint)
    for name, tensor in checkpoint.tensors.items():
        if name in integers:
            tensors[name] = integers[name].numbers.contiguous()
            tensors[name + SCALE] = integers[name].scale.contiguous()
            if bool((integers[name].amplitude != 1).any()):
                tensors[name + AMPLITUDE] = integers[name].amplitude.contiguous()
            continue
        tensor = tensor.detach().cpu()
        if tensor.is_floating_point():
            exact = tensor.ndim < 2 or name.endswith(FULL_PRECISION)
            tensor = tensor.float() if exact or not half else _halved(tensor.float())
        tensors[name] = tensor.contiguous().clone()
    header = {k: v for k, v in vars(checkpoint).items() if k != "tensors"}
    metadata = {"format": FORMAT, "header": json.dumps(header, sort_keys=True)}
    write_atomic(Path(path), _ordered(save_tensors(tensors, metadata)))


def _expect_side(checkpoint: Checkpoint) -> None:
    """Check that the graph of a checkpoint can take pictures of its `imgsz`.

    A graph takes one size only if it computes with sizes, or if each neuron has its own initial
    potential. A network of one's own may have an input that is not square.

    Raises:
        WeightsError: It cannot.
    """
    if checkpoint.graph is None:
        return
    shape = checkpoint.graph["input"]
    single = any(x.ndim > 1 for n, x in checkpoint.tensors.items() if n.endswith("initial"))
    sides = {shape[d] for d in checkpoint.graph.get("fixed", ()) if d > 1}
    if checkpoint.task == "none":
        sides = {max(shape[2:] or shape[1:])}
    elif single:
        sides = set(shape[2:])
    if sides - {checkpoint.imgsz}:
        raise WeightsError(
            f"imgsz is {checkpoint.imgsz} pixels, but the graph was recorded for {shape[1:]} and "
            "takes no other size"
        )


def _halved(tensor: Tensor) -> Tensor:
    """A tensor in half precision, or as it is if one of its values is too large for that."""
    half = tensor.half()
    return half if bool(half.isfinite().all()) else tensor


def _integer_weights(checkpoint: Checkpoint) -> dict[str, IntegerWeight]:
    """The weights of a spiking network that are exactly integers times scales, by name."""
    if checkpoint.stage != "snn" or checkpoint.graph is None:
        return {}
    try:
        rounder = Rounder(restore_graph(checkpoint))
    except (NoIntegers, WeightsError):  # what is damaged is refused when it is read
        return {}
    weights = {f"{node}.weight": weight for node, weight in rounder.integer_weights().items()}
    return {
        name: weight
        for name, weight in weights.items()
        if name in checkpoint.tensors
        and torch.equal(weight.value(), checkpoint.tensors[name].detach().cpu().float())
    }


def load(path: Path) -> Checkpoint:
    """Read a checkpoint. All tensors are returned as float32 or integers.

    Files of the old format (spikedet-1) are read too. `networks.current` converts them.

    Raises:
        WeightsError: The file is missing, damaged, not a checkpoint, or has impossible values.
    """
    path = Path(path)
    metadata, tensors = _read(path)
    written = str(metadata.get("format"))
    if written not in (FORMAT, OLD_FORMAT):
        kind = f"format {written[:40]}" if written.startswith("spikedet-") else "another program"
        raise WeightsError(
            f"{path}: safetensors of {kind}; expected weights written by spikedet ({FORMAT})"
        )
    for name, tensor in tensors.items():
        if tensor.dtype not in TYPES:
            raise WeightsError(f"{path}: {name[:80]} is {tensor.dtype}; expected real numbers")
        tensors[name] = _widen(tensor)
        if tensor.is_floating_point() and not bool(tensors[name].isfinite().all()):
            raise WeightsError(f"{path}: {name[:80]} holds values that are not finite")
    for name in [name for name in tensors if name + SCALE in tensors]:
        tensors[name] = _multiplied(path, name, tensors)
    try:
        header = json.loads(metadata["header"])
        listed = isinstance(header["names"], list)
        header["names"] = tuple(header["names"])
        checkpoint = Checkpoint(**header, tensors=tensors)
        damaged = not listed or not _plausible(checkpoint)
    except (KeyError, TypeError, ValueError, RecursionError):
        damaged = True
    if damaged:
        raise WeightsError(f"{path}: damaged header; expected weights written by spikedet")
    return checkpoint


def of_graph(graph: Graph, **fields: Any) -> Checkpoint:
    """Make a checkpoint of a graph. `fields` are the other fields of the checkpoint.

    Raises:
        WeightsError: The network returns something other than dictionaries, lists and tuples of
            tensors.
    """
    try:
        described = describe(graph)
    except TypeError as error:
        raise WeightsError(
            f"the network returns {error}; only dictionaries, lists and tuples of tensors can be "
            "saved"
        ) from None
    return Checkpoint(**fields, tensors=graph.layers.state_dict(), graph=described)


def restore_graph(checkpoint: Checkpoint) -> Graph:
    """Build the graph of a checkpoint, in evaluation mode and without gradients.

    Raises:
        WeightsError: The graph is damaged, or its tensors do not fit.
    """
    try:
        graph = build(checkpoint.graph)
    except ValueError as error:
        raise WeightsError(str(error)) from None
    _expect_stage(graph, checkpoint.stage)
    declared = graph.layers.state_dict()
    assert checkpoint.graph is not None  # or `build` refuses it
    files = checkpoint.graph.get("tensors") or {}  # of layers that several places share
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise WeightsError("the graph does not list the tensors that its layers share")
    tensors = {}
    for name, wanted in declared.items():
        tensor = checkpoint.tensors.get(files.get(name, name))
        if tensor is None:
            raise WeightsError(f"the tensor {name[:80]} of the graph is not in the file")
        if tensor.shape != wanted.shape:
            raise WeightsError(
                f"{name[:80]} is {list(tensor.shape)}; the graph declares {list(wanted.shape)}"
            )
        if tensor.is_floating_point() != wanted.is_floating_point():
            raise WeightsError(f"{name[:80]} is {tensor.dtype}; expected {wanted.dtype}")
        tensors[name] = tensor.clone()
    known = {files.get(name, name) for name in declared}
    if checkpoint.stage != "float" and (more := checkpoint.tensors.keys() - known):
        raise WeightsError(f"the tensor {min(more)[:80]} of the file is not in the graph")
    graph.layers.load_state_dict(tensors, assign=True)
    for quantiser in graph.only(QuantClip):
        quantiser.steps = checkpoint.time_steps
    expect_sound(graph)
    graph.requires_grad_(False)
    return graph.eval()


def _expect_stage(graph: Graph, stage: str) -> None:
    """Check that a graph has the operations of its stage.

    Raises:
        WeightsError: It has operations of another stage, or lacks those of its own.
    """
    kinds = {
        "an activation": FLOAT_ACTIVATIONS,
        "a quantiser": (QuantClip,),
        "a neuron": (IFNeuron,),
        "a mean over time": (MeanOverTime,),
    }
    has = {kind for kind, modules in kinds.items() if graph.of(modules)}
    needs = {"qc": {"a quantiser"}, "snn": {"a neuron", "a mean over time"}}.get(stage, set())
    allowed = needs or {"an activation"}
    if has - allowed or needs - has:
        wrong = f"has {min(has - allowed)}" if has - allowed else f"lacks {min(needs - has)}"
        raise WeightsError(f"the stage is {stage}, but the graph {wrong}; one of them is wrong")
    when = phases(graph)
    for name in graph.outputs:
        if stage == "snn" and when[name] == STEPWISE:
            raise WeightsError(f"the output {name[:80]} of the graph is not a mean over time")


def expect_sound(graph: Graph) -> None:
    """Check that the values of a graph are possible.

    Raises:
        WeightsError: A threshold is not above 0, a variance is below 0, or a step weight is too
            large.
    """
    for node in graph:
        threshold = getattr(node.module, "threshold", None)
        if isinstance(threshold, Tensor):
            size = threshold.detach().abs() if isinstance(node.module, QuantClip) else threshold
            if not bool((size > 0).all()):
                least = threshold.min().item()
                raise WeightsError(f"{node.name}: a threshold of {least:.4g}; expected more than 0")
        variance = getattr(node.module, "running_var", None)
        if variance is not None and not bool((variance >= 0).all()):
            raise WeightsError(f"{node.name}: a variance below 0")
        weights = getattr(node.module, "log_weights", None)
        if weights is not None and not bool((weights.abs() <= MOST_LOG_WEIGHT).all()):
            raise WeightsError(
                f"{node.name}: a time step has the weight exp({weights.abs().max().item():.4g}); "
                f"expected exponents up to {MOST_LOG_WEIGHT}"
            )


def load_plain(path: Path) -> dict[str, Tensor]:
    """Read the tensors of any safetensors file, as float32 or integers.

    Raises:
        WeightsError: The file is missing or damaged.
    """
    return {name: _widen(tensor) for name, tensor in _read(Path(path))[1].items()}


def load_plain_into(network: nn.Module, path: Path, without: tuple[str, ...] = ()) -> None:
    """Copy the tensors of a checkpoint, or of any safetensors file, into a network.

    Args:
        network: The network. Layers that are not in the file are not changed.
        path: The file.
        without: Prefixes of layer names that are not copied.

    Raises:
        WeightsError: The file has layers that the network does not have, or other shapes.
    """
    tensors = {k: v for k, v in load_plain(path).items() if not k.startswith(without)}
    state = network.state_dict()
    for name, tensor in tensors.items():
        if name not in state or state[name].shape != tensor.shape:
            raise WeightsError(
                f"{path}: {name} {tuple(tensor.shape)} does not fit; "
                "expected layers of the same description and width"
            )
    network.load_state_dict(tensors, strict=False)


def is_checkpoint(path: Path) -> bool:
    """Whether there is a file with weights that spikedet has written."""
    if not Path(path).is_file():
        return False
    try:
        metadata, _ = _read(Path(path))
    except WeightsError:
        return False
    return metadata.get("format") in (FORMAT, OLD_FORMAT)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def identity(path: Path) -> str:
    """The SHA-256 of a file, or of its old file if it was upgraded.

    Measured results are stored under this number, because both files contain the same network.
    """
    metadata, _ = _read(Path(path))
    try:
        digest = json.loads(metadata["header"])["origin"]["upgraded_from"]
    except (KeyError, TypeError, ValueError):
        digest = None
    return digest if isinstance(digest, str) else sha256(path)


def stored_in_half(path: Path) -> bool:
    """Whether a file has tensors in half precision."""
    return any(tensor.dtype == torch.float16 for tensor in _read(Path(path))[1].values())


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """A hash (12 hexadecimal digits) of the tensors of a network."""
    on_cpu = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    data = save_tensors({name: tensor.contiguous().clone() for name, tensor in on_cpu.items()})
    return hashlib.sha256(data).hexdigest()[:12]


def _plausible(checkpoint: Checkpoint) -> bool:
    """Whether the fields of a header have the right types."""
    return (
        checkpoint.stage in STAGES
        and isinstance(checkpoint.task, str)
        and isinstance(checkpoint.model, dict)
        and (bool(checkpoint.names) or checkpoint.task == "none")
        and len(checkpoint.names) <= MOST_CLASSES
        and all(isinstance(name, str) for name in checkpoint.names)
        and (checkpoint.graph is None or isinstance(checkpoint.graph, dict))
        and type(checkpoint.imgsz) is int
        and 0 < checkpoint.imgsz <= _most_side(checkpoint)
        and (
            checkpoint.T is None
            if checkpoint.stage == "float"
            else type(checkpoint.T) is int and 0 < checkpoint.T <= MOST_STEPS
        )
        and isinstance(checkpoint.origin, dict)
        and isinstance(checkpoint.head, dict)
    )


def _most_side(checkpoint: Checkpoint) -> int:
    """The largest possible `imgsz`: that of pictures, or of the input of a network of one's own."""
    shape = (checkpoint.graph or {}).get("input") if checkpoint.task == "none" else None
    return max([MOST_PIXELS, *shape] if isinstance(shape, list) else [MOST_PIXELS])


def _ordered(data: bytes) -> bytes:
    """Sort the header of a safetensors file, so that equal contents give equal bytes."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # tensors start at a multiple of 8
    return len(header).to_bytes(8, "little") + header + data[end:]


def _multiplied(path: Path, name: str, tensors: dict[str, Tensor]) -> Tensor:
    """Compute a weight that is stored as int8. Its scales are removed from `tensors`.

    Raises:
        WeightsError: The weight or its scales are not valid.
    """
    numbers, scale = tensors[name], tensors.pop(name + SCALE)
    amplitude = tensors.pop(name + AMPLITUDE, torch.ones(1))
    for factor in (scale, amplitude):
        sizes = zip(factor.shape[::-1], numbers.shape[::-1], strict=False)
        fits = factor.ndim <= numbers.ndim and all(f in (1, n) for f, n in sizes)
        if not fits or not factor.is_floating_point() or not bool((factor != 0).all()):
            raise WeightsError(f"{path}: the scales of {name[:80]} do not fit its shape")
    value = IntegerWeight(numbers, scale, amplitude).value()
    if numbers.dtype != torch.int8 or not bool(value.isfinite().all()):
        raise WeightsError(f"{path}: {name[:80]} is not a valid int8 weight")
    return value


def _widen(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Read the header and the tensors of a safetensors file."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such weights file") from None
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        size = int.from_bytes(data[:8], "little")
        tensors = load_tensors(data)
        metadata = json.loads(data[8 : 8 + size]).get("__metadata__") or {}
    except (SafetensorError, ValueError, AttributeError, RecursionError):
        raise WeightsError(
            f"{path}: damaged, or not a safetensors file; expected weights written by spikedet"
        ) from None
    return metadata, tensors
