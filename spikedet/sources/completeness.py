"""Check whether a video file is complete. The sizes of its parts are stored in the file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

PACKET = 188  # bytes of one of MPEG-TS


def is_complete(path: Path) -> bool | None:
    """Whether a file is as long as the sizes of its parts say.

    Args:
        path: MP4, MOV, AVI, Matroska, WebM or MPEG-TS file. Packets of MPEG-TS have a fixed size.

    Returns:
        False if the file is cut short, True if it is complete, None if its format does not tell.
    """
    end = os.path.getsize(path)
    with path.open("rb") as file:
        start = file.read(12)
        file.seek(0)
        if start[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
            return _boxes(file, end)
        if start[:4] == b"RIFF":
            return _chunks(file, end)
        if start[:4] == b"\x1aE\xdf\xa3":
            return _elements(file, end)
        file.seek(PACKET)
        if start[:1] == b"G" and file.read(1) == b"G" and end % PACKET:
            return False
    return None


def lacks_index(path: Path) -> bool:
    """Whether an MP4 or MOV file ends before its index. Such a file cannot be read at all."""
    end = os.path.getsize(path)
    with path.open("rb") as file:
        if file.read(8)[4:] != b"ftyp":
            return False
        return b"moov" not in [name for name, _ in _boxes_of(file, end)]


def complete_length(path: Path) -> int:
    """Number of bytes up to the end of the last complete fragment of a fragmented MP4, or 0."""
    end, keep = os.path.getsize(path), 0
    with path.open("rb") as file:
        for name, after in _boxes_of(file, end):
            if after <= end and name == b"mdat":  # the pictures, behind what tells of them
                keep = after
    return keep


def _boxes(file: BinaryIO, end: int) -> bool:
    """Whether all boxes of an MP4 or MOV file end within the file."""
    return all(after <= end for _, after in _boxes_of(file, end))


def _boxes_of(file: BinaryIO, end: int) -> Iterator[tuple[bytes, int]]:
    """Yield the name and the end position of each box of an MP4 or MOV file."""
    place = 0
    while place + 8 <= end:
        file.seek(place)
        head = file.read(16)
        size, name = int.from_bytes(head[:4], "big"), head[4:8]
        if size == 1:
            size = int.from_bytes(head[8:16], "big")
        if size == 0:  # to the end of the file
            size = end - place
        if size < 8:  # no box: something else lies behind the last one
            return
        place += size
        yield name, place


def _chunks(file: BinaryIO, end: int) -> bool:
    """Check an AVI file: chunks of a RIFF header, a size and data, up to one gigabyte each."""
    place = 0
    while place + 8 <= end:
        file.seek(place)
        head = file.read(8)
        if head[:4] != b"RIFF":
            return True
        size = int.from_bytes(head[4:], "little")
        place += 8 + size + size % 2
    return place <= end + 1


def _elements(file: BinaryIO, end: int) -> bool | None:
    """Check a Matroska or WebM file: an element with the header, and one with the rest."""
    place = 0
    while place < end:
        file.seek(place)
        name, after = _number(file, place)
        size, after = _number(file, after)
        if name is None or size is None:
            return None
        place = after + size
    return place <= end


def _number(file: BinaryIO, place: int) -> tuple[int | None, int]:
    """Read an EBML number of variable length. Returns it (None if unknown) and its end position."""
    file.seek(place)
    first = file.read(1)
    if not first or not first[0]:
        return None, place
    length = 9 - first[0].bit_length()
    value = first[0] & ((1 << (8 - length)) - 1)
    rest = file.read(length - 1)
    number = int.from_bytes(bytes([value]) + rest, "big")
    unknown = number == (1 << (7 * length)) - 1
    return (None if unknown else number), place + length
