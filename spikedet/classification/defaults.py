"""Settings of training and conversion. This module imports nothing large, for the commands."""

from __future__ import annotations

from dataclasses import dataclass

from spikedet import settings
from spikedet.options import option, redefined
from spikedet.settings import TrainingSettings

GROUP = "classifiers"
TRAIN_SPLIT, TEST_SPLIT = "train", "test"
SHORT = "torchvision:"  # with a name of torchvision, it replaces the file of a description
PROTOCOL = "{imgsz} pixels, one view a picture, no test-time augmentation"
# What the training of stage I has unless told otherwise, where it is not as in `Settings`.
# Without batch norm stage I fails at a higher rate, or without a bound on the gradient.
STAGE_ONE_RATE = {"folded": 0.002, "unfolded": 0.05}
STAGE_ONE = {"epochs": 6, "warmup": 0.2, "clip": 1.0}


@dataclass
class StageOne(settings.StageOne):
    pass


@dataclass
class LayerWise(settings.LayerWise):
    loss: str = redefined(settings.LayerWise, "loss", "kl")
    batch: int = 32


@dataclass
class EndToEnd(settings.EndToEnd):
    """The settings of `settings.EndToEnd`, and further ones for classifiers.

    Attributes:
        temperature: Divisor of the outputs in the distillation loss.
        jpeg: JPEG quality (1 to 100) to compress each training picture with after the crop; 0 for
            none. Tuning pictures are not compressed.
    """

    batch: int = redefined(settings.EndToEnd, "batch", 64)
    rate: float = redefined(settings.EndToEnd, "rate", 1e-2)
    temperature: float = option(
        1.0,
        "--temperature for this pass",
        name="end_temperature",
        least=1,
        group="end-to-end pass",
    )
    jpeg: int = option(
        0,
        "--jpeg for this pass",
        name="end_jpeg",
        least=0,
        most=100,
        group="end-to-end pass",
    )


@dataclass
class Settings(TrainingSettings):
    """Training settings of classifiers."""

    epochs: int = redefined(TrainingSettings, "epochs", 100)
    imgsz: int = redefined(TrainingSettings, "imgsz", 32)
    batch: int = redefined(TrainingSettings, "batch", 128)
    rate: float = redefined(TrainingSettings, "rate", 0.1)
    final: float = redefined(TrainingSettings, "final", 0.0)
    workers: int = redefined(TrainingSettings, "workers", 0)
    augment: str = option(
        "crop",
        "augmentation; each includes those before it, and crop also mirrors. Stage II always "
        "crops and mirrors",
        choices=("none", "crop", "cutout", "autoaugment"),
        group=GROUP,
    )
    jpeg: int = option(
        0,
        "JPEG quality (1 to 100) to compress each augmented picture with; 0 for none. Use it if "
        "the pictures to classify are JPEG files and the training pictures are not",
        least=0,
        most=100,
        group=GROUP,
    )
    smoothing: float = option(0.0, "label smoothing", least=0, most=1, group=GROUP)
    temperature: float = option(
        1.0,
        "divisor of the outputs in the distillation loss. Use 4 if the teacher was trained until "
        "it was sure of its training pictures",
        least=1,
        group=GROUP,
    )
    clip: float = option(0.0, "largest norm of the gradient; 0 for no limit", least=0, group=GROUP)
