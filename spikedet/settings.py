"""Settings that the training of every task has; light to import, as those of the tasks are."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass
class TrainingSettings:
    """How a network is trained; `FIELD_HELP` says what each field means."""

    epochs: int
    imgsz: int
    batch: int
    rate: float
    grow_from: int | None = None
    optimizer: str = "SGD"
    final: float = 0.01
    decay: float = 5e-4
    threshold_rate: float = 1.0
    warmup: float = 1.0
    workers: int = 1
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self):
        self.device = device_numbers(self.device)


def device_numbers(device: str) -> str:
    """`0,1` for `cuda:0,cuda:1`, as settings have it; whatever is no GPU stays as it is."""
    numbers = ("0" if name == "cuda" else name.removeprefix("cuda:") for name in device.split(","))
    return ",".join(str(int(number)) if number.isdecimal() else number for number in numbers)


FIELD_HELP = {
    "epochs": "epochs, each over all training pictures",
    "imgsz": "input side in pixels",
    "batch": "pictures a step",
    "rate": "learning rate at its peak",
    "grow_from": "input side in pixels of the first epoch, growing to --imgsz in 3/4 of them",
    "optimizer": "SGD or AdamW",
    "final": "last learning rate as a part of the first (cosine in between)",
    "decay": "weight decay of convolution and linear weights; nothing else decays",
    "threshold_rate": "learning rate of firing thresholds as a part of --rate",
    "warmup": "epochs of warm-up",
    "workers": "loader processes",
    "seed": "seed of order, augmentation and initial weights",
    "device": "cpu, 0 or cuda:0, or 0,1 for two GPUs",
}


def world_size() -> int:
    """How many processes torchrun started, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))
