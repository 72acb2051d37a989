"""Settings of training and conversion; light to import, so that the commands can show them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Settings:
    """How a network is trained; `FIELD_HELP` says what each field means."""

    epochs: int = 40
    imgsz: int = 320
    batch: int = 32
    optimizer: str = "SGD"
    rate: float = 0.02
    final: float = 0.01
    decay: float = 5e-4
    threshold_rate: float = 1.0
    warmup: float = 1.0
    close_mosaic: int = 3
    mosaic: float = 1.0
    mixup: float = 0.0
    scale: float = 0.5
    translate: float = 0.1
    grow_from: int | None = None
    ema_tau: float = 2000
    workers: int = 1
    cache: bool = True
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
    "close_mosaic": "last epochs without mosaic",
    "mosaic": "probability of mosaic",
    "mixup": "probability of mixing two pictures",
    "scale": "random scale, plus or minus this part",
    "translate": "random shift, as a part of the picture",
    "grow_from": "input side in pixels of the first epoch, growing to --imgsz in 3/4 of them",
    "ema_tau": "time constant in steps of the weights' average",
    "workers": "loader processes",
    "cache": "hold the resized pictures in memory",
    "seed": "seed of order, augmentation and initial weights",
    "device": "cpu, 0, or 0,1 for two GPUs",
}


@dataclass(frozen=True)
class Method:
    """A way from a float network to a spiking one.

    Attributes:
        label: What tables call it.
        finetuned: Stage I: quantise-clip fine-tuning; else thresholds are only estimated.
        coarse, fine: Which parts of stage II's layer-wise calibration.
        end_to_end: The end-to-end pass after it.
    """

    label: str
    finetuned: bool
    coarse: bool = False
    fine: bool = False
    end_to_end: bool = False


METHODS = {
    "copy": Method("copied weights", finetuned=False),
    "stage1": Method("stage I alone", finetuned=True),
    "stage2": Method("stage II alone", finetuned=False, coarse=True, fine=True),
    "stage1-coarse": Method("stage I + coarse", finetuned=True, coarse=True),
    "stage1-fine": Method("stage I + fine", finetuned=True, fine=True),
    "two-stage": Method("stages I + II", finetuned=True, coarse=True, fine=True, end_to_end=True),
}
