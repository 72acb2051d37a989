"""Commands in the process of the test, and arguments that those which measure refuse."""

import pytest

from spikedet.commands.main import main

BAD = [
    (["--T", "0"], 2, "T is '0'"),
    (["--limit", "0"], 2, "'0' is not a whole number of 1 or more"),
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
