"""`spikedet doctor`: what is here, what is missing, and what to do."""

import io
import json
import re
from types import SimpleNamespace

import pytest

from spikedet.commands import doctor
from spikedet.commands.main import parsed
from spikedet.kernels import library
from spikedet.released import released
from support.classes import add_pictures
from support.commands import command

SPIKING = released("snn", 4, "classification")
pytestmark = pytest.mark.skipif(SPIKING is None, reason="no released weights")


def findings(*words):
    examined = doctor.examine(parsed("doctor", ["--weights", SPIKING, *words]))
    return {finding.name: finding for finding in examined}


def test_all_that_is_needed_is_here(tmp_path, monkeypatch, capsys):
    words = ["--weights", SPIKING, "--json", tmp_path / "d.json"]
    assert command(monkeypatch, "doctor", *words) == 0
    assert "everything that is needed is here" in capsys.readouterr().out
    result = json.loads((tmp_path / "d.json").read_text())
    assert result["command"] == "doctor" and result["ok"]
    states = {one["name"]: one["state"] for one in result["findings"]}
    assert {"Python", "packages", "weights", "engine", "CPU", "display", "camera", "disk"} <= set(
        states
    )
    assert set(states.values()) <= {"ok", "-"}
    for one in result["findings"]:
        assert (
            one["text"]
            and bool(one["advice"]) == (one["state"] != "ok")
            or one["name"] in ("memory",)
        )


def test_missing_weights_end_it_with_1(tmp_path, monkeypatch, capsys):
    assert command(monkeypatch, "doctor", "--weights", tmp_path / "gone.safetensors") == 1
    shown = capsys.readouterr().out
    assert "no such weights" in shown and "-> name weights with --weights" in shown
    assert "needed and missing: weights, engine" in shown


def test_a_missing_package_and_one_of_an_extra(monkeypatch):
    there, gone = doctor._version, ("av", "nir")
    monkeypatch.setattr(doctor, "_version", lambda name: None if name in gone else there(name))
    examined = findings()
    assert examined["packages"].state == "!!" and examined["packages"].advice == "pip install av"
    extra = examined["export to NIR"]
    assert (extra.state, extra.advice) == ("-", "pip install 'spikedet[export]'")


def test_an_engine_without_kernels_says_why_and_what_to_do(monkeypatch):
    def none():
        raise library.NoLibrary(f"no C++ compiler; {library.HINT}")

    monkeypatch.setattr(library, "library", none)
    examined = findings()
    assert examined["kernels"].state == "-" and examined["kernels"].text == "no C++ compiler"
    assert examined["kernels"].advice == library.HINT
    assert "no C++ compiler" in examined["engine"].text or examined["engine"].state == "ok"


def test_kernels_that_the_environment_names(monkeypatch):
    try:
        there = library.kernels()
    except library.NoLibrary:
        pytest.skip("no compiled kernels")
    monkeypatch.setenv("SPIKEDET_KERNELS", there[-1])
    finding = findings()["kernels"]
    assert finding.state == "ok" and ", ".join(there) in finding.text
    assert finding.text.endswith(f"SPIKEDET_KERNELS chooses {there[-1]}") == (len(there) > 1)
    monkeypatch.setenv("SPIKEDET_KERNELS", "sse9")
    finding = findings()["kernels"]
    assert finding.state == "!!" and "'sse9'; this machine has" in finding.text
    assert finding.advice == "unset SPIKEDET_KERNELS"


def test_data(tmp_path):
    add_pictures(tmp_path / "classes", "train", 1, ("a", "b"))
    (tmp_path / "empty").mkdir()
    one = findings("--data", tmp_path / "classes")["data"]
    assert (one.state, one.text.endswith("class folders, for classification")) == ("ok", True)
    for name, said in {"gone": "no such folder", "empty": "unknown format"}.items():
        one = findings("--data", tmp_path / name)["data"]
        assert one.state == "!!" and said in one.text and one.advice


def test_display_and_camera(monkeypatch):
    monkeypatch.setattr(doctor.sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert doctor._display().state == "-"
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    assert doctor._display().state == "ok"
    from spikedet.sources import live

    monkeypatch.setattr(live.cv2, "VideoCapture", lambda device: SimpleNamespace(
        isOpened=lambda: False, release=lambda: None))  # fmt: skip
    finding = doctor._camera(True)
    assert finding.state == "-" and "cannot be opened" in finding.text and finding.advice


def test_little_disk_and_memory_is_said(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=5e7))
    monkeypatch.setattr(doctor, "free_memory", lambda: 3e8)
    assert (doctor._disk().state, doctor._memory().state) == ("-", "-")
    assert "0.3 GB" in doctor._memory().text
    monkeypatch.setattr(doctor, "free_memory", lambda: None)
    assert "not known" in doctor._memory().text


def test_a_broken_installation_is_a_finding(monkeypatch):
    def broken():
        raise ImportError("libfoo.so: cannot open shared object file")

    monkeypatch.setattr(doctor, "_threads", broken)
    finding = findings()["threads"]
    assert finding.state == "!!" and "libfoo.so" in finding.text and finding.advice


def test_lines_fit_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    one = doctor.Finding("packages", "!!", "word " * 60, "do " * 40)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm-256color")
    for no_color, begins in (("", "\x1b[1;31m!!\x1b[0m  packages"), ("1", "\x1b[1m!!\x1b[0m")):
        monkeypatch.setenv("NO_COLOR", no_color)
        stream = Terminal()
        monkeypatch.setattr(doctor.sys, "stdout", stream)
        doctor.show(one, 10)
        shown = stream.getvalue().splitlines()
        assert shown[0].startswith(begins) and "[31m" not in shown[0] * bool(no_color)
        assert len(shown) > 4 and max(len(line) for line in shown[1:]) <= 80
        assert len(re.sub(r"\x1b\[[\d;]*m", "", shown[0])) <= 80
