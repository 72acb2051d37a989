"""The JSON output of all commands (see docs/json.md)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spikedet.commands.parse import Options

Result = Mapping[str, Any]


def head(command: str, T: Any = None) -> dict[str, Any]:
    """The fields that every result has: `spikedet` (its version), `command` and `T`."""
    from spikedet import __version__

    return {"spikedet": __version__, "command": command, "T": T}


def write_json(options: Options, results: Result | Sequence[Result]) -> None:
    """Write the results of a command to `--json`, as one object or a list of objects.

    The fields of `head` are put first. If a result has its own T, that one is kept.

    Args:
        options: Options of the command. `json` is the file. None: write nothing.
        results: Results with the fields of the command.
    """
    from spikedet.files import write_atomic

    path: Path | None = options.json
    if path is None:
        return
    entries: Any
    if isinstance(results, Mapping):
        entries = headed(options.command, results)
    else:
        entries = [headed(options.command, one) for one in results]
    text = json.dumps(entries, indent=2, default=str)
    write_atomic(path, (text + "\n").encode())


def writes_own(options: type) -> bool:
    """Whether the command with these options writes `--json` itself."""
    return "json" in vars(options).get("__annotations__", {})


def headed(command: str, result: Result) -> dict[str, Any]:
    """Put the common fields before those of a result."""
    return {**head(command), **result}
