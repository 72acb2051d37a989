"""Downloading and checking VOC, against a server on this machine, and importing other boxes."""

import functools
import hashlib
import http.server
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest
from PIL import Image

from spikedet.detection.boxes import VOC_CLASSES
from spikedet.detection.data import read_annotation
from spikedet.detection.prepare import check_split, download, unpack
from spikedet.errors import DataError
from support.commands import command
from support.devkits import add, annotation


class RangeHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files, from the middle on when asked to."""

    def do_GET(self):
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        self.server.starts.append(start)
        if start >= len(data):
            self.send_error(416)
            return
        start = start if self.server.ranges else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start : self.server.cut])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()
    add(tmp_path / "VOCdevkit", "VOC2007", "1", annotation(("dog", (1, 1, 9, 9), False)))
    with tarfile.open(folder / "voc.tar", "w") as tar:
        tar.add(tmp_path / "VOCdevkit", "VOCdevkit")
    handler = functools.partial(RangeHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        running.starts, running.cut, running.ranges = [], None, True
        running.file = folder / "voc.tar"
        running.url = f"http://127.0.0.1:{running.server_port}/voc.tar"
        running.md5 = hashlib.md5(running.file.read_bytes()).hexdigest()
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


def test_download_and_unpack(server, tmp_path):
    target = tmp_path / "new" / "voc.tar"
    download(server.url, target, server.md5)
    assert target.read_bytes() == server.file.read_bytes()
    unpack(target, target.parent)
    assert check_split(target.parent / "VOCdevkit" / "VOC2007", "train") == (1, 1, 1, [])


def test_resume(server, tmp_path):
    (tmp_path / "voc.tar.part").write_bytes(server.file.read_bytes()[:700])
    download(server.url, tmp_path / "voc.tar", server.md5)
    assert server.starts == [700]
    assert (tmp_path / "voc.tar").read_bytes() == server.file.read_bytes()
    assert not (tmp_path / "voc.tar.part").exists()


def test_resume_where_nothing_is_left_to_send(server, tmp_path):
    (tmp_path / "voc.tar.part").write_bytes(server.file.read_bytes())
    download(server.url, tmp_path / "voc.tar", server.md5)
    assert (tmp_path / "voc.tar").is_file()


def test_server_that_cannot_resume_sends_everything(server, tmp_path):
    server.ranges = False
    (tmp_path / "voc.tar.part").write_bytes(b"half")
    download(server.url, tmp_path / "voc.tar", server.md5)
    assert (tmp_path / "voc.tar").read_bytes() == server.file.read_bytes()


def test_connection_that_closes_early_keeps_the_part(server, tmp_path):
    server.cut = 700
    with pytest.raises(DataError, match="closed after 700 of .* run this command again"):
        download(server.url, tmp_path / "voc.tar", server.md5)
    assert (tmp_path / "voc.tar.part").read_bytes() == server.file.read_bytes()[:700]
    server.cut = None
    seen = []
    download(server.url, tmp_path / "voc.tar", server.md5, lambda *numbers: seen.append(numbers))
    size = server.file.stat().st_size
    assert server.starts == [0, 700] and seen[-1] == (size, size)


def test_archive_that_is_there_is_verified(server, tmp_path):
    (tmp_path / "voc.tar").write_bytes(server.file.read_bytes())
    download(server.url, tmp_path / "voc.tar", server.md5)
    assert server.starts == []
    (tmp_path / "voc.tar").write_bytes(b"mine")
    with pytest.raises(DataError, match="voc.tar: the file does not have the checksum"):
        download(server.url, tmp_path / "voc.tar", server.md5)
    assert (tmp_path / "voc.tar").read_bytes() == b"mine"


@pytest.mark.parametrize("url", ["no address", "http://bad host/voc.tar"])
def test_address_that_is_none(tmp_path, url):
    with pytest.raises(DataError, match="cannot be downloaded"):
        download(url, tmp_path / "voc.tar", "0" * 32)


def test_archive_that_the_server_lacks(server, tmp_path):
    with pytest.raises(DataError, match="the server answers 404"):
        download(server.url + "x", tmp_path / "voc.tar", server.md5)


def test_wrong_checksum(server, tmp_path):
    with pytest.raises(DataError, match="does not have the checksum"):
        download(server.url, tmp_path / "voc.tar", "0" * 32)
    assert not (tmp_path / "voc.tar").exists() and not (tmp_path / "voc.tar.part").exists()


def test_no_server_keeps_what_has_arrived(tmp_path):
    (tmp_path / "voc.tar.part").write_bytes(b"half")
    with pytest.raises(DataError, match="cannot be downloaded"):
        download("http://127.0.0.1:9/voc.tar", tmp_path / "voc.tar", "0" * 32)
    assert (tmp_path / "voc.tar.part").read_bytes() == b"half"


def test_unpacking_replaces_no_file_and_leaves_nothing_aside(server, tmp_path):
    folder = tmp_path / "new"
    kept = folder / "VOCdevkit/VOC2007/Annotations/1.xml"
    kept.parent.mkdir(parents=True)
    kept.write_text("mine")
    unpack(server.file, folder)
    assert kept.read_text() == "mine"
    assert (folder / "VOCdevkit/VOC2007/JPEGImages/1.jpg").is_file()
    assert [p.name for p in folder.iterdir()] == ["VOCdevkit"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("../escaped", tarfile.REGTYPE),
        ("a/../../escaped", tarfile.REGTYPE),
        ("/tmp/escaped", tarfile.REGTYPE),
        ("..\\escaped", tarfile.REGTYPE),
        ("C:escaped", tarfile.REGTYPE),
        ("link", tarfile.SYMTYPE),
        ("link", tarfile.LNKTYPE),
        ("device", tarfile.CHRTYPE),
        ("pipe", tarfile.FIFOTYPE),
    ],
)
def test_archive_that_points_outside_is_refused(tmp_path, name, kind):
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("harmless"))
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "../outside"
        tar.addfile(member)
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match="cannot be unpacked .*no plain file inside of the folder"):
        unpack(tmp_path / "evil.tar", tmp_path / "in")
    assert not list((tmp_path / "in").iterdir())
    assert not (tmp_path / "escaped").exists()


def test_a_folder_that_is_a_link_is_unpacked_to(server, tmp_path):
    """As where data sets have a disk of their own."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "data").symlink_to(tmp_path / "disk")
    unpack(server.file, tmp_path / "data")
    assert (tmp_path / "disk/VOCdevkit/VOC2007/JPEGImages/1.jpg").is_file()


def run(folder, *options):
    command = [sys.executable, "-m", "spikedet", "prepare", "voc", folder, *options]
    return subprocess.run(command, capture_output=True, text=True)


def check(folder):
    return run(folder, "--check")


def test_check_command(tmp_path):
    devkit = tmp_path / "VOCdevkit"
    for name in ("1", "2"):
        add(devkit, "VOC2007", name, annotation(("dog", (1, 1, 9, 9), False)))
    done = check(tmp_path)
    assert done.returncode == 0 and "2 listed, 2 pictures, 2 annotations, 0 problems" in done.stdout
    (devkit / "VOC2007/JPEGImages/2.jpg").unlink()
    done = check(devkit)
    assert done.returncode == 3 and "2.jpg: picture is missing" in done.stderr
    for ignored in (("--years", "2007"), ("--keep",), ("--server", "http://x")):
        done = run(tmp_path, "--check", *ignored)
        assert done.returncode == 2 and f"{ignored[0]}: has no effect with --check" in done.stderr
    done = check(tmp_path / "nowhere")
    assert done.returncode == 3 and "no VOC2007 or VOC2012 here" in done.stderr


def test_command_downloads_only_what_is_missing(tmp_path):
    devkit = tmp_path / "VOCdevkit"
    for split in ("train", "val", "trainval", "test"):
        add(devkit, "VOC2007", "1", annotation(("dog", (1, 1, 9, 9), False)), split)
    nowhere = ("--years", "2007", "--server", "http://127.0.0.1:9")
    done = run(tmp_path, *nowhere)
    assert done.returncode == 0 and "VOC2007 test: already there" in done.stdout
    # as after an interrupted unpacking: the lists are there, a picture is not
    (devkit / "VOC2007/JPEGImages/1.jpg").unlink()
    done = run(tmp_path, *nowhere)
    assert done.returncode == 3 and "error: http://127.0.0.1:9/voc2007/VOCtrainval" in done.stderr
    assert "Traceback" not in done.stderr


# ---------------------------------------------------------------------- boxes in other formats


@pytest.fixture
def boxes(tmp_path, monkeypatch):
    """Pictures a, b and c of 60 x 40 pixels, their boxes as XML and as a list; here."""
    names = {"a": ("dog", "zebra"), "b": ("couch",), "c": ("zebra",)}
    for name, classes in names.items():
        objects = [(label, (11, 11, 30, 30), False) for label in classes]
        add(tmp_path, "from", name, annotation(*objects))
    (tmp_path / "names").write_text("dog\ncouch\nzebra\n")
    (tmp_path / "list").write_text(
        "x/a.jpg 10,10,30,30,0 10,10,30,30,2\nx/b.jpg 10,10,30,30,1\n\nx/c.jpg 10,10,30,30,2\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


LIST = ["--pictures", "from", "--names", "names", "--out", "to", "--list", "list"]
XML = ["--pictures", "from", "--xml", "from/Annotations", "--out", "to"]


@pytest.mark.parametrize("words", [LIST, XML])
def test_only_objects_of_voc_classes_are_imported(boxes, monkeypatch, capsys, words):
    for _ in range(2):  # what exists already is the same
        assert command(monkeypatch, "import-boxes", *words) == 0
        shown = capsys.readouterr().out
        assert shown == "to: 2 pictures, split train; 1 more are without an object of a VOC class\n"
    assert check_split(boxes / "to", "train") == (2, 2, 2, [])
    for name, label in (("a", "dog"), ("b", "sofa")):
        width, height, objects, labels, _ = read_annotation(boxes / f"to/Annotations/{name}.xml")
        assert (width, height, objects.tolist()) == (60, 40, [[10, 10, 30, 30]])
        assert [VOC_CLASSES[number] for number in labels] == [label]


@pytest.mark.parametrize("words", [LIST, XML])
def test_no_picture_is_lost_for_its_name(boxes, monkeypatch, capsys, words):
    """Other endings of JPEG files, and ids that begin like VOC 2012's copies of VOC 2007."""
    (boxes / "from/JPEGImages/a.jpg").rename(boxes / "from/JPEGImages/a.JPG")
    add(boxes, "from", "2007_08_15_12", annotation(("dog", (11, 11, 30, 30), False)))
    with (boxes / "list").open("a") as listed:
        listed.write("x/2007_08_15_12.jpg 10,10,30,30,0\n")
    add(boxes, "from", "bare", annotation(("dog", (11, 11, 30, 30), False)))
    (boxes / "from/JPEGImages/bare.jpg").unlink()
    assert command(monkeypatch, "import-boxes", *words) == 0
    listed = (boxes / "to/ImageSets/Main/train.txt").read_text().split()
    assert listed == ["2007_08_15_12", "a", "b"]
    told = "1 annotations without a JPEG picture" in capsys.readouterr().out
    assert told == (words is XML)


def test_boxes_of_a_turned_picture_are_in_the_pixels_that_are_shown(boxes, monkeypatch, capsys):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save(boxes / "from/JPEGImages/a.jpg", exif=exif)
    (boxes / "list").write_text("a.jpg 5,45,30,60,0\n")
    assert command(monkeypatch, "import-boxes", *LIST) == 0
    assert "warning: list: 1 picture with a rotation tag; the boxes are" in capsys.readouterr().err
    width, height, objects, _, _ = read_annotation(boxes / "to/Annotations/a.xml")
    assert (width, height, objects.tolist()) == (40, 60, [[5, 45, 30, 60]])


@pytest.mark.parametrize("words", [LIST, XML])
def test_pictures_of_other_splits_are_not_imported(boxes, monkeypatch, words):
    """Those of --skip, and VOC 2012's copies of VOC 2007, some of which are for evaluation."""
    add(boxes, "from", "2007_000001", annotation(("dog", (11, 11, 30, 30), False)))
    with (boxes / "list").open("a") as listed:
        listed.write("x/2007_000001.jpg 10,10,30,30,0\n")
    (boxes / "others.txt").write_text("b -1\n\n")
    assert command(monkeypatch, "import-boxes", *words, "--skip", "others.txt") == 0
    assert (boxes / "to/ImageSets/Main/train.txt").read_text().split() == ["a"]


@pytest.mark.parametrize(
    ("line", "words", "code", "message"),
    [
        ("a.jpg 1,2,3", LIST, 3, "a.jpg: box '1,2,3'; expected x1,y1,x2,y2,class with a class of"),
        ("a.jpg 1,2,3,x,0", LIST, 3, "box '1,2,3,x,0'; expected"),
        ("a.jpg 1,2,inf,9,0", LIST, 3, "box '1,2,inf,9,0'; expected"),
        ("a.jpg 1,2,9,9,3", LIST, 3, "with a class of 0 to 2"),
        ("a.jpg 1,2,9,9,-1", LIST, 3, "with a class of 0 to 2"),
        ("gone.jpg 1,2,9,9,0", LIST, 3, "list: gone.jpg: no such picture in --pictures"),
        ("c.jpg 1,2,9,9,2", LIST, 3, "none of 1 annotated pictures has an object of a VOC class"),
        ("a.jpg", [*LIST[:-1], "gone"], 3, "gone: list: No such file"),
        ("a.jpg", [*LIST[:-1], "from/JPEGImages/a.jpg"], 3, "a.jpg: list: not a text file"),
        ("empty.jpg 1,2,9,9,0", LIST, 3, "empty.jpg: is empty"),
        ("x/a.jpg 1,2,9,9,0\ny/a.jpg 1,2,9,9,0", LIST, 3, "two lines are for pictures named a"),
        ("a.jpg", [LIST[0], "from", "twin", *LIST[2:]], 3, "have the same name"),
        ("a.jpg", [*LIST[:2], *LIST[4:]], 2, "--list needs --names"),
        ("a.jpg", [*XML, "--names", "names"], 2, "--names: VOC XML files contain"),
        ("a.jpg", [*XML[:2], "--xml", "cut", *XML[4:]], 3, "cut/a.xml: not readable as VOC XML"),
        ("a.jpg", [*XML[:2], "--xml", "odd", *XML[4:]], 3, "odd/a.xml: its encoding is not read"),
    ],
)
def test_boxes_that_cannot_be_imported(boxes, monkeypatch, capsys, line, words, code, message):
    (boxes / "list").write_text(line)
    (boxes / "from/JPEGImages/empty.jpg").touch()
    (boxes / "twin").mkdir()
    (boxes / "twin/a.jpg").touch()
    (boxes / "cut").mkdir()
    (boxes / "cut/a.xml").write_text("<annotation>")
    (boxes / "odd").mkdir()
    (boxes / "odd/a.xml").write_text('<?xml version="1.0" encoding="hex"?><annotation/>')
    assert command(monkeypatch, "import-boxes", *words) == code
    shown = capsys.readouterr().err
    assert message in shown and len(shown.splitlines()) == 1
    assert not (boxes / "to").exists()


@pytest.mark.parametrize(
    "path", ["ImageSets/Main/train.txt", "Annotations/b.xml", "JPEGImages/b.jpg"]
)
def test_an_import_writes_over_nothing(boxes, monkeypatch, capsys, path):
    kept = boxes / "to" / path
    kept.parent.mkdir(parents=True)
    kept.write_text("mine")
    assert command(monkeypatch, "import-boxes", *LIST) == 2
    assert f"{path} exists already" in capsys.readouterr().err
    assert [p for p in (boxes / "to").rglob("*") if p.is_file()] == [kept]
    assert kept.read_text() == "mine"


def test_an_import_that_was_killed_can_be_repeated(boxes, monkeypatch):
    """Whatever it left: the beginning of a file, and some files of those that it writes."""
    assert command(monkeypatch, "import-boxes", *LIST) == 0
    whole = {path: path.read_bytes() for path in (boxes / "to").rglob("*") if path.is_file()}
    (boxes / "to/ImageSets/Main/train.txt").unlink()
    (boxes / "to/JPEGImages/b.jpg").unlink()
    path = boxes / "to/Annotations/b.xml"
    path.write_bytes(path.read_bytes()[:40])
    assert command(monkeypatch, "import-boxes", *LIST) == 0
    assert {path: path.read_bytes() for path in whole} == whole
