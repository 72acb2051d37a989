"""Atomic writes."""

import os

import pytest

from spikedet.files import write_atomic, write_csv


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
