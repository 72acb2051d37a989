"""The library of compiled kernels: of the `events` engine, and of neurons in training.

The installation builds the library if there is a C++ compiler. If the library is missing, or has
another version than this file, it is built once in the user's cache folder. Its name depends on the
source code and the compiler.

There are two environment variables. `SPIKEDET_NO_KERNELS` switches the kernels off.
`SPIKEDET_KERNELS` names the kernels to use instead of the fastest.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
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

from spikedet.errors import UsageError, list_choices, message_of

log = logging.getLogger(__name__)
VERSION = 14  # version of the interface, `sd_version` in the library
SOURCES = ("events.cpp", "events.h", "kernels.inc", "matrix.inc", "dense.h", "dense.inc")
FLAGS = (
    "-std=c++17",
    "-O3",
    "-ffp-contract=off",
    "-fno-trapping-math",
    "-fPIC",
    "-shared",
    "-pthread",
)
CHOICE = "SPIKEDET_KERNELS"  # environment variable with the name of the kernels
HINT = (
    "install a C++ compiler (g++ or clang++) for the `events` engine, which is several times "
    "faster, and for faster training"
)


class NoLibrary(Exception):
    """There is no library of kernels. The message says why, and what would help."""


def library() -> ctypes.CDLL:
    """The library of kernels. It is built if needed. What was found holds for the whole process.

    Raises:
        NoLibrary: There is no library, and it cannot be built.
    """
    found = found_once()
    if isinstance(found, str):
        raise NoLibrary(found)
    return found


@cache
def found_once() -> ctypes.CDLL | str:
    """The library, or why there is none."""
    try:
        return _found()
    except NoLibrary as error:
        log.info("neurons are computed by torch, which is slower: %s", error)
        return str(error)


def _found() -> ctypes.CDLL:
    if os.environ.get("SPIKEDET_NO_KERNELS"):
        raise NoLibrary("SPIKEDET_NO_KERNELS is set")
    for path in sorted(Path(__file__).parent.glob("_compiled*.so")):
        loaded = _opened(path)
        if loaded is not None:
            return loaded
    loaded = _opened(_built())
    if loaded is None:
        raise NoLibrary("the compiled kernels cannot be loaded")
    return loaded


def _opened(path: Path) -> ctypes.CDLL | None:
    """Open a library. None if it is damaged or of another version."""
    try:
        loaded = ctypes.CDLL(str(path))
        if loaded.sd_version() != VERSION:
            return None
        loaded.sd_add.argtypes = ctypes.c_int32, ctypes.c_int64
    except (OSError, AttributeError):
        return None
    loaded.sd_kernels_name.restype = ctypes.c_char_p
    loaded.sd_add.restype = loaded.sd_dense_items.restype = ctypes.c_int64
    loaded.sd_scratch_bytes.restype = ctypes.c_int64
    loaded.sd_run_dense.argtypes = (
        ctypes.c_int32, ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_void_p,
    )  # fmt: skip
    return loaded


def _built() -> Path:
    """The library in the user's cache folder. It is built if it is missing.

    Raises:
        NoLibrary: There is no compiler or no folder, or the compilation fails.
    """
    folder = Path(__file__).parent / "csrc"
    if sys.platform == "win32":
        raise NoLibrary("kernels are not built on Windows")
    compiler = os.environ.get("CXX") or next(
        (path for name in ("g++", "clang++", "c++") if (path := shutil.which(name))), None
    )
    if compiler is None:
        raise NoLibrary(f"no C++ compiler; {HINT}")
    try:
        content = b"".join((folder / name).read_bytes() for name in SOURCES)
    except OSError as error:
        raise NoLibrary(f"the source code of the kernels is missing ({error})") from None
    made_of = content + repr((compiler, FLAGS, platform.machine())).encode()
    name = f"events-{hashlib.sha256(made_of).hexdigest()[:16]}.so"
    place = _cache()
    if not (place / name).is_file():
        _compile(compiler, folder / SOURCES[0], place, name)
    return place / name


def _cache() -> Path:
    """The cache folder. Only the user can write to it.

    Raises:
        NoLibrary: There is no such folder.
    """
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        raise NoLibrary("the kernels cannot be stored: this user has no home folder") from None
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
    log.warning("building the compiled kernels, which takes about a minute")
    try:
        with tempfile.TemporaryDirectory(dir=place) as folder:
            built = Path(folder) / name
            _run([compiler, *FLAGS, str(source), "-o", str(built)])
            os.replace(built, place / name)
    except OSError as error:
        raise NoLibrary(f"{place}: the kernels cannot be stored here ({error.strerror})") from None


def _run(command: list[str]) -> None:
    compiler = command[0]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoLibrary(f"{compiler} cannot be run ({message_of(error)}); {HINT}") from None
    if done.returncode:
        first = next((line for line in done.stderr.splitlines() if "error" in line), "")
        raise NoLibrary(f"{compiler} fails ({first or done.returncode}); {HINT}")


@cache
def threads_of_torch() -> int:
    """Address of the function that runs work on torch's own threads; 0 if there is none.

    After each operation, torch's threads wait for work in a busy loop for some milliseconds.
    Additional threads would compete with them for the processor.
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
        NoLibrary: See `library`.
    """
    loaded = library()
    return [loaded.sd_kernels_name(i).decode() for i in range(loaded.sd_kernels_number())]


def expect_kernels(name: str, source: str = "kernels") -> None:
    """Check that this machine can run these kernels.

    Args:
        name: Name of the kernels.
        source: Where the name comes from, for the message.

    Raises:
        NoLibrary: See `library`.
        UsageError: There are no such kernels. The message lists the kernels.
    """
    if name not in kernels():
        raise UsageError(f"{source} {name!r}; this machine has {list_choices(name, kernels())}")


def chosen() -> str:
    """Name of the kernels to use: those of `SPIKEDET_KERNELS`, or the fastest if it is not set.

    Raises:
        NoLibrary: See `library`.
        UsageError: This machine cannot run the kernels of `SPIKEDET_KERNELS`.
    """
    name = os.environ.get(CHOICE)
    if not name:
        return kernels()[0]
    expect_kernels(name, CHOICE)
    return name


@contextmanager
def choosing(name: str | None) -> Iterator[None]:
    """Use these kernels inside the `with` block, and in processes started there.

    Args:
        name: Name of the kernels. None: do not change the choice.

    Raises:
        NoLibrary: See `library`.
        UsageError: This machine cannot run the kernels.
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
