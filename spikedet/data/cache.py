"""A cache for data read from many files. It is valid while the files do not change."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from spikedet.errors import DataError
from spikedet.files import write_atomic

VERSION = 4


def cache_folder() -> Path:
    """Folder for derived files: `$SPIKEDET_CACHE`, else `$XDG_CACHE_HOME/spikedet`."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("SPIKEDET_CACHE") or base / "spikedet")


def read_each(
    paths: Sequence[Path],
    read: Callable[[Path], Any],
    name: str,
    place: Path,
    cache: Path | None = None,
) -> list[Any]:
    """Apply `read` to every file. Results of unchanged files come from a cache.

    A file is unchanged if its modification time, its status change time, its size and its inode
    number are equal. The status change time is needed because copies may keep the modification
    time.

    Args:
        paths: The files.
        read: Function of a path. Its result must be storable as JSON. A `DataError` is returned in
            place of the result, and is not cached.
        name: Start of the name of the cache file.
        place: Folder that the files belong to. Each folder has its own cache file.
        cache: Folder of the cache. None: `cache_folder()`.

    Returns:
        For each file the result, or the error.
    """
    key = hashlib.sha256(f"{os.path.realpath(place)} {name}".encode(errors="replace")).hexdigest()
    stored = (cache or cache_folder()) / f"{name[:80]}-{key[:12]}.json"
    known = _load(stored)
    results, fresh = [], {}
    for path in paths:
        key = str(path)
        try:
            status = os.stat(key)
            stamp = [status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino]
        except (OSError, ValueError):
            stamp = None
        entry = known.get(key)
        if entry is None or stamp is None or entry[0] != stamp:
            try:
                entry = [stamp, read(path)]
            except DataError as error:
                results.append(error)
                continue
        fresh[key] = entry
        results.append(entry[1])
    if any(known.get(name) is not entry for name, entry in fresh.items()):
        with contextlib.suppress(OSError, UnicodeError):  # a read-only home: they are read again
            _store(stored, {**known, **fresh})
    return results


def _store(path: Path, entries: dict[str, Any]) -> None:
    text = json.dumps(entries).encode()
    write_atomic(path, _mark(text) + text)


def _load(path: Path) -> dict[str, Any]:
    """Read a file of `_store`. Empty if the file is missing, damaged or of another version."""
    try:
        data = path.read_bytes() if path.is_file() else b""
        mark, text = data[: len(_mark(b""))], data[len(_mark(b"")) :]
        return json.loads(text) if mark == _mark(text) else {}
    except (OSError, ValueError):
        return {}


def _mark(text: bytes) -> bytes:
    """The first line of a cache file: its version and a checksum."""
    return f"{VERSION} {hashlib.sha256(text).hexdigest()}\n".encode()
