"""The effect of a penalty on spikes in the end-to-end pass: accuracy, energy and time.

For each weight of the penalty, an end-to-end pass with integer weights starts from the same spiking
network. Then accuracy or AP, firing rate, energy and time are measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from spikedet.commands.checks import refuse
from spikedet.errors import UsageError, counted
from spikedet.files import write_atomic, write_csv
from spikedet.reproduction.experiment import Cell, Experiment

WEIGHTS = (0.0, 0.5, 1.0, 2.0, 4.0)
ENERGY_PICTURES = 200
NOT_OURS = ("methods", "made_for", "long_limit", "leaky", "picture", "boxes_only", "half")


def make(options: Any, experiment: Experiment, value: str) -> None:
    """Measure all rows. `sparsity.csv` and `sparsity.png` are written after every row.

    Args:
        options: Options of spikedet reproduce, with `split`.
        experiment: Experiment of the float network.
        value: Measure of each network: `AP` or `top1`.

    Raises:
        UsageError: There is not exactly one T, or an option has no effect here.
    """
    refuse(options, NOT_OURS, "has no effect on sparsity")
    if len(options.T or ()) != 1:
        raise UsageError("sparsity measures one T: use --T 8")
    if not options.end_to_end:
        raise UsageError("sparsity trains in the end-to-end pass: --end-to-end must be 1 or more")
    if experiment.task == "detection" and not experiment.data[0].is_dir():
        raise UsageError(
            f"{experiment.data[0]}: sparsity measures time on pictures; "
            "expected a folder of pictures"
        )
    (T,) = options.T
    lines: list[dict[str, Any]] = []
    for penalty in (None, *(options.sparsity or WEIGHTS)):
        cell = Cell("two-stage", T, options.limit, options.pictures, penalty=penalty)
        lines.append(line_of(cell, experiment, value))
        write_csv(options.out / "sparsity.csv", lines)
        write_atomic(options.out / "sparsity.png", plot(lines, experiment, options, value))
    show(lines, value)


def line_of(cell: Cell, experiment: Experiment, value: str) -> dict[str, Any]:
    """Measure one row: the network of a penalty, or the network before the passes."""
    from spikedet.checkpoint import load

    row = experiment.row(cell)
    limit = ENERGY_PICTURES if cell.limit is None else min(cell.limit, ENERGY_PICTURES)
    energy = experiment.energy(replace(cell, limit=limit))
    assert row is not None and energy is not None  # `make` is True
    line: dict[str, Any] = {"sparsity": "" if cell.penalty is None else cell.penalty}
    line |= {"T": cell.T, "engine": row["engine"], value: row[value], "images": row["images"]}
    line |= {"spike_rate": row["spike_rate"], "energy": energy["totals"]["ours"]["ratio"]["mean"]}
    if experiment.task == "detection":
        speed = experiment.speed(cell)
        assert speed is not None
        line |= {"timed_engine": speed["engine"], "ms": speed["ms"], "passes": speed["passes"]}
    line["kept"] = (
        "" if cell.penalty is None else load(experiment.weights(cell)).origin["end_to_end"]
    )
    return line


def plot(
    lines: Sequence[dict[str, Any]], experiment: Experiment, options: Any, value: str
) -> bytes:
    """Plot the rows. Returns PNG data."""
    from spikedet.plots import measures
    from spikedet.plots.figure import About

    about = About(
        f"from {experiment.model.name}",
        f"{options.split}, {counted(lines[0]['images'], 'picture')}",
        options.T,
    )
    return measures.energy_trade_off(lines, value, about)


def show(lines: Sequence[dict[str, Any]], value: str) -> None:
    """Print the rows. Energy is in percent of the float network."""
    timed = "passes" in lines[0]
    print(f"\n{'sparsity':>10}{value:>8}{'spikes':>8}{'energy':>8}" + f"{'passes':>8}" * timed)
    for line in lines:
        penalty = "before" if line["sparsity"] == "" else f"{line['sparsity']:g}"
        text = f"{penalty:>10}{100 * line[value]:>8.2f}{line['spike_rate']:>8.3f}"
        text += f"{100 * line['energy']:>7.1f}%"
        print(text + (f"{line['passes']:>8.2f}" if timed else ""))
