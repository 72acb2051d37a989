"""Text files that are written entry by entry, and are valid after each entry."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

COLUMNS = (
    "file", "frame", "time", "T", "class", "score", "x1", "y1", "x2", "y2", "id", "annotated",
)  # fmt: skip


class EntryFile:
    """A text file with a header, entries and a footer.

    It is valid after every entry, even if the process is killed or the disk is full. The file is
    created with the first entry, or when it is closed.

    Args:
        path: The file. An existing file is replaced.
        head: Text before the first entry.
        between: Text between two entries.
        tail: Text after the last entry.
    """

    def __init__(self, path: Path, head: str = "", between: str = "", tail: str = ""):
        self.path, self._between, self._tail = path, between, tail.encode()
        self._head, self._end, self._entries = head, 0, 0
        self._file: io.FileIO | None = None
        self._failed = False

    def add(self, text: str) -> None:
        """Append an entry.

        Raises:
            OSError: The file cannot be created, or the disk is full. Earlier entries stay valid.
        """
        text = (self._between if self._entries else "") + text
        self._append(text)
        self._entries += 1

    def close(self) -> None:
        """Close the file. A file without entries is created now.

        Raises:
            OSError: The file cannot be created. Not raised if `add` has raised already.
        """
        if self._file is None and not self._failed:
            self._append("")
        if self._file is not None:
            file, self._file = self._file, None
            self._failed = True
            file.close()

    def _append(self, text: str) -> None:
        """Write a text and the footer at the end of the entries."""
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = io.FileIO(self.path, "wb")
                text = self._head + text
            data = text.encode(errors="backslashreplace")
            self._file.seek(self._end)
            write_all(self._file, data + self._tail)
            self._file.truncate()
            self._end += len(data)
        except OSError as error:
            self._failed = True
            self._restore()
            error.filename = str(self.path)
            raise

    def _restore(self) -> None:
        """After a failed entry, cut the file to the earlier entries and write the footer again."""
        if self._file is None:
            return
        try:
            self._file.truncate(self._end)
            self._file.seek(self._end)
            write_all(self._file, self._tail)
        except OSError:
            pass


def write_all(file: io.FileIO, data: bytes) -> None:
    """Write all bytes, in several calls if the system writes only a part at once.

    Raises:
        OSError: The data cannot be written, for example because the disk is full.
    """
    left = memoryview(data)
    while left:
        left = left[file.write(left) or 0 :]


def json_list(path: Path) -> EntryFile:
    """Make a JSON file with a list of entries."""
    return EntryFile(path, "[\n", ",\n", "\n]\n")


def json_lines(path: Path) -> EntryFile:
    """Make a file with one JSON value on each line."""
    return EntryFile(path)


def csv_table(path: Path) -> EntryFile:
    """Make a CSV file with one row for each object."""
    return EntryFile(path, csv_line(COLUMNS))


def json_text(value: Any) -> str:
    """Convert a value to JSON on one line. NaN and infinity raise ValueError."""
    return json.dumps(value, allow_nan=False)


def csv_line(values: Sequence[Any]) -> str:
    """Convert values to one row of a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()


def csv_rows(entry: dict[str, Any]) -> str:
    """Convert an entry (see `outputs.entry_of`) to CSV rows, one for each object."""
    before = [entry[key] for key in ("file", "frame", "time", "T")]
    rows = []
    for detection in entry["detections"]:
        values = [detection["class"], detection["score"], *detection["xyxy"], detection.get("id")]
        rows.append(csv_line([*before, *values, entry["annotated"]]))
    return "".join(rows)
