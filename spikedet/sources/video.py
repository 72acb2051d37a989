"""Videos, decoded with PyAV. Every frame has its own time."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from spikedet.errors import PictureError
from spikedet.pictures import MOST_PIXELS
from spikedet.sources.completeness import is_complete, lacks_index
from spikedet.sources.frame import File, Frame, Problems

FRAME_RATE = 25.0  # where nobody says
# Formats whose header says how long the video is, and whose parts do not.
TELLS_LENGTH = {"flv", "asf"}


@dataclass(frozen=True)
class Video(File):
    """A video file.

    Attributes:
        path: The file.
    """

    def frames(self, problems: Problems) -> Generator[Frame, None, None]:
        """Its frames in turn; damaged ones are left out and counted.

        Raises:
            PictureError: It cannot be opened, or is cut short: then behind its last frame.
        """
        expect_file(self.path)
        yielded, total, last = 0, None, None
        with open_video(self.path, self.name) as container:
            # sound may last longer than the pictures
            tells = container.format.name in TELLS_LENGTH and len(container.streams) == 1
            seconds = seconds_of(container) if tells else None
            for frame in decode_frames(container, self.name, problems, self.path):
                yielded, total, last = yielded + 1, frame.total, frame
                yield frame
        if last is not None:
            expect_length(last, seconds)
        if yielded and is_complete(self.path) is False:
            of = f" of {total}" if total and total > yielded else ""
            raise PictureError(f"{self.path}: is cut short; {yielded}{of} frames can be read")
        if not yielded:
            raise PictureError(f"{self.path}: holds no frame that can be read")


def expect_length(last: Frame, seconds: float | None) -> None:
    """Refuse a video that ends before its length.

    Args:
        last: Its last frame.
        seconds: How long it says that it is; None where it does not.

    Raises:
        PictureError: It ends more than half a second, and more than two frames, before that.
    """
    usual = last.time / last.index if last.index else 0.0
    end = last.time + max(last.duration or 0.0, usual)
    if seconds and end < seconds - max(0.5, 2 * usual):
        raise PictureError(f"{last.source}: ends after {end:.1f} of {seconds:.1f} seconds")


def expect_file(path: Path) -> None:
    """Refuse what is not a file: a pipe would wait for somebody to write into it.

    Raises:
        PictureError: Missing, empty, a folder, a pipe or a device.
    """
    if not path.exists():
        raise PictureError(f"{path}: no such video or picture")
    if not path.is_file():
        raise PictureError(f"{path}: is not a file; expected a video or a picture")
    if not path.stat().st_size:
        raise PictureError(f"{path}: is empty")


@contextmanager
def open_video(path: Path, name: str) -> Iterator[av.container.InputContainer]:
    """A video file. It cannot make FFmpeg open another file or an address.

    Raises:
        PictureError: It cannot be opened.
    """
    try:
        # a playlist names others, and a name like `http:x` would be an address
        options = {"protocol_whitelist": "none"}
        with (
            path.open("rb") as file,
            av.open(file, options=options, metadata_errors="replace") as container,
        ):
            yield container
    except (av.FFmpegError, OSError, ValueError) as error:
        problem = "its end, where its index is, is missing" if lacks_index(path) else reason(error)
        raise PictureError(f"{name}: is not a video that can be read ({problem})") from None


def reason(error: Exception) -> str:
    """What an error of FFmpeg says, without its function and arguments."""
    return str(getattr(error, "strerror", None) or error).lower()


def stream_of(container: av.container.InputContainer, name: str) -> av.video.stream.VideoStream:
    """The pictures of a container, no cover of an album.

    Raises:
        PictureError: There are none, or they are larger than 120 megapixels.
    """
    streams = [s for s in container.streams.video if s.codec_context is not None]
    cover = av.stream.Disposition.attached_pic
    streams = [s for s in streams if not s.disposition & cover] or streams
    if not streams:
        raise PictureError(f"{name}: holds no pictures")
    context = streams[0].codec_context
    if context.width * context.height > MOST_PIXELS:
        raise PictureError(
            f"{name}: frames of {context.width} x {context.height} pixels are too large; expected "
            f"at most {MOST_PIXELS // 1_000_000} million pixels"
        )
    context.options = {"max_pixels": str(MOST_PIXELS)}  # of frames that are larger than it says
    return streams[0]


def seconds_of(container: av.container.InputContainer) -> float | None:
    """How long a container says that it is, in seconds."""
    return container.duration / av.time_base if container.duration else None


def decode_frames(
    container: av.container.InputContainer,
    name: str,
    problems: Problems,
    file: Path | None = None,
) -> Iterator[Frame]:
    """Frames of a container, each with its own time; damaged ones are left out and counted.

    Args:
        container: Opened for reading.
        name: Of the source.
        problems: Takes what is met.
        file: Path of a file.

    Raises:
        PictureError: It holds no pictures, or too large ones.
    """
    stream = stream_of(container, name)
    total, length = stream.frames or None, seconds_of(container)
    clock, damage, yielded = Clock(stream), Damage(), 0
    for raw in raw_frames(container, stream, damage):
        try:
            if raw.is_corrupt:
                raise ValueError
            picture = upright(raw)
        except (ValueError, av.FFmpegError):
            damage.frames += 1
            continue
        seconds = float(raw.duration * (raw.time_base or 0)) if raw.duration else None
        yield Frame(picture, name, yielded, clock.at(raw), True, total, seconds, length, file)
        yielded += 1
    bad, stopped = damage.frames, damage.stopped
    if bad and (yielded or file is None):
        counted = "1 frame is damaged and was" if bad == 1 else f"{bad} frames are damaged and were"
        problems.add(PictureError(f"{name}: {counted} left out"), bad)
    elif damage.packets and yielded:
        where = "one place" if damage.packets == 1 else f"{damage.packets} places"
        problems.add(PictureError(f"{name}: is damaged in {where}; frames may be missing there"))
    if stopped is not None:
        problems.add(PictureError(f"{name}: ends after {yielded} frames ({reason(stopped)})"))


@dataclass
class Damage:
    """What is wrong with a video.

    Attributes:
        frames: How many cannot be decoded.
        packets: How many the file itself says are damaged.
        stopped: Why there are no more, where it broke off.
    """

    frames: int = 0
    packets: int = 0
    stopped: Exception | None = None


def raw_frames(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream, damage: Damage
) -> Iterator[av.VideoFrame]:
    """Frames of a container as FFmpeg gives them; what goes wrong is noted in `damage`."""
    packets = container.demux(stream)
    flushed = False
    while not flushed:
        try:
            packet = next(packets, None)
            flushed = packet is None or not packet.size
        except (av.FFmpegError, OSError) as error:
            packet, damage.stopped, flushed = None, error, True
        damage.packets += packet is not None and packet.is_corrupt
        try:
            # an empty packet, which is the last one, fetches the frames that still wait
            frames = packet.decode() if packet else stream.codec_context.decode(None)
        except av.error.EOFError:
            return
        except (av.FFmpegError, OSError):
            damage.frames += 1
            continue
        yield from frames


class Clock:
    """Times of a video's frames from its first one on, which never go back."""

    def __init__(self, stream: av.video.stream.VideoStream):
        self._usual = 1 / float(stream.average_rate) if stream.average_rate else 1 / FRAME_RATE
        self._begin: float | None = None
        self._last: float | None = None

    def at(self, raw: av.VideoFrame) -> float:
        """Of the next frame, in seconds."""
        last = self._last
        timestamp = None if raw.pts is None else float(raw.pts * (raw.time_base or 0))
        if timestamp is None:
            timestamp = 0.0 if last is None else last + self._usual
        begin = timestamp if self._begin is None else self._begin
        if last is not None and timestamp <= last:  # times that begin anew, or stand still
            begin += timestamp - last - self._usual
        self._begin, self._last = begin, timestamp
        return max(0.0, timestamp - begin)


def upright(raw: av.VideoFrame) -> np.ndarray:
    """[H, W, 3] uint8 BGR of a frame, turned as a viewer turns it."""
    picture = raw.to_ndarray(format="bgr24")
    turns = round(raw.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(picture, turns)) if turns else picture
