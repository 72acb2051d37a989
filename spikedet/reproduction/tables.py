"""The content of the paper's classification tables, and the parts that given networks allow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from spikedet.classification import published
from spikedet.classification.published import NOT_PRINTED, Row
from spikedet.methods import METHODS
from spikedet.reproduction.experiment import LAYER_WISE, Cell, Experiment

END = " + end to end"  # the pass after stage II, which the paper has not
OURS = {  # what spikedet convert calls the paper's methods, and our own
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
    "QC-ANN": "quantised",  # the stage-I network itself, the ceiling of stage II
}
COMPARED = ("RMP", "OPT", "CAP", "OPI", "QCFS", "QC-ANN", "Ours", f"Ours{END}")
STAGES = ("Baseline", "Stage-I", "Stage-II", "Stage-I + Stage-II", f"Stage-I + Stage-II{END}")
ABLATED = (*STAGES, "Stage-I + CC", "Stage-I + FC")
COSTS = ("gsop", "energy", "ratio", "energy_ours", "ratio_ours")


@dataclass(frozen=True)
class Network:
    """A float classifier that was given.

    Attributes:
        name: As in `configs/models`, with the width where it is not 1.
        dataset: `CIFAR-10`, `CIFAR-100`, `ImageNet`, or with how many classes it has.
        leaky: Its activation is the leaky ReLU of table IX.
        experiment: Makes its weights and rows.
    """

    name: str
    dataset: str
    leaky: bool
    experiment: Experiment


@dataclass(frozen=True)
class Table:
    """A table of the paper, and what else is measured for the networks that were given.

    Attributes:
        rows: As printed.
        steps: Columns of rows that the paper has not.
        methods: The paper's names of methods that are measured even where it prints no row.
        fits: Whether a network belongs in it.
        measures: What is measured of each.
        pictures: Numbers of calibration pictures, of table VI.
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
    """A row of what is printed: the paper's, if there is one, and the network to measure."""

    row: Row
    steps: tuple[int, ...]
    network: Network | None


def planned(table: Table, networks: Sequence[Network]) -> list[Line]:
    """The paper's rows, then those that it has not, of the given networks."""
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
    """What can be measured of a line at T (None: of its float network), if anything."""
    method = OURS.get(line.row.method)
    if line.network is None or method is None or not can_run(method):
        return None
    if T is None:
        return Cell("float", None, options.limit, options.pictures)
    passes = options.end_to_end or line.network.experiment.released(
        "snn", T
    )  # which has had its own
    if line.row.method.endswith(END) and not passes:
        return None
    pictures = options.pictures if line.row.pictures is None else line.row.pictures
    return Cell.of(method, T, options.limit, pictures)


def wanted(options: Any, line: Line, T: int | None) -> bool:
    """Whether --methods and --T ask for it; float networks are measured in any case."""
    if T is None:
        return True
    asked = not options.methods or OURS.get(line.row.method) in options.methods
    return asked and (not options.T or T in options.T)


def can_run(method: str | None) -> bool:
    """Whether the tools know a method."""
    return method in METHODS or method in ("quantised", LAYER_WISE)
