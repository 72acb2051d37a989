"""Options of training and of both stages of the conversion, and what is made of them.

Those that depend on the task are the fields of its `Settings` and its `StageTwo`: what is not given
is as the task has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikedet.commands.checks import refuse
from spikedet.commands.parse import Options, options_of, partial, several
from spikedet.errors import UsageError
from spikedet.settings import option
from spikedet.tasks import SETTINGS

if TYPE_CHECKING:
    from spikedet.stage_two import Plan

NOISE, DISTILL = 0.1, 1.0
DISTILLED = ("teacher", "temperature", "unlabelled")
FINE = ("layer_steps", "loss")
CHOSEN = ("pictures", "held", "per_neuron", "layers")
LAYERS = ("no_coarse", "no_fine", *CHOSEN, *FINE)
GROUP_ONE, GROUP_TWO, GROUP_END = "stage I", "stage II", "end-to-end pass"


def resume(help: str = "go on after a kill") -> Any:
    """`--resume`."""
    return option(False, help)


def training(
    *,
    stage_one: bool = False,
    usual: dict[str, dict[str, Any]] | None = None,
    without: Sequence[str] = (),
) -> Any:
    """A field with the options of the training settings of every task; a dict of those given.

    Args:
        stage_one: The defaults that are shown are those of stage I, whose side is that of weights.
        usual: The tasks that there are, with those defaults of each that are not as in its
            settings.
        without: Settings that have no option.
    """
    if usual is None:
        usual = {task: _stage_one(task) if stage_one else {} for task in SETTINGS}
    without = (*without, "imgsz") if stage_one else without
    kinds = {task: SETTINGS[task].Settings for task in usual}
    return several(partial("Training", kinds, usual, without))


def names_of(part: str = "Settings") -> list[str]:
    """Names of the options of all tasks, of `Settings` or of `StageTwo`."""
    found = (getattr(kinds, part) for kinds in SETTINGS.values())
    return list(dict.fromkeys(each.name for kind in found for each in options_of(kind)))


def training_settings(
    given: Mapping[str, Any],
    task: str,
    *,
    stage_one: bool = False,
    folded: bool | None = None,
    usual: dict[str, Any] | None = None,
) -> Any:
    """The settings of a task.

    Args:
        given: Those that `training` parsed.
        task: Its name.
        stage_one: What was not given is as stage I has it.
        folded: Whether that has no batch norm; as usual when None.
        usual: What was not given, where it is not as in the settings of the task.

    Raises:
        UsageError: An option of another task.
    """
    usual = _stage_one(task, folded) if stage_one else usual or {}
    return _of_task(SETTINGS[task].Settings, task, {**usual, **given})


def _of_task(kind: type, task: str, given: Mapping[str, Any]) -> Any:
    """Options of a task with these values.

    Raises:
        UsageError: One that the task has not.
    """
    there = [each.name for each in options_of(kind)]
    for name in given:
        if name not in there:
            raise UsageError(f"--{name.replace('_', '-')} is no option of {task}")
    return kind(**given)


def _stage_one(task: str, folded: bool | None = None) -> dict[str, Any]:
    """What stage I has that is not as in the settings of a task."""
    settings = SETTINGS[task]
    folded = settings.FOLD_FIRST if folded is None else folded
    rate = settings.STAGE_ONE_RATE["folded" if folded else "unfolded"]
    return {**settings.STAGE_ONE, "rate": rate}


# ------------------------------------------------------------------ stage I


def _fold_first() -> Any:
    usual = "; ".join(
        f"{'on' if s.FOLD_FIRST else 'off'} for {task}, --rate being "
        f"{s.STAGE_ONE_RATE['folded']} with it, {s.STAGE_ONE_RATE['unfolded']} without"
        for task, s in SETTINGS.items()
    )
    return option(
        None, "fold batch norm before stage I, not after it", shown=usual, group=GROUP_ONE
    )


@dataclass(kw_only=True)
class StageOne(Options):
    """Options of stage I beside those of every training."""

    noise: float | None = option(
        None,
        "probability that an element is not quantised in training, eq 14",
        least=0,
        most=1,
        shown=f"default: {NOISE}",
        group=GROUP_ONE,
    )
    per_channel: bool = option(
        False, "a threshold for each channel, not each layer", group=GROUP_ONE
    )
    distill: float | None = option(
        None,
        "weight of the float network's outputs",
        least=0,
        shown=f"default: {DISTILL}",
        group=GROUP_ONE,
    )
    teacher: Path | None = option(
        None, "float checkpoint for --distill; --weights if that is one", group=GROUP_ONE
    )
    fold_first: bool | None = _fold_first()
    qcfs: bool = option(
        False, "as QCFS trains: --noise 0 --distill 0, its gradient", group=GROUP_ONE
    )


def stage_one_options(options: StageOne, task: str) -> dict[str, Any]:
    """Arguments of `stage_one.finetune`, but for the teacher.

    Raises:
        UsageError: Noise or distillation for QCFS.
    """
    if options.qcfs:
        why = "QCFS trains without noise and distillation"
        refuse(options, ["noise", "distill", *DISTILLED], why)
        noise = distill = 0.0  # whatever a --config file says of our stage I
    else:
        noise = NOISE if options.noise is None else options.noise
        distill = DISTILL if options.distill is None else options.distill
        if not distill:
            refuse(options, DISTILLED, "--distill 0 distils nothing")
    usual = SETTINGS[task].FOLD_FIRST
    return {
        "noise": noise,
        "per_channel": options.per_channel,
        "distill": distill,
        "clips_rounded": options.qcfs,
        "fold_first": usual if options.fold_first is None else options.fold_first,
    }


# ------------------------------------------------------------------ stage II


@dataclass(kw_only=True)
class StageTwo(Options):
    """Options of stage II; those that depend on the task are in `stage_two`."""

    stage_two: dict[str, Any] = several(
        partial("StageTwo", {task: kinds.StageTwo for task, kinds in SETTINGS.items()})
    )
    no_coarse: bool = option(False, "leave out coarse calibration (eq 18)", group=GROUP_TWO)
    no_fine: bool = option(False, "leave out fine calibration (eq 19-21)", group=GROUP_TWO)
    per_neuron: bool = option(False, "initial potentials of neurons, not channels", group=GROUP_TWO)
    layers: list[str] | None = option(
        None, "only these, names or patterns like 'model.1.*'", shown="all", group=GROUP_TWO
    )
    pooling: str | None = option(
        None,
        "how spikes are max-pooled",
        choices=("count", "step"),
        shown="default: count",
        group=GROUP_TWO,
    )
    end_batch_norm: bool = option(
        False, "train beside batch norm in it, and fold it afterwards", group=GROUP_END
    )


END = ("end_batch_norm", *(n for n in names_of("StageTwo") if n.startswith("end_")))
END = tuple(name for name in END if name != "end_to_end")


def expect_halves(options: StageTwo) -> None:
    """Refuse options of the halves of layer-wise calibration that are left out.

    Raises:
        UsageError: Names the option.
    """
    if options.no_fine:
        refuse(options, FINE, "--no-fine leaves fine calibration out")
    if options.no_coarse and options.no_fine:
        refuse(options, CHOSEN, "--no-coarse and --no-fine leave all layers as they are")


def plan(options: StageTwo, task: str, seed: int = 0) -> Plan:
    """What stage II shall do.

    Args:
        options: Those of it.
        task: Its name; what was not given is as there.
        seed: Which pictures are drawn.

    Raises:
        UsageError: An option of another task.
    """
    from spikedet.conversion.calibrate import Options as Layers
    from spikedet.stage_two import Plan

    chosen = vars(_of_task(SETTINGS[task].StageTwo, task, options.stage_two))
    steps, loss = chosen.pop("layer_steps"), chosen.pop("loss")
    layers = Layers(
        coarse=not options.no_coarse,
        fine=not options.no_fine,
        steps=steps,
        per_neuron=options.per_neuron,
        loss=loss,
        layers=options.layers,
    )
    return Plan(layers, seed=seed, end_batch_norm=options.end_batch_norm, **chosen)
