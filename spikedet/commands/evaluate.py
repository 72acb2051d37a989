"""Measure the average precision of a detector, or the accuracy of a classifier.

    spikedet evaluate --data VOCdevkit --split VOC2007:spikedet-val --T 20
    spikedet evaluate --weights W --data cifar10 --T 8 --json row.json
    spikedet evaluate --weights FLOAT QC SNN --data cifar10 --compare

The weights may be float, quantised (stage I) or spiking. Without --weights, the released detector
for this T is measured. If --data is for classification, it is the released classifier.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from spikedet.commands import kinds, parse, plotting, shared
from spikedet.commands.checks import refuse, warn_of_training_pictures
from spikedet.commands.main import progress
from spikedet.commands.result import write_json
from spikedet.errors import UsageError, counted
from spikedet.options import option
from spikedet.settings import Plan
from spikedet.terminal import Table, note

if TYPE_CHECKING:
    from spikedet.checkpoint import Checkpoint
    from spikedet.task import Samples, Task
MORE = """
With --weights, one run with the largest --T gives the rows of all values of --T: the outputs are
read after each of them.

--compare prints one table of all stages: the float network, and then for each T the copied float
weights without fine-tuning, the stage-I network, the stage-I weights copied into spiking neurons
(stage I alone), and stages I + II. --T then selects some of the T. If one of the networks has
neurons that take back spikes, stage I alone is also measured with such neurons.

--plots draws curves, the confusion matrix, the reliability diagram, and the results by class and by
size. Each plot has a CSV file with its numbers. Spiking weights are then measured at T = 1, 2, 4
and so on in the same run, unless --T is given.
"""


@dataclass(kw_only=True)
class Options(shared.TestData):
    """Options of the command."""

    weights: list[Path] | None = option(
        None, "checkpoints (default: the released ones)", kind=kinds.weights
    )
    T: list[int] | None = option(
        None, "time steps (default: the T of the weights)", kind=kinds.time_steps
    )
    compare: bool = option(
        False, "compare float, stage-I and spiking weights; --weights then names all of them"
    )
    threshold_split: str | None = option(
        None,
        "pictures that set the thresholds of the copied-weights row (default: the training "
        "pictures that spikedet convert uses)",
        group="comparison",
    )
    classes: bool = option(False, "also print the AP of every class (detection)")
    areas: list[float] | None = option(
        None,
        "areas in square pixels that separate small, medium and large objects (default: 1024 9216)",
        above=0,
        nargs=2,
        metavar="SMALL LARGE",
        group="detectors",
    )
    bootstrap: int = option(
        0, "resamplings of the pictures for 95 % intervals of AP; 0 for no interval", least=0,
        group="detectors",
    )  # fmt: skip
    batch: int | None = shared.batch(None, "pictures in a batch (default: chosen for the task)")
    device: str = shared.device()
    engine: str = shared.engine("torch")
    half: bool = shared.half(False)
    plots: Path | None = parse.written_folder(
        None, "folder for plots and for CSV files with their numbers", metavar="FOLDER"
    )
    json: Path | None = parse.written(None, "write the rows to this file", kind=kinds.json_file)


class Planned(NamedTuple):
    """A network to measure.

    Attributes:
        method: Name of the method in tables.
        checkpoint: Its weights.
        digest: Identity of the weights file.
        steps: Time steps to measure, with one row for each. None: one row with the T of the
            weights.
    """

    method: str
    checkpoint: Checkpoint
    digest: str
    steps: list[int] | None


def chosen(options: Options) -> list[tuple[Checkpoint, str, list[int] | None]]:
    """Load the weights to measure.

    Returns:
        For each: the checkpoint, the identity of its file, and the time steps to run (None: its own
            T).

    Raises:
        UsageError: There are no weights for a T of `--T`, or the weights are not spiking but `--T`
            or `--engine` is given.
    """
    from spikedet import task_registry
    from spikedet.checkpoint import identity, load
    from spikedet.released import all_released, default_weights

    task = task_registry.of_data(options.data)
    files: list[tuple[Path, list[int] | None]]
    if options.weights or options.compare:
        steps = None if options.compare else options.T
        files = [(path, steps) for path in options.weights or all_released(task)]
    else:
        wanted: Sequence[int | None] = options.T or [None]
        files = [(default_weights(t, task), None if t is None else [t]) for t in wanted]
    loaded = []
    for path, steps in files:
        checkpoint = load(path)
        if options.plots and not options.compare and not options.T and checkpoint.stage == "snn":
            steps = plotting.readouts(checkpoint.time_steps)
        loaded.append((checkpoint, identity(path), steps))
    if options.T and options.compare:
        available = sorted({checkpoint.T for checkpoint, *_ in loaded if checkpoint.T})
        if not set(options.T) <= set(available):
            raise UsageError(
                f"--T: the weights of --compare are for T={', '.join(map(str, available))}"
            )
        loaded = [item for item in loaded if item[0].T in (None, *options.T)]
    elif all(checkpoint.stage != "snn" for checkpoint, *_ in loaded):
        asked = {"T": options.T, "engine": options.engine not in ("auto", "torch")}
        for name in filter(asked.get, asked):
            raise UsageError(f"--{name}: is for spiking weights only, and these are none")
    return loaded


def file_names(options: Options) -> dict[str, str]:
    """Names of the weights files by their identity."""
    from spikedet import task_registry
    from spikedet.checkpoint import identity
    from spikedet.released import all_released

    files = options.weights or all_released(task_registry.of_data(options.data))
    return {identity(path): path.name for path in files}


def planned_rows(options: Options) -> list[Planned]:
    """List everything to measure, in the order of the table.

    Raises:
        WeightsError: The weights have different tasks or classes.
        UsageError: An option has no effect on these rows.
    """
    from spikedet import task_registry
    from spikedet.errors import WeightsError
    from spikedet.networks import is_correcting, method_name, spiking_checkpoint
    from spikedet.stages import stage_one, stage_two

    loaded = chosen(options)
    kinds = sorted({checkpoint.task for checkpoint, *_ in loaded})
    if len(kinds) > 1:
        raise WeightsError(f"weights for {' and '.join(kinds)}; expected weights for one task")
    task = task_registry.named(kinds[0])
    if len({checkpoint.names for checkpoint, *_ in loaded}) > 1:
        raise WeightsError("the weights have different classes; expected the same classes")
    stages = {checkpoint.stage for checkpoint, *_ in loaded}
    if options.compare and stages == {"snn"}:
        raise UsageError("--compare: also name the float and the stage-I weights in --weights")
    order = {"float": 0, "qc": 1, "snn": 2}
    loaded.sort(key=lambda item: (item[0].T or 0, order[item[0].stage]))
    floats = [(source, digest) for source, digest, _ in loaded if source.stage == "float"]
    copies = options.compare and {"float", "qc"} <= stages
    samples = threshold_samples(options, task, loaded[0][0].names) if copies else None
    correcting = any(is_correcting(checkpoint) for checkpoint, *_ in loaded)
    neurons = (Plan.neuron, "correcting") if correcting else (Plan.neuron,)
    rows: list[Planned] = []
    for checkpoint, digest, wanted in loaded:
        steps = sorted(set(wanted)) if wanted and checkpoint.stage == "snn" else None
        if samples is not None and checkpoint.stage == "qc":
            for source, source_digest in floats:
                plain = stage_one.untuned(task, source, samples, checkpoint.time_steps)
                copied = spiking_checkpoint(plain, stage_two.copied(task, plain), {})
                rows.append(Planned("copied weights", copied, source_digest, None))
        rows.append(Planned(method_name(checkpoint), checkpoint, digest, steps))
        if options.compare and checkpoint.stage == "qc":
            for neuron in neurons:
                network = stage_two.copied(task, checkpoint, neuron=neuron)
                alone = spiking_checkpoint(checkpoint, network, {"method": "stage1"})
                rows.append(Planned(method_name(alone), alone, digest, None))
    if "copied weights" not in {row.method for row in rows}:
        refuse(
            options,
            ["threshold_split"],
            "has no effect without a row of copied weights (see --compare)",
        )
    return rows


def threshold_samples(options: Options, task: Task, names: tuple[str, ...]) -> Samples:
    """Read the training pictures from which the thresholds of copied weights are estimated."""
    if options.threshold_split:
        return shared.read(options, task, options.threshold_split, names=names)
    samples = shared.read(options, task, shared.usual_split(options.data, task.name), names=names)
    return samples.split_off_tuning(None)[0]


def run(options: Options) -> None:
    from spikedet import task_registry
    from spikedet.networks import restore

    shared.expect_half(options)
    planned = planned_rows(options)
    task, names = task_registry.of(planned[0].checkpoint), planned[0].checkpoint.names
    expect_of_task(options, task)
    split = shared.split(options, task.name, test=True)
    samples = shared.read(options, task, split, options.limit, names)
    data = f"{counted(len(samples), 'picture')} of {split}"
    warn_of_training_pictures(task, samples, {row.digest for row in planned})
    about_data = {"data": samples.fingerprint(), "split": split, **areas_of(options)}
    files = file_names(options)
    print(f"{data}; {task.protocol.format(imgsz=planned[0].checkpoint.imgsz)}")
    table = begin_table(options, task)
    labels = plotting.labels(
        [(row.method, row.checkpoint.T, files.get(row.digest, row.digest[:8])) for row in planned]
    )
    entries: list[dict[str, Any]] = []
    plotted: list[dict[str, Any]] = []  # the same under the names that the plots have
    details: dict[tuple[str, int | None], dict[str, Any]] = {}
    for row, in_plots in zip(planned, labels, strict=True):
        runner = restore(task, row.checkpoint, options.half).to(options.device)
        engine = use_engine(runner, options)
        measured = measure(task, runner, samples, row, options)
        times: Sequence[int | None] = row.steps or [row.checkpoint.T]
        for T, (values, rate) in zip(times, measured, strict=True):
            tables = values.pop("details", None)
            if tables:
                details[in_plots, T] = tables
            run_on = {"images": len(samples), "spike_rate": rate, "engine": engine}
            run_on |= {"weights": files.get(row.digest), "weights_sha256": row.digest}
            entries.append(entry_of(row, T, values, {**run_on, **about_data}))
            plotted.append({**entries[-1], "method": in_plots})
            show(table, entries[-1], task.columns, options.classes)
    write_json(options, entries)
    if options.plots:
        write_plots(options.plots, plotted, details, data)


def expect_of_task(options: Options, task: Task) -> None:
    """Refuse options of other tasks, and impossible areas.

    Raises:
        UsageError: The message names the option.
    """
    for name in ("classes", "areas", "bootstrap"):
        if getattr(options, name) and task.name != "detection":
            raise UsageError(f"--{name} is no option of {task.name}")
    if options.areas and options.areas[0] >= options.areas[1]:
        raise UsageError(
            f"--areas {options.areas[0]:g} {options.areas[1]:g}: expected the smaller area first"
        )


def areas_of(options: Options) -> dict[str, tuple[float, ...]]:
    """The keyword argument `areas` for measures, if areas were requested."""
    return {"areas": tuple(options.areas)} if options.areas else {}


def measure(
    task: Task, runner: Any, samples: Samples, row: Planned, options: Options
) -> list[tuple[dict[str, Any], float | None]]:
    """Run `Task.measure` with a progress bar."""
    longest = row.steps[-1] if row.steps else row.checkpoint.T
    title = row.method if longest is None else f"{row.method} T={longest}"
    details = {"details": True} if options.plots else {}
    with progress(total=len(samples), desc=title, unit="picture", leave=False) as bar:
        return task.measure(
            runner,
            samples,
            steps=row.steps,
            batch=options.batch or task.batch,
            on_batch=lambda done: bar.update(done - bar.n),
            **details,
            **({"bootstrap": options.bootstrap} if options.bootstrap else {}),
            **areas_of(options),
        )


def entry_of(
    row: Planned, T: int | None, values: dict[str, Any], run_on: dict[str, Any]
) -> dict[str, Any]:
    """Make a row of the table for JSON.

    Args:
        row: The network.
        T: Time steps of the row.
        values: Measured values.
        run_on: Engine and data of the measurement.
    """
    per_class = values.pop("per_class", None)
    entry = {"stage": row.checkpoint.stage, "method": row.method, "T": T, **values}
    entry = {key: none_if_undefined(value) for key, value in entry.items()}
    entry |= run_on
    entry["calibration_pictures"] = row.checkpoint.origin.get("calibration_pictures")
    if per_class is not None:
        entry["per_class"] = {k: none_if_undefined(v) for k, v in per_class.items()}
    return entry


def write_plots(
    folder: Path,
    entries: list[dict[str, Any]],
    details: dict[tuple[str, int | None], dict[str, Any]],
    data: str,
) -> None:
    """Write the plots of `--plots`, and print their folder."""
    from spikedet.plots import About

    weights = sorted({entry["weights"] or entry["weights_sha256"][:8] for entry in entries})
    written = plotting.evaluation(folder, entries, details, About(", ".join(weights), data))
    print(f"{folder}: {len(written)} plots, each with its numbers as CSV")


def use_engine(runner: Any, options: Options) -> str:
    """Choose the engine for spiking weights, and print it on standard error. Returns its name.

    torch computes in float32 unless `--half` is given, even if `auto` chooses torch, because tables
    of reference values are in float32.
    """
    if runner.stage != "snn":
        return "torch"
    network = runner.network
    if not options.half and options.engine != "torch":
        note(f"engine {network.use_engine(options.engine)}")
        if options.engine == "auto":
            network.use_engine(network.engine)  # no other one may take over in the middle of a row
    return network.engine


def begin_table(options: Options, task: Task) -> Table:
    """Print the head of the table, and the precision of torch if it is used."""
    if options.engine == "torch" or options.half:
        print(f"spiking layers in {'bfloat16' if options.half else 'float32'}")
    columns = [("", 34), ("T", 5), *((name, 11) for name in task.columns)]
    table = Table([*columns, ("spike rate", 12), ("engine", 8)])
    table.head()
    return table


def show(table: Table, entry: dict[str, Any], columns: Sequence[str], classes: bool) -> None:
    """Print a row."""
    values = [entry[name] for name in (*columns, "spike_rate")]
    texts = ["-" if value is None else f"{value:.4f}" for value in values]
    table.row(entry["method"], str(entry["T"] or "-"), *texts, entry["engine"])
    for name in ("AP", "AP50"):
        if f"{name}_interval" in entry:
            low, high = entry[f"{name}_interval"]
            print(f"    {name} {low:.4f} to {high:.4f} in 95 % of the resamplings")
    if classes:
        for name, value in entry.get("per_class", {}).items():
            print(f"    {name:16} {'-' if value is None else f'{value:.4f}'}")


def none_if_undefined(value: Any) -> Any:
    """Replace NaN by None, because JSON has no NaN."""
    return None if value != value else value
