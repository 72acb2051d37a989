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

FRAME_RATE = 25.0  # frames per second, if the source does not tell
# Formats that store the length of the video in the header, but not in their parts.
TELLS_LENGTH = {"flv", "asf"}


@dataclass(frozen=True)
class Video(File):
    """A video file.

    Attributes:
        path: The file.
    """

    def frames(self, problems: Problems) -> Generator[Frame, None, None]:
        """Yield the frames. Damaged frames are left out and counted.

        Raises:
            PictureError: The file cannot be opened, or it is cut short (raised after its last
                frame).
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
    """Check that a video does not end before its length.

    Args:
        last: Last frame of the video.
        seconds: Length that the file states, in seconds. None if it states no length.

    Raises:
        PictureError: The video ends more than half a second and more than two frames too early.
    """
    usual = last.time / last.index if last.index else 0.0
    end = last.time + max(last.duration or 0.0, usual)
    if seconds and end < seconds - max(0.5, 2 * usual):
        raise PictureError(f"{last.source}: ends after {end:.1f} of {seconds:.1f} seconds")


def expect_file(path: Path) -> None:
    """Check that a path is a file with content. Reading a pipe would block.

    Raises:
        PictureError: The path is missing or empty, or it is a folder, a pipe or a device.
    """
    if not path.exists():
        raise PictureError(f"{path}: no such video or picture")
    if not path.is_file():
        raise PictureError(f"{path}: is not a file; expected a video or a picture")
    if not path.stat().st_size:
        raise PictureError(f"{path}: is empty")


@contextmanager
def open_video(path: Path, name: str) -> Iterator[av.container.InputContainer]:
    """Open a video file with FFmpeg, which may not open other files or addresses.

    Raises:
        PictureError: The file cannot be opened.
    """
    try:
        # playlists name other files, and a name like `http:x` would be an address
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
    """The message of an FFmpeg error, without function name and arguments."""
    return str(getattr(error, "strerror", None) or error).lower()


def stream_of(container: av.container.InputContainer, name: str) -> av.video.stream.VideoStream:
    """Find the video stream of a container. Album covers are only taken if nothing else exists.

    Raises:
        PictureError: There is no video stream, or its frames have more than 120 megapixels.
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
    context.options = {"max_pixels": str(MOST_PIXELS)}  # for frames larger than the header says
    return streams[0]


def seconds_of(container: av.container.InputContainer) -> float | None:
    """The length that a container states, in seconds. None if it states no length."""
    return container.duration / av.time_base if container.duration else None


def decode_frames(
    container: av.container.InputContainer,
    name: str,
    problems: Problems,
    file: Path | None = None,
) -> Iterator[Frame]:
    """Yield the frames of a container with their times. Damaged frames are left out and counted.

    Args:
        container: A container that is open for reading.
        name: Name of the source.
        problems: Receives the errors of single frames.
        file: Path of the file. None if the container is not a file.

    Raises:
        PictureError: The container has no video stream, or its frames are too large.
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
    """The damage of a video.

    Attributes:
        frames: Number of frames that cannot be decoded.
        packets: Number of packets that the file marks as damaged.
        stopped: The error that ended the video early, or None.
    """

    frames: int = 0
    packets: int = 0
    stopped: Exception | None = None


def raw_frames(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream, damage: Damage
) -> Iterator[av.VideoFrame]:
    """Yield the frames of a container as FFmpeg decodes them. Errors are recorded in `damage`."""
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
    """Computes the times of frames from the first frame on. Times never decrease."""

    def __init__(self, stream: av.video.stream.VideoStream):
        self._usual = 1 / float(stream.average_rate) if stream.average_rate else 1 / FRAME_RATE
        self._begin: float | None = None
        self._last: float | None = None

    def at(self, raw: av.VideoFrame) -> float:
        """The time of the next frame in seconds."""
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
    """Convert a frame to [H, W, 3] uint8 BGR, rotated as a viewer rotates it."""
    picture = raw.to_ndarray(format="bgr24")
    turns = round(raw.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(picture, turns)) if turns else picture
