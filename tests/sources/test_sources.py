"""Frames of every kind of source, with their times; what is damaged costs itself and is said."""

import contextlib
import os
import socketserver
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from spikedet.errors import PictureError, UsageError
from spikedet.outputs.names import stem_of
from spikedet.sources import Frame, live, open_sources
from spikedet.sources.completeness import PACKET, is_complete
from spikedet.sources.find import picture_suffixes
from spikedet.sources.frame import Problems
from spikedet.sources.live import Address, latest
from support.media import animation, shade, write_video


def read(*words, **options):
    sources = open_sources([str(word) for word in words], **options)
    return list(sources), sources


def values(frames):
    return [round(float(frame.picture.mean())) for frame in frames]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---------------------------------------------------------------------- videos


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv"])
def test_a_video_of_variable_frame_rate_keeps_its_times(here, name):
    times = [0, 0.1, 0.5, 0.6, 2.0, 4.5]
    write_video(name, times, 4.6)
    frames, sources = read(name)
    assert [frame.time for frame in frames] == pytest.approx(times, abs=1e-3)
    assert frames[-1].time + (frames[-1].duration or 0.1) == pytest.approx(4.6, abs=1e-3)
    assert np.allclose(values(frames), np.arange(6) * 4 + 20, atol=5)
    assert min(np.diff(values(frames))) > 1 and frames[0].length == pytest.approx(4.6, abs=1e-3)
    assert all(f.video and f.source == name and f.file.name == name for f in frames)
    assert [frame.index for frame in frames] == list(range(6)) and sources.errors == []
    assert name == "v.mkv" or frames[0].total == 6


def test_half_a_frame_a_second(here):
    write_video("v.mp4", [0.0, 2.0], 4.0)
    frames, _ = read("v.mp4")
    assert [(f.time, f.duration) for f in frames] == [(0, 2), (2, 2)]


def test_a_video_that_begins_late_begins_at_0(here):
    write_video("v.ts", [0, 0.2, 0.4], 0.6)  # MPEG-TS begins at 1.4 s
    frames, _ = read("v.ts")
    assert [frame.time for frame in frames] == pytest.approx([0, 0.2, 0.4])


def test_a_telephone_held_upright(here):
    write_video("v.mp4", [0, 0.1], 0.2, size=(32, 64))
    data = (here / "v.mp4").read_bytes()
    place = data.index(b"tkhd") + 4 + 4 + 20 + 16  # version and flags, times, layer and volume
    unit = (1 << 16).to_bytes(4, "big")
    matrix = [bytes(4)] * 9
    matrix[1], matrix[3], matrix[8] = unit, (-(1 << 16)).to_bytes(4, "big", signed=True), b"@\0\0\0"
    (here / "v.mp4").write_bytes(data[:place] + b"".join(matrix) + data[place + 36 :])
    capture = cv2.VideoCapture("v.mp4")
    theirs = capture.read()[1]
    capture.release()
    frames, _ = read("v.mp4")
    assert frames[0].picture.shape == theirs.shape == (64, 32, 3)


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("v.mp4", "libx264", {"movflags": "faststart"}),
        ("v.mkv", "libx264", {}),
        ("v.avi", "mpeg4", {}),
        ("v.ts", "libx264", {}),
    ],
)
def test_a_cut_video_is_read_as_far_as_it_goes_and_said_to_be_cut(here, name, codec, options):
    write_video(name, np.arange(60) / 25, 2.4, codec, options)
    assert is_complete(here / name) is (None if name == "v.ts" else True)
    assert read(name)[1].errors == []
    data = (here / name).read_bytes()
    (here / name).write_bytes(data[: len(data) * 7 // 10])
    frames, sources = read(name)
    assert 20 < len(frames) < 60 and is_complete(here / name) is False
    said = str(sources.errors[-1])
    assert f"{name}: is cut short; {len(frames)}" in said
    assert "of 60" in said or name in ("v.mkv", "v.ts")


def test_a_video_that_ends_before_the_length_in_its_header(here):
    write_video("v.flv", np.arange(60) / 25, 2.4)
    frames, sources = read("v.flv")
    assert len(frames) == 60 and sources.errors == []
    with av.open("v.flv") as file:
        place = list(file.demux(video=0))[30].pos
    (here / "v.flv").write_bytes((here / "v.flv").read_bytes()[:place])
    frames, sources = read("v.flv")
    assert len(frames) == 30
    assert [str(e) for e in sources.errors] == ["v.flv: ends after 1.2 of 2.4 seconds"]


def test_a_packet_that_is_marked_as_damaged_is_said(here):
    write_video("v.ts", np.arange(20) / 25, 0.8)
    data = bytearray((here / "v.ts").read_bytes())
    with av.open("v.ts") as file:
        place = list(file.demux(video=0))[9].pos
    data[place + PACKET + 1] |= 0x80  # of MPEG-TS: this packet holds an error
    (here / "v.ts").write_bytes(data)
    frames, sources = read("v.ts")
    assert len(frames) >= 18 and len(sources.errors) == 1
    assert "v.ts: " in str(sources.errors[0]) and "damaged" in str(sources.errors[0])


def test_a_video_without_its_index(here):
    write_video("v.mp4", [0, 0.1], 0.2)
    data = (here / "v.mp4").read_bytes()
    (here / "v.mp4").write_bytes(data[: data.index(b"moov")])
    frames, sources = read("v.mp4")
    (error,) = sources.errors
    assert frames == [] and "v.mp4: is not a video that can be read (its end" in str(error)


def test_a_damaged_frame_costs_itself(here):
    write_video("v.mp4", np.arange(9) / 25, 9 / 25)
    frames, _ = read("v.mp4")
    with av.open("v.mp4") as file:
        packet = list(file.demux(video=0))[4]
        place, size = packet.pos, packet.size
    data = (here / "v.mp4").read_bytes()
    (here / "v.mp4").write_bytes(data[:place] + bytes(size) + data[place + size :])
    left, sources = read("v.mp4")
    assert values(left) == values(frames[:4] + frames[5:])
    assert sources.bad_frames == 1
    assert [str(e) for e in sources.errors] == ["v.mp4: 1 frame is damaged and was left out"]
    assert left[4].time == pytest.approx(5 / 25)


def test_what_is_no_video(here):
    (here / "text.mp4").write_text("no video " * 99)
    (here / "empty.mp4").touch()
    (here / "list.mp4").write_text("#EXTM3U\n#EXTINF:1,\nv.ts\n#EXT-X-ENDLIST\n")
    os.mkfifo(here / "pipe.mp4")
    write_video("v.ts", [0, 0.2], 0.4)
    said = []
    frames, sources = read("text.mp4", "empty.mp4", "pipe.mp4", "list.mp4", tell=said.append)
    assert frames == [] and said == sources.errors
    words = ["is not a video that can be read", "is empty", "is not a file", "is not a video that"]
    for error, expected in zip(said, words, strict=True):
        assert expected in str(error)


def test_frames_of_too_many_pixels(here, monkeypatch):
    write_video("v.mp4", [0], 1)
    monkeypatch.setattr("spikedet.sources.video.MOST_PIXELS", 64 * 48 - 1)
    frames, sources = read("v.mp4")
    assert frames == [] and "frames of 64 x 48 pixels are too large" in str(sources.errors[0])


def test_a_name_that_is_no_text_or_looks_like_an_address(here):
    write_video("v.mp4", [0, 0.1], 0.2)
    os.rename(b"v.mp4", b"\xff.mp4")
    write_video("w.mp4", [0, 0.1], 0.2)
    os.rename("w.mp4", "concat:v|w.mp4")
    assert len(read(os.fsdecode(b"\xff.mp4"), "concat:v|w.mp4")[0]) == 4


# ---------------------------------------------------------------------- pictures, animations


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.apng"])
def test_an_animation_gives_all_its_frames(here, name):
    animation(name, **({"format": "PNG"} if name == "a.apng" else {}))
    frames, sources = read(name)
    assert sources.errors == [] and [frame.total for frame in frames] == [3] * 3
    assert np.allclose(values(frames), [20, 80, 140], atol=3)
    assert [frame.time for frame in frames] == pytest.approx([0, 0.1, 0.35])
    assert [frame.duration for frame in frames] == pytest.approx([0.1, 0.25, 0.4])
    assert all(frame.video for frame in frames)


def test_the_picture_that_stands_for_an_animation_is_none_of_its_frames(here):
    animation("a.png", default_image=True)
    assert np.allclose(values(read("a.png")[0]), [80, 140], atol=1)


def test_a_cut_animation(here):
    noise = np.random.default_rng(0).integers(0, 255, (4, 40, 40, 3), np.uint8)
    pictures = [Image.fromarray(n) for n in noise]
    pictures[0].save("a.gif", save_all=True, append_images=pictures[1:], duration=100)
    data = (here / "a.gif").read_bytes()
    for part in (0.6, 0.9, 1 - 1 / len(data)):
        (here / "b.gif").write_bytes(data[: int(len(data) * part)])
        frames, sources = read("b.gif")
        assert 1 <= len(frames) <= 4 and len(sources.errors) == 1, part
        assert "cut short" in str(sources.errors[0]) or "truncated" in str(sources.errors[0])
    assert read("a.gif")[1].errors == []


def files_of_every_format():
    """Small ones, by name."""
    for name in ("a.gif", "a.webp", "a.png"):
        animation(name)
    pages = [Image.fromarray(shade(20 * n, (8, 8))) for n in range(3)]
    pages[0].save("a.tif", save_all=True, append_images=pages[1:])
    for name in ("a.jpg", "a.bmp", "a.avif", "a.jp2"):
        pages[1].save(name)
    for name in ("a.mp4", "a.mkv", "a.ts"):
        write_video(name, [0, 0.1, 0.2], 0.3)
    write_video("a.avi", [0, 0.04, 0.08], 0.12, "mpeg4", {})
    return sorted(Path().glob("a.*"))


def test_whatever_is_damaged_is_an_error_in_words_or_is_read(here):
    """Pillow raised seven kinds of errors for files that were cut or had some other bytes."""
    rng, errors = np.random.default_rng(0), 0
    for path in files_of_every_format():
        data = path.read_bytes()
        for cut in rng.integers(0, len(data), 25):
            damaged = bytearray(data)
            for place in rng.integers(0, len(data), rng.integers(1, 9)):
                damaged[place] = rng.integers(256)
            for content in (data[:cut], damaged):
                (here / f"x{path.suffix}").write_bytes(content)
                _, sources = read(f"x{path.suffix}", limit=50)
                errors += len(sources.errors)
    assert errors > 300


def test_pages_of_a_tiff_are_pictures(here):
    pages = [Image.fromarray(shade(20 + 60 * n)) for n in range(3)]
    pages[0].save("a.tif", save_all=True, append_images=pages[1:])
    frames, _ = read("a.tif")
    assert values(frames) == [20, 80, 140]
    assert [(f.index, f.total, f.video, f.time) for f in frames] == [
        (n, 3, False, 0) for n in range(3)
    ]


def test_twelve_bits_are_scaled(here):
    ramp = np.linspace(0, 4095, 64 * 48).reshape(48, 64)
    cv2.imwrite("a.png", ramp.astype(np.uint16))
    cv2.imwrite("b.png", (ramp * 16).astype(np.uint16))
    colour = np.repeat(ramp[..., None], 3, 2)
    cv2.imwrite("c.png", colour.astype(np.uint16))
    cv2.imwrite("d.tif", colour.astype(np.uint16))
    cv2.imwrite("e.png", (colour * 16).astype(np.uint16))
    for frame in read("a.png", "b.png", "c.png", "d.tif", "e.png")[0]:
        assert np.abs(frame.picture[..., 0] - ramp / 4095 * 255).max() <= 1


def test_formats_that_pillow_decodes():
    Image.init()
    assert {
        ".jpg",
        ".tga",
        ".qoi",
        ".ico",
        ".pcx",
        ".psd",
        ".jp2",
        ".avif",
        ".mpo",
    } <= picture_suffixes()
    assert not {".eps", ".mpg", ".pdf", ".h5", ".txt"} & picture_suffixes()


@pytest.mark.parametrize(
    "suffix", [".tga", ".qoi", ".pcx", ".sgi", ".dds", ".ppm", ".jfif", ".ico"]
)
def test_rarer_formats(here, suffix):
    Image.fromarray(shade(99)).save(f"a{suffix}")
    frames, sources = read(".")
    assert sources.errors == [] and values(frames) == [99]


def test_a_file_without_ending_is_what_it_holds(here):
    Image.fromarray(shade(50)).save("p", format="PNG")
    write_video("v.mp4", [0, 0.1], 0.2)
    os.rename("v.mp4", "film.bin")
    (here / "junk").write_text("nothing")
    frames, sources = read("p", "film.bin", "junk")
    assert [(frame.source, frame.video) for frame in frames] == [
        ("p", False), ("film.bin", True), ("film.bin", True),
    ]  # fmt: skip
    assert "junk: is not a video that can be read" in str(sources.errors[0])


# ---------------------------------------------------------------------- folders, patterns, lists


@pytest.fixture
def tree(here):
    for name in ("b.png", "sub/c.jpg", "sub/deep/d.bmp"):
        (here / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(shade(100)).save(here / "tree" / name)
    write_video(here / "tree/a.mp4", [0, 0.1], 0.2)
    (here / "tree/notes.md").write_text("words")
    (here / "tree/raw.nef").write_text("words")
    (here / "tree/cut.png").write_bytes((here / "tree/b.png").read_bytes()[:60])
    return here / "tree"


def test_a_folder_and_what_cannot_be_read_in_it(tree):
    frames, sources = read("tree")
    assert [f.source for f in frames] == ["tree/a.mp4", "tree/a.mp4", "tree/b.png"]
    assert [path.name for path in sources.ignored] == ["notes.md"]
    first, second = map(str, sources.errors)
    assert first.startswith("tree: 1 picture cannot be read (raw.nef)")
    assert second.startswith("tree/cut.png: ")
    assert sources.total is None and len(sources) == 3 and sources.finished == 3


def test_folders_in_a_folder(tree):
    frames, _ = read("tree", recursive=True)
    assert [f.source for f in frames][3:] == ["tree/sub/c.jpg", "tree/sub/deep/d.bmp"]
    frames, sources = read("tree/sub/deep", "tree/sub")
    assert len(frames) == 2 and sources.total == 2
    (tree / "sub/c.jpg").unlink()
    assert "with --recursive" in str(read("tree/sub")[1].errors[0])


def test_the_folder_of_results_is_no_source(tree):
    frames, _ = read("tree", recursive=True, without=["tree/sub/deep"])
    assert [f.source for f in frames][3:] == ["tree/sub/c.jpg"]
    assert len(read("tree/sub", recursive=True, without=["tree"])[0]) == 2
    assert len(read("tree/sub/deep", recursive=True, without=["tree/sub/deep"])[0]) == 1


def test_patterns(tree):
    assert [f.source for f in read("tree/*.png")[0]] == ["tree/b.png"]
    frames, sources = read("tree/*")
    assert [f.source for f in frames][2:] == ["tree/b.png"] and len(sources.ignored) == 1
    assert "no file matches" in str(read("tree/*.bmp")[1].errors[0])
    assert len(read("tree/**/*.[jb]*", "tree/b.png", "tree/b.png")[0]) == 3


def test_a_list(tree):
    (tree / "list.txt").write_text("b.png\n\n# a remark\ntree/sub\ngone.png\nlist.txt\n*.mp4\n")
    frames, sources = read("tree/list.txt")
    assert [os.path.relpath(f.source) for f in frames] == [
        "tree/b.png", "tree/sub/c.jpg", "tree/a.mp4", "tree/a.mp4",
    ]  # fmt: skip
    assert tree / "list.txt" in [path.absolute() for path in sources.files]
    gone, nested = map(str, sources.errors)
    assert gone == "tree/list.txt: gone.png: no such picture" and "is a list in a list" in nested
    (tree / "list.txt").write_text("\n")
    assert "this list is empty" in str(read("tree/list.txt")[1].errors[0])
    (tree / "list.txt").write_bytes(b"\xff\xfe\x00")
    assert "not a text file" in str(read("tree/list.txt")[1].errors[0])


def test_numbered_pictures_are_a_film(here):
    for number in (2, 3, 5, 10):
        Image.fromarray(shade(number * 10)).save(f"f{number:03}.png")
    Image.fromarray(shade(0)).save("f4.png")  # of another width
    (here / "f003.png").write_bytes(b"junk")
    frames, sources = read("f%03d.png", frame_rate=10)
    assert values(frames) == [20, 50, 100] and all(frame.video for frame in frames)
    assert [frame.time for frame in frames] == pytest.approx([0, 0.3, 0.8])
    damaged, missing = map(str, sources.errors)
    assert damaged.startswith("f003.png: is not a picture")
    assert missing == "f%03d.png: 5 pictures are missing between f002.png and f010.png"
    assert sources.bad_frames == 6
    assert values(read("f%d.png")[0]) == [0]


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("gone.png", "gone.png: no such picture"),
        ("gone.mp4", "gone.mp4: no such file"),
        ("gone", "gone: no such file or folder; expected one, a pattern, the number of a camera"),
        ("987", "camera 987 cannot be opened"),
        ("g%04d.png", "there are no such pictures"),
        ("%d-%d.png", "expected one number"),
        ("gopher://x/y", "gopher://x/y: expected an address with http, https"),
        ("x" * 300 + ".png", "no such picture"),
        ("a\0b", "is no name of a file"),
        ("", "'': is no name"),
        ("/dev/null", "is not a file"),
        ("empty", "no pictures in this folder, and no videos"),
    ],
)
def test_words_that_name_nothing(here, word, words):
    (here / "empty").mkdir()
    frames, sources = read(word)
    assert frames == [] and words in str(sources.errors[0])
    assert len(sources.errors) == 1 and isinstance(sources.errors[0], PictureError)


def test_one_bad_source_costs_only_itself(here):
    Image.fromarray(shade(50)).save("p.png")
    frames, sources = read("gone.mp4", "p.png", "gone.png")
    assert values(frames) == [50] and len(sources.errors) == 2
    with pytest.raises(UsageError, match="frame_rate is 0"):
        open_sources(["p.png"], frame_rate=0)


def test_a_frame_rate_is_for_numbered_pictures_only(here):
    Image.fromarray(shade(50)).save("p.png")
    Image.fromarray(shade(50)).save("f1.png")
    (here / "list.txt").write_text("p.png\n")
    for words in (["p.png"], ["list.txt", "gone.mp4"], []):
        with pytest.raises(UsageError, match="a frame rate of 12.5 has no effect: no source is"):
            open_sources(words, frame_rate=12.5)
    assert len(read("p.png", "f%d.png", frame_rate=12.5)[0]) == 2
    assert "no such pictures" in str(read("g%d.png", frame_rate=12.5)[1].errors[0])


def test_only_the_first_frames_of_each(here):
    animation("a.gif")
    animation("b.gif")
    frames, sources = read("a.gif", "b.gif", limit=2)
    assert [frame.index for frame in frames] == [0, 1, 0, 1] and sources.errors == []


def test_a_file_address(here):
    Image.fromarray(shade(50)).save("a b.png")
    assert values(read((here / "a b.png").as_uri())[0]) == [50]


# ---------------------------------------------------------------------- cameras


class Capture:
    """A camera of `count` pictures."""

    def __init__(self, count):
        self.count, self.released = count, False

    def __call__(self, device):
        self.device = device
        return self

    def isOpened(self):
        return True

    def read(self):
        self.count -= 1
        return self.count >= 0, shade(70)

    def release(self):
        self.released = True


def test_a_camera_that_ends(monkeypatch):
    capture = Capture(3)
    monkeypatch.setattr(live.cv2, "VideoCapture", capture)
    frames, sources = read("2")
    assert capture.device == 2 and capture.released and 1 <= len(frames) <= 3
    assert frames[0].source == "camera 2" and frames[0].total is None and frames[0].video
    assert "camera 2 gives no more pictures" in str(sources.errors[0])


def test_a_device_is_a_camera(here, monkeypatch):
    monkeypatch.setattr("spikedet.sources.find.is_camera", lambda path: str(path) == "video0")
    monkeypatch.setattr(live.cv2, "VideoCapture", Capture(1))
    (here / "video0").touch()
    assert read("video0")[0][0].source == "video0"


def test_what_comes_meanwhile_is_skipped():
    may, given = [threading.Semaphore(0) for _ in range(2)]

    def items():
        for number in range(6):
            may.acquire()
            yield number
            given.release()

    frames = latest(items())
    may.release()
    assert next(frames) == 0
    for _ in range(4):
        may.release()
        given.acquire()
    given.acquire()
    assert next(frames) == 4
    may.release()
    assert list(frames) == [5]


def test_what_a_thread_raises_is_raised_behind_its_last_item():
    def items():
        yield 1
        raise PictureError("lost")

    frames = latest(items())
    with pytest.raises(PictureError, match="lost"):
        assert [next(frames), next(frames)] == [1, None]


# ---------------------------------------------------------------------- addresses


class Server(ThreadingHTTPServer):
    """Files, and /stream: as many pictures a connection as `drops` says, then it is cut."""

    daemon_threads = True
    drops: list[int] = []


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        with contextlib.suppress(OSError):
            if self.path == "/stream":
                self.stream()
            else:
                self.file()

    def stream(self):
        if not self.server.drops:
            self.send_error(503)
            return
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=next")
        self.end_headers()
        for number in range(self.server.drops.pop(0)):
            data = cv2.imencode(".jpg", shade(10 + 20 * number))[1].tobytes()
            head = f"--next\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
            self.wfile.write(head.encode() + data + b"\r\n")

    def file(self):
        data = Path("." + self.path).read_bytes()
        begin = int(self.headers.get("Range", "bytes=0-").split("=")[1].split("-")[0])
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Length", len(data) - begin)
        self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        self.wfile.write(data[begin:])


@pytest.fixture
def server(here):
    with Server(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()


def url(server, path):
    return f"http://127.0.0.1:{server.server_port}/{path}"


def test_a_film_behind_an_address(server):
    write_video("v.mp4", [0, 0.5, 2.0], 3.0)
    frames, sources = read(url(server, "v.mp4"))
    assert sources.errors == [] and [f.time for f in frames] == pytest.approx([0, 0.5, 2.0])
    assert frames[0].file is None and frames[0].total == 3


def test_an_animation_behind_an_address_ends(server, monkeypatch):
    def file(self):  # without ranges: nobody can look at its end for its length
        data = Path("." + self.path).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", len(data))
        self.end_headers()
        self.wfile.write(data)

    monkeypatch.setattr(Handler, "file", file)
    animation("a.gif")
    frames, sources = read(url(server, "a.gif"), limit=9)
    assert len(frames) == 3 and sources.errors == []


@pytest.mark.parametrize("name", ["a.webp", "a.avif", "a.png"])
def test_an_animation_behind_an_address_is_whole(server, name):
    """WebP gave no frame, AVIF the first."""
    animation(name)
    here, there = read(name)[0], read(url(server, name))[0]
    assert len(there) == len(here) == 3
    for one, other in zip(here, there, strict=True):
        assert other.picture.mean() == pytest.approx(one.picture.mean(), abs=1)
        assert (other.video, other.time) == (True, pytest.approx(one.time))


@pytest.mark.parametrize("name", ["p.png", "p.webp", "p.avif", "p.jpg"])
def test_a_picture_behind_an_address(server, name):
    """AVIF was taken for a stream, which was connected to again for half a minute."""
    Image.fromarray(shade(50)).save(name)
    frames, sources = read(url(server, name))
    assert values(frames) == pytest.approx([50], abs=2) and sources.errors == []
    assert not frames[0].video and frames[0].source == url(server, name)


def test_a_damaged_picture_behind_an_address_is_named_by_it(server):
    Image.fromarray(shade(50)).save("p.webp")
    Path("p.webp").write_bytes(Path("p.webp").read_bytes()[:-20])
    (error,) = read(url(server, "p.webp"))[1].errors
    assert str(error).startswith(f"{url(server, 'p.webp')}: ")


def test_a_picture_for_those_who_know_the_password(server, monkeypatch):
    asked = []

    def file(self, plain=Handler.file):
        asked.append(self.headers.get("Authorization"))
        plain(self)

    monkeypatch.setattr(Handler, "file", file)
    Image.fromarray(shade(50)).save("p.png")
    address = url(server, "p.png").replace("//", "//me:s%40cret@")
    frames, sources = read(address)
    assert values(frames) == [50] and "me:***@" in frames[0].source
    assert asked[-1] == "Basic bWU6c0BjcmV0"  # me:s@cret


def test_a_stream_that_drops_is_connected_to_again(server):
    server.drops = [5, 4]
    problems, address = Problems(), Address(url(server, "stream"), waits=(0.01, 0.01), timeout=5)
    frames = []
    with pytest.raises(PictureError, match="connection was lost after 9 frames, and 2 attempts"):
        for frame in address.frames(problems):
            frames.append(frame)
    assert 1 <= len(frames) <= 9 and frames[0].video and frames[0].total is None
    assert [frame.index for frame in frames] == list(range(len(frames)))
    (error,) = problems.errors
    assert str(error).endswith("the connection was lost after 5 frames and opened again")


def test_an_address_that_does_not_answer(server):
    server.drops = []
    assert "cannot be opened" in str(read(url(server, "stream"))[1].errors[0])
    with socketserver.TCPServer(("127.0.0.1", 0), None) as silent:  # accepts, says nothing
        address = Address(f"http://127.0.0.1:{silent.server_address[1]}/x", timeout=0.5)
        with pytest.raises(PictureError, match="cannot be opened"):
            list(address.frames(Problems()))


def test_no_password_is_sent_to_another_server(server, monkeypatch):
    asked = []

    class Other(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.headers.get("Authorization"))
            self.send_response(404)
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Other) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()

        def away(self):
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{other.server_port}/p.png")
            self.end_headers()

        monkeypatch.setattr(Handler, "file", away)
        address = Address(url(server, "p.png").replace("//", "//me:secret@"))
        with pytest.raises(PictureError, match="cannot be read"):
            address._downloaded()
        other.shutdown()
    assert asked == [None]


@pytest.mark.parametrize(
    ("address", "shown", "stem"),
    [
        ("rtsp://me:secret@10.0.0.1/live", "rtsp://me:***@10.0.0.1/live", "rtsp-10.0.0.1-live"),
        ("rtsp://me:se@cret@cam:554/ab", "rtsp://me:***@cam:554/ab", "rtsp-cam-554-ab"),
        ("rtsp://me:se/cret@cam:554/a", "rtsp://me:***@cam:554/a", "rtsp-cam-554-a"),
        ("rtsp://me:12/cret@cam/a?n=1", "rtsp://me:***@cam/a?n=1", "rtsp-cam-a-n=1"),
        ("rtsp://me:s@e/cr@et/@cam/a", "rtsp://me:***@cam/a", "rtsp-cam-a"),
        ("rtsp://me:se?c#ret@cam/a", "rtsp://me:***@cam/a", "rtsp-cam-a"),
        ("rtsp://me@cam:554/a", "rtsp://me@cam:554/a", "rtsp-cam-554-a"),
        ("http://cam:80/a?t=1:2", "http://cam:80/a?t=1:2", "http-cam-80-a-t=1-2"),
        ("http://[::1]:80/a@b", "http://[::1]:80/a@b", "http-[-1]-80-a@b"),
        ("http://m@e:x:y@cam?a=b@c:d", "http://m@e:***@cam?a=b@c:d", "http-cam-a=b@c-d"),
        (
            "http://cam/v?user=me&Password=se=cret&n=1&api_key=k#t",
            "http://cam/v?user=me&Password=***&n=1&api_key=***#t",
            "http-cam-v-user=me&Password=-&n=1&api_key=-#t",
        ),
        ("http://me@cam/v.mp4?n=1", "http://me@cam/v.mp4?n=1", "http-cam-v.mp4-n=1"),
    ],
)
def test_no_password_is_shown(address, shown, stem):
    assert open_sources([address]).names == [shown]
    assert stem_of(Frame(np.zeros((1, 1, 3), np.uint8), shown)) == stem
