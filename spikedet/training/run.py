"""The folder of a training run: its lock, its state, and what a resumed run must have alike."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from spikedet.checkpoint import Checkpoint, load
from spikedet.errors import TrainingError
from spikedet.files import fcntl, write_atomic
from spikedet.settings import TrainingSettings

log = logging.getLogger(__name__)
# What a resumed run may have otherwise.
FREE = ("epochs", "rate", "decay", "device", "workers", "cache", "tensorboard")


def epochs_done(folder: Path) -> tuple[int, int]:
    """The number of finished and of wanted epochs of the run in `folder`; (0, 0) without a run.

    Raises:
        TrainingError: The state file is damaged.
    """
    path = Path(folder) / "state.pt"
    if not path.is_file():
        return 0, 0
    state = read_state(path, "epoch", "epochs")
    return state["epoch"] + 1, state["epochs"]


def expect_fresh(folder: Path, resume: bool) -> None:
    """Check that no run would be overwritten, and that there is a run if `resume` is True.

    A run that was interrupted in its first epoch may be started again or resumed.

    Raises:
        TrainingError: The folder has a run, or no run to resume. The message says what to do.
    """
    state, *weights = (
        Path(folder) / name for name in ("state.pt", "best.safetensors", "last.safetensors")
    )
    left = any(path.exists() for path in weights)
    if resume and not state.is_file():
        advice = "run without --resume"
        if left:
            advice = (
                "this folder holds weights of a run that cannot be resumed; choose another --out"
            )
        raise TrainingError(f"{state}: nothing to resume here; {advice}")
    if not resume and state.is_file() and (left or epochs_done(folder)[0]):
        raise TrainingError(f"{folder} holds a run; add --resume, or choose another --out")
    if not resume and left:
        raise TrainingError(f"{folder} holds the weights of a run; choose another --out")


@contextlib.contextmanager
def own_run(folder: Path) -> Iterator[None]:
    """Lock the folder of a run against other processes (except those of the same torchrun).

    The lock ends when the process ends. Its loader processes do not keep the lock.

    Raises:
        TrainingError: Another process trains in the folder.
    """
    if fcntl is None or int(os.environ.get("RANK", 0)):
        yield
        return
    path = Path(folder) / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise TrainingError(
                f"{folder}: another process is training here; wait until it ends, or choose "
                "another --out"
            ) from None
        except OSError:  # a file system without locks
            log.warning("%s: not locked against other runs in the same folder", folder)
        try:
            yield
        except Exception:  # no kill, which is resumed
            _forget_unbegun(path.parent)
            raise


def _forget_unbegun(folder: Path) -> None:
    """Delete the files of a run that stopped before its first epoch ended."""
    try:
        begun = epochs_done(folder)[0] > 0
    except TrainingError:  # damaged; it may have been a run of hours
        begun = True
    if begun or (folder / "last.safetensors").exists():
        return
    for name in ("state.pt", ".lock"):
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # there is something else in it
        folder.rmdir()


def begin(folder: Path, settings: TrainingSettings) -> None:
    """Write the state file before the first epoch. From then on the run can be resumed."""
    state = {"epoch": -1, "epochs": settings.epochs, "settings": resumable(settings)}
    save_state(state, Path(folder) / "state.pt")


def is_complete(folder: Path, settings: TrainingSettings) -> bool:
    """Whether all epochs of a run are finished. If so, print it.

    Raises:
        TrainingError: The state file is damaged, or the run has other settings.
    """
    if state_of(Path(folder) / "state.pt", settings)["epoch"] + 1 < settings.epochs:
        return False
    if os.environ.get("RANK", "0") == "0":
        log.info("%s: all %d epochs are done; nothing to resume", folder, settings.epochs)
    return True


def save_state(state: dict[str, Any], path: Path) -> None:
    """Write the state file of a run. If writing fails, the old file is kept."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(path, buffer.getvalue())


def read_state(path: Path, *keys: str) -> dict[str, Any]:
    """Read a state file, which must have these keys.

    Raises:
        TrainingError: The file is damaged.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        for key in keys:
            state[key]
    except Exception:  # whatever its bytes make of the reader
        raise TrainingError(
            f"{path}: this file is damaged, so the run cannot be resumed; choose another --out"
        ) from None
    return state


def resumable(settings: TrainingSettings) -> dict[str, Any]:
    """The settings that must be equal in a resumed run, for the state file."""
    return {name: value for name, value in vars(settings).items() if name not in FREE}


def load_state(path: Path, settings: TrainingSettings) -> dict[str, Any] | None:
    """Load the state of a run to resume. None if no epoch is finished.

    Raises:
        TrainingError: The state file is damaged, or the run has other settings.
    """
    state = state_of(path, settings)
    return state if state["epoch"] >= 0 else None


def state_of(path: Path, settings: TrainingSettings) -> dict[str, Any]:
    """Load the state of a run with these settings.

    Raises:
        TrainingError: The state file is damaged, or the run has other settings.
    """
    state = read_state(path, "epoch")
    before = state.get("settings", {})
    for name, value in resumable(settings).items():
        if before.get(name, value) != value:
            raise TrainingError(
                f"{path}: belongs to a run with {name}={before[name]}; this run has "
                f"{name}={value}; "
                "use the same value, or choose another --out"
            )
    return state


def expect_same_run(folder: Path, checkpoint: Checkpoint) -> None:
    """Check that the run in a folder makes the same checkpoint as this run.

    Args:
        folder: Folder of the run.
        checkpoint: The checkpoint that this run makes. Its tensors are ignored. Of its origin, only
            `run` is compared: the conditions beside the settings.

    Raises:
        TrainingError: There is a difference. The message names the first one.
    """
    last = Path(folder) / "last.safetensors"
    if not last.is_file():
        return
    begun, wanted = (
        {"stage": one.stage, "T": one.T, "imgsz": one.imgsz, "names": one.names}
        | one.model
        | one.origin.get("run", {})
        for one in (load(last), checkpoint)
    )
    expect_alike(folder, begun, wanted)


def as_stored(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as they are read from a file: lists for tuples, and text for all keys."""
    return json.loads(json.dumps(settings, default=str))


def expect_alike(place: Path, begun: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Check that the settings of two runs are equal.

    Args:
        place: Path of the earlier run.
        begun: Settings of the earlier run.
        wanted: Settings of this run.

    Raises:
        TrainingError: There is a difference. The message names the first one.
    """
    begun, wanted = as_stored(begun), as_stored(wanted)
    for key in {**begun, **wanted}:
        before, now = begun.get(key), wanted.get(key)
        if before != now:
            raise TrainingError(
                f"{place}: belongs to a run with {key}={reprlib.repr(before)}; this run has "
                f"{key}={reprlib.repr(now)}; choose another --out"
            )
