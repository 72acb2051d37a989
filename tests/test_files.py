"""Atomic writes."""

import errno
import os

import pytest

from spikedet.data.formats.yolo import _read_yaml
from spikedet.errors import DataError, UsageError, shorten
from spikedet.files import expect_writable, read_lines, read_yaml, write_atomic, write_csv
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


def aliases(depth, form="[{}]"):
    """YAML of few bytes, in which each value has ten aliases of the one before."""
    lines = ["a0: &a0 {x: 1}"]
    for n in range(1, depth):
        lines.append(f"a{n}: &a{n} " + form.format(", ".join([f"*a{n - 1}"] * 10)))
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text", [aliases(10), aliases(10, "{{<<: [{}]}}"), "a: &a [*a]", "a: &a {b: *a}"]
)
def test_yaml_that_stands_for_endless_values_is_refused(tmp_path, text):
    path = tmp_path / "data.yaml"
    path.write_text(f"{text}\nnames: [c]\ntrain: [x]\n")
    for read, error in ((read_yaml, UsageError), (_read_yaml, DataError)):
        with pytest.raises(error, match="more than 1,000,000 values, counted with aliases"):
            read(path)


def test_yaml_with_some_aliases_is_read(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("a: &a [1, x]\nb: [*a, *a]\nc: {<<: {d: *a}}\n")
    assert read_yaml(path) == {"a": [1, "x"], "b": [[1, "x"]] * 2, "c": {"d": [1, "x"]}}
    path.write_text("names: {0: no, 1: 007}\n")
    assert _read_yaml(path) == {"names": {"0": "no", "1": "007"}}


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "names").write_bytes(b"\xef\xbb\xbfcat\r\ndog\r\n")
    assert read_lines(tmp_path / "names") == ["cat", "dog"]


def test_links_and_permissions_stay(tmp_path):
    file, link = tmp_path / "a" / "file", tmp_path / "link"
    file.parent.mkdir()
    link.symlink_to("a/file")
    write_atomic(link, b"new")  # also where it leads to no file yet
    file.chmod(0o640)
    write_atomic(expect_writable(link), b"newer")
    assert link.is_symlink() and file.read_bytes() == b"newer"
    assert file.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("write", [expect_writable, lambda path: write_atomic(path, b"x")])
def test_what_is_no_file_is_left_alone(tmp_path, write):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        with pytest.raises(UsageError, match=f"{name}: is a pipe or a device; expected a file"):
            write(tmp_path / name)
    with pytest.raises(UsageError, match="is a folder; expected"):
        write(tmp_path)
    assert (tmp_path / "pipe").is_fifo() and len(os.listdir(tmp_path)) == 2
