"""The webcam demo: its parts, and the whole in a process of its own without a display."""

import itertools
import os
import signal
import subprocess
import sys
import time
from importlib import import_module

import cv2
import numpy as np
import pytest

from spikedet.detection.boxes import VOC_CLASSES, Detections
from spikedet.detection.video import VideoFile, open_source
from support.places import ROOT

webcam = import_module("demo.webcam")
needs_weights = pytest.mark.skipif(
    not list((ROOT / "weights").glob("tiny-yolo-s-snn-T8.safetensors")),
    reason="no spiking weights are released yet",
)


class Detector:
    """Finds one object in every step, and keeps what it was asked."""

    def __init__(self):
        self.asked = []

    def steps(self, picture, T, **options):
        self.asked.append((T, options))
        box, score, label = np.array([[9, 9, 50, 30]], np.float32), np.array([0.5]), np.array([6])
        for t in range(1, T + 1):
            yield Detections(box, score, label, VOC_CLASSES, t, picture, spike_rate=t / 100)


def frames(count, shape=(48, 200)):
    return itertools.repeat(np.full((*shape, 3), 90, np.uint8), count)


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


def test_annotated_picture_shows_objects_and_numbers():
    (found,) = Detector().steps(next(frames(1)), 1)
    pictures = [webcam.annotate(found, T, rate) for T, rate in ((1, 5), (9, 5), (1, 6))]
    assert all(p.shape == (48, 200, 3) for p in pictures)
    assert (pictures[0][9, 9:50] != 90).any() and (found.picture == 90).all()
    assert np.array_equal(pictures[0], webcam.annotate(found, 1, 5))
    assert (pictures[0] != pictures[1]).any() and (pictures[0] != pictures[2]).any()


def test_every_step_is_shown_and_T_changes_with_the_next_frame():
    detector, controls, shown = Detector(), webcam.Controls(T=3), []

    def show(picture):
        shown.append(picture)
        if len(shown) == 2:
            controls.press(ord("+"))

    assert webcam.play(detector, frames(2), controls, True, show, conf=0.3) == 2
    assert detector.asked == [(3, {"conf": 0.3}), (4, {"conf": 0.3})]
    assert len(shown) == 3 + 4


def test_only_the_last_step():
    shown = []
    assert webcam.play(Detector(), frames(2), webcam.Controls(T=3), False, shown.append) == 2
    assert len(shown) == 2


def test_the_end_key_ends_within_a_frame():
    controls, shown = webcam.Controls(T=3), []

    def show(picture):
        shown.append(picture)
        controls.press(ord("q"))

    assert webcam.play(Detector(), frames(2), controls, True, show) == 1
    assert len(shown) == 1


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
    return {**kept, "PYTHONPATH": "", "OMP_NUM_THREADS": "1", **added}


def run(*arguments, cwd, **added):
    return subprocess.run(
        command(*arguments),
        capture_output=True, text=True, cwd=cwd, timeout=300, env=environment(**added),
    )  # fmt: skip


@pytest.fixture
def source(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (3, 48, 64, 3), np.uint8)
    with VideoFile(tmp_path / "in.mp4", 12.0) as video:
        for picture in noise:
            video.write(picture)
    return "in.mp4"


def read(path):
    pictures, frame_rate = open_source(str(path))
    assert frame_rate == pytest.approx(12)
    return list(pictures)


# a DISPLAY that does not answer must not abort the process either
@needs_weights
@pytest.mark.parametrize("display", [{}, {"DISPLAY": ":987"}])
def test_without_a_display_a_video_of_every_step_is_written(source, tmp_path, display):
    done = run("--source", source, "--T", 8, cwd=tmp_path, **display)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    first, last = done.stdout.splitlines()
    assert first == "no display: writing detections/webcam.mp4; Ctrl-C ends it"
    assert last == "3 frames, T=8; video in detections/webcam.mp4"
    pictures = read(tmp_path / "detections/webcam.mp4")
    assert len(pictures) == 3 * 8 and pictures[0].shape == (48, 64, 3)


@needs_weights
def test_last_steps_of_some_frames(source, tmp_path):
    options = ["--T", 8, "--no-each-step", "--frames", 2, "--out", "out.avi"]
    done = run("--source", source, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(read(tmp_path / "out.avi")) == 2


@needs_weights
def test_an_interrupted_video_is_complete(tmp_path):
    with VideoFile(tmp_path / "long.mp4", 12.0) as video:
        for _ in range(3000):
            video.write(np.zeros((48, 64, 3), np.uint8))
    process = subprocess.Popen(
        command("--source", "long.mp4", "--T", 8, "--out", "out.avi"),
        cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        process.stdout.readline()
        until = time.monotonic() + 120
        out, written = tmp_path / "out.avi", 1 << 16  # more than a header: frames have come
        while time.monotonic() < until and not (out.exists() and out.stat().st_size > written):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in errors, errors
    assert 0 < len(read(tmp_path / "out.avi")) < 3000 * 8


@needs_weights
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--source", "987"], 3, "camera 987 cannot be opened"),
        (["--source", "text.mp4"], 3, "text.mp4: is not a video"),
        (["--source", "in.mp4", "--out", "in.mp4"], 6, "in.mp4 is there already; choose another"),
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
