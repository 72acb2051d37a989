"""Cameras and addresses. Frames that arrive while another frame is processed are skipped."""

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
Picture = tuple[np.ndarray, float]  # and its time of arrival in seconds
ADDRESS = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]+)://")
SCHEMES = ("http", "https", "rtsp", "rtsps", "rtmp", "rtmps", "rtp", "udp", "tcp", "srt")
# Brands of MP4 files that are pictures: AVIF and HEIC.
PICTURE_BRANDS = {"avif", "avis", "mif1", "msf1", "heic", "heix", "heim", "heis", "hevc", "hevx"}
# The name of a user, then a password up to the last `@` before the query, or up to the last of all.
PASSWORD = re.compile(r"^([^:]*://(?!\[)[^:/?#]*):(?:[^?#]*@|.*@)", re.DOTALL)
# A part of a query whose value may be a password, by its name: ?user=me&password=...
SECRET = re.compile(
    r"([?&;][^=&;#]*(?:pass|pwd|psw|secret|token|key|auth|sig|cred)[^=&;#]*=)[^&;#]*", re.I
)
LARGEST = 256 << 20  # bytes of a picture
TIMEOUT = 10.0  # seconds without an answer
WAITS = (1.0, 2.0, 4.0, 8.0, 8.0)  # seconds before each try to connect again
# Protocols that FFmpeg may open for a stream. Files of this machine are excluded.
PROTOCOLS = ",".join([*SCHEMES, "tls", "crypto", "data", "httpproxy", "hls"])


@dataclass(frozen=True)
class Camera:
    """A camera of this machine.

    Attributes:
        device: Number of the camera, or path of its device.
    """

    device: int | str

    @property
    def name(self) -> str:
        """`camera N`, or the path of the device."""
        return f"camera {self.device}" if isinstance(self.device, int) else self.device

    @property
    def files(self) -> list[Path]:
        """Empty: a camera reads no files."""
        return []

    def frames(self, problems: Problems) -> Generator[Frame, None, None]:
        """Yield the latest frame each time, until the camera stops.

        Raises:
            PictureError: The camera cannot be opened, or it has stopped.
        """
        log = cv2.utils.logging
        before = log.setLogLevel(log.LOG_LEVEL_SILENT)  # OpenCV would print several lines
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
    """Yield each picture of a camera with its time of arrival in seconds; release the camera."""
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
    """Make frames from pictures and their times of arrival in seconds. The first time is 0."""
    start = None
    for index, (picture, now) in enumerate(pictures):
        start = now if start is None else start
        yield Frame(picture, name, index, now - start, True, None)


def is_camera(path: Path) -> bool:
    """Whether a path is a camera device such as `/dev/video0`."""
    try:
        return stat.S_ISCHR(path.stat().st_mode) and path.resolve().name.startswith("video")
    except OSError:
        return False


def latest(items: Generator[Item, None, None]) -> Iterator[Item]:
    """Run a generator in a thread, and yield its latest item each time. Older items are skipped.

    If the reader stops, the generator is closed. An error of the generator is raised after its last
    item.
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


def without_passwords(address: str) -> str:
    """Replace the password of an address, and values of its query that may be one, by `***`.

    A password may contain `@`, `/`, `?` and `#`, although they should be written as %40 and so on.
    So all from the first colon to the last `@` is replaced, even if some of it is no password.
    """
    return SECRET.sub(r"\1***", PASSWORD.sub(r"\1:***@", address))


@dataclass(frozen=True)
class Address:
    """A stream or a file at an address.

    Attributes:
        address: Address with one of `SCHEMES`, such as http:// or rtsp://.
        waits: Seconds to wait before each attempt to reconnect to a lost stream.
        timeout: Seconds without data after which a connection is ended.
    """

    address: str
    waits: tuple[float, ...] = WAITS
    timeout: float = TIMEOUT

    @property
    def name(self) -> str:
        """The address without its password."""
        return without_passwords(self.address)

    @property
    def files(self) -> list[Path]:
        """Empty: an address reads no files."""
        return []

    def frames(self, problems: Problems) -> Generator[Frame, None, None]:
        """Yield all frames of a video, or the latest frames of a stream.

        A video has a known length. A stream has no end.

        If a stream ends or breaks, it is opened again. Its times continue with the time that has
        passed.

        Raises:
            PictureError: The address cannot be opened, a stream is lost and cannot be opened again,
                or a video ends before its length.
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
        """The scheme of the address in lower case."""
        return self.address.partition(":")[0].lower()

    def _connect(self) -> av.container.InputContainer:
        """Open the address with FFmpeg."""
        options = {"protocol_whitelist": PROTOCOLS}
        scheme = self._scheme
        if scheme.startswith("rtsp"):
            options["rtsp_transport"] = "tcp"
        if scheme.startswith("http"):
            options |= {"reconnect": "1", "reconnect_delay_max": "4"}  # videos continue
        try:
            return av.open(
                self.address, options=options, timeout=self.timeout, metadata_errors="replace"
            )
        except (av.FFmpegError, OSError, ValueError) as error:
            raise PictureError(f"{self.name}: cannot be opened ({reason(error)})") from None

    def _picture(self) -> Iterator[Frame]:
        """Download a picture or an animation, and yield its frames as if it were a local file.

        FFmpeg is not used for this, because it reads only the first frame of some formats.
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
        """Download the file, at most `LARGEST` bytes."""
        parts = urllib.parse.urlsplit(self.address)
        user, _, host = parts.netloc.rpartition("@")
        request = urllib.request.Request(parts._replace(netloc=host).geturl())
        if user:
            word = base64.b64encode(urllib.parse.unquote(user).encode()).decode()
            # another server that this one redirects to must not get it
            request.add_unredirected_header("Authorization", f"Basic {word}")
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
        """Yield the frames of a video."""
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
        """Yield the pictures of a stream with their times of arrival in seconds."""
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
    """Whether the content of an address has an end: a video or an animation, not a stream."""
    animation = container.format.name in ("gif", "apng")  # which do not say their length
    return animation or bool(container.duration)


def _is_still(container: av.container.InputContainer) -> bool:
    """Whether the content is a picture file. Pillow reads it then."""
    brand = container.metadata.get("major_brand", "")
    name = container.format.name
    return name.endswith("_pipe") or name == "image2" or brand in PICTURE_BRANDS
