"""Options as fields of dataclasses, and those that every task has.

An option is one field: its default, what it means and which values it may have stand in it, and
from them follow both the check of a run (`wrong`) and the command line (`spikedet.commands`). A
task gives its own defaults, and options that only it has, in subclasses in its `settings`. Light to
import, as those are.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from numbers import Integral, Real
from typing import Any

from spikedet.errors import UsageError, cut

NUMBERS = {"int": ("a whole number", Integral), "float": ("a number", Real)}
POOLINGS = ("count", "step")  # how spikes are max-pooled, see `neurons.layers.SpikingMaxPool`


def option(
    default: Any = MISSING,
    help: str = "",
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    choices: Sequence[str] = (),
    kind: Callable[[str], Any] | None = None,
    group: str = "",
    **shown: Any,
) -> Any:
    """A field of a dataclass that is an option of commands.

    Args:
        default: Its value where none is given; without it the option must be given.
        help: What it means.
        least: Least value of a number.
        above: A number is greater than it.
        most: Greatest value of a number.
        choices: The texts that it may be.
        kind: Makes a value of the text on a command line, or raises ValueError with a sentence;
            the type of the field if left out.
        group: Under which heading the help shows it; among the main options if left out.
        shown: How the command line has it, see `spikedet.commands.parse`.
    """
    metadata: dict[str, Any] = {"help": help, "least": least, "above": above, "most": most}
    metadata["kind"] = kind
    metadata |= {"choices": tuple(choices), "group": group, **shown}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def redefined(options: type, name: str, default: Any) -> Any:
    """An option of a dataclass that this one is based on, with another default."""
    (there,) = (each for each in fields(options) if each.name == name)
    return field(default=default, metadata=there.metadata)


def wrong(value: Any, limits: Any) -> str | None:
    """What would be right where a value is outside the limits of its option, else None.

    Args:
        value: A number or text; None is always right.
        limits: Metadata of an `option`.
    """
    choices = limits.get("choices")
    if choices and value is not None and value not in choices:
        return " or ".join([", ".join(choices[:-1]), choices[-1]] if choices[1:] else choices)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    least, above, most = (limits.get(name) for name in ("least", "above", "most"))
    if least is above is most is None:
        return None
    low = value > above if above is not None else least is None or value >= least
    if low and value <= (math.inf if most is None else most) and value != math.inf:
        return None
    return bounds(limits, "a number")


def bounds(limits: Any, kind: str) -> str:
    """The values that the limits of an option allow, in words: `a number between 0 and 1`."""
    least, above, most = (limits.get(name) for name in ("least", "above", "most"))
    if above is not None:
        return f"{kind} above {above:g}" + (f" and at most {most:g}" if most is not None else "")
    if least is None and most is None:
        return kind
    if most is None:
        return f"{kind} of {least} or more"
    return f"{kind} between {least} and {most}"


@dataclass
class TrainingSettings:
    """How a network is trained."""

    epochs: int = option(1, "passes over the training pictures", least=1)
    imgsz: int = option(32, "input side in pixels", least=1)
    batch: int = option(1, "pictures in a batch", least=1)
    rate: float = option(0.1, "peak learning rate", least=0)
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
    """`0,1` for `cuda:0,cuda:1`, as settings have it; whatever is no GPU stays as it is."""
    numbers = ("0" if name == "cuda" else name.removeprefix("cuda:") for name in device.split(","))
    return ",".join(str(int(number)) if number.isdecimal() else number for number in numbers)


@dataclass
class StageOne:
    """How stage I, quantise-clip fine-tuning, differs from other training.

    Attributes:
        clips_rounded: Where gradients pass the quantisers (see `QuantClip`), as QCFS has it.
        fold_first: Fold batch norm of a float network before it is trained, not after. With batch
            norm ten times the learning rate can be borne, which few levels need.
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

    def plain(self) -> StageOne:
        """The same as QCFS trains: no noise, no distillation, its gradient."""
        return replace(self, noise=0.0, distill=0.0, clips_rounded=True)


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


def _end(default: Any, help: str, name: str, **limits: Any) -> Any:
    """An option of the end-to-end pass, `--end-NAME`."""
    return option(default, help, name=f"end_{name}", group="end-to-end pass", **limits)


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
        also: Further numbers of time steps, below T, after which the outputs are trained, too: one
            network for all of them. All losses count alike.
        truth: Weight of the task's own loss on the annotations beside the distillation.
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
    also: Sequence[int] | None = _end(
        None, "also train the outputs after these numbers of time steps, below T", "also", least=1,
        metavar="T",
    )  # fmt: skip
    truth: float = 1.0

    def read_after(self, T: int) -> list[int]:
        """Numbers of steps after which the outputs are trained, ascending; T is the last.

        Raises:
            UsageError: One of `also` is no whole number from 1 to T - 1.
        """
        for steps in self.also or ():
            if type(steps) is not int or not 1 <= steps < T:
                right = f"whole numbers from 1 to {T - 1}" if T > 1 else "none, as T is 1"
                raise UsageError(
                    f"outputs after {steps!r} steps cannot be trained in a network for T={T}; "
                    f"expected {right}"
                )
        return sorted({*(self.also or ()), T})

    def origin(self, T: int) -> dict[str, Any]:
        """What the origin of a network for T steps says of these options: `int8`, `also_for`."""
        origin: dict[str, Any] = {"int8": True} if self.int8 else {}
        return origin | ({"also_for": self.read_after(T)[:-1]} if self.also else {})


@dataclass
class Plan:
    """How much stage II does, and which pictures are drawn for it."""

    layers: LayerWise = field(default_factory=LayerWise)
    end: EndToEnd = field(default_factory=EndToEnd)
    seed: int = 0


def impossible(settings: Any) -> tuple[str, Any, str] | None:
    """Name and value of the first option that is outside its limits, and what would be right."""
    for each in fields(settings):
        value = getattr(settings, each.name)
        # types are text here, see `annotations` above; None is right where they say so
        noun, number = NUMBERS.get(str(each.type).removesuffix(" | None"), ("", None))
        if number is not None and value is not None and not isinstance(value, number):
            return each.name, value, bounds(each.metadata, noun)
        right = wrong(value, each.metadata)
        if right is not None:
            return each.name, value, bounds(each.metadata, noun) if noun else right
    return None


def expect_limits(settings: Any, **words: str) -> None:
    """Refuse options that are outside their limits, whoever gives them.

    Args:
        settings: A dataclass of options.
        words: What options are called where not as their fields.

    Raises:
        UsageError: Names the option and what would be right.
    """
    if problem := impossible(settings):
        name, value, right = problem
        raise UsageError(f"{words.get(name, name)} is {cut(repr(value))}; expected {right}")
    if isinstance(settings, EndToEnd) and settings.int8 and settings.batch_norm:
        raise UsageError("the end-to-end pass cannot have both int8 and batch_norm; choose one")


def expect_pooling(pooling: str | None) -> None:
    """Refuse a way of max-pooling that there is not; None is left to others.

    Raises:
        UsageError: Names those that there are.
    """
    if right := wrong(pooling, {"choices": POOLINGS}):
        raise UsageError(f"pooling is {cut(repr(pooling))}; expected {right}")


def world_size() -> int:
    """How many processes torchrun started, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))
