"""Settings that every task has; light to import, as those of the tasks are.

A task gives its own defaults, and options that only it has, in subclasses in its `settings`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field


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


@dataclass
class StageOne:
    """How stage I, quantise-clip fine-tuning, differs from other training.

    Attributes:
        noise: Probability that an element is not quantised while training (eq 14).
        per_channel: One threshold a channel instead of one a layer.
        distill: Weight of the float network's outputs beside the task's loss, 0 for none.
        clips_rounded: Where gradients pass the quantisers (see `QuantClip`), as QCFS has it.
        fold_first: Fold batch norm of a float network before it is trained, not after. With batch
            norm ten times the learning rate can be borne, which few levels need.
    """

    noise: float = 0.1
    per_channel: bool = False
    distill: float = 1.0
    clips_rounded: bool = False
    fold_first: bool = False


@dataclass
class LayerWise:
    """How much stage II does layer by layer (eq 16-21).

    Attributes:
        coarse: Shift initial potentials to the mean residual (eq 18).
        fine: Train weights, biases and initial potentials of each layer (eq 19-21).
        steps: Most steps of fine calibration a layer.
        rate: Adam's learning rate as a part of each tensor's root mean square.
        patience: Checks on held-out pictures without a gain before a layer is left.
        check: Steps between two checks.
        alpha: Width of the surrogate gradient in units of the threshold.
        half: Convolutions of the fitting steps in bfloat16 (checks are always float32).
        per_neuron: An initial potential for every neuron, [C, H, W], instead of every channel;
            the network then runs on pictures of this size alone.
        loss: `mse`, or `kl`: Kullback-Leibler divergence of the rates from the targets, soft-max
            over the flattened C*H*W of each picture (as published for classification; blind to a
            constant that is added). The readout, whose level matters, is always fitted by `mse`.
        bias: Before anything else add to the bias of each layer what its activations lack on
            average: b += mean(a - theta r) (Li et al., ICML 2021). As published it is not judged
            by the held-out pictures, so a layer may end worse than it began.
        layers: Names of the layers to calibrate, or shell patterns (`model.1.*`), as they stand in
            the reports; the others keep their parameters. All when None.
        pictures, held: Training pictures to fit, and others to judge each layer by.
        batch: Pictures that go through a layer at once.
    """

    coarse: bool = True
    fine: bool = True
    steps: int = 120
    rate: float = 3e-2
    patience: int = 4
    check: int = 15
    alpha: float = 1.0
    half: bool = True
    per_neuron: bool = False
    loss: str = "mse"
    bias: bool = False
    layers: Sequence[str] | None = None
    pictures: int = 256
    held: int = 64
    batch: int = 8


@dataclass
class EndToEnd:
    """How much the end-to-end pass of stage II does.

    Attributes:
        steps: 0 for no pass.
        batch: Pictures a step.
        grow_from: Their side in pixels at first, growing to that of the network in 3/4 of the
            steps, as half the side is a quarter of the time; always that of the network when None.
            A pass at a smaller side alone leaves a network that is worse at its own.
        rate: Learning rate relative to the weights.
        batch_norm: Train beside batch norm that is folded afterwards. It helped a classifier at
            T = 4, neither that at T = 8 nor a detector with batches of 8.
        workers: Loader processes, on which the random numbers of the pictures depend.
        int8: Train with whole weights, and leave them in the end: a network that the events engine
            runs as it was trained, and whose file is half as large.
        sparsity: Weight of a penalty on the synaptic operations, which are counted in units of the
            float network's multiplications (see `conversion.sparsity`). What it gives is kept
            whatever the tuning loss, as fewer spikes cost some of it.
        truth: Weight of the task's own loss on the annotations beside the distillation.
    """

    steps: int = 400
    batch: int = 8
    grow_from: int | None = None
    rate: float = 4e-3
    batch_norm: bool = False
    workers: int = 0
    int8: bool = False
    sparsity: float = 0.0
    truth: float = 1.0


@dataclass
class Plan:
    """How much stage II does, and which pictures are drawn for it."""

    layers: LayerWise = field(default_factory=LayerWise)
    end: EndToEnd = field(default_factory=EndToEnd)
    seed: int = 0


def world_size() -> int:
    """How many processes torchrun started, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))
