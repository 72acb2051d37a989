"""What every training loop needs: seeds of epochs, devices, how far a run has come."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import random
import reprlib
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spikedet.checkpoint import Checkpoint, load
from spikedet.errors import TrainingError, UsageError
from spikedet.files import fcntl, write_atomic
from spikedet.precision import full_precision, no_device
from spikedet.settings import TrainingSettings, device_numbers, impossible, world_size

log = logging.getLogger(__name__)
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    "AdamW": torch.optim.AdamW,
}
# What a resumed run may have otherwise.
FREE = ("epochs", "rate", "decay", "device", "workers", "cache", "tensorboard")


def expect_possible(settings: TrainingSettings) -> None:
    """Refuse settings that no run can have, of any task.

    Raises:
        TrainingError: Names the setting and what would be right.
        UsageError: Fewer or more devices than torchrun started processes.
    """
    if problem := impossible(settings):
        name, value, right = problem
        raise TrainingError(f"{name} is {value!r}; expected {right}")
    check_devices(settings.device)
    if settings.tensorboard and find_spec("tensorboard") is None:
        raise UsageError("--tensorboard: is not installed; pip install 'spikedet[tensorboard]'")
    world, devices = world_size(), settings.device.split(",")
    if settings.device != "cpu" and len(devices) != world:
        raise UsageError(
            f"device {settings.device!r}, but torchrun started {world} processes; expected one "
            "process per device"
        )


@cache
def _board(folder: Path) -> Any:
    """What writes the files of TensorBoard of a run."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(folder / "tensorboard")


def log_epoch(folder: Path, settings: TrainingSettings, epoch: int, row: Mapping[str, Any]) -> None:
    """Let TensorBoard see the numbers of an epoch, where the settings want it.

    Args:
        folder: Of the run.
        settings: Of the run.
        epoch: Which, 1, 2 ...
        row: As in `results.csv`.
    """
    if not settings.tensorboard:
        return
    board = _board(Path(folder))
    for name, value in row.items():
        if isinstance(value, float) or hasattr(value, "item"):
            board.add_scalar(name, float(value), epoch)
    board.flush()


def check_devices(device: str) -> None:
    """Refuse devices that are not there, and several GPUs in one process; GPUs get full precision.

    Args:
        device: `cpu`, or numbers of GPUs with commas between them, also as `cuda:0`.

    Raises:
        UsageError: Says what is there, or how to start.
    """
    if device == "cpu":
        return
    numbers = device_numbers(device).split(",")
    there = torch.cuda.device_count()
    if not all(n.isdecimal() and int(n) < there for n in numbers):
        raise UsageError(no_device(device))
    if len(set(numbers)) < len(numbers):
        raise UsageError(f"device {device!r} names a device twice; expected each once")
    if len(numbers) > 1 and "LOCAL_RANK" not in os.environ:
        raise UsageError(
            f"device {device!r} needs one process per GPU: start the same command with "
            f"torchrun --nproc_per_node {len(numbers)}"
        )
    full_precision()


def seed_of(*numbers: int) -> int:
    """A seed for each combination of numbers of 0 or more, such as that of a run and its epoch.

    It has 32 bits: torch reads no more of them on a CPU, so that seeds which differ above those
    draw the same.
    """
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def seed_generators(*numbers: int) -> None:
    """Seed Python's, numpy's and torch's generators: augmentation draws from all of them.

    Args:
        numbers: What is seeded for, as `seed_of` takes them.
    """
    seed = seed_of(*numbers)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def seed_epoch(seed: int, epoch: int, rank: int = 0) -> None:
    """Seed these generators for an epoch, so that a resumed run draws what one that went on drew.

    Augmentation with generators of its own (albumentations) takes their seed from torch's.
    """
    seed_generators(seed, epoch, rank)


def epochs_done(folder: Path) -> tuple[int, int]:
    """Epochs done and wanted of the run in `folder`; (0, 0) when there is none.

    Raises:
        TrainingError: Its side-car is damaged.
    """
    path = Path(folder) / "state.pt"
    if not path.is_file():
        return 0, 0
    state = read_state(path, "epoch", "epochs")
    return state["epoch"] + 1, state["epochs"]


def expect_fresh(folder: Path, resume: bool) -> None:
    """Refuse to write over a run, or to resume where there is none.

    A run that was killed in its first epoch may be begun again or resumed, which is the same.

    Raises:
        TrainingError: Says what to do.
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
    """Keep other processes out of the folder of a run; those of torchrun beside the first may in.

    The lock ends with the process, however that ends, and not with its loader processes.

    Raises:
        TrainingError: Another process trains there.
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
    """Leave nothing of a run that ended before its first epoch did."""
    if (folder / "last.safetensors").exists():
        return
    for name in ("state.pt", ".lock"):
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # there is something else in it
        folder.rmdir()


def begin(folder: Path, settings: TrainingSettings) -> None:
    """Write the side-car of a run before its first epoch: from here on it can be resumed."""
    state = {"epoch": -1, "epochs": settings.epochs, "settings": resumable(settings)}
    save_state(state, Path(folder) / "state.pt")


def is_complete(folder: Path, settings: TrainingSettings) -> bool:
    """Whether all epochs of the run that is to be resumed are done, which is said.

    Raises:
        TrainingError: Damaged, or the run had other settings.
    """
    if state_of(Path(folder) / "state.pt", settings)["epoch"] + 1 < settings.epochs:
        return False
    if os.environ.get("RANK", "0") == "0":
        log.info("%s: all %d epochs are done; nothing to resume", folder, settings.epochs)
    return True


def save_state(state: dict[str, Any], path: Path) -> None:
    """Write the side-car of a run, atomically."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(path, buffer.getvalue())


def read_state(path: Path, *keys: str) -> dict[str, Any]:
    """What `save_state` wrote, which must hold `keys`.

    Raises:
        TrainingError: Damaged.
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


def expect_same_run(folder: Path, checkpoint: Checkpoint) -> None:
    """Refuse to go on with a run that made something else, or from something else.

    Args:
        folder: Of the run.
        checkpoint: What is to be made now; all but its tensors counts, and of its origin `run`:
            what beside the settings makes it what it becomes.

    Raises:
        TrainingError: Names the first difference.
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


def expect_alike(place: Path, begun: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuse to go on with a run of other settings.

    Args:
        place: Where that run is.
        begun: Its settings.
        wanted: Those of now.

    Raises:
        TrainingError: Names the first difference.
    """
    for key in {**begun, **wanted}:
        before, now = begun.get(key), wanted.get(key)
        if before != now:
            raise TrainingError(
                f"{place}: belongs to a run with {key}={reprlib.repr(before)}; this run has "
                f"{key}={reprlib.repr(now)}; choose another --out"
            )


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load the state of an optimiser of the same kind; its rates and decays stay as they are.

    Raises:
        KeyError, ValueError: It is of another kind, or for other parameters.
    """
    kept = ("lr", "initial_lr", "weight_decay")
    own = [{key: group[key] for key in kept if key in group} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, values in zip(optimizer.param_groups, own, strict=True):
        group.update(values)
    missing = optimizer.defaults.keys() - optimizer.param_groups[0].keys()
    if missing:
        raise KeyError(*missing)


def resumable(settings: TrainingSettings) -> dict[str, Any]:
    """The settings that a resumed run must have as well, for its side-car."""
    return {name: value for name, value in vars(settings).items() if name not in FREE}


def load_state(path: Path, settings: TrainingSettings) -> dict[str, Any] | None:
    """The side-car of a run that goes on with these settings; None where no epoch of it is done.

    Raises:
        TrainingError: Damaged, or the run had other settings.
    """
    state = state_of(path, settings)
    return state if state["epoch"] >= 0 else None


def state_of(path: Path, settings: TrainingSettings) -> dict[str, Any]:
    """The side-car of a run with these settings, whether it is to go on or not.

    Raises:
        TrainingError: Damaged, or the run had other settings.
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


def expect_growth(name: str, first: int | None, last: int, stride: int) -> None:
    """Refuse pictures that cannot grow from one side to another (see `growing_side`).

    Args:
        name: Of what the pictures are.
        first: Side in pixels at the start, None if they do not grow.
        last: At the end.
        stride: Of the network.

    Raises:
        UsageError: Says what is possible.
    """
    if first is not None and (first % stride or not stride <= first <= last):
        raise UsageError(
            f"{name}: grow_from is {first} pixels; expected a multiple of {stride}, at most {last}"
        )


def growing_side(first: int | None, last: int, done: float, stride: int) -> int:
    """Side of the pictures in pixels when a part `done` of a training is over.

    It grows from `first` to `last` in three quarters of the training.

    Args:
        first: At the start, None if it is the last one all the time.
        last: At the end.
        done: 0 to 1.
        stride: The side is a multiple of it, but for `last`.
    """
    if first is None or done >= 0.75:
        return last
    side = first + (last - first) * done / 0.75
    return min(last, round(side / stride) * stride)


def resized(pictures: Tensor, side: int) -> Tensor:
    """Square pictures [B, 3, S, S] at another side, antialiased; bytes are faster than floats."""
    if side == pictures.shape[-1]:
        return pictures
    return nn.functional.interpolate(pictures, size=(side, side), mode="bilinear", antialias=True)


def parameter_groups(
    network: nn.Module, rate: float, decay: float, threshold_rate: float
) -> list[dict[str, Any]]:
    """Groups for an optimiser: weights decay; biases, norms and thresholds do not.

    Args:
        network: Its parameters whose name ends in `threshold` are a group of their own.
        rate: Learning rate.
        decay: Weight decay.
        threshold_rate: Learning rate of thresholds as a part of `rate`.
    """
    weights: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    thresholds: list[nn.Parameter] = []
    for key, parameter in network.named_parameters():
        if key.endswith("threshold"):
            thresholds.append(parameter)
        else:
            (weights if parameter.ndim > 1 else plain).append(parameter)
    groups = [
        {"params": weights, "lr": rate, "weight_decay": decay, "param_group": "weight"},
        {"params": plain, "lr": rate, "weight_decay": 0.0, "param_group": "plain"},
    ]
    if thresholds:
        rate = rate * threshold_rate
        groups.append(
            {"params": thresholds, "lr": rate, "weight_decay": 0.0, "param_group": "threshold"}
        )
    return groups
