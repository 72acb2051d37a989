"""The compiled kernels: the library that installation built, or one built on first use.

Installation builds it where there is a C++ compiler and does without it otherwise. Where it is
missing, or of another version than this file, it is built once into the user's cache, under a name
that says what it was built from.

Two variables of the environment: `SPIKEDET_NO_KERNELS` switches kernels off, `SPIKEDET_KERNELS`
names those that run in place of the fastest.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from spikedet.errors import UsageError, among, said

VERSION = 5  # of what caller and library agree on, `sd_version`
SOURCES = ("events.cpp", "kernels.inc", "events.h")
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-pthread")
CHOICE = "SPIKEDET_KERNELS"  # variable that names the kernels
HINT = (
    "install a C++ compiler (g++ or clang++) for the `events` engine, which is several times faster"
)


class NoLibrary(Exception):
    """There is no library of kernels; says why and what would help."""


@cache
def library() -> ctypes.CDLL:
    """The library of kernels.

    Raises:
        NoLibrary: None is built, and none can be.
    """
    if os.environ.get("SPIKEDET_NO_KERNELS"):
        raise NoLibrary("SPIKEDET_NO_KERNELS is set")
    for path in sorted(Path(__file__).parent.glob("_events*.so")):
        loaded = _opened(path)
        if loaded is not None:
            return loaded
    loaded = _opened(_built())
    if loaded is None:
        raise NoLibrary("the compiled kernels cannot be loaded")
    return loaded


def _opened(path: Path) -> ctypes.CDLL | None:
    """A library, unless it is damaged or of another version."""
    try:
        loaded = ctypes.CDLL(str(path))
        if loaded.sd_version() != VERSION:
            return None
        loaded.sd_add.argtypes = ctypes.c_int32, ctypes.c_int64
    except (OSError, AttributeError):
        return None
    loaded.sd_kernels_name.restype = ctypes.c_char_p
    loaded.sd_add.restype = ctypes.c_int64
    return loaded


def _built() -> Path:
    """The library of the user's cache, built if it is not there.

    Raises:
        NoLibrary: No compiler, no place, or it fails.
    """
    folder = Path(__file__).parent / "csrc"
    if sys.platform == "win32":
        raise NoLibrary("kernels are not built on Windows")
    compiler = os.environ.get("CXX") or next(
        (path for name in ("g++", "clang++", "c++") if (path := shutil.which(name))), None
    )
    if compiler is None:
        raise NoLibrary(f"no C++ compiler; {HINT}")
    content = b"".join((folder / name).read_bytes() for name in SOURCES)
    made_of = content + repr((compiler, FLAGS, platform.machine())).encode()
    name = f"events-{hashlib.sha256(made_of).hexdigest()[:16]}.so"
    place = _cache()
    if not (place / name).is_file():
        _compile(compiler, folder / SOURCES[0], place, name)
    return place / name


def _cache() -> Path:
    """A folder that nobody but the user can write to.

    Raises:
        NoLibrary: There is none.
    """
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    place = Path(home) / "spikedet"
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = place.stat()
    except OSError as error:
        raise NoLibrary(f"{place}: the kernels cannot be stored here ({error.strerror})") from None
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise NoLibrary(
            f"{place}: other users can write to this folder, so no kernels are loaded from it"
        )
    return place


def _compile(compiler: str, source: Path, place: Path, name: str) -> None:
    with tempfile.TemporaryDirectory(dir=place) as folder:
        built = Path(folder) / name
        command = [compiler, *FLAGS, str(source), "-o", str(built)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NoLibrary(f"{compiler} cannot be run ({said(error)}); {HINT}") from None
        if done.returncode:
            first = next((line for line in done.stderr.splitlines() if "error" in line), "")
            raise NoLibrary(f"{compiler} fails ({first or done.returncode}); {HINT}")
        os.replace(built, place / name)


@cache
def threads_of_torch() -> int:
    """Address of the function that gives work to torch's own threads; 0 where there is none.

    Those of torch wait for work at full speed for some milliseconds after each of its operations,
    and threads beside them would have to share the processor with that.
    """
    import torch

    for path in Path(torch.__file__).parent.glob("lib/libgomp*.so*"):
        try:
            runtime = ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
            return ctypes.cast(runtime.GOMP_parallel, ctypes.c_void_p).value or 0
        except (OSError, AttributeError):
            continue
    return 0


def kernels() -> list[str]:
    """Names of the kernels that this machine can run, the fastest first.

    Raises:
        NoLibrary: As `library`.
    """
    loaded = library()
    return [loaded.sd_kernels_name(i).decode() for i in range(loaded.sd_kernels_number())]


def expect_kernels(name: str, said: str = "kernels") -> None:
    """Refuse what are no kernels of this machine.

    Args:
        name: Of kernels.
        said: What the sentence calls them.

    Raises:
        NoLibrary: As `library`.
        UsageError: Says which there are.
    """
    if name not in kernels():
        raise UsageError(f"{said} {name!r}; this machine has {among(name, kernels())}")


def chosen() -> str:
    """Name of the kernels that run: those of `SPIKEDET_KERNELS`, the fastest where it is not set.

    Raises:
        NoLibrary: As `library`.
        UsageError: It names none that this machine can run.
    """
    name = os.environ.get(CHOICE)
    if not name:
        return kernels()[0]
    expect_kernels(name, CHOICE)
    return name


@contextmanager
def choosing(name: str | None) -> Iterator[None]:
    """Let some kernels run in the `with` block, in processes that it starts as well.

    Args:
        name: Of the kernels; None leaves the choice as it is.

    Raises:
        NoLibrary: As `library`.
        UsageError: This machine cannot run them.
    """
    before = os.environ.get(CHOICE)
    if name is not None:
        expect_kernels(name)
        os.environ[CHOICE] = name
    try:
        yield
    finally:
        os.environ.pop(CHOICE, None)
        if before is not None:
            os.environ[CHOICE] = before
