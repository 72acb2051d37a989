"""Commands in the process of the test, and arguments that those which measure refuse."""

import sys
from importlib import import_module

import pytest

from spikedet import cli

BAD = [
    (["--T", "0"], 2, "T is '0'"),
    (["--limit", "0"], 2, "'0' is not a whole number of 1 or more"),
    (["--weights", "gone.safetensors"], 4, "gone.safetensors: no such weights"),
    (["--weights", "FLOAT"], 4, "these are float weights; expected snn weights"),
    (["--split", "VOC2007:test"], 3, "no such split; VOC2007 has val"),
    (["--data", "nowhere"], 3, "no such folder"),
]


def command(monkeypatch, tool, *words):
    """Exit code of a command run in this process."""
    module = import_module(f"tools.{tool}")
    monkeypatch.setattr(sys, "argv", [f"{tool}.py", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        cli.run(module.main, module.arguments())
    return stopped.value.code
