"""Settings of training and conversion; light to import, so that the commands can show them."""

from __future__ import annotations

from dataclasses import dataclass

from spikedet import resources, settings

TRAIN_SPLIT, TEST_SPLIT = "VOC2007:train+VOC2012:trainval", "VOC2007:val"
TUNING = resources.folder("configs") / "tuning_ids.txt"
CONFIDENCE, IOU, MOST = 0.001, 0.6, 100  # of a measurement
PROTOCOL = (
    f"letterbox to {{imgsz}} pixels, confidence {CONFIDENCE}, class-wise NMS at IoU {IOU}, "
    f"at most {MOST} boxes a picture, difficult objects ignored"
)
# How a backbone learns to tell classes apart before it is a detector's, where not as a classifier.
BACKBONE = {"epochs": 16, "imgsz": 96, "grow_from": 64, "rate": 0.2, "decay": 5e-5}
# What the training of stage I has unless told otherwise, where it is not as in `Settings`.
STAGE_ONE_RATE = {"folded": 0.002, "unfolded": 0.01}
STAGE_ONE = {"epochs": 4, "warmup": 0.2, "close_mosaic": 2, "ema_tau": 200}


@dataclass
class StageOne(settings.StageOne):
    fold_first: bool = True


@dataclass
class LayerWise(settings.LayerWise):
    pass


@dataclass
class EndToEnd(settings.EndToEnd):
    steps: int = 600
    workers: int = 1


@dataclass
class Settings(settings.TrainingSettings):
    """How a detector is trained; `FIELD_HELP` says what each field means."""

    epochs: int = 40
    imgsz: int = 320
    batch: int = 32
    rate: float = 0.02
    close_mosaic: int = 3
    mosaic: float = 1.0
    mixup: float = 0.0
    scale: float = 0.5
    translate: float = 0.1
    by_size: bool = False
    parts: int = 1
    ema_tau: float = 2000
    cache: bool = True


FIELD_HELP = {
    **settings.FIELD_HELP,
    "close_mosaic": "last epochs without mosaic",
    "mosaic": "probability of mosaic",
    "mixup": "probability of mixing two pictures",
    "scale": "random scale, plus or minus this part",
    "translate": "random shift, as a part of the picture",
    "by_size": "give an object to the output strides that fit its size, not to any",
    "parts": "on a CPU: parts of a batch, each on a thread of its own",
    "ema_tau": "time constant in steps of the weights' average",
    "cache": "hold the resized pictures in memory",
}
