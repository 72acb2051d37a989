"""Files of tensors (safetensors), whoever wrote them, and hashes of files and tensors."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from spikedet import resources
from spikedet.errors import WeightsError, did_you_mean


def load_plain(path: Path) -> dict[str, Tensor]:
    """Read the tensors of any safetensors file, as float32 or integers.

    Raises:
        WeightsError: The file is missing or damaged.
    """
    return {name: widen(tensor) for name, tensor in read(Path(path))[1].items()}


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


def stored_in_half(path: Path) -> bool:
    """Whether a file has tensors in half precision."""
    return any(tensor.dtype == torch.float16 for tensor in read(Path(path))[1].values())


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """A hash (12 hexadecimal digits) of the tensors of a network."""
    on_cpu = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    data = save_tensors({name: tensor.contiguous().clone() for name, tensor in on_cpu.items()})
    return hashlib.sha256(data).hexdigest()[:12]


def ordered(data: bytes) -> bytes:
    """Sort the header of a safetensors file, so that equal contents give equal bytes."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # tensors start at a multiple of 8
    return len(header).to_bytes(8, "little") + header + data[end:]


def widen(tensor: Tensor) -> Tensor:
    """Convert a floating-point tensor of any precision to float32."""
    return tensor.float() if tensor.is_floating_point() else tensor


def read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Read the metadata and the tensors of a safetensors file.

    Raises:
        WeightsError: The file is missing or damaged.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        meant = did_you_mean(path.stem, resources.all_weights()) if path.name == str(path) else ""
        raise WeightsError(f"{path}: no such weights file{meant}") from None
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
