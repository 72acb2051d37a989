"""What a task is to conversion: the questions it answers, and its networks of all stages.

`detection.task` and `classification.task` say how their networks are built, how their samples
become pictures and losses, and how they are measured; the way from a float checkpoint to a spiking
one is the same for all of them, in `stage_one` and `stage_two`.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spikedet.checkpoint import Checkpoint, of_graph, restore_graph
from spikedet.conversion.prepare import prepare
from spikedet.errors import UsageError, WeightsError
from spikedet.graph.graph import Graph
from spikedet.graph.operations import ACTIVATIONS, NORMS, WEIGHTED
from spikedet.graph.record import record
from spikedet.graph.rewrites.fold_batch_norm import fold_batch_norm
from spikedet.graph.rewrites.quantise import quantise
from spikedet.graph.rewrites.spike import make_spiking
from spikedet.graph.serialise import describe
from spikedet.runtime.network import SpikingNetwork

THRESHOLD_PICTURES = 64


@contextmanager
def fitting(size: str) -> Iterator[None]:
    """Say of a size of pictures, in words, that the layers of a network do not fit it.

    Raises:
        UsageError: In place of torch's `RuntimeError`.
    """
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"{size}, which the network cannot take: {reason}") from None


class Task(ABC):
    """A task: what it must say itself, and what follows from that for networks of any stage.

    Attributes:
        name: As checkpoints have it.
        columns: The measured values that tables show.
        protocol: How they are measured, with `{imgsz}` for the pixels.
        batch: Pictures that usually go through a network at once.
    """

    name: str
    columns: tuple[str, ...]
    protocol: str
    batch = 8

    # ------------------------------------------------------------------ what a task says itself

    @abstractmethod
    def describe(
        self, path: Path, width: str | None = None, activation: str | None = None
    ) -> dict[str, Any]:
        """A network description as a dict.

        Args:
            path: YAML file.
            width: A variant of it, as the task names them.
            activation: In place of its own.

        Raises:
            UsageError: No such description, or no such variant.
        """

    @abstractmethod
    def network(self, description: dict[str, Any], classes: int) -> nn.Module:
        """A network with fresh weights in evaluation mode, its outputs as losses take them.

        Raises:
            UsageError: The description cannot be built.
        """

    def fresh(self, network: nn.Module, strides: Sequence[int]) -> tuple[str, ...]:
        """How the names of the layers begin that predict at these strides.

        Raises:
            UsageError: There are none.
        """
        raise UsageError(f"{self.name} has no heads of strides")

    @abstractmethod
    def example(self, imgsz: int) -> Tensor:
        """A picture [1, 3, H, W] for tracing a network made for `imgsz` pixels."""

    @abstractmethod
    def runner(self, network: nn.Module, made: Checkpoint) -> Any:
        """A network of any stage, ready to be measured."""

    @abstractmethod
    def read(
        self,
        folders: Sequence[Path],
        split: str,
        limit: int | None = None,
        names: tuple[str, ...] | None = None,
    ) -> Sequence:
        """Annotated samples of a data set.

        Raises:
            DataError: Missing, damaged, or of other classes than `names`.
        """

    @abstractmethod
    def fingerprint(self, samples: Sequence) -> str:
        """Twelve hexadecimal digits that tell annotated samples, just read, from others."""

    def trained_on(self, samples: Sequence) -> int:
        """How many of the samples released networks were trained on, as far as is known."""
        return 0

    @abstractmethod
    def names(self, samples: Sequence) -> tuple[str, ...]:
        """Class names of samples that were read without saying any."""

    @abstractmethod
    def split_off_tuning(self, samples: Sequence, tuning: Path | None) -> tuple[Sequence, Sequence]:
        """Training samples without, and with nothing but, those kept aside for every choice."""

    def with_unlabelled(self, samples: Sequence, folders: Sequence[Path]) -> Sequence:
        """The samples and, behind them, pictures that are only distilled.

        Raises:
            UsageError: The loss of the task wants annotations of every picture.
            DataError: No pictures there.
        """
        raise UsageError(f"--unlabelled is no option of {self.name}")

    @abstractmethod
    def take(self, samples: Sequence, numbers: Sequence[int]) -> Sequence:
        """The samples of these numbers."""

    @abstractmethod
    def pictures(self, samples: Sequence, made: Checkpoint, batch: int) -> Iterator[Tensor]:
        """Pictures [B, 3, H, W] as the network of a checkpoint takes them, in order."""

    @abstractmethod
    def augmented(
        self, samples: Sequence, made: Checkpoint, batch: int, seed: int, workers: int, jpeg: int
    ) -> Iterator[dict[str, Any]]:
        """Endless training batches, made by so many loader processes, in this one where 0.

        `img` is [B, 3, H, W], the rest is for `loss`. A classifier's pictures are compressed with
        quality `jpeg`, where that is not 0.
        """

    @abstractmethod
    def loss(
        self,
        made: Checkpoint,
        network: nn.Module,
        found: Any,
        wanted: Any,
        batch: dict,
        truth: float,
        temperature: float,
    ) -> Tensor:
        """Loss of the end-to-end pass.

        The distance of outputs from a teacher's, and `truth` times that from the annotations. By
        `temperature` a classifier's outputs are divided before they are compared.
        """

    @abstractmethod
    def fit(
        self,
        network: nn.Module,
        train: Sequence,
        tune: Sequence,
        made: Checkpoint,
        folder: Path,
        settings: Any,
        write: Callable[[nn.Module, Path], None],
        resume: bool,
        teacher: nn.Module | None = None,
        distill: float = 1.0,
    ) -> None:
        """Train a network in place; writes best and last checkpoint to `folder` by `write`.

        Args:
            network: Float, or with quantisers.
            train: Samples to fit.
            tune: Samples that choose the best epoch.
            made: Its description, class names and picture size.
            folder: Of the run.
            settings: The task's.
            write: Called with the network and the path of a checkpoint.
            resume: Go on with the run in `folder`.
            teacher: Whose outputs are distilled beside the task's loss.
            distill: Weight of that.
        """

    @abstractmethod
    def measure(
        self,
        runner: Any,
        samples: Sequence,
        *,
        steps: Sequence[int] | None = None,
        **options: Any,
    ) -> list[tuple[dict[str, Any], float | None]]:
        """Values by name, `columns` among them, and spikes per neuron and step.

        Args:
            runner: The network.
            samples: To measure it on.
            steps: Time steps of a spiking network, ascending, all measured in one run; None for its
                own T, and for a network without time.
            options: `batch`, pictures at once, and `on_batch`, called with how many are done.

        Returns:
            For each of `steps`; of one entry where they are None.
        """

    def usual_side(self, description: dict[str, Any]) -> int | None:
        """Side of a network's pictures in pixels where none is given, None for that of settings."""
        return None

    def stride(self, head: dict[str, Any]) -> int:
        """Sides of a network's pictures in pixels are multiples of it; `head` as of `head_of`."""
        return 1

    # ------------------------------------------------------------------ networks of all stages

    def expect_convertible(self, description: dict[str, Any], classes: int, imgsz: int) -> None:
        """Refuse a network before it is trained which could not be used or converted afterwards.

        One with fresh weights is converted, and thrown away.

        Raises:
            UsageError: Its pictures are of a size that it cannot take, or its description asks for
                what conversion does not know.
            ConversionError: Names the layer, and says what to put in its place.
        """
        network = self.network(description, classes)
        stride = self.stride(self.head_of(network))
        if imgsz < stride or imgsz % stride:
            raise UsageError(f"imgsz is {imgsz}; expected a multiple of {stride}")
        with fitting(f"imgsz is {imgsz}"):
            graph = prepare(network, self.example(imgsz))
        quantise(graph, {n.name: torch.ones(()) for n in graph.of(ACTIVATIONS)}, 1)
        make_spiking(graph, pooling=pooling_of(description))

    def bare(self, made: Checkpoint) -> nn.Module:
        """The network of a checkpoint in evaluation mode.

        Returns:
            The module of its description for a float checkpoint, a `Graph` for others.

        Raises:
            WeightsError: Of another task, or its tensors do not fit its graph or description.
        """
        if made.stage != "float":
            return self.graph(made)
        if made.task != self.name:
            raise WeightsError(f"these weights are for {made.task}; expected {self.name} weights")
        network = self._described(made)
        try:
            network.load_state_dict(made.tensors)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise WeightsError(f"tensors do not fit the network description: {reason}") from None
        for name, tensor in made.tensors.items():
            if name.endswith("running_var") and not bool((tensor >= 0).all()):
                raise WeightsError(f"{name[:80]}: a variance below 0")
        return network.requires_grad_(False)

    def _described(self, made: Checkpoint) -> nn.Module:
        """A network with fresh weights, as the description in a checkpoint has it."""
        try:
            return self.network(made.model, len(made.names))
        except Exception as error:
            raise WeightsError(
                f"the network description in the weights is damaged: {error}"
            ) from None

    def graph(self, made: Checkpoint) -> Graph:
        """The graph of a checkpoint of any stage, as it was written; that of a float network has
        its batch norms.

        Raises:
            WeightsError: As `bare`, or its outputs are not what its task takes them for.
        """
        made = self.current(made)
        graph = restore_graph(made)
        self.expect_outputs(graph, made)
        return graph

    @abstractmethod
    def expect_outputs(self, graph: Graph, made: Checkpoint) -> None:
        """Refuse a graph whose outputs are not what the rest of its checkpoint takes them for.

        Raises:
            WeightsError: Says what does not fit.
        """

    def head_of(self, network: nn.Module) -> dict[str, Any]:
        """What the outputs of a network mean, for its checkpoints."""
        return {}

    def current(self, made: Checkpoint) -> Checkpoint:
        """A checkpoint in the form of today, with its graph and what its outputs mean.

        Raises:
            WeightsError: Of another task, or as `bare`.
        """
        if made.task != self.name:
            raise WeightsError(f"these weights are for {made.task}; expected {self.name} weights")
        if made.graph is not None:
            return made
        if made.stage != "float":
            from spikedet.upgrade import upgraded

            network = self._described(made)
            head = self.head_of(network)
            try:
                pooling = pooling_of(made.model)
            except UsageError as error:
                raise WeightsError(str(error)) from None
            return upgraded(made, network, self.example(made.imgsz), pooling, head)
        return self.float_checkpoint(made, self.bare(made))

    def float_checkpoint(self, made: Checkpoint, network: nn.Module) -> Checkpoint:
        """A float checkpoint with the graph of its network, so that it runs without the class.

        Args:
            made: Without tensors.
            network: Built from its description.
        """
        graph = record(network, self.example(made.imgsz))
        described = describe(graph)
        names, described["tensors"] = dict(network.named_modules(remove_duplicate=False)), {}
        for node in graph.of(WEIGHTED + NORMS):
            if node.name not in names:  # another call of a layer that several places share
                source = node.name.rpartition("_")[0]
                for key in node.module.state_dict():
                    described["tensors"][f"{node.name}.{key}"] = f"{source}.{key}"
        return replace(made, graph=described, head=self.head_of(network))

    def restore(self, made: Checkpoint, half: bool = False) -> Any:
        """The network of a checkpoint, ready to run.

        Args:
            made: The checkpoint.
            half: Let a spiking network compute in bfloat16 (see `SpikingNetwork.use_bfloat16`).

        Raises:
            WeightsError: As `bare`.
        """
        made = self.current(made)
        network: nn.Module = self.graph(made)
        if made.stage == "float":
            fold_batch_norm(network)
            network.requires_grad_(False)  # those that folding made, too
        network.to(memory_format=torch.channels_last)
        if made.stage == "snn":
            network = SpikingNetwork(network, made.T, chunk=4 * self.batch)
            if half:
                network.use_bfloat16()
        return self.runner(network, made)

    def pick(self, samples: Sequence, count: int, seed: int = 0) -> Sequence:
        """`count` samples drawn without replacement (all of them when there are fewer).

        None of them is unlabelled: such pictures may be unlike those that a network is for.
        """
        count = min(count, len(samples))
        return self.take(samples, random.Random(seed).sample(range(len(samples)), count))

    def teacher(self, made: Checkpoint, teacher: Checkpoint) -> nn.Module:
        """The network of a float checkpoint whose outputs one made from `made` shall come near to.

        Raises:
            WeightsError: It is not a float network, or its outputs mean something else.
        """
        expect_stage(teacher, "float")
        if teacher.names != made.names:
            raise WeightsError(
                f"the teacher knows {len(teacher.names)} classes, {', '.join(teacher.names[:3])}, "
                f"...; expected the {len(made.names)} of the network that learns from it"
            )
        return self.restore(teacher).network


def expect_stage(made: Any, *stages: str) -> None:
    """Refuse a checkpoint, or what runs it, of another stage.

    Raises:
        WeightsError: Says what it is and what was expected.
    """
    if made.stage not in stages:
        raise WeightsError(
            f"these are {made.stage} weights; expected {' or '.join(stages)} weights"
        )


def spiking_checkpoint(made: Checkpoint, graph: Graph, origin: dict[str, Any]) -> Checkpoint:
    """A checkpoint of the spiking graph that was made from a stage-I checkpoint."""
    return with_graph(replace(made, stage="snn", origin=origin), graph)


def with_graph(made: Checkpoint, graph: Graph) -> Checkpoint:
    """A checkpoint with another graph."""
    fields = {key: value for key, value in vars(made).items() if key not in ("tensors", "graph")}
    return of_graph(graph, **fields)


def pooling_of(description: dict[str, Any]) -> str:
    """How spikes are max-pooled: `spike_pooling: count` (the default) or `step`.

    Raises:
        UsageError: The description says something else.
    """
    pooling = description.get("spike_pooling", "count")
    if pooling not in ("count", "step"):
        raise UsageError(
            f"the network description has spike_pooling: {pooling}; expected count or step"
        )
    return pooling


def as_float(value: Any) -> Any:
    """Every floating-point tensor of a nested structure in float32."""
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {k: as_float(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(as_float(v) for v in value)
    return value


def expect_same_network(path: Path, made: Checkpoint, other: Path, wanted: Checkpoint) -> None:
    """Refuse a checkpoint that is not of the network of another, whatever their stages.

    Args:
        path: Of the first one.
        made: The first one.
        other: Path of the second one.
        wanted: The second one.

    Raises:
        WeightsError: Of another task, network or input side, or of other classes.
    """

    def identity(one: Checkpoint) -> dict[str, Any]:
        # the conversion chooses how spikes are pooled
        model = {key: value for key, value in one.model.items() if key != "spike_pooling"}
        return {"task": one.task, "classes": one.names, "network": model, "pixels": one.imgsz}

    found, expected = identity(made), identity(wanted)
    for key, value in found.items():
        if value != expected[key]:
            raise WeightsError(f"{path}: other {key} than {other}; expected the same network")
