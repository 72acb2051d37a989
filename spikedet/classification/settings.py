"""Settings of training and conversion; light to import, so that the commands can show them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Settings:
    """How a network is trained; `FIELD_HELP` says what each field means."""

    epochs: int = 100
    seed: int = 0
    device: str = "cpu"


TRAIN_SPLIT, TEST_SPLIT, THRESHOLD_SPLIT = "train", "test", "train"
STAGE_ONE = {"epochs": 10, "rate": 0.01}
STAGE_TWO = {
    "pictures": 256,
    "held": 64,
    "layer_steps": 120,
    "loss": "kl",
    "batch": 32,
    "end_to_end": 400,
    "end_batch": 64,
    "end_rate": 2e-3,
}
FIELD_HELP = {"epochs": "e", "seed": "s", "device": "d"}
