"""The plots that commands write, and their file names."""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence, Sized
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikedet.errors import DataError

if TYPE_CHECKING:
    from spikedet.plots import About, Draw

SIZES = {"AP_small": "small", "AP_medium": "medium", "AP_large": "large"}
Entries = Sequence[Mapping[str, Any]]


def readouts(T: int) -> list[int]:
    """Time steps for the curve over T of one run: 1, 2, 4, ... and T."""
    return sorted({*(1 << n for n in range(T.bit_length()) if 1 << n < T), T})


def labels(rows: Sequence[tuple[str, int | None, str]]) -> list[str]:
    """Names of networks for plots: their methods, with the file name if methods are equal.

    Args:
        rows: Method, T and file name of each network.
    """
    same = Counter((method, T) for method, T, _ in rows)
    return [
        f"{method}, {Path(file).stem}" if same[method, T] > 1 else method
        for method, T, file in rows
    ]


def evaluation(
    folder: Path, entries: Entries, details: Mapping[tuple[str, int | None], dict], about: About
) -> list[Path]:
    """Write all plots of measured networks, each with its numbers as CSV.

    Args:
        folder: Folder for the plots.
        entries: Rows of the table, as in the JSON output.
        details: Rows of further tables by name, for each method and T.
        about: Caption. Each plot gets its own T.

    Returns:
        Paths of the plots.
    """
    from spikedet.plots import measures, write

    value = "AP" if "AP" in entries[0] else "top1"
    draw_classes = partial(measures.classes, value=value)
    weights = {(entry["method"], entry["T"]): entry.get("weights") for entry in entries}
    written = tables_of_networks(folder, details, about, draw_classes, weights)
    steps = sorted({entry["T"] for entry in entries if entry["T"] is not None})
    every = replace(about, T=steps or None)
    ending = "".join(f"-T{T}" for T in steps[-1:])
    rows = class_rows([e for e in entries if (e["method"], e["T"]) in details])
    if rows:
        own = replace(about, T=sorted({row["T"] for row in rows if row["T"] is not None}))
        written.append(write(folder, f"{value}-classes{ending}", rows, draw_classes, own))
    rows = size_rows(entries)
    if any(row["AP"] is not None for row in rows):
        written.append(write(folder, f"{value}-sizes{ending}", rows, measures.sizes, every))
    if any(entry["T"] is not None and entry[value] is not None for entry in entries):
        written.append(over_time_steps(folder, entries, value, every))
    return written


def tables_of_networks(
    folder: Path,
    details: Mapping[tuple[str, int | None], dict],
    about: About,
    draw_classes: Draw,
    weights: Mapping[tuple[str, int | None], str | None],
) -> list[Path]:
    """Write a plot of each further table of each network (see `evaluation`).

    Args:
        folder: Folder for the plots.
        details: See `evaluation`.
        about: See `evaluation`.
        draw_classes: Function that draws the measure of each class.
        weights: File name for each method and T. None if it is not known.

    Returns:
        Paths of the plots.
    """
    from spikedet.plots import measures, write

    draw: dict[str, Draw] = {
        "precision-recall": measures.precision_recall, "f1": measures.f1,
        "confusion": measures.confusion, "reliability": measures.reliability,
        "classes": draw_classes,
    }  # fmt: skip
    written = []
    several = len({method for method, _ in details}) > 1
    for (method, T), tables in details.items():
        own = replace(about, T=T, weights=f"{method}, {weights.get((method, T)) or about.weights}")
        name = (f"-{slug(method)}" if several else "") + ("" if T is None else f"-T{T}")
        for table, rows in tables.items():
            if rows:
                rows = [{"method": method, "T": T, **row} for row in rows]
                written.append(write(folder, table + name, rows, draw[table], own))
    return written


def over_time_steps(folder: Path, entries: Entries, value: str, about: About) -> Path:
    """Write the plot of a measured value over T, with the value of the float network."""
    from spikedet.plots import measures, write

    source = next((e[value] for e in entries if e["stage"] == "float"), None)

    def draw(rows: Any, about: About) -> bytes:
        timed = [row for row in rows if row["T"] is not None]
        return measures.value_curves(timed, "T", value, f"{value} over T", source, about)

    keys = [key for key in ("method", "T", *entries[0]) if key not in ("per_class", "areas")]
    table = [{key: entry.get(key) for key in dict.fromkeys(keys)} for entry in entries]
    return write(folder, f"{value}-over-T", table, draw, about)


def class_rows(entries: Entries) -> list[dict[str, Any]]:
    """Rows with the AP of each class."""
    return [
        {"method": entry["method"], "T": entry["T"], "class": name, "AP": value}
        for entry in entries
        for name, value in (entry.get("per_class") or {}).items()
    ]


def size_rows(entries: Entries) -> list[dict[str, Any]]:
    """Rows with the AP by object size."""
    return [
        {"method": entry["method"], "T": entry["T"], "size": size, "AP": entry[key]}
        for entry in entries
        for key, size in SIZES.items()
        if key in entry
    ]


def slug(text: str) -> str:
    """Convert words to a part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def read_log(path: Path) -> list[dict[str, str]]:
    """Read the rows of a training's `results.csv`.

    Raises:
        DataError: The file does not exist, is not a table, or has no rows.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [{str(k).strip(): str(v).strip() for k, v in row.items()}
                    for row in csv.DictReader(file)]  # fmt: skip
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except (ValueError, csv.Error):
        raise DataError(f"{path}: not a results.csv of a training") from None
    if not rows or "epoch" not in rows[0]:
        raise DataError(f"{path}: holds no epoch of a training")
    return rows


def of_run(folder: Path, T: int | None = None, data: str = "") -> About:
    """The caption for the curves of a training."""
    from spikedet.plots import About

    return About(f"{folder.resolve().name}/best.safetensors", data or "training pictures", T)


def training(folder: Path, train: Sized, tune: Sized, split: str, T: int | None = None) -> None:
    """Plot `results.csv` of a training as `curves.png` (stage I: `curves-T8.png`).

    Args:
        folder: Folder of the run.
        train: Training samples.
        tune: Tuning samples, which chose the best epoch.
        split: Split of the samples.
        T: T of stage I. None for a float network.
    """
    from spikedet.files import write_atomic
    from spikedet.plots import measures

    if int(os.environ.get("RANK", 0)) or not (folder / "results.csv").is_file():
        return
    rows = read_log(folder / "results.csv")
    path = folder / ("curves.png" if T is None else f"curves-T{T}.png")
    data = f"{len(train)} training and {len(tune)} tuning pictures of {split}"
    write_atomic(path, measures.training(rows, of_run(folder, T, data)))
    print(f"{folder / 'best.safetensors'}: the best of {len(rows)} epochs; curves in {path}")
