"""Text files that grow entry by entry, and are complete after each entry."""

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
    """A text file with a head and a tail; a kill or a full disk between entries leaves it whole.

    The file is made with the first entry, or when it is closed.

    Args:
        path: The file; what it held is replaced.
        head, between, tail: Text before the first entry, between two, and behind the last.
    """

    def __init__(self, path: Path, head: str = "", between: str = "", tail: str = ""):
        self.path, self._between, self._tail = path, between, tail.encode()
        self._head, self._end, self._entries = head, 0, 0
        self._file: io.FileIO | None = None
        self._failed = False

    def add(self, text: str) -> None:
        """Append an entry.

        Raises:
            OSError: The disk is full, or the file cannot be made; what was there stays whole.
        """
        text = (self._between if self._entries else "") + text
        self._append(text)
        self._entries += 1

    def close(self) -> None:
        """Finish the file.

        Raises:
            OSError: It cannot be made; not where `add` has raised already.
        """
        if self._file is None and not self._failed:
            self._append("")
        if self._file is not None:
            file, self._file = self._file, None
            self._failed = True
            file.close()

    def _append(self, text: str) -> None:
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
        """What was there before a failed entry: its bytes lie there, only the tail is to be new."""
        if self._file is None:
            return
        try:
            self._file.truncate(self._end)
            self._file.seek(self._end)
            write_all(self._file, self._tail)
        except OSError:
            pass


def write_all(file: io.FileIO, data: bytes) -> None:
    """Write all, however little the system takes at once.

    Raises:
        OSError: The disk is full.
    """
    left = memoryview(data)
    while left:
        left = left[file.write(left) or 0 :]


def json_list(path: Path) -> EntryFile:
    """A JSON file: a list."""
    return EntryFile(path, "[\n", ",\n", "\n]\n")


def json_lines(path: Path) -> EntryFile:
    """A file with one JSON value a line."""
    return EntryFile(path)


def csv_table(path: Path) -> EntryFile:
    """A CSV file with a row an object."""
    return EntryFile(path, csv_line(COLUMNS))


def json_text(value: Any) -> str:
    """JSON on one line; what is no number, infinity among it, is refused."""
    return json.dumps(value, allow_nan=False)


def csv_line(values: Sequence[Any]) -> str:
    """One row of a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()


def csv_rows(entry: dict[str, Any]) -> str:
    """The rows of an entry, one an object; none where there is no object."""
    before = [entry[key] for key in ("file", "frame", "time", "T")]
    rows = []
    for detection in entry["detections"]:
        values = [detection["class"], detection["score"], *detection["xyxy"], detection.get("id")]
        rows.append(csv_line([*before, *values, entry["annotated"]]))
    return "".join(rows)
