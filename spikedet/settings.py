"""The settings that all tasks share: those of a training, of stage I and of stage II.

A task defines its own defaults and further options in subclasses, in its module `defaults`. These
modules import nothing large.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from spikedet.errors import DataError, UsageError, shorten
from spikedet.options import option, violated_limits

Group = TypeVar("Group")
POOLINGS = ("count", "step")  # how spikes are max-pooled, see `neurons.layers.SpikingMaxPool`


@dataclass
class TrainingSettings:
    """Training settings that all tasks share."""

    epochs: int = option(1, "passes over the training pictures", least=1)
    imgsz: int = option(32, "input side in pixels", least=1)
    batch: int = option(1, "pictures in a batch", least=1)
    rate: float = option(0.1, "peak learning rate", above=0)
    device: str = option("cpu", "cpu, cuda:0 (or 0), or 0,1 for two GPUs")
    workers: int = option(1, "loader processes", least=0, group="training")
    seed: int = option(
        0, "seed of picture order, augmentation and initial weights", least=0, most=(1 << 31) - 1,
        group="training",
    )  # fmt: skip
    grow_from: int | None = option(
        None,
        "input side in pixels in the first epoch; it grows to --imgsz in 3/4 of the epochs",
        least=1,
        group="training",
    )
    optimizer: str = option("SGD", "optimiser", choices=("SGD", "AdamW"), group="training")
    final: float = option(
        0.01,
        "last learning rate, as a fraction of the peak (cosine schedule)",
        least=0,
        most=1,
        group="training",
    )
    decay: float = option(
        5e-4,
        "weight decay, of convolution and linear weights only",
        least=0,
        most=1,
        group="training",
    )
    threshold_rate: float = option(
        1.0,
        "learning rate of the thresholds, as a fraction of --rate",
        least=0,
        group="training",
    )
    warmup: float = option(1.0, "warm-up, in epochs", least=0, group="training")
    tensorboard: bool = option(
        False,
        "write logs for TensorBoard to RUN/tensorboard (pip install spikedet[tensorboard])",
        group="training",
    )

    def __post_init__(self):
        self.device = device_numbers(self.device)


def device_numbers(device: str) -> str:
    """Shorten names of GPUs for the settings: `cuda:0,cuda:1` becomes `0,1`; others stay."""
    numbers = ("0" if name == "cuda" else name.removeprefix("cuda:") for name in device.split(","))
    return ",".join(str(int(number)) if number.isdecimal() else number for number in numbers)


@dataclass
class StageOne:
    """Settings of stage I (quantise-clip fine-tuning) beside the training settings.

    Attributes:
        noise: Probability that an activation is not quantised in training (eq 14).
        per_channel: One threshold for each channel instead of one for each layer.
        distill: Weight of the distillation loss from the float network.
        clips_rounded: Use the gradient of QCFS (see `QuantClip`).
        fold_first: Fold batch norm before the training, not after it. Without folding, a learning
            rate ten times as high is possible, which networks with few levels need.
        features: Weight of the distance of the quantised activations to those of the teacher (see
            `conversion.features`).
        sparsity: Weight of a penalty on the synaptic operations that the spiking network will
            cause, in units of the float network's multiplications (see `conversion.sparsity`). With
            a penalty the last epoch is the best one, because fewer spikes may cost accuracy.
    """

    noise: float = option(
        0.1,
        "probability that an activation is not quantised in training (eq 14)",
        least=0,
        most=1,
        group="stage I",
    )
    per_channel: bool = option(
        False, "one threshold for each channel, not for each layer", group="stage I"
    )
    distill: float = option(
        1.0,
        "weight of the distillation loss (from the float network) beside the task's loss",
        least=0,
        group="stage I",
    )
    clips_rounded: bool = False
    fold_first: bool = option(
        False, "fold batch norm before stage I, not after it", group="stage I"
    )
    features: float = option(
        0.0,
        "weight of the distance of activations to the teacher's in stage I",
        name="stage1_features",
        least=0,
        group="stage I",
    )
    sparsity: float = option(
        0.0,
        "weight of a penalty on the synaptic operations in stage I; with it the last epoch is kept",
        name="stage1_sparsity",
        least=0,
        group="stage I",
    )

    def plain(self) -> StageOne:
        """These settings changed to those of QCFS: only its loss, no noise, its gradient."""
        return replace(self, noise=0.0, distill=0.0, features=0.0, sparsity=0.0, clips_rounded=True)


@dataclass
class LayerWise:
    """Settings of layer-wise stage II (eq 16-21).

    Attributes:
        coarse: Shift initial potentials by the mean residual (eq 18).
        fine: Train weights, biases and initial potentials of each layer (eq 19-21).
        steps: Largest number of fine-calibration steps for each layer.
        rate: Learning rate of Adam, relative to the root mean square of each tensor.
        patience: Stop a layer after this number of checks on held-out pictures without a gain.
        check: Fine-calibration steps between two checks.
        alpha: Width of the surrogate gradient in units of the threshold.
        half: Compute convolutions in bfloat16 in the fitting steps. Checks are always in float32.
        per_neuron: Use one initial potential for each neuron, [C, H, W], instead of one for each
            channel. The network then runs only on pictures of this size.
        loss: `mse`, or `kl`, the Kullback-Leibler divergence between the rates and the targets,
            with a soft-max over the flattened C*H*W of each picture (as published for
            classification). `kl` does not see an added constant. Readouts, where a constant
            matters, are always fitted with `mse`.
        bias: First add the mean error of the activations to the bias of each layer: b += mean(a -
            theta r) (Li et al., ICML 2021). As in the publication, this is not checked on held-out
            pictures, so a layer may become worse.
        layers: Names of the layers to calibrate, or shell patterns (`model.1.*`). The names are
            those in the reports. The other layers keep their parameters. None: all layers.
        pictures, held: Number of training pictures to fit, and of other training pictures to check
            each layer with.
        batch: Batch size.
    """

    coarse: bool = True
    fine: bool = True
    steps: int = option(
        120,
        "most fine-calibration steps for each layer",
        name="layer_steps",
        least=0,
        group="stage II",
    )
    rate: float = 3e-2
    patience: int = 4
    check: int = 15
    alpha: float = 1.0
    half: bool = True
    per_neuron: bool = option(
        False, "one initial potential for each neuron, not for each channel", group="stage II"
    )
    loss: str = option("mse", "loss of fine calibration", choices=("mse", "kl"), group="stage II")
    bias: bool = False
    layers: Sequence[str] | None = option(
        None,
        "layers to calibrate: names, or patterns like 'model.1.*'",
        shown="default: all",
        group="stage II",
    )
    pictures: int = option(
        256, "training pictures that the layers are fitted to", least=1, group="stage II"
    )
    held: int = option(
        64,
        "held-out training pictures; they decide what to keep of each layer",
        least=1,
        group="stage II",
    )
    batch: int = field(default=8, metadata={"least": 1})

    def size_of_group(self, pictures: int) -> int:
        """The size of the batches that some pictures are calibrated in, so that there are two.

        Raises:
            DataError: There are fewer than two pictures.
        """
        if pictures < 2:
            raise DataError(f"{pictures} pictures to calibrate with; expected 2 or more")
        return min(self.batch, self.pictures, pictures // 2)

    def divided(self, groups: list[Group]) -> tuple[list[Group], list[Group]]:
        """Two or more batches: those to fit, and those that are held out, one of each at least."""
        part = self.held / (self.pictures + self.held)
        count = min(max(1, round(len(groups) * part)), len(groups) - 1)
        return groups[:-count], groups[-count:]


def _end(default: Any, help: str, name: str, **limits: Any) -> Any:
    """Make an option of the end-to-end pass, `--end-NAME`."""
    return option(default, help, name=f"end_{name}", group="end-to-end pass", **limits)


@dataclass
class EndToEnd:
    """Settings of the end-to-end pass of stage II.

    Attributes:
        steps: Training steps. 0 for no pass.
        batch: Pictures in a batch.
        grow_from: Input side in pixels in the first steps. It grows to that of the network in 3/4
            of the steps. Half the side needs a quarter of the time. Training only at a smaller side
            would make the network worse at its own side. None: always the side of the network.
        rate: Learning rate relative to the weights.
        batch_norm: Add batch norm during the pass and fold it afterwards. It helped a classifier at
            T = 4. It did not help that classifier at T = 8, or a detector with batches of 8.
        workers: Loader processes. The random augmentation depends on their number.
        int8: Train with int8 weights and keep them. The events engine runs such a network without
            further rounding, and its file is half as large.
        sparsity: Weight of a penalty on the synaptic operations, in units of the float network's
            multiplications (see `conversion.sparsity`). With a penalty the result is always kept,
            because fewer spikes may increase the tuning loss.
        features: Weight of the distance of the firing rates to the activations of the teacher (see
            `conversion.features`). A few steps then go a longer way.
        also: Numbers of time steps below T. The outputs after these steps are trained too, so that
            one network works for all of them. All losses have the same weight.
        truth: Weight of the task's own loss on the annotations beside the distillation loss.
    """

    steps: int = _end(400, "training steps; 0 for no end-to-end pass", "to_end", least=0)
    batch: int = _end(8, "pictures in a batch", "batch", least=1)
    grow_from: int | None = _end(
        None, "input side in pixels in the first steps; it grows in 3/4 of the steps", "grow_from",
        least=1,
    )  # fmt: skip
    rate: float = _end(4e-3, "learning rate, relative to the weights", "rate", above=0)
    batch_norm: bool = _end(
        False, "add batch norm for this pass, and fold it afterwards", "batch_norm"
    )
    workers: int = _end(0, "loader processes", "workers", least=0)
    int8: bool = _end(False, "train with int8 weights, and keep them", "int8")
    sparsity: float = _end(
        0.0, "weight of a penalty on the synaptic operations", "sparsity", least=0
    )
    features: float = _end(
        0.0, "weight of the distance of firing rates to the teacher's activations", "features",
        least=0,
    )  # fmt: skip
    also: Sequence[int] | None = _end(
        None, "also train the outputs after these numbers of time steps, below T", "also", least=1,
        metavar="T",
    )  # fmt: skip
    truth: float = 1.0

    def conflict(self) -> str | None:
        """A sentence about options that exclude each other, or None."""
        if self.int8 and self.batch_norm:
            return "the end-to-end pass cannot have both int8 and batch_norm; choose one"
        return None

    def read_after(self, T: int) -> list[int]:
        """The numbers of time steps after which the outputs are trained, in ascending order.

        T is the last of them.

        Raises:
            UsageError: A number in `also` is not an integer from 1 to T - 1.
        """
        for steps in self.also or ():
            if type(steps) is not int or not 1 <= steps < T:
                right = f"integers from 1 to {T - 1}" if T > 1 else "none, as T is 1"
                raise UsageError(
                    f"outputs after {steps!r} steps cannot be trained in a network for T={T}; "
                    f"expected {right}"
                )
        return sorted({*(self.also or ()), T})

    def origin(self, T: int) -> dict[str, Any]:
        """Entries for the origin of a network for T steps: `int8` and `also_for`."""
        origin: dict[str, Any] = {"int8": True} if self.int8 else {}
        return origin | ({"also_for": self.read_after(T)[:-1]} if self.also else {})


@dataclass
class Plan:
    """Settings of stage II, the seed that chooses its pictures, and the kind of the neurons.

    Attributes:
        layers: Settings of layer-wise calibration.
        end: Settings of the end-to-end pass.
        seed: Seed that chooses the pictures.
        neuron: Neurons of the copy of a stage-I network: a name in `neurons.registry`.
        margin: Margin of neurons that take back spikes (see `neurons.correcting`). None: that of
            the spiking network to continue with, or 0.
    """

    layers: LayerWise = field(default_factory=LayerWise)
    end: EndToEnd = field(default_factory=EndToEnd)
    seed: int = 0
    neuron: str = "neuron"
    margin: float | None = option(
        None,
        "neurons that take back spikes do so if their potential is lower than this many "
        "thresholds below 0; with more of it they send fewer spikes",
        least=0,
        shown="default: that of the spiking network, or 0",
        group="stage II",
    )


def expect_pooling(pooling: str | None) -> None:
    """Check the name of a max-pooling mode. None is allowed.

    Raises:
        UsageError: There is no such mode. The message lists the modes.
    """
    if right := violated_limits(pooling, {"choices": POOLINGS}):
        raise UsageError(f"pooling is {shorten(repr(pooling))}; expected {right}")


def world_size() -> int:
    """Number of processes that torchrun started; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", 1))
