"""Reading what users write; writing so that a kill leaves the old file or the new, never half."""

from __future__ import annotations

import csv
import io
import os
import tempfile
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from spikedet.errors import DataError, UsageError

TEMPORARY = 200  # bytes of a name that a temporary name keeps; most file systems allow 255 of one


def read_yaml(path: Path) -> dict[str, Any]:
    """Keys and values of a YAML file.

    Raises:
        UsageError: No such file, or not of that form.
    """
    import yaml

    try:
        found = yaml.safe_load(Path(path).read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; see configs") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UsageError(f"{path}: not readable as YAML with keys and values; see configs")
    return found


def read_lines(path: Path, what: str = "list") -> list[str]:
    """Lines of a text file, without blanks at their ends.

    Args:
        path: The file.
        what: Errors call it so.

    Raises:
        DataError: No such file, or not text.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: {what}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: {what}: not text; expected one entry a line") from None
    return [line.strip() for line in text.splitlines()]


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path`: a temporary file beside it, flushed to disk, then renamed.

    Raises:
        OSError: The folder cannot be created, or the file written; it names `path`, whatever call
            failed, as that of a full disk names nothing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    begins = os.fsdecode(os.fsencode(path.name)[:TEMPORARY])
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{begins}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            os.unlink(temporary)
        if isinstance(error, OSError) and error.errno is not None:
            error.filename, error.filename2 = str(path), None
        raise


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows under the names of all their columns, atomically.

    A run that an earlier version began may have rows with fewer.

    Raises:
        OSError: As `write_atomic`.
    """
    text = io.StringIO()
    table = csv.DictWriter(text, list(dict.fromkeys(chain(*rows))), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_atomic(path, text.getvalue().encode())
