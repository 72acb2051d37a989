"""Stage II with its files. An interrupted run can be resumed."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from spikedet.checkpoint import Checkpoint, fingerprint, load, save
from spikedet.conversion.features import Features
from spikedet.errors import TrainingError
from spikedet.graph.graph import Graph
from spikedet.graph.rewrites.spike import expect_margin, set_margin
from spikedet.methods import METHODS, Method
from spikedet.networks import (
    graph_of,
    neuron_kinds,
    spiking_checkpoint,
    teacher_of,
)
from spikedet.neurons.layers import SpikingMaxPool
from spikedet.neurons.registry import named
from spikedet.options import expect_limits
from spikedet.precision import layout
from spikedet.settings import Plan, expect_pooling
from spikedet.stages import stage_two
from spikedet.stages.run_files import delete_resume_files, last_file, layers_file, state_file
from spikedet.stages.watcher import Watcher
from spikedet.task import Samples, Task
from spikedet.training.run import as_stored

# what the record of weights goes on to say after another end-to-end pass
RECORD = (
    "method", "coarse", "fine", "calibration_pictures", "layer_wise_gain", "end_to_end",
    "end_to_end_steps", "stage1_sparsity",
)  # fmt: skip
NO_ERROR = 1e-9  # a smaller error cannot be improved (a first layer, whose input is constant)


@dataclass
class Calibration:
    """Stage II for a stage-I checkpoint, or another end-to-end pass for a spiking checkpoint.

    Attributes:
        task: Task of the network.
        checkpoint: Stage-I checkpoint, with the wanted T.
        train: Training samples.
        tune: Tuning samples. They decide whether the result of the end-to-end pass is kept.
        plan: Settings of stage II.
        out: Spiking checkpoint to write.
        origin: Record of how the network was made. It is stored in the checkpoint.
        teacher: Float checkpoint that the end-to-end pass distils from. None: the stage-I network.
        method: Conversion method. It sets the initial potentials and the bias correction.
        pooling: Max-pooling of spikes: `count` or `step`. None: as in the checkpoint.
        device: Device to compute on.
        resume: Continue an interrupted end-to-end pass. If there is none, start from the beginning.
        watcher: Receives the progress.
    """

    task: Task
    checkpoint: Checkpoint
    train: Samples
    tune: Samples
    plan: Plan
    out: Path
    origin: dict[str, Any]
    teacher: Checkpoint | None = None
    method: Method = METHODS["two-stage"]
    pooling: str | None = None
    device: str = "cpu"
    resume: bool = False
    watcher: Watcher = field(default_factory=Watcher)

    def run(self) -> None:
        """Calibrate and write the checkpoint.

        Raises:
            TrainingError: There is an interrupted run, but `resume` is False or its settings
                differ.
            DataError: There are too few samples.
            UsageError: The network cannot take the picture size, a named layer does not exist, or
                an option is outside its limits.
        """
        start = time.time()
        self._prepared()._calibrate()
        self.watcher.say(f"{self.out}: T={self.checkpoint.T}, {(time.time() - start) / 60:.1f} min")

    def _prepared(self) -> Calibration:
        """A copy with `method` and `pooling` applied to the plan and the checkpoint."""
        expect_plan(self.plan, self.pooling)
        if self.checkpoint.stage == "qc":
            expect_margin(self.plan.margin, self.plan.neuron)
        self.plan.end.read_after(self.checkpoint.time_steps)
        plan = replace(self.plan, layers=replace(self.plan.layers, bias=self.method.bias))
        return replace(self, plan=plan, checkpoint=with_pooling(self.checkpoint, self.pooling))

    def _calibrate(self) -> None:
        plan, task = self.plan, self.task
        if layers_file(self.out).is_file():
            network, origin = self._resumed_network()
            layers_done = True
        else:
            layers_done = self.checkpoint.stage == "snn"
            network, origin = self._initial_network()
        for pool in network.only(SpikingMaxPool):
            pool.mode = self.pooling or pool.mode
        stage_two.expect_end_size(task, self.checkpoint, plan, network)
        if self.teacher is not None:  # one that cannot teach is refused now
            guide = teacher_of(task, self.checkpoint, self.teacher)
            if plan.end.steps and plan.end.features:
                Features(network, guide)
        network.to(self.device).to(memory_format=layout(network))
        if not layers_done:
            origin |= self._layer_wise(network)
        target = layers_file(self.out) if plan.end.steps else self.out
        origin["run"] = self._resume_settings()
        if not layers_file(self.out).is_file() or not plan.end.steps:
            save(spiking_checkpoint(self.checkpoint, network, origin), target)
        if plan.end.steps:
            self._end_to_end(network, origin)
        delete_resume_files(self.out)

    def _resume_settings(self) -> dict[str, Any]:
        """The settings that must be equal in a resumed run."""
        agreed: dict[str, Any] = {"weights": fingerprint(self.checkpoint.tensors)}
        agreed |= {"data": self.train.fingerprint(), "T": self.checkpoint.T}
        agreed |= {"network": self.checkpoint.model, "seed": self.plan.seed}
        if self.plan.margin is not None:  # older versions had none
            agreed["margin"] = self.plan.margin
        if self.checkpoint.stage == "snn":  # its layers are calibrated already
            return agreed | {"neurons": neuron_kinds(self.checkpoint)}
        return agreed | {**vars(self.plan.layers), "neuron": self.plan.neuron}

    def _resumed_network(self) -> tuple[Graph, dict[str, Any]]:
        """The network and the origin of a run that was interrupted in its end-to-end pass."""
        path = layers_file(self.out)
        if not self.resume:
            raise TrainingError(
                f"{path}: belongs to an interrupted run; add --resume, or choose another --out"
            )
        reached = load(path)
        before, now = reached.origin.get("run", {}), as_stored(self._resume_settings())
        if "neuron" in now:  # an older version had no other
            before = {"neuron": Plan.neuron, **before}
        if "neurons" in now:  # an older version did not store them
            before = {"neurons": neuron_kinds(reached), **before}
        other = ", ".join(key for key in now | before if now.get(key) != before.get(key))
        if other:
            raise TrainingError(
                f"{path}: belongs to a run with other {other}; choose another --out"
            )
        origin = {**reached.origin, "command": self.origin.get("command")}  # as it is done now
        return graph_of(self.task, reached), origin

    def _initial_network(self) -> tuple[Graph, dict[str, Any]]:
        """The network at the start of the run, and its origin."""
        checkpoint = self.checkpoint
        if checkpoint.stage == "snn":
            record = {name: checkpoint.origin[name] for name in RECORD if name in checkpoint.origin}
            network = graph_of(self.task, checkpoint)
            if self.plan.margin is not None:
                set_margin(network, self.plan.margin)
            return network, {**record, **self.origin}
        layers = self.plan.layers
        pictures = next(iter(self.train.pick(2).pictures(checkpoint, 2)))
        initial, shift = self.method.initial, self.method.shift
        network = stage_two.copied(
            self.task,
            checkpoint,
            initial,
            shift,
            pictures,
            self.plan.neuron,
            self.plan.margin or 0.0,
        )
        origin = {**self.origin, "coarse": layers.coarse, "fine": layers.fine}
        if penalty := checkpoint.origin.get("run", {}).get("sparsity"):
            origin["stage1_sparsity"] = penalty
        return network, {**origin, "end_to_end": False, "calibration_pictures": 0}

    def _layer_wise(self, network: Graph) -> dict[str, Any]:
        """Calibrate layer by layer, in place; returns the entries for the origin."""
        layers = self.plan.layers
        if not (layers.coarse or layers.fine or layers.bias):
            return {}
        targets = self.teacher if layers.bias or not self.method.finetuned else None
        reports, fitted, held_out = stage_two.layer_wise(
            self.task, self.checkpoint, network, self.train, self.plan, self.watcher.layer, targets
        )
        gains = [1 - r.after / r.before for r in reports if r.before > NO_ERROR]
        gain = sum(gains) / max(1, len(gains))
        self.watcher.say(
            f"error per layer on held-out pictures: {gain:.1%} lower on average; {fitted} fitted, "
            f"{held_out} held out"
        )
        return {"layer_wise_gain": gain, "calibration_pictures": fitted}

    def _end_to_end(self, network: Graph, origin: dict[str, Any]) -> None:
        """Run the end-to-end pass; write the network with the lower tuning loss to `out`.

        Args:
            network: The spiking network. It is changed.
            origin: The origin of the network before the pass.
        """
        plan, steps = self.plan, self.plan.end.steps
        task, checkpoint, teacher = self.task, self.checkpoint, self.teacher

        def loss() -> float:
            return stage_two.tuning_loss(task, checkpoint, network, self.tune, plan, teacher)

        def on_step(step: int, value: float) -> None:
            self.watcher.step(step + 1, steps, value)

        if plan.end.int8:
            stage_two.round_weights(network)  # what is kept is whole in any case
            origin = {**origin, "int8": True}
        before = loss()
        kept = copy.deepcopy(network)
        state = state_file(self.out)
        spikes = stage_two.end_to_end(
            task, checkpoint, network, self.train, plan, teacher, state, on_step
        )
        after = loss()
        wins = after < before or (plan.end.sparsity > 0 and math.isfinite(after))
        path = self.out if wins else last_file(self.out)
        judged = stage_two.tuning_count(self.tune, plan)
        self.watcher.say(
            f"loss on {judged} tuning pictures: {before:.4f} before, {after:.4f} after"
        )
        if wins:
            self.watcher.say(f"{self.out} is the network after the end-to-end pass")
        else:
            self.watcher.say(
                f"{self.out} is the network before the end-to-end pass, which did not lower the "
                f"loss; {path} is the one after it"
            )
        losses = {"tuning_loss": after, "tuning_loss_before": before}
        passed: dict[str, Any] = {"end_to_end": True, **spikes}
        passed["end_to_end_steps"] = origin.get("end_to_end_steps", 0) + steps
        origin = {**origin, **losses}
        save(spiking_checkpoint(checkpoint, network, {**origin, **passed}), path)
        if not wins:
            save(spiking_checkpoint(checkpoint, kept, origin), self.out)


def expect_plan(plan: Plan, pooling: str | None) -> None:
    """Check the options of stage II before stage I, which may take hours.

    Raises:
        UsageError: An option is outside its limits. The message names it.
    """
    expect_limits(plan.layers)
    expect_limits(plan.end)
    expect_limits(plan)
    expect_pooling(pooling)
    named(plan.neuron)


def with_pooling(checkpoint: Checkpoint, pooling: str | None) -> Checkpoint:
    """A checkpoint with this max-pooling of spikes; the same checkpoint if None."""
    if not pooling:
        return checkpoint
    return replace(checkpoint, model={**checkpoint.model, "spike_pooling": pooling})
