"""How a command begins and ends: its parser, its errors, its exit code."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import io
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikedet.cli.config import with_config
from spikedet.errors import LONGEST, SpikedetError, UsageError, cut, plainly
from spikedet.settings import world_size

if TYPE_CHECKING:
    from tqdm import tqdm

LOG_INTERVAL = 60.0  # seconds between two states of a progress bar that goes into a file


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, keeps the line breaks of the description."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


class _Parser(argparse.ArgumentParser):
    """Puts the options of a `--config` file first; notes those of the command line as `given`."""

    def parse_known_args(self, args=None, namespace=None):
        words = sys.argv[1:] if args is None else list(args)
        found, rest = super().parse_known_args(with_config(self, words), namespace)
        options = {word: action.dest for action in self._actions for word in action.option_strings}
        names = {word.partition("=")[0] for word in words}
        found.given = {options[name] for name in names & options.keys()}
        return found, rest


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with `--config`; its help shows defaults and keeps the layout of `description`.

    Options are not abbreviated: `--conf` is no `--config`.
    """
    made = _Parser(description=description, formatter_class=_HelpFormatter, allow_abbrev=False)
    made.add_argument("--config", type=Path, help="YAML file with options; see configs/experiments")
    return made


def command_line() -> str:
    """The command as it was given, for the record; folders are cut to their names."""
    words = [Path(word).name if word.startswith("/") else word for word in sys.argv[1:]]
    return " ".join([f"tools/{Path(sys.argv[0]).name}", *words])


def progress(*args: Any, **options: Any) -> tqdm:
    """A progress bar of tqdm's on standard error; where that is no terminal, a state a minute.

    Args:
        *args: As tqdm takes them.
        **options: As well.
    """
    from tqdm import tqdm

    interval = 0.1 if sys.stderr.isatty() else LOG_INTERVAL
    return tqdm(*args, mininterval=interval, maxinterval=max(10.0, interval), **options)


def keep_freed_memory() -> None:
    """Ask glibc to keep large blocks for the next tensor, which saves their page faults.

    Element-wise operations on large tensors run up to three times as fast. Other C libraries are
    left as they are.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def _end_in_order() -> None:
    """Let SIGTERM end a command as Ctrl-C does: what is done is written, temporaries are deleted.

    Loader processes, to which it is sent to end them, inherit that.
    """

    def end(*_: Any) -> None:
        sys.exit(128 + signal.SIGTERM)

    with contextlib.suppress(ValueError):  # in a thread, which no signal reaches
        signal.signal(signal.SIGTERM, end)


def run(
    main: Callable[[argparse.Namespace], int | None],
    arguments: argparse.ArgumentParser,
    *,
    several: bool = False,
) -> None:
    """Parse, run `main`, turn an expected error into one sentence and an exit code.

    Args:
        main: Takes the parsed arguments, returns the exit code or None for 0.
        arguments: The parser.
        several: Processes that torchrun starts share the work; else each would do the same.
    """
    keep_freed_memory()
    _end_in_order()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO)
    try:
        args = arguments.parse_args()
        if not several and world_size() > 1:
            raise UsageError(
                "this command runs in one process; torchrun is for tools/train.py, finetune.py and "
                "pretrain.py"
            )
        code = main(args) or 0
        sys.stdout.flush()
    except SpikedetError as error:
        first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started
        if first or not isinstance(error, UsageError):  # which all of them have
            print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except (MemoryError, RuntimeError) as error:
        plain = plainly(error)
        if plain is None:
            raise
        print(f"error: {plain}", file=sys.stderr)
        code = plain.exit_code
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # who reads has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except OSError as error:  # an output that cannot be written, a disk that is full
        if error.strerror is None:
            raise
        name = error.filename2 or error.filename
        name = f"{cut(name, LONGEST)}: " if name else ""
        print(f"error: {name}{error.strerror}", file=sys.stderr)
        code = 1
    sys.exit(code)
