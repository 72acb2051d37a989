"""Settings of training and conversion; light to import, so that the commands can show them."""

from __future__ import annotations

from dataclasses import dataclass

TRAIN_SPLIT, TEST_SPLIT = "train", "test"
THRESHOLD_SPLIT = "train"  # whose pictures give the thresholds of copied weights
PROTOCOL = "{imgsz} pixels, one view a picture, no test-time augmentation"
# What stage I (where it is not as in `Settings`) and stage II do unless told otherwise.
STAGE_ONE = {"epochs": 5, "rate": 0.002, "warmup": 0.2}  # batch norm is folded: at 0.02 it fails
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


@dataclass
class Settings:
    """How a network is trained; `FIELD_HELP` says what each field means."""

    epochs: int = 100
    imgsz: int = 32
    batch: int = 128
    optimizer: str = "SGD"
    rate: float = 0.1
    final: float = 0.0
    decay: float = 5e-4
    threshold_rate: float = 1.0
    warmup: float = 1.0
    augment: str = "crop"
    smoothing: float = 0.0
    workers: int = 0
    seed: int = 0
    device: str = "cpu"


FIELD_HELP = {
    "epochs": "epochs, each over all training pictures",
    "imgsz": "input side in pixels",
    "batch": "pictures a step",
    "optimizer": "SGD or AdamW",
    "rate": "learning rate at its peak",
    "final": "last learning rate as a part of the first (cosine in between)",
    "decay": "weight decay of convolution weights; nothing else decays",
    "threshold_rate": "learning rate of firing thresholds as a part of --rate",
    "warmup": "epochs of warm-up",
    "augment": "none, crop (and mirror), cutout or autoaugment; each with those before it",
    "smoothing": "label smoothing",
    "workers": "loader processes",
    "seed": "seed of order, augmentation and initial weights",
    "device": "cpu, 0, or 0,1 for two GPUs",
}
