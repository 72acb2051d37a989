"""Read the description of a detection network, and build the network from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spikedet import resources
from spikedet.detection.model import Detector
from spikedet.detection.ultra import Conv, stock_description
from spikedet.errors import UsageError, did_you_mean, list_choices, message_of
from spikedet.files import read_yaml

MOST_LAYERS, MOST_CHANNELS = 1000, 8192  # limits for a network description


def read_description(
    path: Path, width: str | None = None, activation: str | None = None
) -> dict[str, Any]:
    """Read a network description.

    Args:
        path: A YAML file, or the name of a description of this package (tiny-yolo) or of
            ultralytics (yolov8n.yaml).
        width: One of the `scales` of the description.
        activation: Replaces the activation of the description; a text such as `torch.nn.ReLU()`.

    Raises:
        UsageError: The description or the width does not exist.
    """
    file, scale = resources.config(path, "models"), None
    if not file.is_file():
        stock = stock_description(file.name) if file.name == str(path) else None
        if stock is None:
            meant = did_you_mean(file.stem, resources.configs("models"))
            raise UsageError(
                f"{path}: no such network description; expected a file, a name such as tiny-yolo, "
                f"or a name of ultralytics such as yolov8n.yaml{meant}"
            )
        file, scale = stock
    description = read_yaml(file)
    width = width or scale
    if width is not None:
        scales = description.get("scales") or {}
        if width not in scales:
            raise UsageError(
                f"width {width!r}: {path} has {list_choices(width, scales) or 'no widths'}"
            )
        description["scale"] = width
    if activation is not None:
        description["activation"] = activation
    return description


def build(description: dict[str, Any], classes: int) -> Detector:
    """Build a network with new weights from its description.

    Raises:
        UsageError: The description names a layer or an activation that does not exist, has no
            Detect head, or its layers do not fit together.
    """
    _expect_buildable(description)
    usual = Conv.default_act  # of all networks; ultralytics leaves another one where it fails
    try:
        return Detector(dict(description), classes)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UsageError(f"the network description cannot be built: {message_of(error)}") from error
    finally:
        Conv.default_act = usual


def _expect_buildable(description: dict[str, Any]) -> None:
    """Check the sizes in a description before the layers are made.

    Raises:
        UsageError: An entry is wrong or too large. The message names it.
    """
    layers = 0
    for part in ("backbone", "head"):
        rows = description.get(part, [])
        if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
            raise UsageError(f"the {part} of the network description is not a list of layers")
        for row in rows:
            if len(row) != 4 or type(row[1]) is not int or not 0 < row[1] <= MOST_LAYERS:
                raise UsageError(
                    f"the network description: {str(row)[:80]}; expected [from, repeats, layer, "
                    f"arguments], repeats of 1 to {MOST_LAYERS}"
                )
            layers += row[1]
            sizes = [value for value in _numbers(row[3])]
            if any(abs(size) > MOST_CHANNELS for size in sizes):
                raise UsageError(
                    f"the network description: {str(row)[:80]}; expected sizes up to "
                    f"{MOST_CHANNELS}"
                )
    if layers > MOST_LAYERS:
        raise UsageError(
            f"the network description has {layers} layers; expected at most {MOST_LAYERS}"
        )
    factors = [description.get(key, 1) for key in ("width_multiple", "depth_multiple")]
    for factor in [*factors, *_numbers(list((description.get("scales") or {}).values()))][:999]:
        if not isinstance(factor, int | float) or not 0 < factor <= MOST_CHANNELS:
            raise UsageError(
                f"the network description has a scale of {factor!r}; expected a number above 0, at "
                f"most {MOST_CHANNELS}"
            )


def _numbers(value: Any) -> Iterator[float]:
    """All numbers in nested lists."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value
