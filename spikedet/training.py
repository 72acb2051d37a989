"""Shared parts of all training loops: seeds, devices, and the state of a run."""

from __future__ import annotations

import contextlib
import io
import json
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
    """Check the training settings of any task.

    Raises:
        TrainingError: A setting is outside its limits.
        UsageError: The number of devices differs from the number of processes of torchrun.
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
    """The TensorBoard writer of a run."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(folder / "tensorboard")


def log_epoch(folder: Path, settings: TrainingSettings, epoch: int, row: Mapping[str, Any]) -> None:
    """Write the numbers of an epoch for TensorBoard, if the settings say so.

    Args:
        folder: Folder of the run.
        settings: Settings of the run.
        epoch: Number of the epoch, from 1 on.
        row: Row of `results.csv`.
    """
    if not settings.tensorboard:
        return
    board = _board(Path(folder))
    for name, value in row.items():
        if isinstance(value, float) or hasattr(value, "item"):
            board.add_scalar(name, float(value), epoch)
    board.flush()


def check_devices(device: str) -> None:
    """Check the devices of a training, and set GPUs to full precision.

    Args:
        device: `cpu`, or numbers of GPUs separated by commas, also as `cuda:0`.

    Raises:
        UsageError: A device does not exist, or several GPUs are given without torchrun.
    """
    if device == "cpu":
        return
    numbers = device_numbers(device).split(",")
    count = torch.cuda.device_count()
    if not all(n.isdecimal() and int(n) < count for n in numbers):
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
    """A seed for a combination of numbers (0 or more), such as the seed of a run and an epoch.

    It has 32 bits. On a CPU, torch ignores higher bits, so seeds that differ only in these would
    give the same random numbers.
    """
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def seed_generators(*numbers: int) -> None:
    """Seed the random generators of Python, numpy and torch. Augmentation uses all of them.

    Args:
        numbers: Numbers for `seed_of`.
    """
    seed = seed_of(*numbers)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def seed_epoch(seed: int, epoch: int, rank: int = 0) -> None:
    """Seed these generators for an epoch, so that a resumed run draws the same random numbers.

    Augmentation with its own generators (albumentations) gets their seed from torch.
    """
    seed_generators(seed, epoch, rank)


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
    """Delete the files of a run that stopped before its first epoch."""
    if (folder / "last.safetensors").exists():
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


def restore_optimizer(
    optimizer: torch.optim.Optimizer, state: dict[str, Any], by_place: bool = True
) -> None:
    """Load the state of an optimiser of the same kind. Learning rates and decays do not change.

    Parameters that have names are found by their names. A network that was read from a file may
    list its layers in another order than the network that the state was saved with.

    Args:
        optimizer: The optimiser; its parameters are named.
        state: What `state_dict` of the other optimiser returned.
        by_place: Whether a state without names, from an older version, is loaded by place.

    Raises:
        KeyError, ValueError: The state is of another kind of optimiser or for other parameters.
    """
    kept = ("lr", "initial_lr", "weight_decay")
    own = [{key: group[key] for key in kept if key in group} for group in optimizer.param_groups]
    optimizer.load_state_dict(_in_order_of(optimizer, state, by_place))
    for group, values in zip(optimizer.param_groups, own, strict=True):
        group.update(values)
    missing = optimizer.defaults.keys() - optimizer.param_groups[0].keys()
    if missing:
        raise KeyError(*missing)


def _in_order_of(
    optimizer: torch.optim.Optimizer, state: dict[str, Any], by_place: bool
) -> dict[str, Any]:
    """The state with the groups and parameters in the order of the optimiser, by their names."""
    saved = {
        name: (number, group)
        for group in state["param_groups"]
        if "param_names" in group
        for name, number in zip(group["param_names"], group["params"], strict=True)
    }
    if not saved and by_place:
        return state
    groups = []
    for group in optimizer.param_groups:
        names = group["param_names"]
        numbers = [saved[name][0] for name in names]
        groups.append({**saved[names[0]][1], "params": numbers, "param_names": names})
    if len(saved) != sum(len(group["params"]) for group in groups):
        raise ValueError("the state has other parameters")
    return {"state": state["state"], "param_groups": groups}


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


def expect_growth(name: str, first: int | None, last: int, stride: int) -> None:
    """Check that pictures can grow from one side to another (see `growing_side`).

    Args:
        name: Name of the training, for the message.
        first: Side in pixels at the start. None if the pictures do not grow.
        last: Side in pixels at the end.
        stride: Stride of the network.

    Raises:
        UsageError: `first` is larger than `last` or not a multiple of the stride.
    """
    if first is not None and (first % stride or not stride <= first <= last):
        raise UsageError(
            f"{name}: grow_from is {first} pixels; expected a multiple of {stride}, at most {last}"
        )


def growing_side(first: int | None, last: int, done: float, stride: int) -> int:
    """The side of the pictures in pixels after the fraction `done` of a training.

    It grows from `first` to `last` in three quarters of the training.

    Args:
        first: Side at the start. None: always `last`.
        last: Side at the end.
        done: Fraction of the training, 0..1.
        stride: The side is a multiple of it (except `last`).
    """
    if first is None or done >= 0.75:
        return last
    side = first + (last - first) * done / 0.75
    return min(last, round(side / stride) * stride)


def resized(pictures: Tensor, side: int) -> Tensor:
    """Resize square pictures [B, 3, S, S] with antialiasing. uint8 is faster than float."""
    if side == pictures.shape[-1]:
        return pictures
    return nn.functional.interpolate(pictures, size=(side, side), mode="bilinear", antialias=True)


def parameter_groups(
    network: nn.Module, rate: float, decay: float, threshold_rate: float
) -> list[dict[str, Any]]:
    """Parameter groups for an optimiser. Only weights decay, not biases, norms and thresholds.

    Args:
        network: The network. Parameters whose name ends in `threshold` are a separate group. No
            group is empty. Each parameter is listed with its name, for `restore_optimizer`.
        rate: Learning rate.
        decay: Weight decay.
        threshold_rate: Learning rate of the thresholds, as a fraction of `rate`.
    """
    weights: list[tuple[str, nn.Parameter]] = []
    plain: list[tuple[str, nn.Parameter]] = []
    thresholds: list[tuple[str, nn.Parameter]] = []
    for key, parameter in network.named_parameters():
        named = key.removeprefix("module."), parameter  # as without processes of torchrun
        if key.endswith("threshold"):
            thresholds.append(named)
        else:
            (weights if parameter.ndim > 1 else plain).append(named)
    own = rate * threshold_rate
    groups = [
        {"params": weights, "lr": rate, "weight_decay": decay, "param_group": "weight"},
        {"params": plain, "lr": rate, "weight_decay": 0.0, "param_group": "plain"},
        {"params": thresholds, "lr": own, "weight_decay": 0.0, "param_group": "threshold"},
    ]
    return [group for group in groups if group["params"]]
