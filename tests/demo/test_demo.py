"""The webcam demo: its parts, and the whole in a process of its own without a display."""

import itertools
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from spikedet.commands import parse
from spikedet.detection.boxes import VOC_CLASSES, Detections
from spikedet.errors import PictureError
from spikedet.outputs.panel import firing_rates, panel
from spikedet.sources import Frame, open_sources
from support.media import write_video
from support.places import ROOT

webcam = import_module("demo.webcam")
needs_weights = pytest.mark.skipif(
    not list((ROOT / "weights").glob("tiny-yolo-s-snn-T8.safetensors")),
    reason="no spiking weights are released yet",
)


RATES = {"first": 0.5, "second": 0.1}


class Eye:
    """Sees one object in every step, and keeps what it was asked."""

    def __init__(self):
        self.asked = []

    def look(self, frame, controls, iou, chunk, frame_rate):
        self.asked.append((controls.T, controls.conf, iou, chunk))
        box, score, label = np.array([[9, 9, 50, 30]], np.float32), np.array([0.5]), np.array([6])
        T = controls.T
        for t in range(1, T + 1):
            detections = Detections(
                box, score, label, VOC_CLASSES, t, frame.picture, spike_rate=t / 100
            )
            beside = detections if controls.beside else None
            yield webcam.Shown(frame, detections, beside, T, RATES, frame_rate, (t / 4, 2.0))


def frames(count, shape=(48, 200)):
    grey = np.full((*shape, 3), 90, np.uint8)
    return [Frame(grey, "v", n, n / 10, True, count) for n in range(count)]


def test_keys():
    controls = webcam.Controls(T=2)
    for keys, T in (("+=", 4), ("-_", 2), ("---", 1), ("x", 1)):
        for key in keys:
            controls.press(ord(key))
        assert T == controls.T
    controls.press(-1)
    assert controls == webcam.Controls(T=1)
    controls.press(ord(" "))
    assert controls.paused
    controls.press(ord(" ") | 0x100000)  # some systems add the state of Num Lock
    assert not controls.paused
    for keys, conf in (("]]", 0.35), ("[" * 30, 0.05), ("]" * 30, 0.95)):
        for key in keys:
            controls.press(ord(key))
        assert controls.conf == conf
    controls.press(ord("f"))
    assert controls.beside
    for key in (ord("q"), 27):
        controls = webcam.Controls(T=1)
        controls.press(key)
        assert controls.ended


def test_frame_rate_is_that_of_the_last_ten_frames():
    rate = webcam.FrameRate()
    assert rate.tick(5.0) == 0
    assert rate.tick(5.5) == pytest.approx(2)
    for number in range(1, 12):
        told = rate.tick(5.5 + number / 4)
    assert told == pytest.approx(4)


def shown(t=1, T=5, frame_rate=5.0, beside=False):
    controls = webcam.Controls(T, beside=beside)
    steps = list(Eye().look(frames(1)[0], controls, 0.6, None, frame_rate))
    return steps[t - 1]


def test_the_panel_shows_objects_rates_and_numbers():
    base = webcam.annotate(shown(), 0.25)
    assert np.array_equal(base, webcam.annotate(shown(), 0.25))
    others = [shown(2), shown(T=6), shown(frame_rate=6.0), shown()]
    for other, conf in zip(others, [0.25, 0.25, 0.25, 0.3], strict=True):
        changed = webcam.annotate(other, conf)
        assert changed.shape == base.shape and (changed != base).any()
    both = webcam.annotate(shown(beside=True), 0.25)
    assert both.shape != base.shape or (both != base).any()
    assert base.shape[1] >= 480 and (shown().frame.picture == 90).all()


def test_bars_are_as_high_as_the_rates():
    strip = firing_rates({"a": 0.0, "b": 0.5, "c": 1.0, "d": 7.0}, 200)[-64:]
    high = [(strip[:, x] == (60, 190, 250)).all(1).sum() for x in (25, 75, 125, 175)]
    assert high == [1, 33, 64, 64]


@pytest.mark.parametrize("shape", [(1, 1), (48, 64), (3000, 4000), (2000, 30), (30, 2000)])
def test_a_panel_can_be_read_at_any_size_of_pictures(shape):
    picture = np.full((*shape, 3), 90, np.uint8)
    for titles in (["a"], ["a", "b"]):
        drawn = panel(dict.fromkeys(titles, picture), RATES, ["one", "two " * 99])
        assert 480 <= drawn.shape[1] <= 1600 and 100 < drawn.shape[0] < 1000


def test_every_step_is_shown_and_the_keys_change_the_next_frame():
    eye, controls, seen = Eye(), webcam.Controls(T=3), []

    def show(one):
        seen.append(one)
        if len(seen) == 2:
            controls.press(ord("+"))
            controls.press(ord("]"))

    assert webcam.play(eye, frames(2), controls, True, show, iou=0.5) == 2
    assert eye.asked == [(3, 0.25, 0.5, webcam.CHUNK), (4, 0.3, 0.5, webcam.CHUNK)]
    assert [one.detections.T for one in seen] == [1, 2, 3, 1, 2, 3, 4]


def test_only_the_last_step():
    seen = []
    assert webcam.play(Eye(), frames(2), webcam.Controls(T=3), False, seen.append) == 2
    assert [one.detections.T for one in seen] == [3, 3]


def test_the_end_key_ends_within_a_frame():
    controls, seen = webcam.Controls(T=3), []

    def show(one):
        seen.append(one)
        controls.press(ord("q"))

    assert webcam.play(Eye(), frames(2), controls, True, show) == 1
    assert len(seen) == 1


def test_times_of_the_video():
    one, two = frames(2)
    clock = webcam.Clock(each_step=True)
    assert [clock.at(f)[0] for f in (one, one, two, two)] == pytest.approx([0, 0.04, 0.08, 0.18])
    assert webcam.Clock(each_step=False).at(two) == (0.1, None)


def test_times_of_a_source_behind_another():
    one, two = frames(2)
    third, fourth = (replace(frame, source="other.mp4") for frame in (one, two))
    clock = webcam.Clock(each_step=False)
    times = [clock.at(frame)[0] for frame in (one, two, third, fourth)]
    assert times == pytest.approx([0, 0.1, 0.2, 0.3])
    clock = webcam.Clock(each_step=True)
    times = [clock.at(frame)[0] for frame in (one, third, third, fourth)]
    assert times == pytest.approx([0, 0.04, 0.08, 0.12])


def test_a_picture_comes_again_and_again():
    still = Frame(np.zeros((2, 2, 3), np.uint8), "p.png")
    came = list(itertools.islice(webcam.again_and_again([still]), 4))
    assert [frame.index for frame in came] == [0, 1, 2, 3] and came[3].time > came[2].time
    assert len(list(webcam.again_and_again(frames(3)))) == 3


def test_no_password_is_shown(monkeypatch, tmp_path):
    eye = Eye()
    eye.detector = SimpleNamespace(T=2)
    monkeypatch.setattr(webcam, "eye_of", lambda _: eye)
    monkeypatch.setattr(webcam, "open_sources", lambda *_, **__: [])
    words = ["--source", "rtsp://me:se/cret@cam/live", "--out", str(tmp_path / "v.mp4")]
    options = parse.parse(webcam.Options, words, "webcam")
    with pytest.raises(PictureError, match=r"rtsp://me:\*\*\*@cam/live: holds no frame"):
        webcam.run(options)


def test_a_window_pauses_until_space_and_ends_when_closed(monkeypatch):
    keys, visible = iter([ord(" "), -1, ord("+"), ord(" ")]), iter([1, 1, 1, 1, 0])
    monkeypatch.setattr(cv2, "imshow", lambda *_: None)
    monkeypatch.setattr(cv2, "waitKey", lambda _: next(keys, -1))
    monkeypatch.setattr(cv2, "getWindowProperty", lambda *_: next(visible))
    controls = webcam.Controls(T=5)
    webcam.show_in_window(None, controls)
    assert controls == webcam.Controls(T=6)
    webcam.show_in_window(None, controls)
    assert controls.ended


def command(*arguments):
    return [sys.executable, ROOT / "demo/webcam.py", *map(str, arguments)]


def environment(**added):
    kept = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}
    return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **added}


def run(*arguments, cwd, **added):
    return subprocess.run(
        command(*arguments),
        capture_output=True, text=True, cwd=cwd, timeout=300, env=environment(**added),
    )  # fmt: skip


@pytest.fixture
def source(tmp_path):
    write_video(tmp_path / "in.mp4", [0, 0.1, 0.5], 0.6)
    return "in.mp4"


def read(path):
    return list(open_sources([str(path)]))


# a DISPLAY that does not answer must not abort the process either
@needs_weights
@pytest.mark.parametrize("display", [{}, {"DISPLAY": ":987"}])
def test_without_a_display_a_video_of_every_step_is_written(source, tmp_path, display):
    done = run("--source", source, "--T", 8, cwd=tmp_path, **display)
    assert done.returncode == 0 and done.stderr.startswith("engine "), done.stderr
    first, last = done.stdout.splitlines()
    assert first == "no display: writing detections/webcam.mp4; Ctrl-C ends it"
    assert last == "3 frames, T=8; video in detections/webcam.mp4"
    written = read(tmp_path / "detections/webcam.mp4")
    assert len(written) == 3 * 8 and written[0].picture.shape[1] == 480
    assert written[-1].length == pytest.approx(8 * 0.6, abs=0.01)


@needs_weights
def test_last_steps_of_some_frames(source, tmp_path):
    options = ["--T", 8, "--no-each-step", "--frames", 2, "--side-by-side", "--out", "out.mkv"]
    done = run("--source", source, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [frame.time for frame in read(tmp_path / "out.mkv")] == pytest.approx([0, 0.1])


@needs_weights
def test_an_interrupted_video_is_complete(tmp_path):
    write_video(tmp_path / "long.mp4", np.arange(2000) / 12, 2000 / 12)
    process = subprocess.Popen(
        command("--source", "long.mp4", "--T", 8, "--out", "out.mp4"),
        cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        process.stdout.readline()
        until = time.monotonic() + 120
        out, written = tmp_path / "out.mp4", 1 << 16  # more than a header: frames have come
        while time.monotonic() < until and not (out.exists() and out.stat().st_size > written):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in errors, errors
    assert 0 < len(read(tmp_path / "out.mp4")) < 2000 * 8


@needs_weights
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--source", "987"], 3, "camera 987 cannot be opened"),
        (["--source", "text.mp4"], 3, "text.mp4: is not a video"),
        (["--source", "in.mp4", "--out", "in.mp4"], 2, "in.mp4 exists already; choose another"),
        (["--source", "gone.mp4"], 3, "gone.mp4: no such file"),
        (["--source", "in.mp4", "--out", "out.avi"], 2, "ends in .mp4 or .mkv"),
        (["--source", "in.mp4", "--out", "text.mp4/out.mp4"], 2, "is not a folder that can be"),
        (["--source", "in.mp4", "--weights", "FLOAT"], 2, "expected spiking weights"),
        (["--source", "in.mp4", "--T", "0"], 2, "T is '0'"),
    ],
)
def test_errors_are_one_sentence(source, tmp_path, arguments, code, words):
    (tmp_path / "text.mp4").write_text("no video")
    before = (tmp_path / source).read_bytes()
    float_weights = str(next((ROOT / "weights").glob("tiny-yolo-s-float.safetensors")))
    arguments = [float_weights if word == "FLOAT" else word for word in arguments]
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == code and words in done.stderr, done.stderr
    assert sum("error: " in line for line in done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert (tmp_path / source).read_bytes() == before
