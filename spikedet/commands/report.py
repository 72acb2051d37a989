"""Write a report about a run as one HTML page that you can send.

    spikedet report runs/float --out report.html
    spikedet report plots --out report.html

RUN is the folder of a training, or a folder of results (of evaluate --plots, analyze or reproduce).
The page shows the weights and their settings, the curves of results.csv, the rows of --json files,
and all plots with their numbers. It is one file. It contains its pictures, no scripts, and no links
to other servers.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikedet.commands import parse
from spikedet.errors import DataError, SpikedetError, UsageError
from spikedet.options import option

if TYPE_CHECKING:
    from spikedet.page import Page

LARGEST = 4_000_000  # bytes of a picture or table; larger ones are named only
MOST = 60  # pictures
LEVELS = 2  # of folders that are looked into
LOG = "results.csv"
DRAWN_ANEW = ("results.png", "curves")  # how names of pictures of the log begin


@dataclass(kw_only=True)
class Options(parse.Options):
    """Options of the command."""

    run: Path = option(help="folder of a training or of results", positional=True, metavar="RUN")
    out: Path = parse.written(Path("report.html"), "HTML file to write", metavar="FILE")


def run(options: Options) -> None:
    from spikedet.files import write_atomic

    if not options.out.name.lower().endswith((".html", ".htm")):
        raise UsageError(
            f"--out: cannot write to {str(options.out)!r}; expected a name that ends in .html"
        )
    page = report(options.run)
    data = page.html()
    write_atomic(options.out, data)
    print(f"{options.out}: {len(data) / 1e6:.1f} MB, one file with all its pictures")


def report(folder: Path) -> Page:
    """Make the page of a run.

    Raises:
        DataError: The folder does not exist, or has no files of a run.
    """
    from spikedet.page import Page
    from spikedet.plots.figure import PACKAGE

    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder; expected the folder of a training or of results"
        )
    files = list(_files(folder))
    kinds = {kind: [f for f in files if f.suffix.lower() in kind.split()] for kind in (
        ".safetensors", ".csv", ".json", ".png .jpg .jpeg")}  # fmt: skip
    if not any(kinds.values()):
        raise DataError(f"{folder}: holds no weights, tables or plots of spikedet")
    page = Page(f"{folder.resolve().name}: a run of spikedet")
    page.text(f"Written by {PACKAGE} on {time.strftime('%B %d, %Y, %H:%M')}.")
    about = _weights(page, folder, kinds[".safetensors"])
    logs = [path for path in kinds[".csv"] if path.name == LOG]
    for path in logs:
        _training(page, folder, path, about)
    left_out = _rows(page, folder, kinds[".json"])
    left_out += _plots(page, folder, kinds[".png .jpg .jpeg"], kinds[".csv"])
    _versions(page)
    if left_out:
        page.heading("Left out")
        page.text(f"{len(left_out)} files that are too large, or are not of spikedet: "
                  + ", ".join(left_out[:20]) + (", ..." if len(left_out) > 20 else ""))  # fmt: skip
    return page


def _files(folder: Path, level: int = 0) -> Iterator[Path]:
    """Yield the files of a run, first those of the folder itself. Hidden files are left out."""
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    yield from (path for path in entries if path.is_file())
    if level < LEVELS:
        for path in entries:
            if path.is_dir() and not path.is_symlink():
                yield from _files(path, level + 1)


def _named(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()


def _weights(page: Page, folder: Path, paths: list[Path]) -> dict[Path, dict[str, Any]]:
    """Add the facts of the weights, with the command and the settings of each."""
    from spikedet.checkpoint import load
    from spikedet.commands.info import facts, text

    checkpoints: dict[Path, dict[str, Any]] = {}
    if paths:
        page.heading("Weights")
    for path in paths:
        page.heading(_named(folder, path), 3)
        try:
            about = facts(load(path), path)
        except SpikedetError as error:
            page.text(f"Cannot be read: {error}")
            continue
        checkpoints[path] = about
        origin = about.pop("origin")
        about["command"] = origin.pop("command", None)
        about["trained on"] = origin.pop("pictures", None)
        page.facts({name: text(value) if value not in (None, [], {}) else None
                    for name, value in about.items() if name != "file"})  # fmt: skip
        if origin:
            page.heading("How it was made", 3)
            page.facts(origin)
    return checkpoints


def _training(page: Page, folder: Path, path: Path, about: dict[Path, dict[str, Any]]) -> None:
    """Add the curves, the settings and the best rows of a training."""
    from spikedet.commands.plotting import of_run, read_log
    from spikedet.plots import measures

    page.heading(f"Training: {_named(folder, path)}")
    settings = _settings(path.with_name("state.pt"))
    if settings:
        page.heading("Settings", 3)
        page.facts(settings)
    try:
        rows = read_log(path)
    except DataError as error:
        page.text(str(error))
        return
    best = about.get(path.with_name("best.safetensors"), {})
    page.heading("Curves", 3)
    page.text(f"{len(rows)} epochs.")
    count = best.get("trained on")
    of = of_run(path.parent, best.get("T"), f"{count} training pictures" if count else "")
    caption = f"Training curves of {_named(folder, path)}"
    page.picture(measures.training(rows, of), ".png", caption)
    page.table(rows, "All epochs")


def _settings(path: Path) -> dict[str, Any]:
    """Read the settings of a training from its state file."""
    from spikedet.training.run import read_state

    if not path.is_file():
        return {}
    try:
        state = read_state(path, "epoch", "epochs")
    except SpikedetError:
        return {}
    progress = {"epochs done": state["epoch"] + 1, "epochs": state["epochs"]}
    settings = state.get("settings")
    return progress | (dict(settings) if isinstance(settings, dict) else {})


def _rows(page: Page, folder: Path, paths: list[Path]) -> list[str]:
    """Add the rows of JSON files."""
    left_out, begun = [], False
    for path in paths:
        content: Any = None
        if path.stat().st_size <= LARGEST:
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
            except (ValueError, RecursionError):
                content = None
        several = content if isinstance(content, list) else [content]
        rows = [row for row in several if isinstance(row, dict) and "T" in row]
        if not rows or len(rows) < len(several):
            left_out.append(_named(folder, path))
            continue
        if not begun:
            page.heading("Measured")
            begun = True
        page.heading(_named(folder, path), 3)
        rows = [{k: v for k, v in row.items() if not isinstance(v, dict | list)} for row in rows]
        common = _common(rows) if len(rows) > 1 else {}
        page.facts(common)
        page.table([{k: v for k, v in row.items() if k not in common} for row in rows])
    return left_out


def _common(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The fields that are equal in all rows, except measured values."""
    first = rows[0]
    return {
        name: value
        for name, value in first.items()
        if not isinstance(value, float) and all(row.get(name) == value for row in rows)
    }


def _plots(page: Page, folder: Path, pictures: list[Path], tables: list[Path]) -> list[str]:
    """Add the plots with their numbers, then tables without a plot."""
    left_out, shown = [], 0
    pictures = [p for p in pictures if not (p.with_name(LOG).is_file() and _of_log(p))]
    beside = {table.with_suffix("") for table in tables}
    if pictures:
        page.heading("Plots and pictures")
    for path in pictures:
        if path.stat().st_size > LARGEST or shown == MOST:
            left_out.append(_named(folder, path))
            continue
        shown += 1
        page.picture(path.read_bytes(), path.suffix, _named(folder, path))
        if path.with_suffix("") in beside:
            left_out += _numbers(page, folder, path.with_suffix(".csv"))
    drawn = {path.with_suffix("") for path in pictures}
    for path in tables:
        if path.name != LOG and path.with_suffix("") not in drawn:
            left_out += _numbers(page, folder, path)
    return left_out


def _of_log(path: Path) -> bool:
    return path.name.startswith(DRAWN_ANEW)


def _numbers(page: Page, folder: Path, path: Path) -> list[str]:
    """Add a table. Return its name if it cannot be shown."""
    name = _named(folder, path)
    try:
        if path.stat().st_size > LARGEST:
            return [name]
        with path.open(newline="", encoding="utf-8") as file:
            rows = [{k: v for k, v in row.items() if k is not None} for row in csv.DictReader(file)]
    except (OSError, ValueError, csv.Error):
        return [name]
    page.table(rows, f"Numbers: {name} ({len(rows)} rows)")
    return []


def _versions(page: Page) -> None:
    from spikedet.commands.doctor import versions

    page.heading("Versions of where this page was written")
    page.facts(versions())
