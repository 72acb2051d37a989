"""Training inside `convert`: the caller's batches, the float network as teacher, and the loss."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from spikedet.conversion.distill import distill, expect_finite, relative_adam, warm_cosine
from spikedet.conversion.features import Features, taught, watched
from spikedet.conversion.prepare import prepare
from spikedet.errors import (
    ConversionError,
    DataError,
    SpikedetError,
    TrainingError,
    UsageError,
    message_of,
    resource_error,
)
from spikedet.graph.graph import Graph, Node
from spikedet.graph.operations import NORMS, WEIGHTED
from spikedet.graph.record import record
from spikedet.graph.time import CONSTANT, phases
from spikedet.precision import device_of
from spikedet.runtime.network import SpikingNetwork
from spikedet.settings import EndToEnd, LayerWise
from spikedet.terminal import Bar

Loss = Callable[..., Tensor]
Distance = Callable[[Any, Any], Tensor]


class Batches:
    """The caller's batches, moved to a device.

    Raises:
        DataError: `batches` is one tensor or can be iterated only once. While iterating: there is
            no batch, or a batch does not begin with an input tensor.
    """

    def __init__(self, batches: Iterable[Any], device: torch.device):
        if isinstance(batches, Tensor):
            raise DataError("batches is one tensor; expected a list or a loader of batches")
        if isinstance(batches, Iterator):
            raise DataError(
                "batches can be iterated only once; expected a list or a loader, which can be "
                "iterated again"
            )
        if not hasattr(batches, "__iter__") and not hasattr(batches, "__getitem__"):
            kind = type(batches).__name__
            raise DataError(f"batches is of type {kind}; expected a list or a loader of batches")
        self.batches, self.device = batches, device

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        found = False
        for number, batch in enumerate(self.batches, 1):
            parts = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
            if not parts or not isinstance(parts[0], Tensor) or parts[0].ndim < 2:
                raise DataError("a batch without an input; expected a tensor [B, ...] first")
            if not parts[0].is_floating_point():
                raise DataError(
                    f"the input of batch {number} is of type {parts[0].dtype}; expected "
                    "floating-point numbers, such as x.float() / 255"
                )
            if not parts[0].isfinite().all():
                raise DataError(f"the input of batch {number} has values that are not finite")
            found = True
            yield tree_map(lambda x: x.to(self.device) if isinstance(x, Tensor) else x, parts)
        if not found:
            raise DataError("no batches; expected two pictures or more")

    def first(self) -> Tensor:
        """The first pictures, at least two: [B, ...].

        Raises:
            DataError: There is only one picture, or they have different shapes.
        """
        batches: list[Tensor] = []
        for pictures in self.pictures(8):
            batches.append(pictures)
            if sum(map(len, batches)) >= 8:
                break
        example = _together(batches)
        if len(example) < 2:
            count = "one picture" if len(example) else "no pictures"
            raise DataError(f"{count}; expected two or more")
        return example

    def without(self, pictures: list[Tensor]) -> Iterator[tuple[Any, ...]]:
        """Yield the batches that hold none of some pictures, or all batches if there are none.

        Args:
            pictures: Groups of pictures, [B, ...] each.
        """
        left_out = {mark for group in pictures for mark in _marks(group)}
        found = False
        for parts in self:
            if left_out.isdisjoint(_marks(parts[0])):
                found = True
                yield parts
        if not found:
            yield from self

    def pictures(self, most: float = math.inf) -> Iterator[Tensor]:
        """Yield the input of each batch, until at least `most` pictures were given."""
        done = 0
        for parts in self:
            if done >= most:
                return
            yield parts[0]
            done += len(parts[0])

    def groups(self, options: LayerWise) -> tuple[list[Tensor], list[Tensor]]:
        """Split the first pictures into groups of equal size: to fit, and held out.

        Raises:
            DataError: There are fewer than two pictures, or they have different shapes.
        """
        most = options.pictures + options.held
        together = _together(list(self.pictures(most)))[:most]
        size = options.size_of_group(len(together))
        return options.divided([group for group in together.split(size) if len(group) == size])


def _together(batches: list[Tensor]) -> Tensor:
    """Pictures of several batches as one tensor.

    Raises:
        DataError: They have different shapes.
    """
    shapes = list(dict.fromkeys(tuple(batch.shape[1:]) for batch in batches))
    if len(shapes) > 1:
        raise DataError(f"inputs of different shapes: {shapes[0]} and {shapes[1]}; expected one")
    return torch.cat(batches)


def _marks(pictures: Tensor) -> list[int]:
    """A number for each picture, by which it is found again."""
    return [hash(picture.tobytes()) for picture in pictures.detach().float().cpu().numpy()]


def _expect_finite_parameters(network: nn.Module) -> None:
    """Check the parameters of a network. A buffer may be infinite, such as a mask.

    Raises:
        ConversionError: One has values that are not finite. The message names it.
    """
    for name, tensor in network.named_parameters():
        if not nn.parameter.is_lazy(tensor) and not tensor.isfinite().all():
            raise ConversionError(f"{name} of the network has values that are not finite")


class FloatTeacher:
    """The float network: the source of the graph, and the teacher of both stages."""

    def __init__(self, network: nn.Module, example: Tensor):
        self.network = network
        _expect_finite_parameters(network)
        device = device_of_weights(network)
        if isinstance(network, Graph):
            self.graph = copy.deepcopy(network).eval()
        else:
            self.graph = record(network, example.to(device))
        self.graph.requires_grad_(False)
        self.folded: Graph | None = None

    def prepared(self, fold: bool) -> Graph:
        """A copy of the graph, ready for `quantise`."""
        return prepare(copy.deepcopy(self.graph), torch.empty(0), fold)

    def on(self, device: torch.device) -> Graph:
        """The float network with folded batch norm, in evaluation mode. It is made once."""
        if self.folded is None:
            self.folded = self.prepared(fold=True).to(device).eval()
        return self.folded

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Any:
        """Compute the outputs of the float network for pictures [B, ...]."""
        return self.on(pictures.device)(pictures)


def device_of_weights(network: nn.Module) -> torch.device:
    """The device of a network.

    Raises:
        ConversionError: The network has no tensors.
    """
    try:
        return device_of(network)
    except StopIteration:
        name = type(network).__name__
        raise ConversionError(f"{name}: no weights; there is nothing to convert") from None


def default_distance(teacher: FloatTeacher, source: Batches) -> Distance:
    """The default distance: mean squared difference, divided by the variance of each output."""
    with torch.no_grad():
        outputs = tree_leaves(teacher(source.first()))
    scales = [x.float().var().clamp(min=1e-12) for x in outputs if isinstance(x, Tensor)]

    def distance(results: Any, wanted: Any) -> Tensor:
        pairs = zip(tree_leaves(results), tree_leaves(wanted), strict=True)
        tensors = [(a, b) for a, b in pairs if isinstance(a, Tensor)]
        errors = [
            (a.float() - b.float()).square().mean() / scale
            for (a, b), scale in zip(tensors, scales, strict=True)
        ]
        return torch.stack(errors).mean()

    return distance


@dataclass
class StageTraining:
    """The training of both stages.

    Attributes:
        teacher: The float network.
        source: Batches to train on.
        loss: Loss of the outputs and the other items of a batch. None: only the distance is used.
        distance: Distance between the outputs and those of the teacher.
        progress: Show progress bars.
    """

    teacher: FloatTeacher
    source: Batches
    loss: Loss | None
    distance: Distance
    progress: bool

    def finetune(self, graph: Graph, weight: float, epochs: int, rate: float) -> None:
        """Run stage I (eq 12-15), in place.

        The training loss is `loss`, plus `weight` times the distance to the teacher.

        Raises:
            DataError: A batch has one picture, and the network normalises over pictures alone.
            TrainingError: The loss is not finite, or refuses the labels.
        """
        sizes = [len(parts[0]) for parts in self.source]
        steps = epochs * len(sizes)
        if any(_values(graph, node) == 1 for node in graph.of(NORMS)):
            _expect_several(min(sizes))
        optimiser = relative_adam(graph, rate)
        graph.train()
        with Bar(total=steps, desc="stage I", shown=self.progress) as bar:
            for _ in range(epochs):
                for parts in self.source:
                    for group in optimiser.param_groups:
                        part = warm_cosine(bar.n, steps, min(20, steps // 10))
                        group["lr"] = group["peak"] * part
                    output = graph(parts[0])
                    value = torch.zeros(())
                    if weight:
                        value = weight * self.distance(output, self.teacher(parts[0]))
                    if self.loss is not None:
                        value = value + self._loss_of(output, parts[1:])
                    _step(optimiser, value)
                    bar.set_postfix_str(f"loss {value.item():.3f}", refresh=False)
                    bar.update()
        graph.eval()

    def _loss_of(self, output: Any, rest: Sequence[Any]) -> Tensor:
        """The caller's loss of the outputs and the other items of a batch.

        Raises:
            TrainingError: The loss refuses them. The message has the error and their shapes.
        """
        assert self.loss is not None
        try:
            return self.loss(output, *rest)
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, SpikedetError) or resource_error(error) is not None:
                raise
            sizes = [_form(item) for item in (output, *rest)]
            raise TrainingError(
                f"the loss fails for a batch ({message_of(error)}); it was called with "
                f"{', '.join(sizes)}; expected labels that fit the output"
            ) from error

    def end_to_end(
        self, spiking: SpikingNetwork, held_out: list[Tensor], options: EndToEnd
    ) -> dict[str, Any]:
        """Run the end-to-end pass, in place.

        It trains on the batches without pictures `held_out`, or on all if there is no such batch.
        The result is kept only if it lowers the distance to the teacher on the pictures `held_out`.
        With a penalty on spikes every finite result is kept, because fewer spikes may increase the
        distance.

        Returns:
            Entries for the origin of the network. An empty dict if the result is not kept.

        Raises:
            DataError: With `options.batch_norm`: a batch has one picture, and a layer would be
                normalised over pictures alone.
            TrainingError: The loss is not finite, or refuses the labels.
        """

        def endless() -> Iterator[tuple[Any, ...]]:
            while True:
                yield from self.source.without(held_out)

        def value(parts: tuple[Any, ...]) -> Tensor:
            if alone:
                _expect_several(len(parts[0]))
            spiking.chunk = len(parts[0]) * spiking.T
            wanted, activations = taught(features, self.teacher, parts[0])
            with watched(features) as rates:
                outputs = spiking.after(parts[0], steps)
            values = []
            for output in outputs:
                distance = self.distance(output, wanted)
                own = [] if self.loss is None else [self._loss_of(output, parts[1:])]
                values.append(sum(own, distance))
            total = sum(values[1:], values[0]) / len(values)
            if features is None:
                return total
            return total + features.loss(rates, activations)

        @torch.no_grad()
        def mean_distance() -> float:
            each = [
                self.distance(output, self.teacher(x)).item()
                for x in held_out
                for output in spiking.after(x, steps)
            ]
            return sum(each) / len(each)

        graph, when = spiking.graph, phases(spiking.graph)
        alone = options.batch_norm and any(  # not even the steps are beside them
            _values(graph, node) == 1 and (when[node.name] == CONSTANT or spiking.T == 1)
            for node in graph.of(WEIGHTED)
        )
        features, weight = None, options.features
        if weight:
            features = Features(graph, self.teacher.on(device_of(graph)), weight)
        drawn = endless()  # of all rounds: they see every batch, however many there are
        chunk, steps = spiking.chunk, options.read_after(spiking.T)
        kept, before = copy.deepcopy(spiking.graph), mean_distance()
        with Bar(total=options.steps, desc="end to end", shown=self.progress) as bar:

            def on_step(step: int, now: float) -> None:
                bar.set_postfix_str(f"loss {now:.3f}", refresh=False)
                bar.update()

            spikes = distill(spiking, lambda first: drawn, value, options, on_step=on_step)
        spiking.chunk = chunk
        after = mean_distance()
        if not (math.isfinite(after) if options.sparsity else after <= before):
            spiking.graph = kept
            return {}
        passed = {"end_to_end": True, "end_to_end_steps": options.steps}
        return {**passed, **options.origin(spiking.T), **spikes}


def _form(item: Any) -> str:
    """The shape and the number format of a tensor, or the type of something else."""
    if not isinstance(item, Tensor):
        return type(item).__name__
    return f"{list(item.shape)} {str(item.dtype).removeprefix('torch.')}"


def _values(graph: Graph, node: Node) -> int:
    """The values of a channel in the output of a node for one picture."""
    return math.prod(graph.shapes[node.name][2:])


def _expect_several(pictures: int) -> None:
    if pictures < 2:
        raise DataError(
            "a batch of one picture; batch norm needs two or more, so leave it out (drop_last=True "
            "of a DataLoader)"
        )


def _step(optimiser: torch.optim.Optimizer, value: Tensor) -> None:
    if not isinstance(value, Tensor) or value.ndim or not value.requires_grad:
        raise UsageError("loss does not return a scalar tensor that depends on the output")
    expect_finite(value)
    optimiser.zero_grad()
    value.backward()
    optimiser.step()
