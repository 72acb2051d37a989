"""Read a `best.pt` of an ultralytics training: network, class names and picture size.

The file holds the trained `DetectionModel` as a pickled object in half precision. It is the entry
`ema` during the training and the entry `model` afterwards. The entry `train_args` has the training
settings. Everything is read as plain data (see `safe_pickle`), so ultralytics is not needed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from spikedet.errors import WeightsError
from spikedet.importing.safe_pickle import Shell
from spikedet.importing.state import find_state, walk

MODEL = "ultralytics.nn.tasks.DetectionModel"
# of a layer: what differs without changing what it computes
_FREE = ("training", "inplace", "momentum", "np", "type")


@dataclass
class Trained:
    """A detector trained by ultralytics.

    Attributes:
        description: Network description.
        names: Class names.
        imgsz: Side of the training pictures in pixels. None if it is not in the file.
        network: The network, with shells in place of its layers.
    """

    description: dict[str, Any]
    names: tuple[str, ...]
    imgsz: int | None
    network: Shell


def trained(content: Any, path: Path) -> Trained | None:
    """Find the detector in a file of ultralytics.

    Args:
        content: Content of the file, from `state.read`.
        path: The file, for error messages.

    Returns:
        The detector. None if the file has no network of ultralytics.

    Raises:
        WeightsError: The network has no description or no valid class names.
    """
    network = find_state(content)
    if not isinstance(network, Shell) or network.kind != MODEL:
        return None
    own = vars(network)
    names = _names(own.get("names"))
    if not names:
        raise WeightsError(f"{path}: the class names are damaged; expected different texts")
    try:
        # keys and values that a description can have; the trainer's file name is none of them
        described = {key: value for key, value in own["yaml"].items() if key != "yaml_file"}
        description = json.loads(json.dumps(described, allow_nan=False))
    except (KeyError, AttributeError, TypeError, ValueError, RecursionError):
        raise WeightsError(f"{path}: the description of its network is damaged") from None
    if description.get("nc", len(names)) != len(names):
        raise WeightsError(
            f"{path}: its network has {description['nc']} classes and {len(names)} names"
        )
    settings = [content.get("train_args") if isinstance(content, dict) else None, own.get("args")]
    return Trained(description, names, _side(settings), network)


def expect_same_layers(detector: Trained, network: nn.Module, path: Path) -> None:
    """Check that the layers in a file are those of its network description.

    The network is built again from the description only. If somebody replaced or changed a layer
    after the network was built, the result would be wrong. The check compares the classes and the
    plain settings of the layers, except the class of the head.

    Raises:
        WeightsError: A layer differs. The message names it.
    """
    layers = dict(network.named_modules(remove_duplicate=False))
    assert isinstance(network.model, nn.Sequential)  # as ultralytics builds it
    head = f"model.{len(network.model) - 1}"
    shells = dict(walk(detector.network, path))
    for name in layers:
        if name not in shells:
            raise WeightsError(f"{path}: {name} of the description is not in the network")
    for name, shell in shells.items():
        layer = layers.get(name)
        if layer is None:
            raise WeightsError(f"{path}: {name} is not in the description of the network")
        if name in ("", head):
            continue
        kind = shell.kind.rpartition(".")[2]
        if kind != type(layer).__name__:
            raise WeightsError(
                f"{path}: {name} is {kind} in the file but {type(layer).__name__} by the "
                "description of the network; an activation can be given with --activation"
            )
        for key, value in vars(shell).items():
            wanted = vars(layer).get(key)
            if key in _FREE or key.startswith("_") or not _plain(value) or not _plain(wanted):
                continue
            if _list(value) != _list(wanted):
                raise WeightsError(
                    f"{path}: {name} has {key} {value} in the file but {wanted} by the description "
                    "of the network"
                )


def _plain(value: Any) -> bool:
    kinds = bool | int | float | str
    if isinstance(value, list | tuple):
        return all(isinstance(item, kinds) for item in value)
    return isinstance(value, kinds)


def _list(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def _names(names: Any) -> tuple[str, ...]:
    """The class names, from a dict or a list; empty if they are not different texts."""
    if isinstance(names, dict):
        names = [names.get(number) for number in range(len(names))]
    good = isinstance(names, list | tuple) and all(type(n) is str and n.strip() for n in names)
    return tuple(names) if good and len(set(names)) == len(names) else ()


def _side(settings: list[Any]) -> int | None:
    """The side of the training pictures, from the first settings that have it."""
    for options in settings:
        options = vars(options) if isinstance(options, Shell) else options
        side = options.get("imgsz") if isinstance(options, dict) else None
        if isinstance(side, list | tuple) and all(type(s) is int for s in side):
            side = side[0] if len(set(side)) == 1 else None
        if type(side) is int and side > 0:
            return side
    return None
