"""Both stages with their files: reads float weights and writes spiking ones.

The run of stage I is in the folder `out.stage1`; see `run_files` for the others.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from spikedet.checkpoint import Checkpoint, load, sha256
from spikedet.conversion.output_error import MOST, output_error, warn_if_large
from spikedet.graph.rewrites.spike import expect_margin
from spikedet.methods import Method
from spikedet.networks import (
    current,
    expect_same_network,
    expect_stage,
    graph_of,
)
from spikedet.options import expect_limits
from spikedet.settings import Plan, StageOne
from spikedet.stages import stage_two
from spikedet.stages.calibration import Calibration, expect_plan, with_pooling
from spikedet.stages.stage_one import FineTuning, untuned
from spikedet.stages.watcher import Watcher
from spikedet.task import Samples, Task


@dataclass
class Conversion:
    """The conversion of a float checkpoint by both stages, by a part of them, or by a baseline.

    Attributes:
        task: Task of the network.
        weights: Path of the float checkpoint.
        train: Training samples.
        tune: Tuning samples. They decide what is kept.
        T: Time steps.
        method: Conversion method.
        settings: Training settings of stage I, the task's `Settings`.
        options: Further options of stage I.
        plan: Settings of stage II.
        out: Spiking checkpoint to write.
        origin: Record of how the network was made. It is stored in the checkpoint.
        stage1: Stage-I checkpoint to use instead of a run of stage I. It may have another number of
            levels than T.
        teacher: Float checkpoint that stage I distils from. None: `weights`.
        pooling, device, resume, watcher: See `Calibration`.
    """

    task: Task
    weights: Path
    train: Samples
    tune: Samples
    T: int
    method: Method
    settings: Any
    options: StageOne
    plan: Plan
    out: Path
    origin: dict[str, Any]
    stage1: Path | None = None
    teacher: Checkpoint | None = None
    pooling: str | None = None
    device: str = "cpu"
    resume: bool = False
    watcher: Watcher = field(default_factory=Watcher)

    def run(self) -> None:
        """Convert and write the checkpoint.

        Raises:
            WeightsError: The weights are of another stage or of another network.
            TrainingError, DataError, UsageError: See `FineTuning.run` and `Calibration.run`.
        """
        expect_plan(self.plan, self.pooling)
        expect_margin(self.plan.margin, self.plan.neuron)
        self.plan.end.read_after(self.T)
        expect_limits(self.options, features="stage1_features", sparsity="stage1_sparsity")
        checkpoint = load(self.weights)
        expect_stage(checkpoint, "float")
        checkpoint = with_pooling(current(self.task, checkpoint), self.pooling)
        origin = dict(self.origin)
        if self.method.finetuned and self.stage1 is not None:
            quantised = self._loaded_stage_one(self.stage1, checkpoint)
            origin |= {"levels": quantised.T, "stage1": sha256(self.stage1)}
            quantised = replace(quantised, T=self.T)
        else:
            quantised = self._first_stage(checkpoint)
        method, plan = self.method, self.plan
        layers = replace(
            plan.layers,
            coarse=plan.layers.coarse and method.coarse,
            fine=plan.layers.fine and method.fine,
        )
        end = plan.end if method.end_to_end else replace(plan.end, steps=0)
        plan = replace(plan, layers=layers, end=end)
        calibration = Calibration(
            self.task,
            quantised,
            self.train,
            self.tune,
            plan,
            self.out,
            origin,
            teacher=checkpoint,
            method=method,
            pooling=self.pooling,
            device=self.device,
            resume=self.resume,
            watcher=self.watcher,
        )
        calibration.run()
        if not method.finetuned and not end.steps:  # a trained network has outputs of its own
            self._compare(checkpoint)

    def _compare(self, checkpoint: Checkpoint) -> None:
        """Compare the outputs with those of the float network on tuning pictures, and tell."""
        task, device = self.task, self.device
        network = graph_of(task, checkpoint).eval().to(device)
        spiking = graph_of(task, load(self.out)).to(device)
        pictures = self.tune.pick(MOST, self.plan.seed).pictures(checkpoint, task.batch)
        batches = (batch.to(device) for batch in pictures)
        error = output_error(network, spiking, self.T, batches)
        self.watcher.say(
            f"squared error of the outputs, compared with the float network: {error:.3f} of their "
            "variance"
        )
        better = [] if self.plan.neuron == "correcting" else ["--neuron correcting"]
        better += [] if self.options.per_channel else ["--per-channel"]
        better += [] if self.method.calibrated else ["--method stage2"]
        better += ["training (--method two-stage)", "more steps"]
        warn_if_large(error, self.T, better)

    def _loaded_stage_one(self, path: Path, checkpoint: Checkpoint) -> Checkpoint:
        """Stage-I weights from a file, instead of a run of stage I."""
        ready = load(path)
        expect_stage(ready, "qc")
        expect_same_network(path, ready, self.weights, checkpoint)
        return current(self.task, ready)

    def _first_stage(self, checkpoint: Checkpoint) -> Checkpoint:
        """Stage-I weights for T: with estimated thresholds, or from a run beside `out`."""
        task, T = self.task, self.T
        if not self.method.finetuned:
            per_channel, thresholds = self.options.per_channel, self.method.thresholds
            return untuned(task, checkpoint, self.train, T, per_channel, thresholds)
        # refuse what stage II could not do before the hours that stage I takes
        stage_two.expect_end_size(task, checkpoint, self.plan, graph_of(task, checkpoint))
        stage_two.expect_layers(task, checkpoint, self.train, self.plan)
        options = self.options
        if self.method.plain:
            options = options.plain()
        tuning = FineTuning(
            task,
            checkpoint,
            self.train,
            self.tune,
            T,
            self.settings,
            options,
            teacher=self.teacher,
            origin=dict(self.origin),
            thresholds=self.method.thresholds,
        )
        folder = self.out.with_name(self.out.name + ".stage1")
        if not (self.resume and tuning.finished(folder)):
            tuning.run(folder, self.resume)
        return load(folder / "best.safetensors")
