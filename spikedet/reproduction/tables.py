"""The rows of the paper's classification tables, and the rows that given networks can fill."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from spikedet.classification import published
from spikedet.classification.published import NOT_PRINTED, Row
from spikedet.methods import METHODS
from spikedet.reproduction.experiment import LAYER_WISE, Cell, Experiment

END = " + end to end"  # the pass after stage II, which the paper does not have
OURS = {  # names of the paper's methods, and of our own, in spikedet convert
    "RMP": "rmp",
    "OPT": "opt",
    "CAP": "cap",
    "OPI": "opi",
    "QCFS": "qcfs",
    "Ours": LAYER_WISE,
    f"Ours{END}": "two-stage",
    "Baseline": "copy",
    "Stage-I": "stage1",
    "Stage-II": "stage2",
    "Stage-I + Stage-II": LAYER_WISE,
    f"Stage-I + Stage-II{END}": "two-stage",
    "Stage-I + CC": "stage1-coarse",
    "Stage-I + FC": "stage1-fine",
    "QC-ANN": "quantised",  # the stage-I network, the upper limit for stage II
}
COMPARED = ("RMP", "OPT", "CAP", "OPI", "QCFS", "QC-ANN", "Ours", f"Ours{END}")
STAGES = ("Baseline", "Stage-I", "Stage-II", "Stage-I + Stage-II", f"Stage-I + Stage-II{END}")
ABLATED = (*STAGES, "Stage-I + CC", "Stage-I + FC")
COSTS = ("gsop", "energy", "ratio", "energy_ours", "ratio_ours")


@dataclass(frozen=True)
class Network:
    """A float classifier from the command line.

    Attributes:
        name: Name in `configs/models`, with the width if it is not 1.
        dataset: `CIFAR-10`, `CIFAR-100`, `ImageNet`, or the number of its classes.
        leaky: Whether its activation is the leaky ReLU of table IX.
        experiment: Makes its weights and rows.
    """

    name: str
    dataset: str
    leaky: bool
    experiment: Experiment


@dataclass(frozen=True)
class Table:
    """A table of the paper, and further rows that are measured for given networks.

    Attributes:
        rows: Rows that the paper prints.
        steps: Columns (T) of rows that the paper does not have.
        methods: The paper's names of the methods that are measured, even if the paper has no such
            row.
        fits: Function that tells whether a network belongs to the table.
        measures: Measures of each network.
        pictures: Numbers of calibration pictures (table VI).
    """

    rows: Sequence[Row]
    steps: Sequence[int]
    methods: Sequence[str]
    fits: Callable[[Network], bool]
    measures: Sequence[str] = ("top1",)
    pictures: Sequence[int | None] = (None,)


def _plain(network: Network) -> bool:
    return not network.leaky


def _cifar(network: Network) -> bool:
    return _plain(network) and network.dataset.startswith("CIFAR")


def _imagenet(network: Network) -> bool:
    return _plain(network) and not network.dataset.startswith("CIFAR")


def _complex(network: Network) -> bool:
    return _plain(network) and network.name in {row.network for row in published.TABLE_8}


TABLES = {
    "table2": Table(published.TABLE_2, published.STEPS_2, COMPARED, _cifar),
    "table3": Table(
        published.TABLE_3, published.STEPS_3, COMPARED, _plain, measures=("relative_loss",)
    ),
    "table4": Table(published.TABLE_4, published.STEPS_4, COMPARED, _imagenet),
    "table5": Table(published.TABLE_5, published.STEPS_5, ("Ours", f"Ours{END}"), _cifar),
    "table6": Table(
        published.TABLE_6,
        published.STEPS_6,
        ("Ours",),
        _plain,
        pictures=tuple(dict.fromkeys(row.pictures for row in published.TABLE_6)),
    ),
    "table7": Table(
        published.TABLE_7,
        published.STEPS_7,
        ("OPI", "CAP", "QCFS", "Ours", f"Ours{END}"),
        _plain,
        measures=("top1", *COSTS),
    ),
    "table8": Table(published.TABLE_8, published.STEPS_8, STAGES, _complex),
    "table9": Table(published.TABLE_9, published.STEPS_9, STAGES, lambda n: n.leaky),
    "figure7": Table((), published.STEPS_2, ABLATED, _plain),
}


@dataclass(frozen=True)
class Line:
    """A row to print: the paper's row, and the network to measure (None if it was not given)."""

    row: Row
    steps: tuple[int, ...]
    network: Network | None


def planned(table: Table, networks: Sequence[Network]) -> list[Line]:
    """The paper's rows, then further rows for the given networks."""
    fitting = {(n.dataset, n.name): n for n in networks if table.fits(n)}
    columns: dict[tuple[str, str], set[int]] = {}
    for row in table.rows:
        columns.setdefault((row.dataset, row.network), set()).update(row.cells)
    lines = []
    for row in table.rows:
        network = fitting.get((row.dataset, row.network))
        measured = network is not None and can_run(OURS.get(row.method))
        steps = columns[row.dataset, row.network] if measured else row.cells
        lines.append(Line(row, tuple(sorted(steps)), network))
    printed = {(r.dataset, r.network, r.method, r.measure, r.pictures) for r in table.rows}
    for key, network in fitting.items():
        every = tuple(sorted(columns.get(key, table.steps)))
        lines += [
            Line(Row(*key, method, NOT_PRINTED, {}, measure, pictures), every, network)
            for measure in table.measures
            for method in table.methods
            for pictures in table.pictures
            if (*key, method, measure, pictures) not in printed
        ]
    return lines


def cell_of(options: Any, line: Line, T: int | None) -> Cell | None:
    """What to measure for a row at T. T is None for the float network.

    Returns:
        The cell. None if it cannot be measured.
    """
    method = OURS.get(line.row.method)
    if line.network is None or method is None or not can_run(method):
        return None
    if T is None:
        return Cell("float", None, options.limit, options.pictures)
    passes = options.end_to_end or line.network.experiment.released(
        "snn", T
    )  # the released network had this pass
    if line.row.method.endswith(END) and not passes:
        return None
    pictures = options.pictures if line.row.pictures is None else line.row.pictures
    return Cell.of(method, T, options.limit, pictures)


def wanted(options: Any, line: Line, T: int | None) -> bool:
    """Whether `--methods` and `--T` select a cell. Float networks are always measured."""
    if T is None:
        return True
    asked = not options.methods or OURS.get(line.row.method) in options.methods
    return asked and (not options.T or T in options.T)


def can_run(method: str | None) -> bool:
    """Whether a method is implemented."""
    return method in METHODS or method in ("quantised", LAYER_WISE)
