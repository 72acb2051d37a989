"""Atomic writes."""

import errno
import os

import pytest

from spikedet.errors import DataError, shorten
from spikedet.files import write_atomic, write_csv
from support.commands import run_as_command


def test_write_and_replace(tmp_path):
    path = tmp_path / "new" / "file"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two" and os.listdir(path.parent) == ["file"]


def test_a_failing_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


def test_rows_of_an_earlier_version_with_fewer_columns(tmp_path):
    write_csv(tmp_path / "rows.csv", [{"epoch": 1, "loss": 2.0}, {"epoch": 2, "top1": 0.5}])
    text = (tmp_path / "rows.csv").read_text()
    assert text == "epoch,loss,top1\n1,2.0,\n2,,0.5\n"


def test_a_name_as_long_as_file_systems_take(tmp_path):
    """The temporary file beside it has a shorter one, also where a character has two bytes."""
    for name in ("x" * 246, "x" * 255, "é" * 127):
        write_atomic(tmp_path / name, b"one")
        write_atomic(tmp_path / name, b"two")
        assert (tmp_path / name).read_bytes() == b"two"
    assert len(os.listdir(tmp_path)) == 3


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_names_the_file(tmp_path, monkeypatch, capsys, step):
    path = tmp_path / "rows.json"

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, step, full)
    with pytest.raises(SystemExit) as ended:
        run_as_command(lambda _: write_atomic(path, b"[]"))
    assert ended.value.code == 1
    assert capsys.readouterr().err == f"error: {path}: No space left on device\n"
    assert os.listdir(tmp_path) == []


def test_what_a_file_holds_is_not_echoed_whole():
    assert shorten("x" * 80) == "x" * 80
    assert shorten("a" * 50 + "b" * 50) == "a" * 40 + "..." + "b" * 40 + " (100 characters)"
    message = str(DataError(f"where: {'x' * 10_000_000} is none"))
    assert len(message) < 2100 and message.startswith("where: xx") and "(10,000,0" in message
