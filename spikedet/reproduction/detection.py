"""The paper's detection results: table X, figures 8 and 9, and ablations with a detector."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from spikedet.commands.checks import refuse
from spikedet.detection.boxes import Detections
from spikedet.detection.published import MEASURES, TABLE_10
from spikedet.errors import UsageError, counted
from spikedet.files import write_atomic, write_csv
from spikedet.released import released, released_leaky
from spikedet.reproduction import sparsity
from spikedet.reproduction.experiment import (
    CORRECTING,
    LAYER_WISE,
    Cell,
    Experiment,
    expect_available,
)
from spikedet.settings import Plan

SPLIT = "VOC2007:spikedet-val"  # held out from the released networks in the official data too
EPOCHS = 2  # epochs of stage I, if it must be run
# T of each method. `quantised` is the stage-I network, the upper limit for stage II. `layer-wise`
# is `two-stage` as in the paper, without the end-to-end pass. `stage1-correcting` is `stage1` with
# neurons that take back spikes.
STEPS: dict[str, Mapping[str, Sequence[int | None]]] = {
    "table10": {
        "float": (None,),
        "float-leaky": (None,),  # the float network of spiking-yolo
        "copy": (8, 20, 40, 60),
        "spiking-yolo": (8, 20, 40, 60),
        "quantised": (4, 8, 20),
        "stage1": (8, 20, 40, 60),
        CORRECTING: (4, 8, 20, 40, 60),
        "two-stage": (4, 8, 16, 20, 32, 40, 60),
    },
    "figure7": {
        "float": (None,),
        **{
            method: (4, 8, 20)
            for method in (
                "copy",
                "stage1",
                CORRECTING,
                "stage2",
                "stage1-coarse",
                "stage1-fine",
                LAYER_WISE,
                "two-stage",
            )
        },
    },
    # without the end-to-end pass, which uses all training pictures
    "table6": {LAYER_WISE: (8,)},
    "figure9": {"float": (None,), "spiking-yolo": (30,), "stage1": (30,), "two-stage": (30,)},
}
# Networks are made for these T, or for those of --made-for. A row with another T uses the network
# of the next larger T, or else that of the largest T, like spikedet detect.
MADE_FOR = (4, 8)
ANY_T = ("spiking-yolo",)  # its network does not depend on T
LONG: dict[str, Sequence[int | None]] = {  # measured on --long-limit pictures
    "float": (None,),
    "float-leaky": (None,),
    **{method: (8,) for method in ("copy", "stage1", "quantised", "two-stage")},
    "spiking-yolo": (500, 2000),
}
LONG_LIMIT = 200
CALIBRATION_PICTURES = (0, 16, 32, 64, 128, 256, 512)
DRAWN = ("spiking-yolo", *(method for method in STEPS["figure7"] if method != "float"))
Row = dict[str, Any]
SHOWN_STEPS = (2, 5, 8, 12, 20, 40, 100)


def make(options: Any, models: list[Path]) -> None:
    """Make the table or figure `options.name`.

    Raises:
        UsageError: There are several float checkpoints, or an option has no effect here.
    """
    from spikedet.checkpoint import identity

    if len(models) > 1:
        raise UsageError(f"--model names {len(models)} checkpoints; expected one detector")
    if options.name == "figure8":
        refuse(options, ["limit"], "figure8 shows one picture")
        expect_available(
            "--methods", options.methods, DRAWN, f"figure8 can draw {', '.join(DRAWN)}"
        )
    else:
        refuse(options, ["picture", "boxes_only"], "only figure8 draws a picture")
    if options.name != "table10":
        refuse(options, ["long_limit"], "only table10 has rows with T >= 500")
    model = models[0] if models else None
    leaky = options.leaky or (None if model else released_leaky())
    options = replace(options, split=options.split or SPLIT, leaky=leaky)
    if leaky is None and options.name != "sparsity":
        print("no --leaky: the Spiking-YOLO rows are made from the float network itself")
    source = model or released("float")
    assert source is not None  # the package contains it
    folder = options.out / f"detector-{identity(source)[:8]}"
    experiment = Experiment(options, folder, model, "detection", options.data, EPOCHS)
    if options.name == "sparsity":
        sparsity.make(replace(options, leaky=None), experiment, "AP")
    elif options.name == "figure8":
        steps_of_one_picture(options, experiment)
    else:
        table(options, experiment)


def cells(options: Any) -> list[Cell]:
    """The rows of `options.name` that `--T` and `--methods` select, in ascending order of T.

    Raises:
        UsageError: There is no row with this method or T.
    """
    planned = [(m, t, options.limit) for m, steps in STEPS[options.name].items() for t in steps]
    if options.name == "table10" and (not options.T or max(options.T) >= 500):
        limit = min(filter(None, (options.long_limit or LONG_LIMIT, options.limit)))
        planned += [(m, t, limit) for m, steps in LONG.items() for t in steps]
    planned = [
        (method, T, limit)
        for method, T, limit in dict.fromkeys(planned)
        if (T is None or not options.T or T in options.T)
        and (not options.methods or method in options.methods)
        and (method != "float-leaky" or options.leaky)
        and (method != "quantised" or T in (options.made_for or MADE_FOR))
    ]
    rows = "; ".join(
        f"{method} at {', '.join(map(str, steps))}" if steps != (None,) else method
        for method, steps in STEPS[options.name].items()
    )
    have = f"{options.name} has no such row; it has {rows}"
    expect_available("--methods", options.methods, {method for method, *_ in planned}, have)
    expect_available("--T", options.T, {T for _, T, _ in planned}, have)
    runs: dict[Any, list[int]] = {}  # the T that are measured in one run
    for method, T, limit in planned:
        if T is not None and method != "quantised":
            runs.setdefault((method, made_for(options, method, T), limit), []).append(T)
    counts = CALIBRATION_PICTURES if options.name == "table6" else (options.pictures,)
    wanted = [
        Cell.of(
            method,
            T,
            limit,
            pictures,
            made_for=made_for(options, method, T),
            steps=tuple(sorted(runs.get((method, made_for(options, method, T), limit), ()))),
        )
        for method, T, limit in planned
        for pictures in counts
    ]
    return sorted(wanted, key=lambda cell: cell.T or 0)


def made_for(options: Any, method: str, T: int | None) -> int | None:
    """T that the network of a row is made for."""
    if T is None:
        return None
    trained = options.made_for or MADE_FOR
    greater = [] if method in ANY_T else [t for t in trained if t >= T]
    return min(greater, default=max(trained))


def entry(name: str, cell: Cell, row: dict[str, Any]) -> dict[str, Any]:
    """Make a row of the CSV file `name`."""
    correcting = row["method"].endswith(", correcting")  # released networks may be
    method = cell.row_name
    if correcting and cell.neuron == Plan.neuron:
        method += "-correcting"
    line: dict[str, Any] = {"method": method, "T": cell.T or ""}
    line["weights_for_T"], line["engine"] = cell.made_for or "", row["engine"]
    line["calibration_pictures"] = row["calibration_pictures"]
    line |= {measure: row[measure] for measure in MEASURES} | {"images": row["images"]}
    printed = None
    if cell.T is not None and not correcting:
        printed = TABLE_10.get((cell.method, cell.T))
    published: Sequence[float | str] = printed or [""] * len(MEASURES)
    line |= {f"paper_{measure}": v for measure, v in zip(MEASURES, published, strict=True)}
    classes = row["per_class"] if name == "figure9" else {}
    return line | {f"AP_{key}": value for key, value in classes.items()}


def plot(options: Any, experiment: Experiment, lines: list[Row], rows: list[Row]) -> None:
    """Write the plot of a table or figure next to its CSV file."""
    from spikedet.plots import measures
    from spikedet.plots.figure import About

    name, path = options.name, options.out / f"{options.name}.png"
    floats = [line["AP"] for line in lines if line["method"] == "float"]
    images = lines[0]["images"]
    number = counted(images, "picture")
    steps = sorted({line["T"] for line in lines if line["T"]})
    about = About(f"from {experiment.model.name}", f"{options.split}, {number}", steps)
    spiking = [line for line in lines if line["T"] and line["images"] == images]
    if name == "figure9":
        bars = [
            {"method": line["method"], "T": line["T"] or None, "class": label, "AP": value}
            for row, line in zip(rows, lines, strict=True)
            for label, value in row["per_class"].items()
        ]
        title = f"AP of each class, {number}"
        write_atomic(path, measures.classes(bars, about, title=title))
    elif spiking:
        key = "calibration_pictures" if name == "table6" else "T"
        title = f"{name}, {number}" + (", T=8" if name == "table6" else "")
        source = floats[0] if floats else None
        write_atomic(path, measures.value_curves(spiking, key, "AP", title, source, about))


def table(options: Any, experiment: Experiment) -> None:
    """Measure the selected rows. After each of them, write all rows of the table that exist."""
    wanted = cells(options)
    everything = cells(replace(options, T=None, methods=None))
    measured: dict[Cell, dict[str, Any] | None] = {}
    for cell in everything:
        with contextlib.suppress(UsageError):  # the weights were made with other settings
            measured[cell] = experiment.row(cell, make=False)
    for cell in wanted:
        measured[cell] = experiment.row(cell)
        ordered = dict.fromkeys([*everything, *wanted])
        rows = [(c, row) for c in ordered if (row := measured.get(c))]
        lines = [entry(options.name, *pair) for pair in rows]
        write_csv(options.out / f"{options.name}.csv", lines)
        plot(options, experiment, lines, [row for _, row in rows])
    show(lines)


def show(lines: list[dict[str, Any]]) -> None:
    """Print the rows in percent, with the paper's values in brackets."""
    print(f"\n{'method':22}{'T':>5}{'images':>8}" + "".join(f"{m:>16}" for m in MEASURES))
    for line in lines:
        text = f"{line['method']:22}{line['T'] or '-':>5}{line['images']:>8}"
        for name in MEASURES:
            paper = line[f"paper_{name}"]
            ours = "-" if line[name] is None else f"{100 * line[name]:.1f}"
            text += f"{ours + ('' if paper == '' else f' ({100 * paper:.1f})'):>16}"
        print(text)
    print("In brackets: the paper's table X, of another training and evaluation protocol.")


def steps_of_one_picture(options: Any, experiment: Experiment) -> None:
    """Make figure 8: the detections of the float network, and after several steps of one run."""
    from spikedet.detection.predict import Predictor
    from spikedet.detection.ultra import SAMPLE
    from spikedet.plots.figure import About
    from spikedet.plots.pictures import grid

    picture, T = options.picture or SAMPLE, max(options.T or SHOWN_STEPS)
    shown: list[tuple[str, list[Detections]]] = []
    lines: list[dict[str, Any]] = []
    truth = Predictor(experiment.model, device=options.device)(picture)
    assert not isinstance(truth, list)  # a single picture gives no list
    shown.append(("float", [truth]))
    for method in options.methods or ("spiking-yolo", "stage1", "two-stage"):
        own = made_for(options, method, T)
        weights = experiment.weights(Cell.of(method, T, None, options.pictures, made_for=own))
        half = options.half if options.half or options.engine == "torch" else None
        detector = Predictor(weights, own, options.device, half, options.engine)
        method += "-correcting" if detector.can_run_longer else ""
        steps = [f for f in detector.steps(picture, T) if f.T in (options.T or SHOWN_STEPS)]
        shown.append((method, steps))
        lines += [
            {"method": method, "T": f.T, "weights_for_T": own, "engine": detector.engine,
             "objects": len(f), "float_objects": len(truth),
             "found_of_float": count_found(f, truth)}
            for f in steps
        ]  # fmt: skip
    write_csv(options.out / "figure8.csv", lines)
    if options.boxes_only:
        shown = [
            (method, [without_picture(detections) for detections in steps])
            for method, steps in shown
        ]
    titled = [
        [(method if f.T is None else f"{method}, t={f.T}", f.plot()) for f in steps]
        for method, steps in shown
    ]
    about = About(f"from {experiment.model.name}", Path(picture).name, options.T or SHOWN_STEPS)
    write_atomic(options.out / "figure8.png", grid(titled, about))
    for line in lines:
        print(
            f"{line['method']:22} t={line['T']:<4} {line['objects']} objects, "
            f"{line['found_of_float']} of the float network's {line['float_objects']}"
        )


def without_picture(detections: Detections) -> Detections:
    """The same detections on an empty picture."""
    return replace(detections, picture=np.full_like(detections.picture, 245))


def count_found(detections, truth) -> int:
    """Count the objects of `truth` with a detection of the same class and IoU of 0.5 or more."""
    import torch
    from torchvision.ops import box_iou

    if not len(detections) or not len(truth):
        return 0
    iou = box_iou(torch.as_tensor(truth.boxes), torch.as_tensor(detections.boxes))
    same = torch.as_tensor(truth.labels)[:, None] == torch.as_tensor(detections.labels)[None]
    return int(((iou >= 0.5) & same).any(1).sum())
