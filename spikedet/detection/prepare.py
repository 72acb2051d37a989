"""Download, verify and check the official PASCAL VOC archives."""

from __future__ import annotations

import hashlib
import http.client
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

from spikedet.data.formats.voc import files_of, read_annotation, read_ids
from spikedet.errors import DataError, message_of, shorten

SERVER = "https://thor.robots.ox.ac.uk/pascal/VOC"
BLOCK = 1 << 20


@dataclass(frozen=True)
class Archive:
    """One official archive.

    Attributes:
        path: Path on the server.
        md5: Checksum, as published in torchvision.
        dataset, splits: The data set and the splits in the archive.
    """

    path: str
    md5: str
    dataset: str
    splits: tuple[str, ...]


ARCHIVES = {
    "2007": (
        Archive(
            "voc2007/VOCtrainval_06-Nov-2007.tar",
            "c52e279531787c972589f7e41ab4ae64",
            "VOC2007",
            ("train", "val", "trainval"),
        ),
        Archive(
            "voc2007/VOCtest_06-Nov-2007.tar",
            "b6e924de25625d8de591ea690078ad9f",
            "VOC2007",
            ("test",),
        ),
    ),
    "2012": (
        Archive(
            "voc2012/VOCtrainval_11-May-2012.tar",
            "6cd6e144f989b92b3379bac3b3de84fd",
            "VOC2012",
            ("train", "val", "trainval"),
        ),
    ),
}


def download(
    url: str, path: Path, md5: str, on_bytes: Callable[[int, int | None], None] | None = None
) -> None:
    """Download a file. If an earlier download stopped, continue it.

    The downloaded part is kept in `<path>.part` until the file is complete and its checksum is
    correct. If there is already a file at `path`, only its checksum is checked.

    Args:
        url: Address of the file.
        path: Path of the complete file.
        md5: Expected checksum.
        on_bytes: Function that is called with the number of bytes so far and the total size (None
            if it is not known).

    Raises:
        DataError: The server cannot be reached or stops early (the part is kept), or the checksum
            differs (the part is deleted, so that the next download starts from the beginning).
    """
    if path.is_file():
        if file_md5(path) != md5:
            raise DataError(
                f"{path}: the file does not have the checksum {md5}; move it away to "
                "download it again"
            )
        return
    part = path.with_name(path.name + ".part")
    try:
        _receive(url, part, on_bytes)
    except urllib.error.HTTPError as error:
        raise DataError(f"{url}: the server answers {error.code} {error.reason}") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise DataError(
            f"{url}: cannot be downloaded ({reason}); run this command again to continue"
        ) from None
    if file_md5(part) != md5:
        part.unlink()
        raise DataError(
            f"{url}: the download does not have the checksum {md5}; run this command again"
        )
    part.replace(path)


def _receive(url: str, part: Path, on_bytes: Callable[[int, int | None], None] | None) -> None:
    """Download the rest of a file, and append it to `part`."""
    part.parent.mkdir(parents=True, exist_ok=True)
    done = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        answer = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == 416 and done:  # nothing is left to send
            return
        raise
    with answer:
        if answer.status != 206:
            done = 0  # the server sends everything again
        length = answer.headers.get("Content-Length")
        size = done + int(length) if length else None
        with part.open("ab" if done else "wb") as file:
            while block := answer.read(BLOCK):
                file.write(block)
                done += len(block)
                if on_bytes:
                    on_bytes(done, size)
    # a connection that closes early looks like the end of the file
    if size is not None and done < size:
        raise ConnectionError(f"the connection closed after {done} of {size} bytes")


def file_md5(path: Path) -> str:
    """MD5 of a file, read in blocks."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar file. Nothing is written outside `folder`, and no existing file is replaced.

    Each file is written under a temporary name and then moved, so that an interruption leaves no
    partial file.

    Raises:
        DataError: The file is not a tar file, contains links or paths outside of `folder`, or the
            disk is full.
    """
    try:
        with (
            tarfile.open(archive) as tar,
            tempfile.TemporaryDirectory(dir=folder, prefix=".unpack-") as aside,
        ):
            files = [member for member in tar.getmembers() if not member.isdir()]
            for member in files:
                _expect_inside(member)
            for member in files:
                target, part = folder / member.name, Path(aside) / "part"
                content = tar.extractfile(member)
                if target.exists() or content is None:
                    continue
                with content, part.open("wb") as file:
                    shutil.copyfileobj(content, file)
                target.parent.mkdir(parents=True, exist_ok=True)
                part.replace(target)
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{archive}: cannot be unpacked ({message_of(error)})") from None


def _expect_inside(member: tarfile.TarInfo) -> None:
    """Check that a member is a plain file or folder inside the target. Python 3.10 does not check.

    Raises:
        tarfile.TarError: It is not. Old versions of Python do not have a more specific error.
    """
    for kind in (PurePosixPath, PureWindowsPath):
        path = kind(member.name)
        if not member.isfile() or path.anchor or ".." in path.parts:
            raise tarfile.TarError(f"{shorten(member.name)}: no plain file inside of the folder")


class SplitCheck(NamedTuple):
    """The result of the check of a split.

    Attributes:
        listed: Number of pictures in the split file, without copies of VOC 2007 pictures.
        pictures, annotations: Number of these pictures, and of readable annotations, that exist.
        problems: One sentence for each problem.
    """

    listed: int
    pictures: int
    annotations: int
    problems: list[str]


def check_split(folder: Path, split: str) -> SplitCheck:
    """Read every annotation of a split, and check that every picture exists.

    Args:
        folder: Folder of the data set, such as `VOCdevkit/VOC2007`.
        split: Name of the split, such as `train`.
    """
    try:
        ids = read_ids(folder, split)
    except DataError as error:
        return SplitCheck(0, 0, 0, [str(error)])
    missing, damaged = [], []
    files = files_of(folder)
    for name in ids:
        picture = folder / "JPEGImages" / files.get(name, f"{name}.jpg")
        if not picture.is_file():
            missing.append(f"{picture}: picture is missing")
        try:
            read_annotation(folder / "Annotations" / f"{name}.xml")
        except DataError as error:
            damaged.append(str(error))
    count = len(ids)
    return SplitCheck(count, count - len(missing), count - len(damaged), missing + damaged)
