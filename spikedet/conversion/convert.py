"""Convert a float network to a spiking network in one call."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spikedet.conversion.calibrate import LayerReport, calibrate
from spikedet.conversion.copied import spiking_copy
from spikedet.conversion.output_error import MOST, output_error, warn_if_large
from spikedet.conversion.stage_training import (
    Batches,
    Distance,
    FloatTeacher,
    Loss,
    StageTraining,
    default_distance,
    device_of_weights,
)
from spikedet.conversion.thresholds import thresholds_by
from spikedet.counts import expect_steps
from spikedet.engines.rounding import Rounder
from spikedet.errors import UsageError
from spikedet.graph.graph import Graph
from spikedet.graph.rewrites.fold_batch_norm import fold_batch_norm
from spikedet.graph.rewrites.quantise import quantise
from spikedet.graph.rewrites.spike import expect_margin
from spikedet.methods import Method, named
from spikedet.neurons.quantize import QuantClip
from spikedet.options import expect_limits
from spikedet.precision import present_device
from spikedet.runtime.network import SpikingNetwork
from spikedet.settings import EndToEnd, LayerWise, StageOne, TrainingSettings, expect_pooling
from spikedet.terminal import Bar

LOOKED_AT = 64  # number of pictures that the thresholds are estimated from


def convert(
    network: nn.Module,
    batches: Iterable[Any],
    T: int,
    *,
    loss: Loss | None = None,
    epochs: int = 0,
    method: str | None = None,
    distill: float = 1.0,
    distance: Distance | None = None,
    rate: float = 2e-3,
    noise: float = 0.1,
    per_channel: bool = False,
    fold_first: bool = False,
    pictures: int = 256,
    held: int = 64,
    batch: int = 8,
    layer_steps: int = 120,
    layer_loss: str = "mse",
    layers: Sequence[str] | None = None,
    per_neuron: bool = False,
    end_to_end: int | None = None,
    end_rate: float = 4e-3,
    end_batch_norm: bool = False,
    int8: bool = False,
    sparsity: float = 0.0,
    end_features: float = 0.0,
    end_also: Sequence[int] | None = None,
    pooling: str = "count",
    neuron: str = "neuron",
    margin: float = 0.0,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> SpikingNetwork:
    """Convert a float network to a spiking one.

    Without `epochs`, stage I is left out: the thresholds are estimated from the batches, and the
    layers are calibrated on the batches (stage II). With `loss` and `epochs`, stage I comes first:
    the network is fine-tuned with quantised activations and distils from `network`. With a `loss`,
    the two-stage method ends with an end-to-end pass.

    The function checks its own result on your batches. It compares the recorded graph with
    `network`, and the spiking network with the quantised one, layer by layer. It raises an error if
    they do not agree. Without a `loss` or `distance` it also compares the outputs with those of
    `network`, on held-out pictures if some were held out. The result is in
    `origin["output_error"]`: the mean squared difference, divided by the variance. Above 0.25 there
    is a warning that names better options.

    Args:
        network: A module of supported operations (listed in `docs/convert.md`) with one input. It
            may be compiled, or in a `DataParallel`. The function does not change it, its device or
            its mode.
        batches: A list or a loader, which is iterated several times. Each batch is an input tensor
            [B, ...], or a tuple. The first item of a tuple is the input, and the other items are
            passed to `loss`.
        T: Time steps.
        loss: `loss(output, *rest)` returns a scalar tensor. Smaller is better.
        epochs: Passes of stage I over the batches.
        method: A name in `spikedet.methods.METHODS`. None: `two-stage` if `epochs` is above 0,
            else `stage2`.
        distill: Weight of the distillation loss in stage I, which is the distance to the outputs of
            `network`.
        distance: `distance(output, wanted)` returns a scalar tensor. None: the mean squared
            difference, divided by the variance of each output.
        rate: Learning rate of stage I, relative to the root mean square of each tensor.
        noise: Probability that an activation is not quantised in training (eq 14).
        per_channel: Use one threshold for each channel instead of one for each layer.
        fold_first: Fold batch norm before stage I instead of after it.
        pictures: Largest number of pictures that the layers are fitted to.
        held: Largest number of held-out pictures, but at least one batch is held out. They decide
            what is kept of each layer, and whether the result of the end-to-end pass is kept. The
            layers are not fitted to them, and the pass leaves out batches that hold one of them. If
            all batches do (there are few, or a loader shuffles), it trains on all. Stage I trains
            on all.
        batch: Batch size in calibration.
        layer_steps: Largest number of fine-calibration steps for each layer.
        layer_loss: Loss of fine calibration: `mse` or `kl` (see `settings.LayerWise`).
        layers: Names or patterns of the layers to calibrate. None: all layers.
        per_neuron: Use one initial potential for each neuron instead of one for each channel.
        end_to_end: Training steps of the end-to-end pass. Its targets are the outputs of `network`.
            If there is a `loss`, it is added. None: 200 if the method has this pass and there is a
            `loss`, else 0.
        end_rate: Learning rate of the end-to-end pass, relative as `rate`.
        end_batch_norm: Add batch norm during the end-to-end pass, and fold it afterwards.
        int8: Return a network with int8 weights and one scale for each output channel. The events
            engine runs it without further rounding, except for some layers that keep their tensors
            (see `engines.rounding`), such as one whose neurons are an output of the network. The
            end-to-end pass trains with these weights.
        sparsity: Weight of a penalty on synaptic operations in the end-to-end pass. Operations are
            counted in units of the float network's multiplications. The penalty gives fewer
            spikes, and so less time and energy.
        end_features: Weight of the distance of the firing rates to the activations of the float
            network in the end-to-end pass (see `conversion.features`).
        end_also: Numbers of time steps below T. The end-to-end pass also trains the outputs after
            these steps, so that one network works for several T, for example `snn(x, T=4)`.
        pooling: Max-pooling of spikes: `count` or `step` (see `SpikingMaxPool`).
        neuron: `neuron` for integrate-and-fire with soft reset, `correcting` for neurons that also
            take back spikes (see `neurons.correcting`), or a name in `neurons.registry`.
        margin: Margin of neurons that take back spikes, 0 to 8 thresholds. They take back a spike
            if their potential is lower than this below 0. With a larger margin they send fewer
            spikes, but the rates are less accurate.
        seed: Seed of all random numbers.
        device: Device for the work and the result, such as `cpu` or `cuda:0`. None: the device of
            `network`.
        progress: Show progress bars.

    Returns:
        The spiking network, in evaluation mode and without gradients.

    Raises:
        ConversionError: An operation has no spiking counterpart. The message names it and says what
            to do.
        UsageError: An argument is outside its limits, or has no effect, or arguments contradict
            each other.
        DataError: There are fewer than two pictures, they have different shapes, or `batches`
            cannot be iterated again. Or a batch of one picture is too small for batch norm.
        TrainingError: The loss of stage I or of the end-to-end pass is not finite, or `loss` fails,
            for example because labels do not fit the output.

    Examples:
        >>> snn = spikedet.convert(network, batches, T=8)
        >>> y = snn(x)
    """
    if not isinstance(network, nn.Module):
        raise UsageError(
            f"network is of type {type(network).__name__}; expected a torch.nn.Module; for files "
            "of weights there are the commands convert and import"
        )
    network = _unwrapped(network)
    method = method or ("two-stage" if epochs else "stage2")
    recipe = named(method)
    expect_steps(T)
    T = int(T)  # it may be of numpy
    expect_limits(TrainingSettings(epochs=epochs or 1, rate=rate, seed=seed))
    _expect_training(method, recipe, epochs, end_to_end, loss, distill)
    if end_to_end is None:
        end_to_end = 200 if recipe.end_to_end and loss is not None else 0
    stage_one = StageOne(noise, per_channel, distill, fold_first=fold_first)
    layer_wise = LayerWise(
        coarse=recipe.coarse, fine=recipe.fine, steps=layer_steps, loss=layer_loss, layers=layers,
        per_neuron=per_neuron, bias=recipe.bias, pictures=pictures, held=held, batch=batch,
    )  # fmt: skip
    end = EndToEnd(
        end_to_end, rate=end_rate, batch_norm=end_batch_norm, int8=int8, sparsity=sparsity,
        features=end_features, also=end_also,
    )  # fmt: skip
    expect_limits(stage_one)
    expect_limits(layer_wise, steps="layer_steps", loss="layer_loss")
    expect_limits(
        end, steps="end_to_end", rate="end_rate", features="end_features", also="end_also"
    )
    end.read_after(T)
    expect_pooling(pooling)
    expect_margin(margin, neuron)
    given = {
        "rate": rate, "noise": noise, "distill": distill, "distance": distance,
        "fold_first": fold_first, "per_channel": per_channel, "pictures": pictures, "held": held,
        "batch": batch, "layer_steps": layer_steps, "layer_loss": layer_loss, "layers": layers,
        "per_neuron": per_neuron, "end_rate": end_rate, "end_batch_norm": end_batch_norm,
        "sparsity": sparsity, "end_features": end_features, "end_also": end_also or None,
    }  # fmt: skip
    for names, why in _without_effect(method, recipe, epochs, end.steps, distill):
        _expect_unset({name: given[name] for name in names}, why)
    if recipe.plain:
        stage_one = stage_one.plain()
    where = (
        torch.device(present_device(str(device)))
        if device is not None
        else device_of_weights(network)
    )
    source = Batches(batches, where)
    with torch.random.fork_rng(), torch.enable_grad():  # a caller may be without gradients
        torch.manual_seed(seed)
        example = source.first()
        teacher = FloatTeacher(network, example)
        graph = teacher.prepared(fold=fold_first or not epochs).to(where)
        _quantise(graph, source, T, recipe, stage_one)
        training = StageTraining(
            teacher, source, loss, distance or default_distance(teacher, source), progress
        )
        if epochs:
            training.finetune(graph, stage_one.distill, epochs, rate)
            fold_batch_norm(graph)
        graph.eval().requires_grad_(False)
        spiking = spiking_copy(
            graph, T, recipe.initial, recipe.shift, pooling, neuron, example[:4], margin
        )
        if recipe.calibrated or end.steps:
            groups = source.groups(layer_wise)
        if recipe.calibrated:
            target = graph if epochs else teacher.on(where)
            _calibrate(target, spiking, groups, T, layer_wise, progress)
        if int8:
            Rounder(spiking).write()
        converted, passed = SpikingNetwork(spiking, T), {}
        if end.steps:
            passed = training.end_to_end(converted, groups[1], end)
        converted.requires_grad_(False).eval()
        if loss is None and distance is None:  # with one, the outputs may be others
            held_out = groups[1] if recipe.calibrated else source.pictures(MOST)
            passed["output_error"] = output_error(teacher, converted.graph, T, held_out)
            better = ["a smaller rate"] if epochs or end.steps else []
            better += [] if neuron == "correcting" else ["neuron='correcting'"]
            better += [] if per_channel else ["per_channel=True"]
            better += [] if recipe.calibrated else ["method='stage2'"]
            better += ["more epochs" if epochs else "training (epochs)", "more steps"]
            warn_if_large(passed["output_error"], T, better)
    origin = {
        "method": method, "T": T, "epochs": epochs,
        "end_to_end": False, "end_to_end_steps": 0, "seed": seed,
        "coarse": recipe.coarse, "fine": recipe.fine, **({"int8": True} if int8 else {}), **passed,
    }  # fmt: skip
    numpy = {name: value.item() for name, value in origin.items() if isinstance(value, np.generic)}
    converted.origin = origin | numpy  # files have no numbers of numpy
    return converted


def _unwrapped(network: nn.Module) -> nn.Module:
    """The network in what `torch.compile`, `DataParallel` and the like return."""
    while True:
        inner = getattr(network, "_orig_mod", None)
        if isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = network.module
        if not isinstance(inner, nn.Module):
            return network
        network = inner


def _without_effect(
    method: str, recipe: Method, epochs: int, end_steps: int, distill: float
) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the arguments of `convert` that have no effect, with where, and what to do."""
    here = f"in method {method!r}"
    first = ("noise", "distill")
    if not epochs:
        yield (*first, "rate", "fold_first"), "without stage I; set epochs as well"
    if recipe.plain:
        yield first, f"{here}; leave it out"
    if not end_steps:
        end = ("end_rate", "end_batch_norm", "sparsity", "end_features", "end_also")
        yield end, "without the end-to-end pass; set end_to_end as well"
        if not epochs:
            yield ("distance",), "without training; set epochs or end_to_end"
        elif recipe.plain or not distill:
            yield ("distance",), "without distillation; leave it out"
    if not recipe.calibrated:
        layers = ("layers",) if end_steps else ("layers", "pictures", "held", "batch")
        yield layers, f"{here}, which calibrates no layer; leave it out"
    if not recipe.fine:
        fine = ("layer_steps", "layer_loss")
        yield fine, f"{here}, which has no fine calibration; leave it out"
    if not (recipe.coarse or recipe.fine):
        yield ("per_neuron",), f"{here}, which changes no initial potentials; leave it out"
    if recipe.thresholds == "channels":
        yield ("per_channel",), f"{here}, which has one for each channel anyway; leave it out"


def _expect_unset(options: dict[str, Any], where: str) -> None:
    """Check that arguments of `convert` that have no effect have their default values.

    Args:
        options: Values by the names of the arguments.
        where: Where they have no effect, and what to do.

    Raises:
        UsageError: One has another value. The message names it.
    """
    usual = inspect.signature(convert).parameters
    for name, value in options.items():
        if value is not usual[name].default and value != usual[name].default:
            raise UsageError(f"{name} has no effect {where}")


def _expect_training(
    method: str,
    recipe: Method,
    epochs: int,
    end_to_end: int | None,
    loss: Loss | None,
    distill: float,
) -> None:
    """Check that the training arguments fit the method.

    Raises:
        UsageError: A loss has no effect, the method has no stage I, or it needs a loss and epochs.
    """
    if loss is not None and not epochs and not end_to_end:
        raise UsageError("loss has no effect without training; set epochs or end_to_end as well")
    if epochs and not recipe.finetuned:
        raise UsageError(
            f"epochs is {epochs}, but method {method!r} has no stage I; leave epochs out"
        )
    if recipe.finetuned and (epochs < 1 or (loss is None and (recipe.plain or not distill))):
        raise UsageError(
            f"method {method!r} fine-tunes the network; expected epochs of 1 or more, and a loss"
        )


def _quantise(graph: Graph, source: Batches, T: int, recipe: Method, stage_one: StageOne) -> None:
    """Replace the activations of a float graph by quantisers, in place.

    The thresholds are estimated from the first `LOOKED_AT` pictures.
    """
    pictures = source.pictures(LOOKED_AT)
    thresholds = thresholds_by(recipe.thresholds, graph, pictures, T, stage_one.per_channel)
    quantise(graph, thresholds, T, stage_one.noise)
    for quantiser in graph.only(QuantClip):
        quantiser.clips_rounded = stage_one.clips_rounded


def _calibrate(
    target: Graph,
    spiking: Graph,
    groups: tuple[list[Tensor], list[Tensor]],
    T: int,
    options: LayerWise,
    progress: bool,
) -> None:
    """Run stage II layer by layer on `spiking`, in place. `target` has the activations to reach."""
    with Bar(desc=f"stage II, T={T}", unit="layer", shown=progress) as bar:

        def report(layer: LayerReport, index: int, count: int) -> None:
            bar.total = count
            bar.update()

        calibrate(target, spiking, *groups, T, options, report)
