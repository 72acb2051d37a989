"""Options as fields of dataclasses, and those that the training of every task has.

An option is one field: its default, what it means and which values it may have stand in it, and
from them follow both the check of a run (`wrong`) and the command line (`spikedet.commands`).
Light to import, as the settings of the tasks are.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any


def shipped(folder: str) -> Path:
    """Where a folder of files lies that come with the package: in it, or beside it in a clone."""
    package = Path(__file__).resolve().parent
    return package / folder if (package / folder).is_dir() else package.parent / folder


CONFIGS = shipped("configs")


def option(
    default: Any = MISSING,
    help: str = "",
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    choices: Sequence[str] = (),
    kind: Callable[[str], Any] | None = None,
    group: str = "",
    **shown: Any,
) -> Any:
    """A field of a dataclass that is an option of commands.

    Args:
        default: Its value where none is given; without it the option must be given.
        help: What it means.
        least: Least value of a number.
        above: A number is greater than it.
        most: Greatest value of a number.
        choices: The texts that it may be.
        kind: Makes a value of the text on a command line, or raises ValueError with a sentence;
            the type of the field if left out.
        group: Under which heading the help shows it; among the main options if left out.
        shown: How the command line has it, see `spikedet.commands.parse`.
    """
    metadata = {"help": help, "least": least, "above": above, "most": most, "kind": kind}
    metadata |= {"choices": tuple(choices), "group": group, **shown}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def redefined(options: type, name: str, default: Any) -> Any:
    """An option of a dataclass that this one is based on, with another default."""
    (there,) = (each for each in fields(options) if each.name == name)
    return field(default=default, metadata=there.metadata)


def wrong(value: Any, limits: Any) -> str | None:
    """What would be right where a value is outside the limits of its option, else None.

    Args:
        value: A number or text; None is always right.
        limits: Metadata of an `option`.
    """
    choices = limits.get("choices")
    if choices and value is not None and value not in choices:
        return " or ".join([", ".join(choices[:-1]), choices[-1]] if choices[1:] else choices)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    least, above, most = (limits.get(name) for name in ("least", "above", "most"))
    if least is above is most is None:
        return None
    low = value > above if above is not None else least is None or value >= least
    if low and value <= (math.inf if most is None else most) and value != math.inf:
        return None
    return bounds(limits, "a number")


def bounds(limits: Any, what: str) -> str:
    """The values that the limits of an option allow, in words: `a number between 0 and 1`."""
    least, above, most = (limits.get(name) for name in ("least", "above", "most"))
    if above is not None:
        return f"{what} above {above:g}" + (f" and at most {most:g}" if most is not None else "")
    if least is None and most is None:
        return what
    if most is None:
        return f"{what} of {least} or more"
    return f"{what} between {least} and {most}"


def device_numbers(text: str) -> str:
    """GPUs as training takes them: `0,1` for `cuda:0,cuda:1`."""
    return text.replace("cuda:", "").replace("cuda", "0")


@dataclass
class TrainingSettings:
    """How a network is trained."""

    epochs: int = option(1, "epochs, each over all training pictures", least=1)
    imgsz: int = option(32, "input side in pixels", least=1)
    batch: int = option(1, "pictures a step", least=1)
    rate: float = option(0.1, "learning rate at its peak", least=0)
    device: str = option("cpu", "cpu, 0, or 0,1 for two GPUs", kind=device_numbers)
    workers: int = option(1, "loader processes", least=0)
    seed: int = option(
        0, "seed of order, augmentation and initial weights", least=0, most=(1 << 31) - 1
    )
    grow_from: int | None = option(
        None,
        "input side in pixels of the first epoch, growing to --imgsz in 3/4 of them",
        least=1,
        group="training",
    )
    optimizer: str = option("SGD", "optimiser", choices=("SGD", "AdamW"), group="training")
    final: float = option(
        0.01,
        "last learning rate as a part of the first (cosine in between)",
        least=0,
        most=1,
        group="training",
    )
    decay: float = option(
        5e-4,
        "weight decay of convolution and linear weights; nothing else decays",
        least=0,
        most=1,
        group="training",
    )
    threshold_rate: float = option(
        1.0,
        "learning rate of firing thresholds as a part of --rate",
        least=0,
        group="training",
    )
    warmup: float = option(1.0, "epochs of warm-up", least=0, group="training")


@dataclass
class StageTwo:
    """What stage II of the conversion does."""

    pictures: int = option(
        256, "training pictures that layers are fitted to", least=1, group="stage II"
    )
    held: int = option(
        64, "other training pictures that judge each layer", least=1, group="stage II"
    )
    layer_steps: int = option(120, "most fine-calibration steps a layer", least=0, group="stage II")
    loss: str = option(
        "mse", "what fine calibration lowers", choices=("mse", "kl"), group="stage II"
    )
    end_to_end: int = option(
        400, "steps of the end-to-end pass, 0 for none", least=0, group="end-to-end pass"
    )
    end_rate: float = option(
        1e-2, "its learning rate, relative to the weights", above=0, group="end-to-end pass"
    )
    end_batch: int = option(8, "pictures a step of it", least=1, group="end-to-end pass")
    end_workers: int = option(0, "loader processes of it", least=0, group="end-to-end pass")
    end_grow_from: int | None = option(
        None, "side in pixels of its first pictures", least=1, group="end-to-end pass"
    )
    batch: int = field(default=8)  # pictures that layers are fitted to at once; no option


def impossible(settings: Any) -> tuple[str, Any, str] | None:
    """Name and value of the first option that is outside its limits, and what would be right."""
    for each in fields(settings):
        value = getattr(settings, each.name)
        right = wrong(value, each.metadata)
        if right is not None:
            return each.name, value, right
    return None


def world_size() -> int:
    """How many processes torchrun started, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))
