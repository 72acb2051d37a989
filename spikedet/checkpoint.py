"""One safe file format for every stage: safetensors, with everything needed to run in its header.

A file never holds code. Weights of two and more dimensions may be stored in half precision;
thresholds, initial potentials, biases and norms always are float32.
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

from spikedet.errors import WeightsError
from spikedet.files import write_atomic

FORMAT = "spikedet-1"
FULL_PRECISION = ("threshold", "initial")
STAGES = ("float", "qc", "snn")


@dataclass
class Checkpoint:
    """A network of some stage.

    Attributes:
        stage: `float`, `qc` (quantise-clip, stage I) or `snn`.
        task: `detection` or `classification`.
        model: Network description.
        names: Class names.
        imgsz: Input side in pixels.
        tensors: State of the network by name.
        T: Time steps it was made for; None for `float`.
        origin: How it was made: command, data, settings, parent.
    """

    stage: str
    task: str
    model: dict[str, Any]
    names: tuple[str, ...]
    imgsz: int
    tensors: dict[str, Tensor]
    T: int | None = None
    origin: dict[str, Any] = field(default_factory=dict)


def save(checkpoint: Checkpoint, path: Path, *, half: bool = False) -> None:
    """Write atomically.

    Args:
        checkpoint: What to write.
        path: Where.
        half: Store tensors of two and more dimensions in half precision.
    """
    tensors = {}
    for name, tensor in checkpoint.tensors.items():
        tensor = tensor.detach().cpu()
        if tensor.is_floating_point():
            exact = tensor.ndim < 2 or name.endswith(FULL_PRECISION)
            tensor = tensor.to(torch.float32 if exact or not half else torch.float16)
        tensors[name] = tensor.contiguous().clone()
    header = {k: v for k, v in vars(checkpoint).items() if k != "tensors"}
    metadata = {"format": FORMAT, "header": json.dumps(header, sort_keys=True)}
    write_atomic(Path(path), _ordered(save_tensors(tensors, metadata)))


def load(path: Path) -> Checkpoint:
    """Read a checkpoint; all tensors come back as float32 or integers.

    Raises:
        WeightsError: No such file, damaged, or a file of another kind.
    """
    metadata, tensors = _read(Path(path))
    written = str(metadata.get("format"))
    if written != FORMAT:
        kind = f"format {written}" if written.startswith("spikedet-") else "another program"
        raise WeightsError(
            f"{path}: safetensors of {kind}; expected weights written by spikedet ({FORMAT})"
        )
    try:
        header = json.loads(metadata["header"])
        header["names"] = tuple(header["names"])
        checkpoint = Checkpoint(**header, tensors={k: _widen(v) for k, v in tensors.items()})
        damaged = not _plausible(checkpoint)
    except (KeyError, TypeError, ValueError, RecursionError):
        damaged = True
    if damaged:
        raise WeightsError(f"{path}: damaged header; expected weights written by spikedet")
    return checkpoint


def load_plain(path: Path) -> dict[str, Tensor]:
    """Tensors of any safetensors file, as float32 or integers.

    Raises:
        WeightsError: No such file, or damaged.
    """
    return {name: _widen(tensor) for name, tensor in _read(Path(path))[1].items()}


def load_plain_into(network: nn.Module, path: Path) -> None:
    """Put the layers of a checkpoint, or of any safetensors file, into a network.

    Raises:
        WeightsError: The file holds other shapes, or layers that the network has not.
    """
    tensors = load_plain(path)
    state = network.state_dict()
    for name, tensor in tensors.items():
        if name not in state or state[name].shape != tensor.shape:
            raise WeightsError(
                f"{path}: {name} {tuple(tensor.shape)} does not fit; "
                "expected layers of the same description and width"
            )
    network.load_state_dict(tensors, strict=False)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """Twelve hexadecimal digits that tell the tensors of a network from those of another."""
    there = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    data = save_tensors({name: tensor.contiguous().clone() for name, tensor in there.items()})
    return hashlib.sha256(data).hexdigest()[:12]


def _plausible(made: Checkpoint) -> bool:
    """Whether the fields of a header are of the right kinds."""
    return (
        made.stage in STAGES
        and isinstance(made.task, str)
        and isinstance(made.model, dict)
        and bool(made.names)
        and all(isinstance(name, str) for name in made.names)
        and type(made.imgsz) is int
        and made.imgsz > 0
        and (made.T is None if made.stage == "float" else type(made.T) is int and made.T > 0)
        and isinstance(made.origin, dict)
    )


def _ordered(data: bytes) -> bytes:
    """A safetensors file with its header sorted, so that equal contents are equal bytes."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # tensors start at a multiple of 8
    return len(header).to_bytes(8, "little") + header + data[end:]


def _widen(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Header and tensors of a safetensors file."""
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
