"""Cameras and addresses. Frames that arrive during the processing of a frame are skipped."""

from __future__ import annotations

import base64
import http.client
import re
import stat
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import av
import cv2
import numpy as np

from spikedet.errors import PictureError
from spikedet.pictures import read_parts
from spikedet.sources.frame import Frame, Problems
from spikedet.sources.video import decode_frames, expect_length, reason, seconds_of, stream_of

Item = TypeVar("Item")
Picture = tuple[np.ndarray, float]  # and when it came, in seconds of a clock
ADDRESS = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]+)://")
SCHEMES = ("http", "https", "rtsp", "rtsps", "rtmp", "rtmps", "rtp", "udp", "tcp", "srt")
# What MP4 files say that they are which are pictures: AVIF and HEIC.
PICTURE_BRANDS = {"avif", "avis", "mif1", "msf1", "heic", "heix", "heim", "heis", "hevc", "hevx"}
LARGEST = 256 << 20  # bytes of a picture
TIMEOUT = 10.0  # seconds without an answer
WAITS = (1.0, 2.0, 4.0, 8.0, 8.0)  # seconds before each try to connect again
# What a stream may make FFmpeg open: no file of this machine.
PROTOCOLS = ",".join([*SCHEMES, "tls", "crypto", "data", "httpproxy", "hls"])


@dataclass(frozen=True)
class Camera:
    """A camera of this machine.

    Attributes:
        device: Its number, or the path of its device.
    """

    device: int | str

    @property
    def name(self) -> str:
        return f"camera {self.device}" if isinstance(self.device, int) else self.device

    @property
    def files(self) -> list[Path]:
        return []

    def frames(self, problems: Problems) -> Generator[Frame, None, None]:
        """The newest frame each time, until the camera ends.

        Raises:
            PictureError: It cannot be opened, or stops.
        """
        log = cv2.utils.logging
        before = log.setLogLevel(log.LOG_LEVEL_SILENT)  # it has several lines, ours is one
        try:
            capture = cv2.VideoCapture(self.device)
        finally:
            log.setLogLevel(before)
        if not capture.isOpened():
            capture.release()
            raise PictureError(
                f"{self.name} cannot be opened; expected the number of a camera that is connected "
                "and not in use, or a file"
            )
        yield from frames_with_times(latest(read_camera(capture)), self.name)
        raise PictureError(f"{self.name} gives no more pictures")


def read_camera(capture: cv2.VideoCapture) -> Generator[Picture, None, None]:
    """Pictures of a camera and when they came, in seconds of a clock; releases it at the end."""
    try:
        while True:
            try:
                good, picture = capture.read()
            except cv2.error:  # of a frame that cannot be decoded
                return
            if not good:
                return
            yield picture, time.monotonic()
    finally:
        capture.release()


def frames_with_times(pictures: Iterator[Picture], name: str) -> Iterator[Frame]:
    """Frames of pictures and when they came, in seconds of a clock."""
    start = None
    for index, (picture, now) in enumerate(pictures):
        start = now if start is None else start
        yield Frame(picture, name, index, now - start, True, None)


def is_camera(path: Path) -> bool:
    """Whether a path is that of a camera's device, `/dev/video0`."""
    try:
        return stat.S_ISCHR(path.stat().st_mode) and path.resolve().name.startswith("video")
    except OSError:
        return False


def latest(items: Generator[Item, None, None]) -> Iterator[Item]:
    """Items of a generator that runs in a thread, each the newest not yet given.

    Whoever stops reading closes the generator; what it raises is raised behind its last item.
    """
    changed, ended = threading.Condition(), threading.Event()
    waiting: list[Item] = []
    raised: list[Exception] = []

    def read() -> None:
        try:
            for item in items:
                with changed:
                    waiting[:] = [item]
                    changed.notify()
                if ended.is_set():
                    break
        except Exception as error:
            raised.append(error)
        finally:
            items.close()
            with changed:
                ended.set()
                changed.notify()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        while True:
            with changed:
                changed.wait_for(lambda: waiting or ended.is_set())
                if not waiting:
                    break
                item = waiting.pop()
            yield item
        if raised:
            raise raised[0]
    finally:
        ended.set()
        reader.join(2)  # a camera that was pulled out may not answer


@dataclass(frozen=True)
class Address:
    """A stream or a file behind an address.

    Attributes:
        address: http://, rtsp:// and others of `SCHEMES`.
        waits: Seconds before each try to connect again, once a stream is lost.
        timeout: Seconds without an answer that end a connection.
    """

    address: str
    waits: tuple[float, ...] = WAITS
    timeout: float = TIMEOUT

    @property
    def name(self) -> str:
        """The address without its password."""
        return re.sub(r"://([^/@:]*):[^/@]*@", r"://\1:***@", self.address)

    @property
    def files(self) -> list[Path]:
        return []

    def frames(self, problems: Problems) -> Generator[Frame, None, None]:
        """Every frame of a film, whose length is known; of a stream the newest each time.

        A stream that ends or breaks is connected to again, and its frames go on with the time that
        has passed.

        Raises:
            PictureError: It cannot be opened; it is lost and does not come back; a film ends before
                its length.
        """
        scheme = self._scheme
        if scheme not in SCHEMES:
            raise PictureError(f"{self.name}: expected an address with {', '.join(SCHEMES)}")
        container = self._connect()
        if _is_still(container):
            container.close()
            yield from self._picture()
            return
        try:
            stream_of(container, self.name)
            ends = _ends(container)
            if ends:
                yield from self._film(container, problems)
        except BaseException:
            container.close()
            raise
        if ends:
            container.close()
            return
        yield from frames_with_times(latest(self._stream(container, problems)), self.name)

    @property
    def _scheme(self) -> str:
        return self.address.partition(":")[0].lower()

    def _connect(self) -> av.container.InputContainer:
        options = {"protocol_whitelist": PROTOCOLS}
        scheme = self._scheme
        if scheme.startswith("rtsp"):
            options["rtsp_transport"] = "tcp"
        if scheme.startswith("http"):
            options |= {"reconnect": "1", "reconnect_delay_max": "4"}  # of films, at their place
        try:
            return av.open(
                self.address, options=options, timeout=self.timeout, metadata_errors="replace"
            )
        except (av.FFmpegError, OSError, ValueError) as error:
            raise PictureError(f"{self.name}: cannot be opened ({reason(error)})") from None

    def _picture(self) -> Iterator[Frame]:
        """Frames of a picture file, animations among them, as of one on this machine.

        FFmpeg gives the first frame of some and none of others.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "picture"
            path.write_bytes(self._downloaded())
            time = 0.0
            try:
                for index, (picture, seconds, count) in enumerate(read_parts(path)):
                    video = seconds is not None
                    yield Frame(picture, self.name, index, time, video, count, seconds)
                    time += seconds or 0.0
            except PictureError as error:
                raise PictureError(str(error).replace(str(path), self.name)) from None

    def _downloaded(self) -> bytes:
        parts = urllib.parse.urlsplit(self.address)
        user, _, host = parts.netloc.rpartition("@")
        request = urllib.request.Request(parts._replace(netloc=host).geturl())
        if user:
            word = base64.b64encode(urllib.parse.unquote(user).encode()).decode()
            request.add_header("Authorization", f"Basic {word}")
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                data = answer.read(LARGEST + 1)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise PictureError(f"{self.name}: cannot be read ({reason(error)})") from None
        if len(data) > LARGEST:
            raise PictureError(
                f"{self.name}: is a picture of more than {LARGEST >> 20} MB; download it first"
            )
        return data

    def _film(self, container: av.container.InputContainer, problems: Problems) -> Iterator[Frame]:
        """Frames of what has an end."""
        last = None
        for frame in decode_frames(container, self.name, problems):
            last = frame
            yield frame
        if last is None:
            raise PictureError(f"{self.name}: holds no frame that can be read")
        expect_length(last, seconds_of(container))

    def _stream(
        self, first: av.container.InputContainer | None, problems: Problems
    ) -> Generator[Picture, None, None]:
        """Pictures of what has no end, and when they came, in seconds of a clock."""
        failures, count, lost = 0, 0, False
        while True:
            try:
                with first or self._connect() as container:
                    first = None
                    quiet = Problems()  # the first frames of a stream refer to others before them
                    for frame in decode_frames(container, self.name, quiet):
                        if lost:
                            problems.add(
                                PictureError(
                                    f"{self.name}: the connection was lost after {count} frames "
                                    "and opened again"
                                )
                            )
                        failures, count, lost = 0, count + 1, False
                        yield frame.picture, time.monotonic()
            except PictureError as error:
                if not count:
                    raise
                why = f" ({error})"
            else:
                why = ""
            lost = True
            if failures == len(self.waits):
                raise PictureError(
                    f"{self.name}: the connection was lost after {count} frames, and {failures} "
                    "attempts "
                    f"to connect again failed{why}"
                )
            time.sleep(self.waits[failures])
            failures += 1


def _ends(container: av.container.InputContainer) -> bool:
    """Whether what is behind an address has an end: a film or an animation, no stream."""
    animation = container.format.name in ("gif", "apng")  # which do not say their length
    return animation or bool(container.duration)


def _is_still(container: av.container.InputContainer) -> bool:
    """Whether it is a picture file, which Pillow reads."""
    brand = container.metadata.get("major_brand", "")
    name = container.format.name
    return name.endswith("_pipe") or name == "image2" or brand in PICTURE_BRANDS
