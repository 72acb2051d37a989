"""Find the state dict of a network in a file of any training program."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import GoogLeNet, Inception3

from spikedet.checkpoint import load_plain
from spikedet.errors import WeightsError
from spikedet.importing.safe_pickle import Shell, load

# where trainers put the network in what they save; a mean over training, which they measure, first
NESTS = ("ema", "model_ema", "model", "state_dict", "model_state")
MOST, DEEPEST = 100_000, 100  # most layers or tensors of a network; deepest nesting of layers
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")  # heads that help training only
# torchvision's published DenseNets have names of an older form of their layers
_DENSE = re.compile(r"(.*denselayer\d+\.(?:norm|conv))\.([12]\.\w+)")


def read(path: Path) -> Any:
    """Read a file: safetensors if it has that ending, else a file of torch.save.

    Raises:
        WeightsError: The file is missing or damaged, or see `safe_pickle.load`.
    """
    return load_plain(path) if Path(path).suffix == ".safetensors" else load(path)


def find_state(content: Any) -> Any:
    """The state dict or network inside the content of a file, as in {"state_dict": ...}."""
    for _ in range(8):
        inner = content if isinstance(content, dict) else {}
        keys = [key for key in NESTS if isinstance(inner.get(key), dict | Shell)]
        if not keys:
            break
        content = inner[keys[0]]
    return content


def tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """The tensors of a network by name.

    Args:
        content: Content of the file, from `read`.
        path: The file, for error messages.

    Raises:
        WeightsError: There is no state dict, or a tensor is not a dense tensor of real numbers.
    """
    content = find_state(content)
    state = _layers(content, path) if isinstance(content, Shell) else content
    if not isinstance(state, dict) or not state:
        raise WeightsError(f"{path}: not a state dict; expected a dict from names to tensors")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            shown = repr(name) if isinstance(name, str | int) else type(name).__name__
            raise WeightsError(
                f"{path}: not a state dict; expected a dict from names to tensors ({shown} is of "
                f"type {type(tensor).__name__})"
            )
        plain = tensor.layout is torch.strided and tensor.device.type == "cpu"
        if not plain or tensor.is_quantized or tensor.is_complex():
            raise WeightsError(f"{path}: {name} is not a plain tensor of real numbers")
    return dict(state)


def load_into(
    network: nn.Module, state: dict[str, Tensor], path: Path, target: str
) -> tuple[str, ...]:
    """Copy the tensors of a state dict into a network, in the precision of the network.

    Prefixes of wrapped networks are removed from the names (`module.` of DataParallel, `_orig_mod.`
    of torch.compile). The auxiliary heads of torchvision's GoogLeNet and Inception are left out.

    Args:
        network: The network. It must have exactly the other tensors.
        state: Tensors by name.
        path: The file, for error messages.
        target: Description of the network, for error messages.

    Returns:
        Names of the tensors that were left out.

    Raises:
        WeightsError: The state dict is of another network, or a value is not finite.
    """
    state = _unwrapped(state, set(network.state_dict()))
    left = [
        name
        for name in state
        if isinstance(network, GoogLeNet | Inception3) and name.startswith(_AUXILIARY)
    ]
    kept = Renamed({_DENSE.sub(r"\1\2", name): state[name] for name in state if name not in left})
    # torchvision's MNASNet asks which of its versions a state is of
    kept._metadata = {"": {"version": network._version}}
    try:
        network.load_state_dict(kept)
    except RuntimeError as error:
        reason = textwrap.shorten(str(error).splitlines()[1], 200, placeholder=" ...")
        if "running_mean" in str(error) and not any("running_mean" in name for name in state):
            reason += " (there is no batch norm in this state)"
        raise WeightsError(f"{path}: does not fit {target}: {reason}") from None
    for name, tensor in network.state_dict().items():
        if not tensor.isfinite().all():
            raise WeightsError(f"{path}: {name} holds a number that is not finite")
    return tuple(left)


class Renamed(dict):
    """A state dict that can have an attribute `_metadata` with its version."""

    _metadata: dict[str, Any]


def _unwrapped(state: dict[str, Tensor], wanted: set[str]) -> dict[str, Tensor]:
    """Remove common prefixes of the names, while no name is one of the network."""
    state = {name: tensor for name, tensor in state.items() if name != "n_averaged"}
    while not wanted & state.keys():
        first = {name.partition(".")[0] for name in state}
        if len(first) != 1 or not all("." in name for name in state):
            break
        state = {name.partition(".")[2]: tensor for name, tensor in state.items()}
    return state


def _layers(tree: Shell, path: Path) -> dict[str, Tensor]:
    """The state dict of a network that consists of shells: parameters and persistent buffers."""
    state = {}
    for name, layer in walk(tree, path):
        passing = vars(layer).get("_non_persistent_buffers_set")
        own = _entries(layer, "_parameters") | {
            key: value
            for key, value in _entries(layer, "_buffers").items()
            if not isinstance(passing, set) or key not in passing
        }
        dot = f"{name}." if name else ""
        state.update({dot + key: value for key, value in own.items() if value is not None})
        if len(state) > MOST:
            raise WeightsError(f"{path}: more than {MOST} tensors in one network")
    return state


def walk(tree: Shell, path: Path) -> list[tuple[str, Shell]]:
    """The dotted names and shells of a network and of all its layers.

    Raises:
        WeightsError: There are too many layers, or a layer contains itself.
    """
    layers, waiting = [], [("", tree)]
    while waiting:
        name, layer = waiting.pop()
        layers.append((name, layer))
        dot = f"{name}." if name else ""
        inner = _entries(layer, "_modules").items()
        waiting += [(dot + key, value) for key, value in inner if isinstance(value, Shell)][::-1]
        if len(layers) + len(waiting) > MOST:
            raise WeightsError(f"{path}: more than {MOST} layers in one network")
        if name.count(".") >= DEEPEST:
            raise WeightsError(f"{path}: a layer contains itself")
    return layers


def _entries(layer: Shell, key: str) -> dict[str, Any]:
    """A dict attribute of a layer, without entries whose name is not a text."""
    entries = vars(layer).get(key)
    return {k: v for k, v in entries.items() if type(k) is str} if isinstance(entries, dict) else {}
