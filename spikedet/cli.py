"""What the commands share: argument parsing, printing of errors, exit codes.

Nobody else prints or exits. Exit codes: 0 done, 1 some of the work failed, 2 wrong arguments, and
one for each kind of error in `spikedet.errors`.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import logging
import math
import os
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikedet.errors import SpikedetError, TrainingError, UsageError
from spikedet.tasks import SETTINGS

if TYPE_CHECKING:
    from spikedet.task import Task


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, keeps the line breaks of the description."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with `--config`; its help shows defaults and keeps the layout of `description`.

    Options are not abbreviated: `--conf` is no `--config`.
    """
    made = argparse.ArgumentParser(
        description=description, formatter_class=_HelpFormatter, allow_abbrev=False
    )
    made.add_argument("--config", type=Path, help="YAML file with options; see configs/experiments")
    made.set_defaults(configured=())
    return made


def time_steps(text: str) -> int:
    """Type of `--T`: a whole number of time steps, at least 1."""
    try:
        steps = int(text)
    except ValueError:
        steps = 0
    if steps < 1:
        raise argparse.ArgumentTypeError(f"T is {text!r}; expected a whole number of 1 or more")
    return steps


def count(text: str) -> int:
    """Type of `--limit`: a whole number of 1 or more."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return number


def seed(text: str) -> int:
    """Type of `--seed`: a whole number that every generator takes."""
    number = whole(text)
    if number >= 1 << 31:
        raise argparse.ArgumentTypeError(f"{text!r} is too large; expected less than 2 ** 31")
    return number


def whole(text: str) -> int:
    """Type of numbers of steps that may be none: a whole number of 0 or more."""
    return 0 if text.strip() == "0" else count(text)


def json_file(text: str) -> Path:
    """Type of `--json`: a name that ends so, for the file may be written over."""
    if not text.endswith(".json"):
        raise argparse.ArgumentTypeError(f"{text!r} is to be written; expected a name in .json")
    return Path(text)


def positive(text: str) -> float:
    """Type of rates and prices: a number above 0."""
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def weight(text: str) -> float:
    """Type of what a part of a loss counts: a number of 0 or more."""
    value = _number(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 0 or more")
    return value


def fraction(text: str) -> float:
    """Type of confidences and IoU thresholds: a number in 0..1."""
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number between 0 and 1")
    return value


def _number(text: str) -> float:
    """A number; NaN, which lies in no range, for what is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def device(text: str) -> str:
    """Type of `--device`: `cpu`, `cuda`, `cuda:N` or `N`, present on this machine."""
    import torch

    text = torch_device(text)
    try:
        chosen = torch.device(text)
        known = chosen.type in ("cpu", "cuda")
    except RuntimeError:
        known = False
    if not known:
        raise argparse.ArgumentTypeError(f"{text!r} is not a device here; try cpu or cuda:0")
    if chosen.type == "cpu":
        return "cpu"
    if (chosen.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise argparse.ArgumentTypeError(f"{text!r}: this machine has {count} CUDA devices")
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32, as on a CPU
    return f"cuda:{chosen.index or 0}"


def torch_device(text: str) -> str:
    """`cuda:0` of a training command's `0`."""
    return f"cuda:{text}" if text.isdigit() else text


def devices(text: str) -> str:
    """Type of a training command's `--device`: `0,1` in place of `cuda:0,cuda:1`."""
    return text.replace("cuda:", "").replace("cuda", "0")


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


def add_data_arguments(arguments: argparse.ArgumentParser, *, test: bool = False) -> None:
    """`--data --split --limit`, and `--tuning` unless they are for a test.

    A split that is not given is that of the task, see `split`.
    """
    kind = "TEST_SPLIT" if test else "TRAIN_SPLIT"
    usual = "; ".join(f"{getattr(s, kind)} for {name}" for name, s in SETTINGS.items())
    add = arguments.add_argument
    add("--data", type=Path, nargs="+", required=True, help="VOCdevkit or class folders, several")
    add("--split", help=f"data sets and splits, joined by + ({usual})")
    add("--limit", type=count, help="only so many pictures, always the same")
    if not test:
        help = "list of training pictures kept aside for every choice (detection)"
        add("--tuning", type=Path, help=help)


def split(args: argparse.Namespace, task: str, *, test: bool = False) -> str:
    """The split that was asked for, or the usual one of a task."""
    return args.split or (SETTINGS[task].TEST_SPLIT if test else SETTINGS[task].TRAIN_SPLIT)


def samples(
    args: argparse.Namespace, task: Task, names: tuple[str, ...] | None = None
) -> tuple[Sequence, Sequence]:
    """Training samples of `add_data_arguments`, and those kept aside for every choice."""
    read = task.read(args.data, split(args, task.name), args.limit, names)
    return task.split_off_tuning(read, args.tuning)


def add_training_arguments(arguments: argparse.ArgumentParser, *, stage_one: bool = False) -> None:
    """One option for each field of every task's training settings, and `--resume`.

    Args:
        arguments: The parser.
        stage_one: The defaults that are shown are those of stage I.
    """
    arguments.add_argument("--resume", action="store_true", help="go on after a kill")
    for name, kinds in _fields().items():
        if stage_one and name == "imgsz":
            continue  # that of its weights
        usual = {task: _usual(task, name, stage_one) for task in kinds}
        values = set(map(str, usual.values()))
        shown = "; ".join(f"{_shown(value)} for {task}" for task, value in usual.items())
        if len(values) == 1 and len(usual) == len(SETTINGS):
            shown = values.pop()
        help = f"{SETTINGS[next(iter(kinds))].FIELD_HELP[name]} ({shown})"
        option, kind = "--" + name.replace("_", "-"), next(iter(kinds.values()))
        if kind is bool:
            arguments.add_argument(option, action=argparse.BooleanOptionalAction, help=help)
        else:
            kind = next((k for k in typing.get_args(kind) if k is not type(None)), kind)
            kind = {"device": devices, "seed": seed}.get(name, kind)
            arguments.add_argument(option, type=kind, help=help)


def training_settings(
    args: argparse.Namespace, task: str, *, stage_one: bool = False, folded: bool | None = None
) -> Any:
    """The settings of a task that `add_training_arguments` parsed.

    Args:
        args: The parsed arguments.
        task: Its name.
        stage_one: What was not given is as stage I has it.
        folded: Whether that has no batch norm; as usual when None.

    Raises:
        UsageError: An option of another task.
    """
    given = {name: getattr(args, name, None) for name in _fields()}
    given = {name: value for name, value in given.items() if value is not None}
    settings = SETTINGS[task]
    for name in given:
        if name not in settings.FIELD_HELP:
            raise UsageError(f"--{name.replace('_', '-')} is no option of {task}")
    return settings.Settings(**((_stage_one(task, folded) if stage_one else {}) | given))


def refuse(args: argparse.Namespace, names: Sequence[str], why: str) -> None:
    """Refuse options that would be ignored; those of a `--config` file may be for other methods.

    Args:
        args: The parsed arguments.
        names: Options that are None or False where they are not given.
        why: They would be ignored.

    Raises:
        UsageError: One of them was given.
    """
    for name in names:
        value = getattr(args, name)
        if value is not None and value is not False and name not in args.configured:
            raise UsageError(f"--{name.replace('_', '-')}: {why}")


def expect_new(path: Path) -> None:
    """Refuse to write over what took hours to make, or where nothing can be written.

    Raises:
        TrainingError: There is such a file.
        UsageError: As `expect_writable`.
    """
    if path.exists():
        raise TrainingError(f"{path} is there already; choose another --out")
    expect_writable(path)


def expect_writable(path: Path | None) -> None:
    """Refuse an output that cannot be written, before the work for it is done.

    Raises:
        UsageError: It is a folder, or its own would have to lie in a file, or is write-protected.
    """
    if path is None:
        return
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; expected the name of a file to write")
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UsageError(f"{path}: {folder} is not a folder that can be written to")


def expect_one_process() -> None:
    """Refuse a start by torchrun, where every process would do the same work.

    Raises:
        UsageError: There are several.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UsageError(
            "stage II runs in one process; start stage I by torchrun with tools/finetune.py, and "
            "this command without"
        )


def training_options() -> list[str]:
    """The options of `add_training_arguments`, but for `--resume`."""
    return list(_fields())


def _fields() -> dict[str, dict[str, Any]]:
    """Types of all settings, by name and task."""
    found: dict[str, dict[str, Any]] = {}
    for task, settings in SETTINGS.items():
        for name, kind in typing.get_type_hints(settings.Settings).items():
            found.setdefault(name, {})[task] = kind
    return found


def _shown(value: Any) -> Any:
    """A default in the help."""
    return "off" if value is None else value


def _usual(task: str, name: str, stage_one: bool) -> Any:
    settings = SETTINGS[task]
    default = getattr(settings.Settings(), name)
    return _stage_one(task).get(name, default) if stage_one else default


def _stage_one(task: str, folded: bool | None = None) -> dict[str, Any]:
    """What stage I has that is not as in the settings of a task."""
    settings = SETTINGS[task]
    folded = settings.FOLD_FIRST if folded is None else folded
    rate = settings.STAGE_ONE_RATE["folded" if folded else "unfolded"]
    return {**settings.STAGE_ONE, "rate": rate}


def command_line() -> str:
    """The command as it was given, for the record; folders are cut to their names."""
    words = [Path(word).name if word.startswith("/") else word for word in sys.argv[1:]]
    return " ".join([f"tools/{Path(sys.argv[0]).name}", *words])


def with_config(arguments: argparse.ArgumentParser, words: list[str]) -> list[str]:
    """Put the options of a `--config` file before the words of the command line, which win.

    The file is YAML: a section for each command (`train:`, `finetune:`), in it the command's
    options without dashes. `true` and `false` switch, a list gives several values, and what is
    `null` counts as left out.

    The parser notes which options the file gives, as `args.configured`.

    Raises:
        UsageError: No such file, not YAML of that form, or an option that the command has not.
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", type=Path)
    path = finder.parse_known_args(words)[0].config
    if path is None:
        return words
    from spikedet.files import read_yaml

    section = Path(arguments.prog).stem
    options = read_yaml(path).get(section)
    if not isinstance(options, dict):
        raise UsageError(f"{path}: expected a section {section!r} of options")
    before = []
    arguments.set_defaults(configured=tuple(str(name).replace("-", "_") for name in options))
    for name, value in options.items():
        try:
            before += _option_words(arguments, str(name), value)
        except UsageError as error:
            raise UsageError(f"{path}: {section} {error}") from None
    # a list ends where the next option begins
    return [*before, "--config", str(path), *words]


def _option_words(arguments: argparse.ArgumentParser, name: str, value: Any) -> list[str]:
    """One option of a `--config` file as on a command line."""
    options = {word: action for action in arguments._actions for word in action.option_strings}
    word = f"--{name.replace('_', '-')}"
    if word not in options or word in ("--config", "--help"):
        raise UsageError(f"has no option {name!r}")
    if value is None:
        return []
    nargs = options[word].nargs
    if nargs == 0:
        if not isinstance(value, bool):
            raise UsageError(f"has {name}: {value}; expected true or false")
        off = word.replace("--", "--no-", 1)
        return [word] if value else [off] if off in options else []
    values = value if isinstance(value, list) else [value]
    if not values or any(type(v) not in (str, int, float) for v in values):
        raise UsageError(f"has {name}: {value}; expected text (perhaps in quotes) or a number")
    if nargs is None and len(values) > 1:
        raise UsageError(f"has {name}: {value}; expected a single value")
    return [f"{word}={values[0]}"] if nargs is None else [word, *map(str, values)]


def keep_freed_memory() -> None:
    """Ask glibc to keep large blocks for the next tensor, which saves their page faults.

    Element-wise operations on large tensors run up to three times as fast. Other C libraries are
    left as they are.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def run(
    main: Callable[[argparse.Namespace], int | None], arguments: argparse.ArgumentParser
) -> None:
    """Parse, run `main`, turn an expected error into one sentence and an exit code.

    Args:
        main: Takes the parsed arguments, returns the exit code or None for 0.
        arguments: The parser.
    """
    keep_freed_memory()
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO)
    try:
        args = arguments.parse_args(with_config(arguments, sys.argv[1:]))
        code = main(args) or 0
    except SpikedetError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        code = 141
    except OSError as error:  # an output that cannot be written, a disk that is full
        if error.strerror is None:
            raise
        name = error.filename2 or error.filename
        print(f"error: {name + ': ' if name else ''}{error.strerror}", file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.exit(code)
