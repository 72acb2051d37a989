"""Read and write files. After an interrupted write, the file is either the old or the new one."""

from __future__ import annotations

import contextlib
import csv
import io
import math
import os
import re
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from spikedet.errors import DataError, UsageError, shorten

try:
    import fcntl
except ImportError:  # Windows, which has no such locks
    fcntl = None  # type: ignore[assignment]

TEMPORARY = 200  # bytes of a name that a temporary name keeps; most file systems allow 255 of one
LONGEST_NAME = 255  # bytes of the name of a file, on most file systems
MOST_VALUES = 1_000_000  # of a YAML file, where aliases count as often as they are used
ENDING = ".spikedet-part"  # of temporary names
STALE = 3600  # seconds without a write after which a temporary file that nobody locks is left over
_TEMPORARY_NAME = re.compile(r"\..*\.[a-z0-9_]{8}" + re.escape(ENDING))
_cleaned: set[str] = set()  # folders in which this process looked for what was left over


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the keys and values of a YAML file.

    Raises:
        UsageError: The file is missing, is not YAML with keys and values, or is too large.
    """
    try:
        content = parse_yaml(Path(path).read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; see configs") from None
    except TooManyValues as error:
        raise UsageError(f"{path}: {error}") from None
    if content is None:
        raise UsageError(f"{path}: not readable as YAML with keys and values; see configs")
    return content


class TooManyValues(ValueError):
    """A YAML file has more than `MOST_VALUES` values. The message is a sentence."""


def parse_yaml(data: bytes, *, texts: bool = False) -> dict[str, Any] | None:
    """Read the keys and values of YAML.

    Aliases are counted as often as they are used. A few of them, each of the one before, would
    stand for more values than any program can go through.

    Args:
        data: The content of a file.
        texts: Keep all values as texts.

    Returns:
        Keys and values. None if it is not YAML with keys and values.

    Raises:
        TooManyValues: It has more than `MOST_VALUES` values, or a value contains itself.
    """
    import yaml

    try:
        loader = yaml.BaseLoader(data) if texts else yaml.SafeLoader(data)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if _count_values(node, {}) > MOST_VALUES:
                raise TooManyValues(
                    f"has more than {MOST_VALUES:,} values, counted with aliases; expected fewer"
                )
            content = loader.construct_document(node)
        finally:
            loader.dispose()
    except TooManyValues:
        raise
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _count_values(node: Any, counts: dict[int, float]) -> float:
    """The number of values in a YAML node. It is infinite if the node contains itself."""
    if isinstance(node.value, str):
        return 1
    if id(node) not in counts:
        counts[id(node)] = math.inf  # for a node inside itself
        parts = chain.from_iterable(
            each if isinstance(each, tuple) else [each] for each in node.value
        )
        counts[id(node)] = 1 + sum(_count_values(part, counts) for part in parts)
    return counts[id(node)]


def read_lines(path: Path, kind: str = "list") -> list[str]:
    """Read the lines of a text file, without spaces at their ends.

    Args:
        path: The file.
        kind: Kind of the file, for error messages.

    Raises:
        DataError: The file is missing, or is not a text file.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")  # a byte-order mark is no text
    except OSError as error:
        raise DataError(f"{path}: {kind}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: {kind}: not a text file; expected one entry per line") from None
    return [line.strip() for line in text.splitlines()]


def expect_writable(path: Path) -> Path:
    """Check that a file can be written, before the work for it starts.

    Returns:
        The path.

    Raises:
        UsageError: The path is a folder, a pipe or a device, or no file can be written there.
    """
    _expect_room(path, _target(path).absolute().parent)
    return path


def _target(path: Path) -> Path:
    """The file that is written for `path`. It differs from `path` if this is a link.

    Raises:
        UsageError: It exists, but is not a regular file.
    """
    if os.path.isdir(path):
        raise UsageError(f"{shorten(path)}: is a folder; expected the name of a file to write")
    if os.path.exists(path) and not os.path.isfile(path):
        raise UsageError(f"{shorten(path)}: is a pipe or a device; expected a file to write")
    return Path(os.path.realpath(path)) if os.path.islink(path) else path


def expect_folder(path: Path) -> Path:
    """Check that files can be written to a folder, before the work for them starts.

    Returns:
        The path.

    Raises:
        UsageError: The path is a file, or no file can be written to the folder.
    """
    _expect_room(path, path.absolute())
    return path


def _expect_room(path: Path, folder: Path) -> None:
    """Check that a file can be created in a folder, by creating one without a name."""
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in path.parts):
        raise UsageError(
            f"{shorten(path)}: the name has more than {LONGEST_NAME} bytes; choose a shorter one"
        )
    while not os.path.lexists(folder):
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            return
    except NotADirectoryError:
        why = ""
    except OSError as error:  # `os.access` says that root may write to /proc
        why = f" ({error.strerror.lower()})" if error.strerror else ""
    raise UsageError(
        f"{shorten(path)}: {shorten(folder)} is not a folder that can be written to{why}"
    )


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path`: write a temporary file, flush it to disk, and rename it.

    A link stays: the file that it leads to is written. An existing file keeps its permissions. The
    first write to a folder deletes temporary files that killed processes left there.

    Raises:
        OSError: The folder or the file cannot be written. The error names `path`.
        UsageError: The path is a folder, a pipe or a device.
    """
    path = Path(path)
    target = _target(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with naming(path):
        _delete_leftovers(target.parent)
        with _temporary(target) as (file, temporary):
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(temporary, _mode_of(target))
            if fcntl is None:  # where no open file can be renamed
                file.close()
            os.replace(temporary, target)


def _mode_of(path: Path) -> int:
    """The permissions of a file, or those that a new file gets."""
    with contextlib.suppress(FileNotFoundError):
        return stat.S_IMODE(os.stat(path).st_mode)
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add `path` to every `OSError` inside the block. The error of a full disk has no name.

    Raises:
        OSError: The error with the name.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename, error.filename2 = str(path), None
        raise


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[tuple[BinaryIO, str]]:
    """Create a temporary file next to `path`, locked while open and deleted after an error."""
    begins = os.fsdecode(os.fsencode(path.name)[:TEMPORARY])
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{begins}.", suffix=ENDING)
        try:
            with open(handle, "wb") as file:
                if not _lock(handle, wait=True) or _is(name, handle):  # else it was taken away
                    yield file, name
                    return
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
            raise


def _lock(handle: int, *, wait: bool = False) -> bool:
    """Lock an open file until it is closed. False if it cannot be locked."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # somebody has it, or the file system knows no locks
        return False
    return True


def _is(name: str, handle: int) -> bool:
    """Whether a name still belongs to an open file."""
    try:
        return os.path.samestat(os.stat(name, follow_symlinks=False), os.fstat(handle))
    except FileNotFoundError:
        return False


def _delete_leftovers(folder: Path) -> None:
    """Delete temporary files of killed processes, once per process and folder.

    Files of running processes are locked, or were changed within the last `STALE` seconds.
    """
    place = os.path.realpath(folder)
    if fcntl is None or place in _cleaned:
        return
    _cleaned.add(place)
    with contextlib.suppress(OSError):
        for name in filter(_TEMPORARY_NAME.fullmatch, os.listdir(place)):
            path = os.path.join(place, name)
            with contextlib.suppress(OSError):
                handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                try:
                    old = time.time() - os.fstat(handle).st_mtime > STALE
                    if old and _lock(handle) and _is(path, handle):
                        os.unlink(path)
                finally:
                    os.close(handle)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> None:
    """Write rows as CSV, atomically. The columns are all keys of the rows.

    Rows may have different keys, for example if an earlier version wrote some of them.

    Args:
        path: The file.
        rows: The rows. There may be none.
        columns: Columns to put first. They are written even without rows.

    Raises:
        OSError: See `write_atomic`.
    """
    text = io.StringIO()
    table = csv.DictWriter(text, list(dict.fromkeys(chain(columns, *rows))), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_atomic(path, text.getvalue().encode())
