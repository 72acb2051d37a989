"""Options that several commands have, and what is made of them."""

from __future__ import annotations

import argparse
import sys
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikedet.cli.kinds import count, device, devices, seed
from spikedet.data import formats
from spikedet.data.samples import listed
from spikedet.errors import UsageError
from spikedet.files import read_lines
from spikedet.task import Source
from spikedet.tasks import SETTINGS, expect_data

if TYPE_CHECKING:
    from spikedet.task import Task

FOLDERS = {
    "detection": "VOCdevkit, data.yaml of YOLO labels or COCO's instances_*.json",
    "classification": "class folders or CIFAR",
}


def add_device(arguments: argparse.ArgumentParser) -> None:
    """`--device` of a command that runs networks on a single one."""
    arguments.add_argument("--device", type=device, default="cpu", help="cpu or cuda:N")


def add_half(arguments: argparse.ArgumentParser, *, default: bool | None) -> None:
    """`--half/--no-half`; None chooses by the CPU."""
    arguments.add_argument(
        "--half",
        action=argparse.BooleanOptionalAction,
        default=default,
        help="spiking layers in bfloat16" + (", if the CPU supports it" if default is None else ""),
    )


def add_data_arguments(
    arguments: argparse.ArgumentParser,
    *,
    test: bool = False,
    tasks: Sequence[str] = tuple(SETTINGS),
    own: bool = True,
) -> None:
    """`--data --split --limit`, and `--tuning` unless they are for a test.

    A split that is not given is that of the data, see `split`.

    Args:
        arguments: The parser.
        test: The data are measured, not trained on.
        tasks: What they may be for.
        own: With `--names` and `--images`, which data of detectors may need.
    """
    kind = "TEST_SPLIT" if test else "TRAIN_SPLIT"
    usual = "; ".join(f"{getattr(SETTINGS[name], kind)} for {name}" for name in tasks)
    if "detection" in tasks:
        usual += f"; {'val or test' if test else 'train'} of other data than VOC's"
    elif test:
        usual += ", or val where there is only that"
    what = "; ".join(FOLDERS[name] for name in tasks)
    add = arguments.add_argument
    add("--data", type=Path, nargs="+", required=True, help=f"{what}; several")
    add("--split", help=f"data sets and splits, joined by + ({usual})")
    add("--limit", type=count, help="only so many pictures, always the same")
    if own and "detection" in tasks:
        help = "class names in their order, or a file with one a line (those of the data)"
        add("--names", nargs="+", help=help)
        help = "folders of the pictures of a COCO file, where they are not beside it"
        add("--images", type=Path, nargs="+", help=help)
    if not test and "detection" in tasks:
        help = "list of training pictures kept aside for every choice (detection)"
        add("--tuning", type=Path, help=help)


def add_unlabelled(arguments: argparse.ArgumentParser) -> None:
    """`--unlabelled`, of commands that distil."""
    help = "folders of more pictures, distilled without labels (classification)"
    arguments.add_argument("--unlabelled", type=Path, nargs="+", help=help)


def split(args: argparse.Namespace, task: str, *, test: bool = False) -> str:
    """The split that was asked for, or the usual one of the data.

    To test on class folders it is `val` where no folder has the usual one and all have that, as
    ImageNet's.
    """
    return args.split or usual_split(args.data, task, test=test)


def usual_split(data: Sequence[Path], task: str, *, test: bool = False) -> str:
    """The split of some data that is trained on, or measured."""
    if task == "detection":
        return formats.usual_split(data, task, test)
    settings = SETTINGS[task]
    usual = settings.TEST_SPLIT if test else settings.TRAIN_SPLIT
    if not test or any((folder / usual).is_dir() for folder in data):
        return usual
    return "val" if all((folder / "val").is_dir() for folder in data) else usual


def read(
    args: argparse.Namespace,
    task: Task,
    split: str,
    limit: int | None = None,
    names: tuple[str, ...] | None = None,
) -> Sequence:
    """Annotated samples of `--data`, as `Task.read` gives them.

    One line on standard error says what they are.

    Raises:
        DataError: As there, and where the folders are for another task.
        UsageError: `--names` that are not those of the weights, or options of another task.
    """
    expect_data(task, args.data)
    told, images = class_names(getattr(args, "names", None)), getattr(args, "images", None)
    if task.name != "detection":
        for option, value in {"names": told, "images": images}.items():
            if value:
                raise UsageError(f"--{option} is no option of {task.name}")
    if told and names and told != tuple(names):
        raise UsageError(
            f"--names {listed(told)}: the weights know {listed(names)}; leave --names out"
        )
    kinds = {format.name: format for format in map(formats.recognise, args.data) if format}
    if images and not any(format.elsewhere for format in kinds.values()):
        raise UsageError(f"--images: the pictures of {' and '.join(kinds)} are where they are")
    found = task.read(Source(args.data, split, limit, names or told, images or ()))
    classes = found.names
    print(
        f"{', '.join(map(str, args.data))}: {' and '.join(kinds)}, {len(found)} pictures of "
        f"{split}, {len(classes)} classes: {listed(classes)}",
        file=sys.stderr,  # results alone go to standard output
    )
    return found


def class_names(words: Sequence[str] | None) -> tuple[str, ...] | None:
    """Class names of `--names`: as they are, or one a line of a single file."""
    if not words:
        return None
    where = "--names"
    if len(words) == 1 and Path(words[0]).is_file():
        where = words[0]
        words = [name for name in read_lines(Path(where), "class names") if name]
    return formats.expect_names(words, where)


def samples(
    args: argparse.Namespace, task: Task, names: tuple[str, ...] | None = None
) -> tuple[Sequence, Sequence]:
    """Training samples of `add_data_arguments`, and those kept aside for every choice."""
    found = read(args, task, split(args, task.name), args.limit, names)
    train, tune = found.split_off_tuning(getattr(args, "tuning", None))
    unlabelled = getattr(args, "unlabelled", None)
    return (train.with_unlabelled(unlabelled) if unlabelled else train), tune


def add_training_arguments(
    arguments: argparse.ArgumentParser,
    *,
    stage_one: bool = False,
    usual: dict[str, dict[str, Any]] | None = None,
    without: Sequence[str] = (),
) -> None:
    """One option for each field of every task's training settings, and `--resume`.

    Args:
        arguments: The parser.
        stage_one: The defaults that are shown are those of stage I.
        usual: The tasks that there are, with those defaults of each that are not as in its
            settings.
        without: Settings that have no option.
    """
    arguments.add_argument("--resume", action="store_true", help="go on after a kill")
    if usual is None:
        usual = {task: _stage_one(task) if stage_one else {} for task in SETTINGS}
    for name, kinds in _fields(usual).items():
        if name in without or (stage_one and name == "imgsz"):  # which is that of its weights
            continue
        default = {task: usual[task].get(name, _default(task, name)) for task in kinds}
        values = set(map(str, default.values()))
        shown = "; ".join(f"{_shown(value)} for {task}" for task, value in default.items())
        if len(values) == 1 and len(default) == len(usual):
            shown = _shown(next(iter(default.values())))
        help = f"{SETTINGS[next(iter(kinds))].FIELD_HELP[name]} ({shown})"
        option, kind = "--" + name.replace("_", "-"), next(iter(kinds.values()))
        if kind is bool:
            arguments.add_argument(option, action=argparse.BooleanOptionalAction, help=help)
        else:
            kind = next((k for k in typing.get_args(kind) if k is not type(None)), kind)
            kind = {"device": devices, "seed": seed}.get(name, kind)
            arguments.add_argument(option, type=kind, help=help)


def training_settings(
    args: argparse.Namespace,
    task: str,
    *,
    stage_one: bool = False,
    folded: bool | None = None,
    usual: dict[str, Any] | None = None,
) -> Any:
    """The settings of a task that `add_training_arguments` parsed.

    Args:
        args: The parsed arguments.
        task: Its name.
        stage_one: What was not given is as stage I has it.
        folded: Whether that has no batch norm; as usual when None.
        usual: What was not given, where it is not as in the settings of the task.

    Raises:
        UsageError: An option of another task.
    """
    given = {name: getattr(args, name, None) for name in _fields(SETTINGS)}
    given = {name: value for name, value in given.items() if value is not None}
    settings = SETTINGS[task]
    for name in given:
        if name not in settings.FIELD_HELP:
            raise UsageError(f"--{name.replace('_', '-')} is no option of {task}")
    usual = _stage_one(task, folded) if stage_one else usual or {}
    return settings.Settings(**(usual | given))


def training_options() -> list[str]:
    """The options of `add_training_arguments`, but for `--resume`."""
    return list(_fields(SETTINGS))


def _fields(tasks: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Types of all settings, by name and task."""
    found: dict[str, dict[str, Any]] = {}
    for task in tasks:
        for name, kind in typing.get_type_hints(SETTINGS[task].Settings).items():
            found.setdefault(name, {})[task] = kind
    return found


def _shown(value: Any) -> Any:
    """A default in the help."""
    return "off" if value is None else value


def _default(task: str, name: str) -> Any:
    return getattr(SETTINGS[task].Settings(), name)


def _stage_one(task: str, folded: bool | None = None) -> dict[str, Any]:
    """What stage I has that is not as in the settings of a task."""
    settings = SETTINGS[task]
    folded = settings.StageOne.fold_first if folded is None else folded
    rate = settings.STAGE_ONE_RATE["folded" if folded else "unfolded"]
    return {**settings.STAGE_ONE, "rate": rate}
