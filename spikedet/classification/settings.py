"""Settings of training and conversion; light to import, so that the commands can show them."""

from __future__ import annotations

from dataclasses import dataclass

from spikedet import settings

TRAIN_SPLIT, TEST_SPLIT = "train", "test"
SHORT = "torchvision:"  # with a name, in the place of the file of a network description
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
    loss: str = "kl"
    batch: int = 32


@dataclass
class EndToEnd(settings.EndToEnd):
    """As everywhere, and what only classifiers have.

    Attributes:
        temperature: What the outputs are divided by that it distils.
        jpeg: Quality, 1 to 100, that its pictures are compressed with after each crop, 0 for none;
            its tuning pictures are taken as they are.
    """

    batch: int = 64
    rate: float = 1e-2
    temperature: float = 1.0
    jpeg: int = 0


@dataclass
class Settings(settings.TrainingSettings):
    """How a classifier is trained; `FIELD_HELP` says what each field means."""

    epochs: int = 100
    imgsz: int = 32
    batch: int = 128
    rate: float = 0.1
    final: float = 0.0
    workers: int = 0
    augment: str = "crop"
    jpeg: int = 0
    smoothing: float = 0.0
    temperature: float = 1.0
    clip: float = 0.0


FIELD_HELP = {
    **settings.FIELD_HELP,
    "augment": "none, crop (and mirror), cutout or autoaugment; each with those before it; stage "
    "II crops and mirrors",
    "jpeg": "quality, 1 to 100, that every augmented picture is compressed with, 0 for none; for "
    "pictures that will come as JPEG files, where those of the training do not",
    "smoothing": "label smoothing",
    "temperature": "what the outputs are divided by that are distilled; 4 where the teacher was "
    "trained until it was sure of its training pictures",
    "clip": "largest norm of the gradient, 0 for no bound",
}
