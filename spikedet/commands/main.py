"""Run a command: find it, parse its options, and turn errors into messages and exit codes."""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from spikedet import __version__
from spikedet.errors import (
    LONGEST,
    SpikedetError,
    UsageError,
    did_you_mean,
    resource_error,
    shorten,
)
from spikedet.settings import world_size
from spikedet.terminal import Bar, close_bars, quietly

HERE = "spikedet.commands."
# Each command: what it does, and where it is if not in a file of its name, here or with its dotted
# name. Another one is one more file and one more line.
COMMANDS: dict[str, str | tuple[str, str]] = {
    "detect": "find objects in pictures",
    "web": "show in the browser what a spiking network sees",
    "classify": "classify pictures",
    "info": "show what a checkpoint holds",
    "train": "train a float network",
    "convert": "convert a float network to a spiking one (stages I and II)",
    "finetune": "stage I only: quantise and fine-tune",
    "calibrate": "stage II only: calibrate layer by layer and end to end",
    "evaluate": "measure average precision or accuracy over T",
    "energy": "count spikes and synaptic operations, estimate energy",
    "analyze": "show the errors of a spiking network, layer by layer",
    "report": "write a report about a run as one HTML page",
    "doctor": "check whether everything that is needed is here",
    "benchmark": "measure the speed of each engine and of the float network",
    "export": "export a network to ONNX, NIR or int8",
    "import": ("import trained weights of other libraries", "import_weights"),
    "import-boxes": ("make a VOC data set from annotated pictures", "import_boxes"),
    "label": "label pictures with trained detectors",
    "prepare": "download VOC or CIFAR, or check a VOCdevkit",
    "pretrain": "pre-train the backbone of a detector on classified pictures",
    "average": "average several spiking networks",
    "halve": "store weights in half precision",
    "upgrade": "convert an old checkpoint to the current format",
    "reproduce": ("repeat the paper's tables and figures", "spikedet.reproduction.command"),
}
_run_as: list[str] = ["spikedet"]


def module_of(name: str) -> ModuleType:
    """Import the module of a command.

    Raises:
        UsageError: There is no such command.
    """
    if name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS) or "; see spikedet --help"
        raise UsageError(f"no command {shorten(name)!r}{hint}")
    entry = COMMANDS[name]
    file = entry[1] if isinstance(entry, tuple) else name
    return import_module(file if "." in file else HERE + file)


def parsed(name: str, words: Sequence[Any]) -> Any:
    """Parse the options of a command.

    Raises:
        UsageError: An option does not exist, or has an impossible value.
    """
    return _parsed(module_of(name), list(map(str, words)), f"spikedet {name}")


def _parsed(command: Any, words: Sequence[str], prog: str) -> Any:
    from spikedet.commands.parse import parse

    more = getattr(command, "MORE", "")
    return parse(command.Options, words, prog, command.__doc__ or "", more)


def main(name: str | None = None, words: Sequence[str] | None = None) -> None:
    """Run a command, and end the process with its exit code.

    Args:
        name: Name of the command. None: the first of `words`.
        words: Command-line arguments. None: those of this process.

    Raises:
        SystemExit: Always, with the exit code.
    """
    words = list(sys.argv[1:] if words is None else words)
    if name is None:
        if words[:1] in ([], ["-h"], ["--help"]):
            print(overview())
            sys.exit(0 if words else 2)
        if words == ["--version"]:
            print(f"spikedet {__version__}")
            sys.exit(0)
        name = words.pop(0)
    run(lambda: module_of(name), words, f"spikedet {name}")


def overview() -> str:
    """The help of `spikedet`: all commands."""
    width = max(map(len, COMMANDS)) + 2
    lines = ["usage: spikedet COMMAND [OPTIONS]", "", "Object detection and classification with "
             "spiking neural networks.", ""]  # fmt: skip
    for name, entry in COMMANDS.items():
        lines.append(f"  {name:{width}}{entry[0] if isinstance(entry, tuple) else entry}")
    return "\n".join([*lines, "", "Run spikedet COMMAND --help for the options of a command."])


def command_line() -> str:
    """The command line as it was given, for records. Folders are shortened to their names."""
    return " ".join(Path(word).name if word.startswith("/") else word for word in _run_as)


def progress(*args: Any, **options: Any) -> Bar:
    """Make a progress bar on standard error (see `terminal.Bar`)."""
    return Bar(*args, **options)


def keep_freed_memory() -> None:
    """Make glibc keep large freed blocks for the next tensor, which saves page faults.

    Element-wise operations on large tensors run up to three times as fast. Other C libraries are
    not changed.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def _end_in_order() -> None:
    """Make SIGTERM end a command like Ctrl-C: results are written, temporary files deleted.

    Loader processes inherit this. They are ended with SIGTERM too.
    """

    def end(*_: Any) -> None:
        sys.exit(128 + signal.SIGTERM)

    with contextlib.suppress(ValueError):  # in a thread, which no signal reaches
        signal.signal(signal.SIGTERM, end)


def run(command: Any, words: Sequence[str], prog: str) -> None:
    """Parse the options and run a command. Turn expected errors into a message and an exit code.

    Args:
        command: Function that returns the module of the command, or an object like it. It has
            `Options`, `run`, `__doc__`, perhaps `MORE` (further text for `--help-all`), and perhaps
            `SEVERAL` (True if several processes of torchrun share the work; otherwise they are
            refused).
        words: Command-line arguments of the command.
        prog: Name of the program for messages and help.
    """
    keep_freed_memory()
    _end_in_order()
    _run_as[:] = [prog, *words]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO)
    try:
        try:
            code = _call(command(), words, prog)
        finally:
            close_bars()
        sys.stdout.flush()
    except SpikedetError as error:
        first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started
        if first or not isinstance(error, UsageError):  # which all of them have
            print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except (MemoryError, RuntimeError) as error:
        plain = resource_error(error)
        if plain is None:
            raise
        print(f"error: {plain}", file=sys.stderr)
        code = plain.exit_code
    except KeyboardInterrupt:
        print("interrupted; finished results are kept", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # who reads has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except OSError as error:  # an output that cannot be written, a disk that is full
        if error.strerror is None:
            raise
        name = error.filename2 or error.filename
        name = f"{shorten(name, LONGEST)}: " if name else ""
        print(f"error: {name}{error.strerror}", file=sys.stderr)
        code = 1
    sys.exit(code)


def _call(command: Any, words: Sequence[str], prog: str) -> int:
    options = _parsed(command, words, prog)
    if world_size() > 1 and not getattr(command, "SEVERAL", False):
        raise UsageError(
            "this command runs in one process; torchrun is for spikedet train, finetune and "
            "pretrain"
        )
    json = options.json
    if options.quiet:
        logging.getLogger().setLevel(logging.WARNING)
    start = time.monotonic()
    with quietly(options.quiet):
        code = command.run(options) or 0
    if json is not None and not int(os.environ.get("RANK", 0)):
        from spikedet.commands.result import write_json, writes_own

        if writes_own(command.Options):
            return code
        out = getattr(options, "out", None)
        done = {"T": getattr(options, "T", None), "out": None if out is None else str(out)}
        done |= {"command_line": command_line(), "exit_code": code}
        write_json(options, {**done, "seconds": round(time.monotonic() - start, 1)})
    return code
