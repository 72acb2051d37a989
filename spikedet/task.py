"""Stage I and stage II of any task: everything that follows once a task says what is its own.

`detection.task` and `classification.task` say how their networks are built, how their samples
become pictures and losses, and how they are measured; the way from a float checkpoint to a spiking
one is the same and stands here.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spikedet.checkpoint import Checkpoint, save
from spikedet.conversion.bias import shift_currents
from spikedet.conversion.calibrate import LayerReport, Options, calibrate
from spikedet.conversion.distill import distill
from spikedet.conversion.fold import fold_batch_norm
from spikedet.conversion.network import SpikingNetwork
from spikedet.conversion.normalize import channel_maxima, largest_activations
from spikedet.conversion.quantize import QuantClip
from spikedet.conversion.replace import (
    estimate_thresholds,
    make_spiking,
    prepare,
    quantize,
)
from spikedet.conversion.trace import ACTIVATIONS, trace
from spikedet.errors import DataError, UsageError, WeightsError
from spikedet.neurons.layers import Readout
from spikedet.training import epochs_done, growing_side, resized

THRESHOLD_PICTURES = 64


@dataclass
class Plan:
    """How much stage II does.

    Attributes:
        layers: Layer-wise calibration.
        pictures, held: Training pictures to fit, and others to judge each layer by.
        batch: Pictures that go through a layer at once.
        end_to_end: Steps of the end-to-end pass, 0 for none.
        end_batch: Pictures a step of it.
        end_grow_from: Their side in pixels at first, growing to that of the network in 3/4 of the
            steps, as half the side is a quarter of the time; always that of the network when None.
            A pass at a smaller side alone leaves a network that is worse at its own.
        end_rate: Its relative learning rate.
        truth: Weight of the task's own loss on the annotations beside the distillation.
        seed: Which pictures are drawn.
    """

    layers: Options = field(default_factory=Options)
    pictures: int = 256
    held: int = 64
    batch: int = 8
    end_to_end: int = 400
    end_batch: int = 8
    end_grow_from: int | None = None
    end_rate: float = 4e-3
    truth: float = 1.0
    seed: int = 0


class Task(ABC):
    """A task: what it must say itself, and both stages of conversion.

    Attributes:
        name: As checkpoints have it.
        score: The measured value that choices are made by, the higher the better.
        columns: The measured values that tables show.
        protocol: How they are measured, with `{imgsz}` for the pixels.
        batch: Pictures that usually go through a network at once.
        stride: Sides of pictures in pixels are multiples of it.
    """

    name: str
    score: str
    columns: tuple[str, ...]
    protocol: str
    batch = 8
    stride = 1

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
    def names(self, samples: Sequence) -> tuple[str, ...]:
        """Class names of samples that were read without saying any."""

    @abstractmethod
    def split_off_tuning(self, samples: Sequence, tuning: Path | None) -> tuple[Sequence, Sequence]:
        """Training samples without, and with nothing but, those kept aside for every choice."""

    @abstractmethod
    def take(self, samples: Sequence, numbers: Sequence[int]) -> Sequence:
        """The samples of these numbers."""

    @abstractmethod
    def pictures(self, samples: Sequence, made: Checkpoint, batch: int) -> Iterator[Tensor]:
        """Pictures [B, 3, H, W] as the network of a checkpoint takes them, in order."""

    @abstractmethod
    def augmented(
        self, samples: Sequence, made: Checkpoint, batch: int, seed: int
    ) -> Iterator[dict[str, Any]]:
        """Endless training batches; `img` is [B, 3, H, W], the rest is for `loss`."""

    @abstractmethod
    def loss(
        self, network: nn.Module, found: Any, wanted: Any, batch: dict, truth: float
    ) -> Tensor:
        """Distance of outputs from a teacher's, and `truth` times that from the annotations."""

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
        self, runner: Any, samples: Sequence, *, T: int | None = None, **options: Any
    ) -> tuple[dict[str, Any], float | None]:
        """Values by name, `columns` among them, and spikes per neuron and step.

        Options: `batch`, pictures at once, and `on_batch`, called with the pictures done so far.
        """

    # ------------------------------------------------------------------ networks of all stages

    def expect_convertible(self, description: dict[str, Any], classes: int, imgsz: int) -> None:
        """Refuse a network before it is trained which could not be converted afterwards.

        Raises:
            ConversionError: Names the layer, and says what to put in its place.
        """
        prepare(self.network(description, classes), self.example(imgsz))

    def bare(self, made: Checkpoint) -> nn.Module:
        """The module of a checkpoint in evaluation mode.

        Raises:
            WeightsError: Of another task, or its tensors do not fit its description.
        """
        if made.task != self.name:
            raise WeightsError(f"these weights are for {made.task}; expected {self.name} weights")
        try:
            network = self.network(made.model, len(made.names))
        except Exception as error:
            raise WeightsError(
                f"the network description in the weights is damaged: {error}"
            ) from None
        if made.stage != "float":
            example = self.example(made.imgsz)
            prepare(network, example)
            record = trace(network, example)
            ones = {call.where: torch.ones(()) for call in record.of(ACTIVATIONS)}
            quantize(network, record, ones, made.T)
            if made.stage == "snn":
                self.spike(network, made)
        for name, module in network.named_modules():
            for key in ("threshold", "initial"):  # one a layer, a channel or a neuron
                stored = made.tensors.get(f"{name}.{key}")
                if stored is not None and hasattr(module, key):
                    getattr(module, key).data = torch.empty_like(stored)
            weights = made.tensors.get(f"{name}.log_weights")
            if isinstance(module, Readout) and weights is not None:
                module.weigh_steps(weights.numel())
        try:
            network.load_state_dict(made.tensors)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise WeightsError(f"tensors do not fit the network description: {reason}") from None
        for parameter in network.parameters():
            parameter.requires_grad_(False)
        return network

    def restore(self, made: Checkpoint, half: bool = False) -> Any:
        """The network of a checkpoint, ready to run.

        Args:
            made: The checkpoint.
            half: Let a spiking network compute in bfloat16 (see `SpikingNetwork.use_bfloat16`).

        Raises:
            WeightsError: As `bare`.
        """
        network = self.bare(made)
        if made.stage == "float":
            fold_batch_norm(network, self.example(made.imgsz))
            network.requires_grad_(False)  # those that folding made, too
        network.to(memory_format=torch.channels_last)
        if made.stage == "snn":
            network = SpikingNetwork(network, made.T, chunk=4 * self.batch)
            if half:
                # at its own size: initial potentials may be those of single neurons
                network.use_bfloat16(torch.zeros(1, 3, made.imgsz, made.imgsz))
        return self.runner(network, made)

    def spike(self, network: nn.Module, made: Checkpoint, initial: float = 0.5) -> None:
        """Make the quantised network of a checkpoint spiking, in place (see `make_spiking`).

        Max-pooling is done as its description says: `spike_pooling: count` (the default) or `step`.
        """
        pooling = made.model.get("spike_pooling", "count")
        if pooling not in ("count", "step"):
            raise UsageError(
                f"the network description has spike_pooling: {pooling}; expected count or step"
            )
        make_spiking(network, self.example(made.imgsz), initial, pooling)

    def pick(self, samples: Sequence, count: int, seed: int = 0) -> Sequence:
        """`count` samples drawn without replacement (all of them when there are fewer)."""
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

    # ------------------------------------------------------------------ stage I

    def quantized(
        self,
        made: Checkpoint,
        samples: Sequence,
        T: int,
        noise: float = 0.1,
        per_channel: bool = False,
        maxima: bool = False,
    ) -> nn.Module:
        """A float network with quantise-clip activations, thresholds estimated on `samples`.

        Stage-I weights of another T keep their thresholds and only change their number of levels.

        Args:
            made: Float or stage-I checkpoint.
            samples: Where thresholds of a float network are estimated.
            T: Time steps.
            noise: Probability that an element is not quantised while training.
            per_channel: One threshold a channel instead of one a layer.
            maxima: Thresholds are the largest activations, not those of the least error.

        Raises:
            WeightsError: Thresholds of each channel from stage-I weights that have one a layer.
        """
        expect_stage(made, "float", "qc")
        network = self.bare(made)
        if made.stage == "qc":
            scalar = any(t.ndim == 0 for k, t in made.tensors.items() if k.endswith(".threshold"))
            if per_channel and scalar:
                raise WeightsError(
                    "these stage-I weights have one threshold a layer; for thresholds of each "
                    "channel start from float weights"
                )
            for module in network.modules():
                if isinstance(module, QuantClip):
                    module.steps, module.noise = T, noise
            return network
        example = self.example(made.imgsz)
        prepare(network, example)
        record = trace(network, example)
        pictures = self.pictures(self.pick(samples, THRESHOLD_PICTURES), made, 8)
        if maxima:
            thresholds = largest_activations(network, record, pictures, per_channel)
        else:
            thresholds = estimate_thresholds(network, record, pictures, T, per_channel=per_channel)
        quantize(network, record, thresholds, T, noise)
        return network

    def finetune(
        self,
        made: Checkpoint,
        train: Sequence,
        tune: Sequence,
        T: int,
        out: Path,
        settings: Any,
        *,
        noise: float = 0.1,
        per_channel: bool = False,
        teacher: Checkpoint | None = None,
        distill: float = 1.0,
        clips_rounded: bool = False,
        resume: bool = False,
        origin: dict[str, Any] | None = None,
    ) -> None:
        """Stage I (eq 12-15): train the quantised network; best and last checkpoint go to `out`.

        Args:
            made: Float checkpoint, or a stage-I checkpoint of another T to go on from.
            train: Samples to fit.
            tune: Samples that choose the best epoch.
            T: Time steps of the quantiser.
            out: Folder of the run.
            settings: How to train.
            noise: Probability that an element is not quantised while training.
            per_channel: One threshold a channel instead of one a layer.
            teacher: Float checkpoint to distil from; `made` itself when it is a float one.
            distill: Weight of the distillation beside the task's loss, 0 for none.
            clips_rounded: Where gradients pass the quantisers (see `QuantClip`).
            resume: Go on with the run in `out`.
            origin: Put into the checkpoints.
        """
        network = self.quantized(made, train, T, noise, per_channel)
        for module in network.modules():
            if isinstance(module, QuantClip):
                module.clips_rounded = clips_rounded
        for parameter in network.parameters():
            parameter.requires_grad_(True)
        network.train()

        def write(trained: nn.Module, path: Path) -> None:
            tensors = trained.state_dict()
            save(replace(made, stage="qc", tensors=tensors, T=T, origin=origin or {}), path)

        if teacher is None and made.stage == "float":
            teacher = made
        guide = self.teacher(made, teacher) if teacher is not None and distill else None
        self.fit(network, train, tune, made, out, settings, write, resume, guide, distill)

    def untuned(
        self,
        made: Checkpoint,
        samples: Sequence,
        T: int,
        per_channel: bool = False,
        maxima: bool = False,
    ) -> Checkpoint:
        """A stage-I checkpoint without stage I: float weights, thresholds from pictures.

        Its spiking copy is the simplest conversion ("copied weights").
        """
        network = self.quantized(made, samples, T, per_channel=per_channel, maxima=maxima)
        return replace(made, stage="qc", tensors=network.state_dict(), T=T, origin={})

    # ------------------------------------------------------------------ spiking networks

    def copied(self, made: Checkpoint, initial: float = 0.5, shift: bool = False) -> nn.Module:
        """Spiking network with the weights and thresholds of stage I, nothing calibrated.

        Args:
            made: Stage-I checkpoint.
            initial: Potential before the first step in units of the threshold.
            shift: Add theta / (2 T) to every current (see `shift_currents`).
        """
        expect_stage(made, "qc")
        network = self.bare(made)
        self.spike(network, made, initial)
        if shift:
            shift_currents(network, self.example(made.imgsz), made.T)
        return network

    def spiking_yolo(
        self, made: Checkpoint, samples: Sequence, T: int, origin: dict[str, Any]
    ) -> Checkpoint:
        """The Spiking-YOLO baseline: channel-wise normalisation, potentials that start at zero.

        Args:
            made: Float checkpoint.
            samples: Training samples that the channels' maxima are taken from.
            T: Time steps.
            origin: Put into the checkpoint.
        """
        expect_stage(made, "float")
        network, example = self.bare(made), self.example(made.imgsz)
        prepare(network, example)
        record = trace(network, example)
        pictures = self.pictures(self.pick(samples, THRESHOLD_PICTURES), made, 8)
        quantize(network, record, channel_maxima(network, record, pictures), T)
        self.spike(network, made, initial=0.0)
        return spiking_checkpoint(replace(made, T=T), network, origin)

    def layer_wise(
        self,
        made: Checkpoint,
        network: nn.Module,
        samples: Sequence,
        plan: Plan,
        report: Callable[[LayerReport, int, int], None] | None = None,
        teacher: Checkpoint | None = None,
    ) -> list[LayerReport]:
        """Stage II, layer by layer (eq 16-21), in place.

        Args:
            made: Stage-I checkpoint.
            network: The spiking network made from it.
            samples: Training samples.
            plan: How much is done.
            report: Called after each layer.
            teacher: Whose activations are the targets, in place of `made`: the float checkpoint.

        Raises:
            DataError: Too few samples to fit to some and judge by others.
        """
        chosen = self.pick(samples, plan.pictures + plan.held, plan.seed)
        if len(chosen) < 2:
            raise DataError(f"{len(chosen)} pictures to calibrate with; expected 2 or more")
        size = min(plan.batch, plan.pictures, len(chosen) // 2)
        pictures = [
            batch.contiguous(memory_format=torch.channels_last)
            for batch in self.pictures(chosen, made, size)
            if len(batch) == size
        ]
        held = max(1, round(len(pictures) * plan.held / (plan.pictures + plan.held)))
        held = min(held, len(pictures) - 1)
        target = self.bare(teacher or made)
        if teacher is not None:
            prepare(target, self.example(made.imgsz))
        target.to(memory_format=torch.channels_last)
        return calibrate(
            target, network, pictures[:-held], pictures[-held:], made.T, plan.layers, report
        )

    def expect_end_size(self, made: Checkpoint, plan: Plan, network: nn.Module) -> None:
        """Refuse pictures of the end-to-end pass that a spiking network cannot take.

        Raises:
            UsageError: Larger than the network's, not a multiple of the task's stride, or smaller
                where each neuron has an initial potential of its own.
        """
        size = plan.end_grow_from
        if size in (None, made.imgsz):
            return
        if size % self.stride or size > made.imgsz:
            raise UsageError(
                f"the end-to-end pass was told to grow from {size} pixels; expected a multiple of "
                f"{self.stride}, {made.imgsz} at most"
            )
        single = plan.layers.per_neuron or any(
            tensor.ndim == 3
            for name, tensor in network.state_dict().items()
            if name.endswith("initial")
        )
        if single:
            raise UsageError(
                f"a network with an initial potential for each neuron takes {made.imgsz} pixels; "
                f"the end-to-end pass was told to grow from {size}"
            )

    def end_to_end(
        self,
        made: Checkpoint,
        network: nn.Module,
        samples: Sequence,
        plan: Plan,
        teacher: Checkpoint | None = None,
        on_step: Callable[[int, float], None] | None = None,
    ) -> None:
        """Distil a teacher into the spiking network, whole, in place.

        Args:
            made: Stage-I checkpoint that the spiking network was made from.
            network: The calibrated spiking network.
            samples: Training samples, which are augmented.
            plan: How much is done.
            teacher: Float checkpoint; the stage-I network teaches when None.
            on_step: Called with the step and its loss.

        Raises:
            UsageError: As `expect_end_size`.
        """
        self.expect_end_size(made, plan, network)
        guide = self.restore(made).network if teacher is None else self.teacher(made, teacher)
        spiking = SpikingNetwork(network, made.T, chunk=plan.end_batch * made.T)

        def loss(batch: dict[str, Any]) -> Tensor:
            pictures = batch["img"].contiguous(memory_format=torch.channels_last)
            with torch.autocast(pictures.device.type, torch.bfloat16):
                with torch.no_grad():
                    wanted = guide(pictures)
                found = spiking(pictures)
            return self.loss(network, as_float(found), as_float(wanted), batch, plan.truth)

        batches = self.augmented(samples, made, plan.end_batch, plan.seed)
        distill(
            spiking,
            self._growing(batches, made.imgsz, plan),
            loss,
            steps=plan.end_to_end,
            rate=plan.end_rate,
            on_step=on_step,
        )

    def _growing(
        self, batches: Iterator[dict[str, Any]], side: int, plan: Plan
    ) -> Iterator[dict[str, Any]]:
        """Batches with the pictures at the side that `plan` wants at each step."""
        first = plan.end_grow_from or side
        for step, batch in enumerate(batches):
            now = growing_side(first, side, step / plan.end_to_end, self.stride)
            yield {**batch, "img": resized(batch["img"], now)}


def expect_stage(made: Checkpoint, *stages: str) -> None:
    """Refuse a checkpoint of another stage.

    Raises:
        WeightsError: Says what it is and what was expected.
    """
    if made.stage not in stages:
        raise WeightsError(
            f"these are {made.stage} weights; expected {' or '.join(stages)} weights"
        )


def spiking_checkpoint(made: Checkpoint, network: nn.Module, origin: dict[str, Any]) -> Checkpoint:
    """A checkpoint of the spiking network that was made from a stage-I checkpoint."""
    return replace(made, stage="snn", tensors=network.state_dict(), origin=origin)


def finished(folder: Path, resume: bool) -> bool:
    """Whether the stage-I run in `folder` has done all its epochs (only asked when resuming)."""
    if not resume:
        return False
    done, wanted = epochs_done(folder)
    return done == wanted > 0


def as_float(value: Any) -> Any:
    """Every floating-point tensor of a nested structure in float32."""
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {k: as_float(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(as_float(v) for v in value)
    return value
