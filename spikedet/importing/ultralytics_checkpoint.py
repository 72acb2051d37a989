"""The `best.pt` of ultralytics' training: network, class names and picture size in one file.

It holds the trained `DetectionModel` as a pickled object, in half precision, under `ema` (while it
trains) or `model` (once it has finished), and under `train_args` what it was trained with. All is
read as plain data (see `safe_pickle`); ultralytics is not needed for it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from spikedet.errors import WeightsError
from spikedet.importing.safe_pickle import Shell
from spikedet.importing.state import holder, walk

MODEL = "ultralytics.nn.tasks.DetectionModel"
# of a layer: what differs without changing what it computes
_FREE = ("training", "inplace", "momentum", "np", "type")


@dataclass
class Trained:
    """A detector that ultralytics has trained.

    Attributes:
        description: Of its network.
        names: Of its classes.
        imgsz: Side of the pictures it was trained with in pixels; None where the file says none.
        network: Shells in the places of its layers.
    """

    description: dict[str, Any]
    names: tuple[str, ...]
    imgsz: int | None
    network: Shell


def trained(content: Any, path: Path) -> Trained | None:
    """The detector in a file of ultralytics.

    Args:
        content: As `state.read` gives it.
        path: Errors name it.

    Returns:
        None where there is no network of ultralytics.

    Raises:
        WeightsError: There is one, but without a description or names of its classes.
    """
    network = holder(content)
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
    """Refuse a file whose layers are not those of its description, which alone is built again.

    So are layers that somebody has exchanged or set otherwise after they were built. Classes and
    plain settings are compared; the head's class is ours.

    Raises:
        WeightsError: Names the layer.
    """
    there = dict(network.named_modules(remove_duplicate=False))
    assert isinstance(network.model, nn.Sequential)  # as ultralytics builds it
    head = f"model.{len(network.model) - 1}"
    shells = dict(walk(detector.network, path))
    for name in there:
        if name not in shells:
            raise WeightsError(f"{path}: {name} of the description is not in the network")
    for name, shell in shells.items():
        layer = there.get(name)
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
    """Class names by number or in a row; none where they are not text, each once."""
    if isinstance(names, dict):
        names = [names.get(number) for number in range(len(names))]
    good = isinstance(names, list | tuple) and all(type(n) is str and n.strip() for n in names)
    return tuple(names) if good and len(set(names)) == len(names) else ()


def _side(settings: list[Any]) -> int | None:
    """The side of the training pictures, of the first settings that have one."""
    for options in settings:
        options = vars(options) if isinstance(options, Shell) else options
        side = options.get("imgsz") if isinstance(options, dict) else None
        if isinstance(side, list | tuple) and all(type(s) is int for s in side):
            side = side[0] if len(set(side)) == 1 else None
        if type(side) is int and side > 0:
            return side
    return None
