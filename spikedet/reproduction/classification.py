"""The paper's classification results: tables II to IX, and figures 4, 5 and 7."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from spikedet.classification import published
from spikedet.classification.published import NOT_PRINTED
from spikedet.commands import shared
from spikedet.commands.checks import refuse
from spikedet.errors import DataError, UsageError, counted
from spikedet.files import write_atomic, write_csv
from spikedet.reproduction import sparsity
from spikedet.reproduction.experiment import Cell, Experiment, expect_available
from spikedet.reproduction.tables import (
    COSTS,
    END,
    OURS,
    TABLES,
    Line,
    Network,
    can_run,
    cell_of,
    planned,
    wanted,
)

UNITS = {"top1": "top-1 accuracy, %", "relative_loss": "(float - spiking) / float, %"}
UNITS |= {"gsop": "synaptic operations, GSOP x 1e-3", "energy": "energy, uJ, paper's accounting"}
UNITS |= {"ratio": "energy ratio, %, paper's accounting"}
UNITS |= {"energy_ours": "energy, uJ, ours", "ratio_ours": "energy ratio, %, ours"}
ENERGY_PICTURES = 1024  # section VI-A
ANALYSED_STEPS = (8,)
ANALYSED_PICTURES = 64
NOT_RUN = "not run"
DETECTORS = ("leaky", "made_for", "long_limit", "picture", "boxes_only")
TORCHVISION_NAMES = {"vgg16_bn": "vgg16", "mobilenet_v2": "mobilenetv2"}
FIGURES = ("figure4", "figure5")


def make(options: Any, models: list[Path]) -> None:
    """Make the table or figure `options.name` with these float checkpoints.

    Raises:
        UsageError: Two checkpoints have the same network and data set, or an option has no effect.
        DataError: No data folder has the classes of a network.
    """
    options = replace(options, split=shared.split(options, "classification", test=True))
    refuse(options, DETECTORS, f"has no effect on {options.name} of classifiers")
    networks = networks_of(options, models)
    if options.name == "sparsity":
        for network in networks:
            out = options.out if len(networks) == 1 else network.experiment.out
            sparsity.make(replace(options, out=out), network.experiment, "top1")
    elif options.name in FIGURES:
        analyse(options, networks)
    else:
        measure(options, networks)


def networks_of(options: Any, models: list[Path]) -> list[Network]:
    """Make the networks of float checkpoints. Without checkpoints, the released classifier is used.

    Raises:
        UsageError: Two checkpoints have the same network and data set.
    """
    from spikedet.checkpoint import identity, load
    from spikedet.released import released

    shipped = None if models else released("float", task="classification")
    networks: list[Network] = []
    for path in models or ([shipped] if shipped else []):
        checkpoint = load(path)
        name, dataset = describe(checkpoint)
        place = dataset.replace(" ", "-")
        leaky = checkpoint.model.get("activation") == "leaky"
        folder = f"{place}-{name}{'-leaky' if leaky else ''}-{identity(path)[:8]}"
        experiment = Experiment(
            options,
            options.out / folder.lower(),
            None if path == shipped else path,
            "classification",
            folders_of(options, path, checkpoint.names),
            levels=4 if dataset.startswith("CIFAR") else 8,  # as in the publication of QCFS
        )
        if any((n.name, n.dataset, n.leaky) == (name, dataset, leaky) for n in networks):
            raise UsageError(f"{path}: a second {name} for {dataset}; give one at a time")
        networks.append(Network(name, dataset, leaky, experiment))
    return networks


def describe(checkpoint: Any) -> tuple[str, str]:
    """The name of the network and of its data set. The data set is found by its classes."""
    from spikedet.classification.models import FOREIGN

    arch, width = checkpoint.model["arch"], checkpoint.model.get("width", 1.0)
    foreign = arch.startswith(FOREIGN)
    arch = arch.removeprefix(FOREIGN)
    name = TORCHVISION_NAMES.get(arch, arch) + ("" if width == 1 else f"-x{width:g}")
    classes = len(checkpoint.names)
    if foreign or checkpoint.model.get("form", "cifar") == "imagenet":
        return name, "ImageNet" if classes == 1000 else f"ImageNet-{classes}"
    cifar = (dataset for dataset, names in published.CLASSES.items() if names == checkpoint.names)
    return name, next(cifar, f"{classes} classes")


def folders_of(options: Any, path: Path, names: tuple[str, ...]) -> list[Path]:
    """The data folders that have the classes of a network.

    Raises:
        DataError: No folder has them.
    """
    from spikedet.classification import data

    folders = [f for f in options.data if data.read([f], options.split).names == names]
    if not folders:
        raise DataError(
            f"{path}: none of the data folders holds its {len(names)} classes "
            f"({', '.join(names[:3])}, ...)"
        )
    return folders


def value(line: Line, cell: Cell | None, make: bool = True) -> tuple[float | None, dict[str, Any]]:
    """The value of a cell in the unit of its table, and the row of results that it comes from.

    The value is None if it cannot be measured. Without `make`, it is also None if it was not
    measured yet.
    """
    if cell is None or line.network is None:
        return None, {}
    experiment, measure = line.network.experiment, line.row.measure
    if measure in COSTS:
        limit = ENERGY_PICTURES if cell.limit is None else min(cell.limit, ENERGY_PICTURES)
        if cell.method == "float":
            return None, {}  # filled in from the results of the spiking network
        energy = experiment.energy(replace(cell, limit=limit), make)
        return (cost(energy, measure), energy) if energy else (None, {})
    row = experiment.row(cell, make)
    if row is None:
        return None, {}
    if measure == "relative_loss":
        float_row = experiment.row(Cell("float", None, cell.limit, cell.pictures))
        source = None if float_row is None else float_row["top1"]
        return (100 * (source - row["top1"]) / source if source else None), row
    return 100 * row["top1"], row


def cost(energy: dict[str, Any], measure: str, statistic: str = "mean") -> float | None:
    """Read a value from the results of spikedet energy.

    Args:
        energy: Results of spikedet energy.
        measure: `gsop` (GSOP x 1e-3), `energy` (uJ) or `ratio` (%), with the suffix `_ours` for our
            accounting.
        statistic: `mean` or `std`.

    Returns:
        The value. None for the standard deviation of a single picture.
    """
    totals = energy["totals"]
    kind, _, ours = measure.partition("_")
    accounting = totals["ours" if ours else "paper"]
    if measure == "gsop":  # multiply-accumulates are equal for all pictures
        part, unit = totals["accumulates"], 1e-6
    elif kind == "energy":
        part, unit = accounting["pJ"], 1e-6
    else:
        part, unit = accounting["ratio"], 100
    if part[statistic] is None:
        return None
    constant = totals["multiply_accumulates"]["mean"] if measure == "gsop" else 0
    return (part[statistic] + (constant if statistic == "mean" else 0)) * unit


def source_cost(energy: dict[str, Any], measure: str) -> float:
    """Read the value of the float network from the results of spikedet energy. See `cost`."""
    reference = energy["totals"]["float"]
    if measure == "gsop":
        return reference["multiply_accumulates"] * 1e-6
    return reference["pJ"] * 1e-6 if measure.startswith("energy") else 100.0


def measure(options: Any, networks: Sequence[Network]) -> None:
    """Measure the selected cells of a table, with small T first.

    All known values are written after each cell, and printed at the end.

    Raises:
        UsageError: The table has no row for the networks or for a method, or no column for a T.
    """
    lines = planned(TABLES[options.name], networks)
    if options.model and not any(line.network for line in lines):
        words = [f"{'leaky ' if n.leaky else ''}{n.name} of {n.dataset}" for n in networks]
        raise UsageError(f"{options.name} has no row for {', '.join(words)}")
    entries = {
        (number, T): entry(line, T)
        for number, line in enumerate(lines)
        for T in (None, *line.steps)
        if not (T is None and line.row.measure == "relative_loss")
    }
    rows = {OURS.get(line.row.method, "") for line in lines if line.network}
    known = {"float"} | set(filter(can_run, rows))  # the float network is always measured
    have = f"expected some of {', '.join(sorted(known))}"
    expect_available("--methods", options.methods, known, have)
    columns = {T for _, T in entries if T is not None}
    have = f"{options.name} has no such column; it has {', '.join(map(str, sorted(columns)))}"
    expect_available("--T", options.T, columns, have)
    cells = {(number, T): cell_of(options, lines[number], T) for number, T in entries}
    asked = {(n, T) for (n, T), cell in cells.items() if cell and wanted(options, lines[n], T)}
    for number, T in sorted(entries, key=lambda key: (key in asked, key[1] or 0)):
        line, make = lines[number], (number, T) in asked
        try:
            amount, row = value(line, cells[number, T], make)
        except UsageError:  # the weights were made with other settings
            if make:
                raise
            continue
        if amount is None:
            continue
        entries[number, T] |= measured_fields(amount, row)
        if line.row.measure in COSTS:
            deviation = cost(row, line.row.measure, "std")
            entries[number, T]["std"] = "" if deviation is None else deviation
            for other, same in enumerate(lines):  # the value of the float network, for every method
                if (same.network, same.row.measure) == (line.network, line.row.measure):
                    entries[other, None] |= measured_fields(source_cost(row, line.row.measure), row)
        write(options, entries)
    write(options, entries)
    show(options, lines, entries)


def entry(line: Line, T: int | None) -> dict[str, Any]:
    """Make a row of the CSV file before it is measured."""
    row = line.row
    method = OURS.get(row.method, row.method) if T is not None else "float"
    printed = row.source if T is None else row.cells.get(T, NOT_PRINTED)
    fields: dict[str, Any] = {"method": method, "paper_method": row.method, "network": row.network}
    fields |= {"dataset": row.dataset, "T": T or "", "calibration_pictures": row.pictures}
    fields |= {
        "measure": row.measure,
        "value": NOT_RUN,
        "std": "",
        "top1": NOT_RUN,
        "top5": NOT_RUN,
    }
    fields |= {"engine": "", "images": "", "paper": "" if printed == NOT_PRINTED else printed}
    return fields | {"paper_value": published.number(printed)}


def measured_fields(amount: float, row: dict[str, Any]) -> dict[str, Any]:
    """The fields of a CSV row for a measured value, in its unit. Accuracies are in 0..1."""
    accuracy = {key: row.get(key, "") for key in ("top1", "top5")}
    engine = row.get("engine", "torch")  # which also counts operations
    return {"value": amount, **accuracy, "engine": engine, "images": row["images"]}


def write(options: Any, entries: dict[Any, dict[str, Any]]) -> None:
    """Write `NAME.csv`, and `NAME.png` if there are accuracies to plot."""
    from spikedet.plots import measures
    from spikedet.plots.figure import About

    write_csv(options.out / f"{options.name}.csv", list(entries.values()))
    shown = [e for e in entries.values() if e["measure"] == "top1" and e["value"] != NOT_RUN]
    curves = [
        {**e, "method": f"{e['method']}, {e['network']}, {e['dataset']}"}
        for e in shown
        if e["method"] != "float"
    ]
    if not curves:
        return
    key = "T"
    if options.name == "table6":
        key = "calibration_pictures"
        curves = [{**e, "method": f"{e['method']}, T={e['T']}"} for e in curves]
    sources = {e["value"] for e in shown if e["method"] == "float"}
    source = sources.pop() / 100 if len(sources) == 1 else None
    title = f"{options.name}, {counted(curves[0]['images'], 'picture')}"
    data = ", ".join(dict.fromkeys(str(e["dataset"]) for e in curves))
    about = About(f"networks of {options.name}.csv", data, sorted({e["T"] for e in curves}))
    picture = measures.value_curves(curves, key, "top1", title, source, about)
    write_atomic(options.out / f"{options.name}.png", picture)


def show(options: Any, lines: Sequence[Line], entries: dict[Any, dict[str, Any]]) -> None:
    """Print a line for each row and a column for each T, with the paper's values in brackets."""
    steps = sorted({T for _, T in entries if T is not None})
    for name in dict.fromkeys(line.row.measure for line in lines):
        heads = [f"T={T}" if T else "T not printed" for T in steps]
        grid = [["data set", "network", "method", "float", *heads]]
        for number, line in enumerate(lines):
            row = line.row
            if row.measure == name:
                method = row.method + ("" if row.pictures is None else f", N={row.pictures}")
                cells = (shown(entries.get((number, T))) for T in (None, *steps))
                grid.append([row.dataset, row.network, method, *cells])
        widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
        print(f"\n{options.name}: {UNITS[name]}")
        for words in grid:
            aligned = [
                word.ljust(width) if number < 3 else word.rjust(width)
                for number, (word, width) in enumerate(zip(words, widths, strict=True))
            ]
            print("  ".join(aligned).rstrip())
    counts = sorted({e["images"] for e in entries.values() if e["images"] != ""})
    print(f"Measured on {' or '.join(map(str, counts)) or 'no'} pictures.")
    print("In brackets: the paper's, as printed; A/B: reproduced by its authors / as reported.")
    if any(line.row.method.endswith(END) for line in lines if line.network):
        passes = f"{options.end_to_end} steps, or those of the released network's card,"
        print(f"+ end to end: {passes} on all training pictures after stage II, not in the paper.")
    if any(line.row.method == "QCFS" for line in lines if line.network):
        print("QCFS as measured: fine-tuned from the float network, in the epochs of our stage I.")


def shown(entry: dict[str, Any] | None) -> str:
    """Convert a cell to text."""
    if entry is None:
        return "-"
    amount = entry["value"]
    text = amount if amount == NOT_RUN else f"{amount:.2f}"
    text += f"±{entry['std']:.2f}" if entry["std"] != "" else ""
    return text + (f" ({entry['paper']})" if entry["paper"] else "")


def analyse(options: Any, networks: Sequence[Network]) -> None:
    """Make figure 4 or 5: run spikedet analyze for each network.

    Raises:
        UsageError: An option has no effect on these figures.
    """
    why = "figures 4 and 5 compare the same networks on tuning pictures"
    refuse(options, ["methods", "half", "engine"], why)
    names = {"figure4": ("residual",), "figure5": ("periodic", "similarity", "gap")}[options.name]
    ran = False
    for network in networks:
        for T in options.T or ANALYSED_STEPS:
            experiment = network.experiment
            weights = experiment.weights(Cell("two-stage", T, options.limit, options.pictures))
            folder = experiment.out / f"analysis-T{T}"
            words = [
                "--weights",
                weights,
                "--stage1",
                experiment.stage_one(T),
                "--float",
                experiment.model,
            ]
            words += [
                *experiment.training(),
                "--T",
                T,
                "--limit",
                options.limit or ANALYSED_PICTURES,
            ]
            experiment.run("analyze", *words, "--out", folder)
            for name in names:
                target = options.out / f"{options.name}-{name}-{experiment.out.name}-T{T}"
                for ending in (".csv", ".png"):
                    content = (folder / f"{name}{ending}").read_bytes()
                    write_atomic(target.with_name(target.name + ending), content)
                print(f"{target}.csv and .png")
            ran = True
    if not ran:
        print(f"{options.name}: {NOT_RUN}; name a float classifier with --model")
