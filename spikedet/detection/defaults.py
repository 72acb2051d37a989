"""Settings of training and conversion. This module imports nothing large, for the commands."""

from __future__ import annotations

from dataclasses import dataclass

from spikedet import resources, settings
from spikedet.options import option, redefined
from spikedet.settings import TrainingSettings

GROUP = "detectors"
TRAIN_SPLIT, TEST_SPLIT = "VOC2007:train+VOC2012:trainval", "VOC2007:val"
TUNING = resources.folder("configs") / "tuning_ids.txt"
CONFIDENCE, IOU, MOST = 0.001, 0.6, 100  # for measuring AP: thresholds, and boxes per picture
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
    fold_first: bool = redefined(settings.StageOne, "fold_first", True)


@dataclass
class LayerWise(settings.LayerWise):
    pass


@dataclass
class EndToEnd(settings.EndToEnd):
    steps: int = redefined(settings.EndToEnd, "steps", 600)
    workers: int = redefined(settings.EndToEnd, "workers", 1)


@dataclass
class Settings(TrainingSettings):
    """Training settings of detectors."""

    epochs: int = redefined(TrainingSettings, "epochs", 40)
    imgsz: int = redefined(TrainingSettings, "imgsz", 320)
    batch: int = redefined(TrainingSettings, "batch", 32)
    rate: float = redefined(TrainingSettings, "rate", 0.02)
    close_mosaic: int = option(3, "switch mosaic off in the last N epochs", least=0, group=GROUP)
    mosaic: float = option(1.0, "probability of mosaic", least=0, most=1, group=GROUP)
    mixup: float = option(0.0, "probability of mixing two pictures", least=0, most=1, group=GROUP)
    scale: float = option(
        0.5, "random scale, up to plus or minus this fraction", least=0, most=1, group=GROUP
    )
    translate: float = option(
        0.1, "random shift, up to this fraction of the picture", least=0, most=1, group=GROUP
    )
    by_size: bool = option(
        False, "assign an object only to the output strides that fit its size", group=GROUP
    )
    parts: int = option(
        1, "CPU only: split each batch into N parts, each on its own thread", least=1, group=GROUP
    )
    ema_tau: float = option(
        2000,
        "time constant of the moving average of the weights, in training steps",
        least=0,
        group=GROUP,
    )
    cache: bool = option(True, "keep the resized pictures in memory", group=GROUP)
