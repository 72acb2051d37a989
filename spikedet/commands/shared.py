"""Options that several commands share."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikedet.commands import kinds
from spikedet.commands.parse import Options
from spikedet.data import formats
from spikedet.data.samples import list_names
from spikedet.errors import UsageError, counted
from spikedet.files import read_lines
from spikedet.options import option
from spikedet.task import Source
from spikedet.task_registry import SETTINGS, expect_data
from spikedet.terminal import note

if TYPE_CHECKING:
    from spikedet.task import Samples, Task

MOST_NAMED = 5  # classes in a warning
FOLDERS = {
    "detection": "a VOCdevkit, a data.yaml (YOLO), an instances_*.json (COCO)",
    "classification": "class folders or CIFAR",
}
GROUP = "data"


def device() -> Any:
    """Make the option `--device` of a command that uses one device."""
    return option("cpu", "cpu or cuda:N", check=kinds.device)


def half(default: bool | None) -> Any:
    """Make the option `--half/--no-half`. None: bfloat16 if the CPU is fast at it."""
    chosen = " (default: only if the CPU is fast at it)" if default is None else ""
    help = f"let torch compute the spiking layers in bfloat16{chosen}"
    return option(default, help, pair=True, group="speed")


def engine(default: str = "auto") -> Any:
    """Make the option `--engine` of a command that runs a spiking network."""
    return option(
        default,
        "engine for spiking weights: auto (fastest that works here), events, torch (float32 "
        "reference), integers",
        kind=kinds.engine,
    )


def expect_half(options: Any) -> None:
    """Refuse `--half` with an engine that computes in integers.

    Raises:
        UsageError: The message names the engine.
    """
    if options.half and options.engine not in ("auto", "torch"):
        raise UsageError(
            f"--half: the {options.engine} engine computes with integers; leave --half out"
        )


def batch(default: int | None, help: str = "pictures in a batch") -> Any:
    """Make the option `--batch` of a command without training."""
    return option(default, help, least=1)


def steps(help: str = "time steps (default: the T of the weights)") -> Any:
    """Make the optional option `--T`."""
    return option(None, help, kind=kinds.time_steps)


def unlabelled() -> Any:
    """Make the option `--unlabelled` of commands that distil."""
    return option(
        None, "folders of more pictures, used for distillation without labels", group="classifiers"
    )


def _data(tasks: Sequence[str] = tuple(SETTINGS)) -> Any:
    return option(help=", ".join(FOLDERS[name] for name in tasks) + "; one or more")


def _split(tasks: Sequence[str] = tuple(SETTINGS), test: bool = False) -> Any:
    kind = "TEST_SPLIT" if test else "TRAIN_SPLIT"
    usual = "; ".join(f"{getattr(SETTINGS[name], kind)} for {name}" for name in tasks)
    if "detection" in tasks:
        usual += f"; {'val or test' if test else 'train'} for detection data other than VOC"
    elif test:
        usual += ", or val if there is no test"
    # what is trained on has a usual one that nearly all take
    group = "" if test else GROUP
    return option(None, f"data sets and splits, joined by + (default: {usual})", group=group)


@dataclass(kw_only=True)
class Classified(Options):
    """Data options of classifiers. The default of `--split` depends on the data (see `split`)."""

    data: list[Path] = _data(["classification"])
    split: str | None = _split(["classification"])
    limit: int | None = option(
        None, "use only N pictures, always the same ones", least=1, group=GROUP
    )


@dataclass(kw_only=True)
class Measured(Classified):
    """Data options of commands that measure, for both tasks."""

    data: list[Path] = _data()
    split: str | None = _split(test=True)
    limit: int | None = option(None, "use only N pictures, always the same ones", least=1)


@dataclass(kw_only=True)
class Own(Options):
    """Further data options for detectors."""

    names: list[str] | None = option(
        None,
        "class names in their order, or a file with one name per line (default: the names in the "
        "data)",
        group=GROUP,
    )
    images: list[Path] | None = option(
        None, "picture folders of a COCO file, if they are not beside it", group=GROUP
    )


@dataclass(kw_only=True)
class TestData(Own, Measured):
    """Data options of commands that measure on your own data, for both tasks."""


@dataclass(kw_only=True)
class TrainingData(Own, Classified):
    """Data options of commands that train, for both tasks."""

    data: list[Path] = _data()
    split: str | None = _split()
    tuning: Path | None = option(
        None,
        "file that lists the tuning pictures: kept out of training, used for every choice",
        group="detectors",
        metavar="FILE",
    )


def split(options: Any, task: str, *, test: bool = False) -> str:
    """The value of `--split`, or the usual split of the data.

    To measure on class folders, the usual split is `val` if no folder has `test` and all have
    `val`, as in ImageNet.
    """
    return options.split or usual_split(options.data, task, test=test)


def usual_split(data: Sequence[Path], task: str, *, test: bool = False) -> str:
    """The split of data that is used to train or to measure if none is given."""
    if task == "detection":
        return formats.usual_split(data, task, test)
    settings = SETTINGS[task]
    usual = settings.TEST_SPLIT if test else settings.TRAIN_SPLIT
    if not test or any((folder / usual).is_dir() for folder in data):
        return usual
    return "val" if all((folder / "val").is_dir() for folder in data) else usual


def read(
    options: Any,
    task: Task,
    split: str,
    limit: int | None = None,
    names: tuple[str, ...] | None = None,
) -> Samples:
    """Read the annotated samples of `--data` (see `Task.read`).

    A line on standard error describes them.

    Raises:
        DataError: See `Task.read`, or a folder has data for another task.
        UsageError: `--names` differs from the names of the weights, or an option is for another
            task.
    """
    expect_data(task, options.data)
    own_names = class_names(getattr(options, "names", None))
    images = getattr(options, "images", None)
    if task.name != "detection":
        for name, value in {"names": own_names, "images": images}.items():
            if value:
                raise UsageError(f"--{name} is no option of {task.name}")
    if own_names and names and own_names != tuple(names):
        raise UsageError(
            f"--names {list_names(own_names)}: the weights have the classes {list_names(names)}; "
            "leave --names out"
        )
    found = {format.name: format for format in map(formats.recognise, options.data) if format}
    if images and not any(format.elsewhere for format in found.values()):
        raise UsageError(
            f"--images: is for COCO files; {' and '.join(found)} data has its pictures in fixed "
            "places"
        )
    samples = task.read(Source(options.data, split, limit, names or own_names, images or ()))
    classes = samples.names
    number = counted(len(samples), "picture")
    note(
        f"{', '.join(map(str, options.data))}: {' and '.join(found)}, {number} of {split}, "
        f"{len(classes)} classes: {list_names(classes)}"
    )
    return samples


def class_names(words: Sequence[str] | None) -> tuple[str, ...] | None:
    """The class names of `--names`: the names themselves, or the lines of a single file."""
    if not words:
        return None
    where = "--names"
    if len(words) == 1 and Path(words[0]).is_file():
        where = words[0]
        words = [name for name in read_lines(Path(where), "class names") if name]
    return formats.expect_names(words, where)


def samples(
    options: Any, task: Task, names: tuple[str, ...] | None = None
) -> tuple[Samples, Samples]:
    """The training samples and the tuning samples of `TrainingData`.

    A warning names the classes that no tuning sample shows.
    """
    all_samples = read(options, task, split(options, task.name), options.limit, names)
    train, tune = all_samples.split_off_tuning(getattr(options, "tuning", None))
    _warn_of_untuned(train, tune)
    unlabelled = getattr(options, "unlabelled", None)
    return (train.with_unlabelled(unlabelled) if unlabelled else train), tune


def _warn_of_untuned(train: Samples, tune: Samples) -> None:
    """Warn of classes of the training samples that no tuning sample shows."""
    lost = [train.names[number] for number in sorted(train.classes() - tune.classes())]
    if not lost:
        return
    more = f" and {len(lost) - MOST_NAMED} more classes" if len(lost) > MOST_NAMED else ""
    warnings.warn(
        f"none of the {len(tune)} tuning pictures shows {list_names(lost[:MOST_NAMED])}{more}, "
        "which therefore count in no choice, such as the best epoch; use more pictures of them",
        stacklevel=3,
    )
