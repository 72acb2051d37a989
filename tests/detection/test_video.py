"""Cameras, video files and pictures as sources, and writing of videos."""

import threading
from itertools import islice
from unittest.mock import Mock

import cv2
import numpy as np
import pytest

from spikedet.detection.video import VideoFile, every_frame, newest_frames, open_source
from spikedet.errors import PictureError, UsageError


def write(path, count, frame_rate=12.0, shape=(48, 64)):
    with VideoFile(path, frame_rate) as video:
        for value in range(count):
            video.write(np.full((*shape, 3), value * 20, np.uint8))
    return path


class Camera:
    """A capture whose frames 0, 1, 2 ... come when the test lets them; ends after `count`."""

    def __init__(self, count):
        self.count, self.given, self.released = count, 0, False
        self.may_read, self.idle = threading.Semaphore(0), threading.Event()

    def read(self):
        self.idle.set()
        self.may_read.acquire()
        if self.given == self.count:
            return False, None
        self.given += 1
        return True, np.full((2, 2, 3), self.given - 1, np.uint8)

    def give(self, count):
        """Let the reader read `count` more and wait until it asks for the next."""
        for _ in range(count):
            self.idle.clear()
            self.may_read.release()
            assert self.idle.wait(5)

    def release(self):
        self.released = True


@pytest.mark.parametrize("name", ["v.mp4", "new/folder/v.avi"])
@pytest.mark.parametrize("shape", [(48, 64), (49, 65)])
def test_what_is_written_can_be_read(tmp_path, name, shape):
    frames, frame_rate = open_source(str(write(tmp_path / name, 7, shape=shape)))
    values = [frame.mean() for frame in frames]
    assert len(values) == 7 and frame_rate == pytest.approx(12)
    assert np.allclose(values, np.arange(7) * 20, atol=4)


def test_a_video_is_finished_when_its_writer_fails(tmp_path):
    with pytest.raises(KeyboardInterrupt), VideoFile(tmp_path / "v.mp4", 12) as video:
        video.write(np.zeros((48, 64, 3), np.uint8))
        video.write(np.zeros((48, 64, 3), np.uint8))
        raise KeyboardInterrupt
    assert len(list(open_source(str(tmp_path / "v.mp4"))[0])) == 2


def test_a_picture_comes_once_or_for_ever(tmp_path):
    picture = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "p.png"), picture)
    (once,) = open_source(str(tmp_path / "p.png"))[0]
    assert np.array_equal(once, picture)
    assert len(list(islice(open_source(str(tmp_path / "p.png"), repeat=True)[0], 5))) == 5


def test_frames_that_come_during_work_are_skipped():
    camera = Camera(6)
    frames = newest_frames(camera)
    camera.may_read.release()
    assert next(frames).max() == 0
    camera.give(4)  # 1, 2, 3, 4 while the first is worked on
    assert next(frames).max() == 4
    camera.give(1)
    camera.may_read.release()  # the end
    assert [frame.max() for frame in frames] == [5]
    assert camera.released


def test_a_camera_that_is_left_is_released():
    camera = Camera(9)
    frames = newest_frames(camera)
    camera.may_read.release(9)
    next(frames)
    frames.close()
    assert camera.released


def test_a_camera_whose_frame_cannot_be_decoded_ends():
    camera = Camera(9)
    camera.read = Mock(side_effect=[(True, np.zeros((2, 2, 3), np.uint8)), cv2.error("broken")])
    assert len(list(newest_frames(camera))) == 1
    assert camera.released and camera.read.call_count == 2


def test_a_file_gives_every_frame_and_is_released():
    camera = Camera(3)
    camera.may_read.release(4)
    assert [frame.max() for frame in every_frame(camera)] == [0, 1, 2]
    assert camera.released


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("gone.mp4", "no such video or picture"),
        ("gone.png", "no such picture"),
        ("12345678901234567890", "no such video or picture"),
        ("text.mp4", "is not a video that can be read"),
        ("987", "camera 987 cannot be opened"),
        (".", "no such video or picture"),
    ],
)
def test_sources_that_cannot_be_opened(tmp_path, monkeypatch, source, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.mp4").write_text("no video " * 100)
    with pytest.raises(PictureError, match=words):
        open_source(source)


def test_outputs_that_cannot_be_written(tmp_path):
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"v\.mkv: expected a name that ends in \.mp4 or \.avi"):
        write(tmp_path / "v.mkv", 1)
    for name in ("folder.mp4", "file/v.mp4"):
        with pytest.raises(UsageError, match="cannot be written"):
            write(tmp_path / name, 1)
    write(tmp_path / "empty.mp4", 0)
    assert not (tmp_path / "empty.mp4").exists()
