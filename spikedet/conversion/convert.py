"""From any float network to a spiking one, in one call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spikedet.conversion.calibrate import LayerReport, calibrate
from spikedet.conversion.copied import spiking_copy
from spikedet.conversion.lessons import (
    Batches,
    Distance,
    Guide,
    Lessons,
    Loss,
    distance_of,
    home_of,
)
from spikedet.conversion.thresholds import thresholds_by
from spikedet.engines.rounding import Rounder
from spikedet.errors import UsageError
from spikedet.graph.graph import Graph
from spikedet.graph.rewrites.fold_batch_norm import fold_batch_norm
from spikedet.graph.rewrites.quantise import quantise
from spikedet.methods import Method, named
from spikedet.neurons.quantize import QuantClip
from spikedet.precision import present_device
from spikedet.runtime.network import SpikingNetwork
from spikedet.settings import (
    EndToEnd,
    LayerWise,
    StageOne,
    TrainingSettings,
    expect_limits,
    expect_pooling,
)
from spikedet.terminal import Bar

LOOKED_AT = 64  # pictures that thresholds are estimated on


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
    end_also: Sequence[int] | None = None,
    pooling: str = "count",
    neuron: str = "neuron",
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> SpikingNetwork:
    """Convert a float network to a spiking one.

    Without `loss` nothing is trained: thresholds are taken from the batches and the layers are
    calibrated on them (stage II). With `loss` and `epochs` the network is first fine-tuned with
    quantised activations, distilling `network` (stage I), and ends with an end-to-end pass.

    Before it returns, the graph is compared with `network`, and the spiking network with the
    quantised one, layer by layer, on your batches; what does not agree is refused.

    Args:
        network: Any module of the operations that convert (`docs/convert.md` lists them). It is
            left as it was, on its device, in its mode.
        batches: Run over several times: a list or a loader of tensors [B, ...], or of tuples whose
            first item is that input; the rest goes to `loss`.
        T: Time steps.
        loss: `loss(output, *rest)` -> scalar, smaller is better.
        epochs: Passes of stage I over the batches.
        method: One of `spikedet.methods.METHODS`; `two-stage` with a loss, `stage2` without.
        distill: Weight of the distance from the outputs of `network` in stage I.
        distance: `distance(output, wanted)` -> scalar; the mean squared difference in units of each
            output's variance when None.
        rate: Learning rate of stage I, as a part of each tensor's root mean square.
        noise: Probability that an activation is not quantised in training (eq 14).
        per_channel: One threshold a channel instead of one a layer.
        fold_first: Fold batch norm before stage I, not after it.
        pictures: Most pictures that layers are fitted to.
        held: Most pictures that layers are judged by, others than those.
        batch: Pictures that go through a layer at once in calibration.
        layer_steps: Most steps of fine calibration a layer.
        layer_loss: `mse` or `kl` (see `settings.LayerWise`).
        layers: Names or patterns of the layers to calibrate; all when None.
        per_neuron: An initial potential for every neuron instead of every channel.
        end_to_end: Steps of the end-to-end pass over the batches, which follow `network` and, where
            there is one, the loss. None: 200 with a loss and a method that has one, else 0.
        end_rate: Its learning rate, as `rate`.
        end_batch_norm: Train it beside batch norm that is folded afterwards.
        int8: Return a network of whole weights, int8 with a scale for each output channel, which
            the events engine runs without any more rounding; the end-to-end pass trains with them.
        sparsity: Weight of a penalty on the synaptic operations in the end-to-end pass, in units of
            the float network's multiplications a step: fewer spikes, less time and energy.
        end_also: Further numbers of steps, below T, after which the outputs are trained in the
            end-to-end pass, too: one network for all of them, `snn(x, T=4)`.
        pooling: How spikes are max-pooled: `count` or `step` (see `SpikingMaxPool`).
        neuron: Which one of `neurons.registry`; integrate-and-fire with soft reset by default.
        seed: Of everything that is drawn.
        device: Where to work and where the result stays: `cpu`, `cuda:0`; that of `network` when
            None.
        progress: Show bars.

    Returns:
        The spiking network in evaluation mode, without gradients.

    Raises:
        ConversionError: Names the operation that has no spiking counterpart, and what to do.
        UsageError: Arguments that are outside their limits, or make no sense together.
        DataError: Fewer than two pictures, or batches that cannot be run over again.

    Examples:
        >>> snn = spikedet.convert(network, batches, T=8)
        >>> y = snn(x)
    """
    method = method or ("two-stage" if epochs else "stage2")
    recipe = named(method)
    if type(T) is not int or T < 1:
        raise UsageError(f"T is {T!r}; expected a whole number of 1 or more")
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
        also=end_also,
    )  # fmt: skip
    expect_limits(TrainingSettings(epochs=epochs or 1, rate=rate, seed=seed))
    expect_limits(stage_one)
    expect_limits(layer_wise, steps="layer_steps", loss="layer_loss")
    expect_limits(end, steps="end_to_end", rate="end_rate")
    end.read_after(T)
    expect_pooling(pooling)
    if end_also and not end.steps:
        raise UsageError(
            "end_also has no effect without the end-to-end pass; set end_to_end as well"
        )
    if sparsity and not end.steps:
        raise UsageError(
            "sparsity has no effect without the end-to-end pass; set end_to_end as well"
        )
    if recipe.plain:
        stage_one = stage_one.plain()
    where = torch.device(present_device(str(device))) if device is not None else home_of(network)
    source = Batches(batches, where)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        example = source.first()
        guide = Guide(network, example)
        graph = guide.prepared(fold=fold_first or not epochs).to(where)
        _quantise(graph, source, T, recipe, stage_one)
        lessons = Lessons(guide, source, loss, distance or distance_of(guide, source), progress)
        if epochs:
            lessons.finetune(graph, stage_one.distill, epochs, rate)
            fold_batch_norm(graph)
        graph.eval().requires_grad_(False)
        spiking = spiking_copy(
            graph, T, recipe.initial, recipe.shift, pooling, neuron, pictures=example[:4]
        )
        if recipe.calibrated:
            _calibrate(graph, spiking, source.groups(layer_wise), T, layer_wise, progress)
        if int8:
            Rounder(spiking).write()
        converted, spikes = SpikingNetwork(spiking, T), {}
        if end.steps:
            spikes = lessons.end_to_end(converted, source.groups(layer_wise)[1], end)
    converted.requires_grad_(False).eval()
    converted.origin = {
        "method": method, "T": T, "epochs": epochs,
        "end_to_end": bool(end.steps), "end_to_end_steps": end.steps, "seed": seed,
        "coarse": recipe.coarse, "fine": recipe.fine, **end.origin(T), **spikes,
    }  # fmt: skip
    return converted


def _expect_training(
    method: str,
    recipe: Method,
    epochs: int,
    end_to_end: int | None,
    loss: Loss | None,
    distill: float,
) -> None:
    """Refuse a loss that trains nothing, and training that the method has not or cannot do without.

    Raises:
        UsageError: Says what does not fit.
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
    """Make the activations of a float graph quantisers, in place; thresholds from its pictures."""
    pictures = source.pictures(LOOKED_AT)
    thresholds = thresholds_by(recipe.thresholds, graph, pictures, T, stage_one.per_channel)
    quantise(graph, thresholds, T, stage_one.noise)
    for quantiser in graph.only(QuantClip):
        quantiser.clips_rounded = stage_one.clips_rounded


def _calibrate(
    quantised: Graph,
    spiking: Graph,
    groups: tuple[list[Tensor], list[Tensor]],
    T: int,
    options: LayerWise,
    progress: bool,
) -> None:
    """Stage II, layer by layer, in place."""
    with Bar(desc=f"stage II, T={T}", unit="layer", shown=progress) as bar:

        def report(layer: LayerReport, index: int, count: int) -> None:
            bar.total = count
            bar.update()

        calibrate(quantised, spiking, *groups, T, options, report)
