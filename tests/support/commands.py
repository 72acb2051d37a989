"""Commands in the process of the test, and arguments that those which measure refuse."""

from types import SimpleNamespace

import pytest

from spikedet.commands import parse
from spikedet.commands.main import main, run

BAD = [
    (["--T", "0"], 2, "T is '0'"),
    (["--limit", "0"], 2, "'0' is not an integer of 1 or more"),
    (["--weights", "gone.safetensors"], 4, "gone.safetensors: no such weights"),
    (["--weights", "FLOAT"], 4, "these are float weights; expected snn weights"),
    (["--split", "VOC2007:test"], 3, "no such split; VOC2007 has val"),
    (["--data", "nowhere"], 3, "no such folder"),
]


def command(monkeypatch, name, *words):
    """Exit code of a command run in this process."""
    with pytest.raises(SystemExit) as stopped:
        main(name, list(map(str, words)))
    return stopped.value.code


def run_as_command(function, several=False):
    """Run a function as a command without options; the process ends as with any."""
    command = SimpleNamespace(Options=parse.Options, run=function, SEVERAL=several)
    run(lambda: command, [], "test")
