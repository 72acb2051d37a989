"""Stage I for any task: quantise-clip fine-tuning, from stage `float` to stage `qc`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from spikedet.checkpoint import Checkpoint, fingerprint, save
from spikedet.conversion.features import Features
from spikedet.conversion.prepare import prepare
from spikedet.conversion.sparsity import StageOnePenalty
from spikedet.conversion.thresholds import thresholds_by
from spikedet.errors import UsageError, WeightsError
from spikedet.graph.graph import Graph
from spikedet.graph.rewrites.fold_batch_norm import fold_batch_norm
from spikedet.graph.rewrites.quantise import quantise
from spikedet.networks import current, example, expect_stage, graph_of, teacher_of, with_graph
from spikedet.neurons.quantize import QuantClip
from spikedet.options import expect_limits
from spikedet.settings import StageOne
from spikedet.task import Run, Samples, Task
from spikedet.training.run import expect_same_run, state_of

THRESHOLD_PICTURES = 64


def quantized(
    task: Task,
    checkpoint: Checkpoint,
    samples: Samples,
    T: int,
    options: StageOne,
    thresholds: str | Callable[..., Any] = "least-error",
) -> Graph:
    """Make the graph of a network with quantise-clip activations.

    The thresholds of a float network are estimated from `samples`. Stage-I weights for another T
    keep their thresholds. Only their number of levels changes.

    Args:
        task: Task of the network.
        checkpoint: Float or stage-I checkpoint.
        samples: Samples for the estimation of thresholds.
        T: Time steps.
        options: Noise, one threshold per channel or layer, and when batch norm is folded.
        thresholds: Rule for the thresholds (see `Method`).

    Raises:
        WeightsError: One threshold per channel is wanted, but the stage-I weights have one per
            layer.
    """
    expect_stage(checkpoint, "float", "qc")
    graph = graph_of(task, checkpoint)
    if checkpoint.stage == "qc":
        quantisers = graph.only(QuantClip)
        if options.per_channel and any(not module.threshold.ndim for module in quantisers):
            raise WeightsError(
                "these stage-I weights have one threshold per layer; start from float weights for "
                "one threshold per channel"
            )
        for module in quantisers:
            module.steps, module.noise = T, options.noise
        return graph
    graph = prepare(graph, example(checkpoint.imgsz), options.fold_first)
    pictures = samples.pick(THRESHOLD_PICTURES).pictures(checkpoint, 8)
    estimated = thresholds_by(thresholds, graph, pictures, T, options.per_channel)
    quantise(graph, estimated, T, options.noise)
    return graph


@dataclass
class FineTuning:
    """A run of stage I.

    Attributes:
        task: Task of the network.
        checkpoint: Float checkpoint, or stage-I checkpoint for another T, to start from.
        train: Training samples.
        tune: Tuning samples. They choose the best epoch.
        T: Time steps of the quantiser.
        settings: Training settings, the task's `Settings`.
        options: Further options of stage I.
        teacher: Float checkpoint to distil from. None: `checkpoint`, if it is float.
        origin: Record of how the network was made. It is stored in the checkpoints.
        thresholds: Rule for the first thresholds of a float network (see `Method`).
    """

    task: Task
    checkpoint: Checkpoint
    train: Samples
    tune: Samples
    T: int
    settings: Any
    options: StageOne
    teacher: Checkpoint | None = None
    origin: dict[str, Any] | None = None
    thresholds: str | Callable[..., Any] = "least-error"

    def planned(self) -> Checkpoint:
        """The checkpoint that `run` makes, without its tensors.

        `run` in its origin has the settings that must be equal in a resumed run.
        """
        origin = self.origin or {}
        run = {"parent": origin.get("parent"), "data": self.train.fingerprint()}
        run |= vars(self.options)
        for name in ("features", "sparsity"):
            if not run[name]:  # as runs of older versions
                del run[name]
        run["teacher"] = None if self.teacher is None else fingerprint(self.teacher.tensors)
        origin = {**origin, "run": run}
        made_from = current(self.task, self.checkpoint)
        return replace(made_from, stage="qc", T=self.T, origin=origin, tensors={})

    def run(self, folder: Path, resume: bool = False) -> None:
        """Train the quantised network (eq 12-15); write the best and the last checkpoint.

        Args:
            folder: Folder of the run.
            resume: Continue the run in `folder`.

        Raises:
            TrainingError: The run in `folder` is for another T, another network or other options.
            UsageError: An option is outside its limits, or `features` is set without a teacher.
            WeightsError: The teacher does not fit the network, or see `quantized`.
            ConversionError: A layer cannot be converted.
        """
        task, options = self.task, self.options
        expect_limits(options, features="stage1_features", sparsity="stage1_sparsity")
        checkpoint = current(task, self.checkpoint)
        planned = self.planned()
        if resume:
            expect_same_run(folder, planned)
        network = quantized(task, checkpoint, self.train, self.T, options, self.thresholds)
        for module in network.modules():
            if isinstance(module, QuantClip):
                module.clips_rounded = options.clips_rounded
        for parameter in network.parameters():
            parameter.requires_grad_(True)
        network.train()
        penalty = StageOnePenalty(network, options.sparsity) if options.sparsity else None

        def write(trained: nn.Module, path: Path) -> None:
            folded = copy.deepcopy(getattr(trained, "graph", trained)).cpu().eval()
            assert isinstance(folded, Graph)
            fold_batch_norm(folded)
            made = with_graph(planned, folded)
            if penalty is not None:
                made.origin = {**made.origin, "operations": penalty.operations}
            save(made, path)

        teacher = self.teacher or (checkpoint if checkpoint.stage == "float" else None)
        guide = teacher_of(task, checkpoint, teacher) if teacher and options.distill else None
        features = None
        if options.features:
            if guide is None:
                raise UsageError("stage1_features has no effect without a teacher; leave it out")
            features = Features(network, guide, options.features)
        run = Run(
            checkpoint,
            self.train,
            self.tune,
            folder,
            self.settings,
            write,
            resume=resume,
            teacher=guide,
            distill=options.distill,
            features=features,
            penalty=penalty,
        )
        task.fit(network, run)

    def finished(self, folder: Path) -> bool:
        """Whether the run in `folder` has finished all epochs.

        Raises:
            TrainingError: That run is for another network or has other settings.
        """
        if not (folder / "state.pt").is_file():
            return False
        planned = self.planned()
        expect_same_run(folder, planned)
        settings = replace(self.settings, imgsz=planned.imgsz)  # as `Task.fit` trains
        return state_of(folder / "state.pt", settings)["epoch"] + 1 >= settings.epochs


def untuned(
    task: Task,
    checkpoint: Checkpoint,
    samples: Samples,
    T: int,
    per_channel: bool = False,
    thresholds: str | Callable[..., Any] = "least-error",
) -> Checkpoint:
    """Make a stage-I checkpoint without training: float weights and estimated thresholds.

    Its spiking copy is the simplest conversion ("copied weights").
    """
    checkpoint = current(task, checkpoint)
    options = StageOne(per_channel=per_channel, fold_first=True)
    graph = quantized(task, checkpoint, samples, T, options, thresholds)
    return with_graph(replace(checkpoint, stage="qc", T=T, origin={}), graph)
