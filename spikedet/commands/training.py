"""Options of training and of both stages of the conversion.

Options that depend on the task are the fields of its `Settings` and `StageTwo`. The default of an
option is that of the task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikedet import resources
from spikedet.commands import kinds
from spikedet.commands.checks import refuse
from spikedet.commands.main import command_line, progress
from spikedet.commands.option import options_of
from spikedet.commands.parse import Options, partial, several, written_folder
from spikedet.errors import UsageError
from spikedet.options import option, redefined
from spikedet.settings import POOLINGS, Plan, StageOne
from spikedet.stages.watcher import Watcher
from spikedet.task_registry import SETTINGS

if TYPE_CHECKING:
    from spikedet.conversion.calibrate import LayerReport

DISTILLED = ("teacher", "temperature", "unlabelled", "stage1_features")
FINE = ("layer_steps", "loss")
CHOSEN = ("pictures", "held", "per_neuron", "layers")
LAYERS = ("no_coarse", "no_fine", *CHOSEN, *FINE)
GROUP_ONE, GROUP_TWO = "stage I", "stage II"


def run_folder() -> Any:
    """Make the option `--out` of a training."""
    return written_folder(help="folder to write the run to")


def network_file(help: str) -> Any:
    """Make the option `--model` of a training with new weights."""
    ours = resources.folder("configs") / "models/tiny-yolo.yaml"
    return option(ours, help, shown="default: our tiny YOLO")


def resume(help: str = "continue an interrupted run") -> Any:
    """Make the option `--resume`."""
    return option(False, help)


def training(
    *,
    stage_one: bool = False,
    usual: dict[str, dict[str, Any]] | None = None,
    without: Sequence[str] = (),
) -> Any:
    """Make a field with the training settings of every task.

    The value of the field is a dict of the options that were given.

    Args:
        stage_one: Show the defaults of stage I in the help.
        usual: For each supported task, the defaults that differ from its settings.
        without: Settings without an option.
    """
    if usual is None:
        usual = {task: _stage_one(task) if stage_one else {} for task in SETTINGS}
    without = (*without, "imgsz") if stage_one else without
    tasks = {task: SETTINGS[task].Settings for task in usual}
    return several(partial("Training", tasks, usual, without, {"device": kinds.devices}))


def names_of(part: str = "Settings") -> list[str]:
    """Names of the options of all tasks, for `Settings` or another dataclass of the tasks."""
    dataclasses = (getattr(kinds, part) for kinds in SETTINGS.values())
    return list(dict.fromkeys(each.name for kind in dataclasses for each in options_of(kind)))


def training_settings(
    values: Mapping[str, Any],
    task: str,
    *,
    stage_one: bool = False,
    folded: bool | None = None,
    usual: dict[str, Any] | None = None,
) -> Any:
    """Make the training settings of a task.

    Args:
        values: Values from `training`.
        task: Name of the task.
        stage_one: Use the defaults of stage I.
        folded: Whether batch norm is folded before stage I. None: the default.
        usual: Defaults that differ from the settings of the task.

    Raises:
        UsageError: An option belongs to another task.
    """
    usual = _stage_one(task, folded) if stage_one else usual or {}
    return _of_task("Settings", task, {**usual, **values})


def _of_task(part: str, task: str, values: Mapping[str, Any]) -> Any:
    """Make a dataclass of a task with these values.

    Raises:
        UsageError: The task does not have an option.
    """
    kinds = {name: getattr(settings, part) for name, settings in SETTINGS.items()}
    words = {each.field: each.word for kind in kinds.values() for each in options_of(kind)}
    known = {each.field for each in options_of(kinds[task])}
    for name in values:
        if name not in known:
            raise UsageError(f"{words[name]} is no option of {task}")
    return kinds[task](**values)


def _stage_one(task: str, folded: bool | None = None) -> dict[str, Any]:
    """The defaults of stage I that differ from the settings of a task."""
    settings = SETTINGS[task]
    folded = settings.StageOne().fold_first if folded is None else folded
    rate = settings.STAGE_ONE_RATE["folded" if folded else "unfolded"]
    return {**settings.STAGE_ONE, "rate": rate}


# ------------------------------------------------------------------ stage I


def _of_tasks(part: str) -> Any:
    """Make a field with the options of a dataclass that each task has."""
    return several(partial(part, {task: getattr(kinds, part) for task, kinds in SETTINGS.items()}))


@dataclass(kw_only=True)
class StageOneOptions(Options):
    """Options of stage I beside those of every training."""

    stage_one: dict[str, Any] = _of_tasks("StageOne")
    teacher: Path | None = option(
        None,
        "float checkpoint to distil from (default: --weights, if float)",
        group=GROUP_ONE,
        kind=kinds.weights,
    )
    qcfs: bool = option(
        False, "train like QCFS: --noise 0, --distill 0 and the gradient of QCFS", group=GROUP_ONE
    )


def stage_one_options(options: StageOneOptions, task: str, qcfs: bool) -> StageOne:
    """Make the `StageOne` of a task.

    Args:
        options: Parsed options.
        task: Name of the task. It gives the defaults.
        qcfs: Train like QCFS. Then stage-I options of a `--config` file are ignored.

    Raises:
        UsageError: Noise, distillation or a penalty is given for QCFS, or a teacher without
            distillation.
    """
    stage_one = _of_task("StageOne", task, options.stage_one)
    if qcfs:
        why = "QCFS trains without noise, distillation and penalty"
        refuse(options, ["noise", "distill", "stage1_sparsity", *DISTILLED], why)
        return stage_one.plain()
    if not stage_one.distill:
        refuse(options, DISTILLED, "has no effect with --distill 0")
    return stage_one


# ------------------------------------------------------------------ stage II


@dataclass(kw_only=True)
class StageTwoOptions(Options):
    """Options of stage II."""

    layer_wise: dict[str, Any] = _of_tasks("LayerWise")
    end: dict[str, Any] = _of_tasks("EndToEnd")
    no_coarse: bool = option(False, "leave out coarse calibration (eq 18)", group=GROUP_TWO)
    no_fine: bool = option(False, "leave out fine calibration (eq 19-21)", group=GROUP_TWO)
    pooling: str | None = option(
        None,
        "how max-pooling compares inputs: by their spike count so far, or by the spikes of each "
        "step",
        choices=POOLINGS,
        shown="default: count",
        group=GROUP_TWO,
    )
    neuron: str = option(
        Plan.neuron,
        "neurons of the spiking network: ordinary ones, or ones that take back spikes that were "
        "too many",
        choices=("neuron", "correcting"),
        group=GROUP_TWO,
    )
    margin: float | None = redefined(Plan, "margin", None)


END = tuple(name for name in names_of("EndToEnd") if name != "end_to_end")


def expect_halves(options: StageTwoOptions) -> None:
    """Refuse options of coarse or fine calibration if it is left out.

    Raises:
        UsageError: The message names the option.
    """
    if options.no_fine:
        refuse(options, FINE, "has no effect with --no-fine")
    if options.no_coarse and options.no_fine:
        refuse(options, CHOSEN, "has no effect with --no-coarse and --no-fine")


def plan(options: StageTwoOptions, task: str, seed: int = 0) -> Plan:
    """Make the plan of stage II.

    Args:
        options: Parsed options.
        task: Name of the task. It gives the defaults.
        seed: Seed for drawing the pictures.

    Raises:
        UsageError: An option belongs to another task.
    """
    layers = _of_task("LayerWise", task, options.layer_wise)
    layers = replace(layers, coarse=not options.no_coarse, fine=not options.no_fine)
    end = _of_task("EndToEnd", task, options.end)
    return Plan(layers, end, seed, options.neuron, options.margin)


class Shown(Watcher):
    """Shows the progress of both stages as bars and lines."""

    def __init__(self, T: int):
        self.T = T
        self.bar: Any = None

    def _open(self, desc: str, unit: str, total: int, done: int) -> None:
        """Open a bar. The first `done` steps do not count towards the rate."""
        if self.bar is None or self.bar.unit != unit:
            self.close()
            self.bar = progress(desc=f"{desc} T={self.T}", unit=unit, total=total, initial=done)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        self.bar = None

    def layer(self, report: LayerReport, index: int, count: int) -> None:
        self._open("stage II", "layer", count, index + 1)
        self.bar.update(index + 1 - self.bar.n)
        self.bar.write(
            f"{report.name:24} error {report.before:.5f} -> coarse {report.coarse:.5f} "
            f"-> fine {report.after:.5f}"
        )

    def step(self, done: int, steps: int, loss: float) -> None:
        self._open("end to end", "step", steps, done)
        self.bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
        self.bar.update(done - self.bar.n)

    def say(self, text: str) -> None:
        self.close()
        print(text)


def is_finished(out: Path, resume: bool, weights: Path) -> bool:
    """Whether `--resume` has nothing to do. Refuse to overwrite results of other commands."""
    from spikedet.stages.run_files import is_finished

    done = is_finished(out, resume, command_line(), weights)
    if done:
        print(f"{out}: this run is complete; there is nothing to resume")
    return done
