"""Write and read checkpoint files.

Weights with two or more dimensions may be stored in half precision. Weights that are exactly
integers times a scale are always stored as int8 with that scale. Thresholds, initial potentials,
biases and norms are stored in float32.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from spikedet.checkpoint.checkpoint import Checkpoint, plausible
from spikedet.checkpoint.graph import restore_graph
from spikedet.checkpoint.tensors import ordered, read, sha256, widen
from spikedet.engines.program import NoIntegers
from spikedet.engines.rounding import IntegerWeight, Rounder
from spikedet.errors import WeightsError
from spikedet.files import write_atomic

FORMAT, OLD_FORMAT = "spikedet-2", "spikedet-1"
FULL_PRECISION = ("threshold", "initial")
SCALE, AMPLITUDE = ".scale", ".amplitude"  # endings of tensor names, for int8 weights
TYPES = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
TYPES |= {torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8}


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
    write_atomic(Path(path), ordered(save_tensors(tensors, metadata)))


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
    metadata, tensors = read(path)
    written = str(metadata.get("format"))
    if written not in (FORMAT, OLD_FORMAT):
        kind = f"format {written[:40]}" if written.startswith("spikedet-") else "another program"
        raise WeightsError(
            f"{path}: safetensors of {kind}; expected weights written by spikedet ({FORMAT})"
        )
    for name, tensor in tensors.items():
        if tensor.dtype not in TYPES:
            raise WeightsError(f"{path}: {name[:80]} is {tensor.dtype}; expected real numbers")
        tensors[name] = widen(tensor)
        if tensor.is_floating_point() and not bool(tensors[name].isfinite().all()):
            raise WeightsError(f"{path}: {name[:80]} holds values that are not finite")
    for name in [name for name in tensors if name + SCALE in tensors]:
        tensors[name] = _multiplied(path, name, tensors)
    try:
        header = json.loads(metadata["header"])
        listed = isinstance(header["names"], list)
        header["names"] = tuple(header["names"])
        checkpoint = Checkpoint(**header, tensors=tensors)
        damaged = not listed or not plausible(checkpoint)
    except (KeyError, TypeError, ValueError, RecursionError):
        damaged = True
    if damaged:
        raise WeightsError(f"{path}: damaged header; expected weights written by spikedet")
    return checkpoint


def is_checkpoint(path: Path) -> bool:
    """Whether there is a file with weights that spikedet has written."""
    if not Path(path).is_file():
        return False
    try:
        metadata, _ = read(Path(path))
    except WeightsError:
        return False
    return metadata.get("format") in (FORMAT, OLD_FORMAT)


def identity(path: Path) -> str:
    """The SHA-256 of a file, or of its old file if it was upgraded.

    Measured results are stored under this number, because both files contain the same network.
    """
    metadata, _ = read(Path(path))
    try:
        digest = json.loads(metadata["header"])["origin"]["upgraded_from"]
    except (KeyError, TypeError, ValueError):
        digest = None
    return digest if isinstance(digest, str) else sha256(path)


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
