"""Whether settings and devices of a training are possible."""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch

from spikedet.errors import TrainingError, UsageError
from spikedet.options import impossible
from spikedet.precision import full_precision, no_device
from spikedet.settings import TrainingSettings, device_numbers, world_size


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
