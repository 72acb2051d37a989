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
    """What `read` makes of every file, from the cache where it is the same file, unchanged.

    That is so where its times, size and number in the file system are; the time at which its
    content or attributes were last changed among them, as copies may keep that of the content.

    Args:
        paths: The files.
        read: Gives what JSON can hold; a `DataError` is kept in its place, and not in the cache.
        name: Of the cache file, for people.
        place: The folder that the files belong to, which tells it from those of others.
        cache: Where it is; `cache_folder()` by default.

    Returns:
        For each file the value, or the error.
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
    """What `_store` wrote; nothing where anything else is there."""
    try:
        data = path.read_bytes() if path.is_file() else b""
        mark, text = data[: len(_mark(b""))], data[len(_mark(b"")) :]
        return json.loads(text) if mark == _mark(text) else {}
    except (OSError, ValueError):
        return {}


def _mark(text: bytes) -> bytes:
    """A first line that damaged entries, or those of another version, do not have."""
    return f"{VERSION} {hashlib.sha256(text).hexdigest()}\n".encode()
