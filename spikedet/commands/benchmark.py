"""Time a network as float and as spiking network, engine by engine, all in one run.

    spikedet benchmark --data VOCdevkit --T 4 8 20
    spikedet benchmark --T 8 --engines events torch torch-bfloat16 --peers
    spikedet benchmark --data VOCdevkit --T 1 2 4 8 --plot passes.png

How many neurons fire decides the time of the events engine, so that pictures must be real ones:
--data names them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikedet.commands import kinds, parse, shared
from spikedet.commands.main import progress
from spikedet.commands.result import write_json
from spikedet.settings import option
from spikedet.terminal import Bar, Table, note

if TYPE_CHECKING:
    from spikedet.analysis.timing import Row
    from spikedet.commands.timed import Timed

MORE = """
All sides take turns on the same pictures with the same weights. The table has milliseconds a
picture, the median and the quartiles, and passes: that over the time of the float network in
float32 with as many pictures at once and threads. Beside it stand the ratio to the fastest float
network (float32, bfloat16, and int8 by onnxruntime where that is installed), spikes a second, and
the share of the limit: the time that the additions of the spikes alone would take with all numbers
in registers, over the time that it took.

Without --data the picture is the street picture that ultralytics brings (a classifier sees noise).
--peers adds SpikingJelly where it is installed, and the loop of published code, which calls the
network once a time step. With --cpu it is the time that the processor was at work, which other
programs on the machine disturb less. --memory tells the peak memory of processes that run one
network each. A run that is stopped (Ctrl-C) shows and writes the rounds that ended.
"""
COLUMNS = [
    ("network", 14), ("engine", 16), ("T", 5), ("batch", 7), ("threads", 9), ("ms a picture", 14),
    ("quartiles", 20), ("passes", 9), ("of fastest", 12), ("M spikes/s", 12), ("of limit", 10),
]  # fmt: skip


@dataclass(kw_only=True)
class Options(parse.Options):
    """Options of the command."""

    T: list[int] = option([8], "time steps", kind=kinds.time_steps)
    engines: list[str] = option(
        ["auto"], "by name: auto, events, torch, torch-bfloat16, integers", kind=kinds.timed_engine
    )
    weights: Path | None = option(None, "spiking weights; the released ones for T if left out")
    reference: Path | None = option(
        None, "float weights; the released ones if left out", name="float"
    )
    data: Path | None = option(None, "pictures: a VOCdevkit, or a folder of pictures")
    imgsz: int | None = option(None, "input side in pixels; that of the weights", least=1,
                               group="measurement")  # fmt: skip
    batch: list[int] = option([1], "pictures at once", least=1)
    threads: list[int] | None = option(
        None, "threads, of torch and of our kernels", least=1, most=1024, shown="as torch has"
    )
    kernels: str | None = option(
        None,
        "kernels of the events engine, as SPIKEDET_KERNELS names them",
        shown="the fastest",
        group="measurement",
    )
    rounds: int = option(20, "runs of each; the median and the best are told", least=1)
    device: str = shared.device()
    peers: bool = option(False, "SpikingJelly, where it is installed, and the published loop",
                         group="measurement")  # fmt: skip
    cpu: bool = option(False, "time of the processor, not of the clock", group="measurement")
    memory: bool = option(False, "peak memory of each, in processes of their own",
                          group="measurement")  # fmt: skip
    csv: Path | None = parse.written(None, "write the table here", kind=kinds.csv_file)
    plot: Path | None = parse.written(
        None, "draw passes over T here, as PNG or SVG", kind=kinds.plot_file
    )
    json: Path | None = parse.written(None, "write a list of results here", kind=kinds.json_file)


def run(options: Options) -> None:
    from spikedet.engines import library
    from spikedet.errors import UsageError

    try:
        with library.choosing(options.kernels):
            _benchmark(options)
    except library.NoLibrary as error:
        raise UsageError(f"--kernels: {error}") from None


def _benchmark(options: Options) -> None:
    import torch

    from spikedet.analysis import timing
    from spikedet.commands.timed import Timed

    before = torch.get_num_threads()
    threads = options.threads or [before]
    timed = Timed(options)
    machine = timing.machine(threads)
    print(machine)
    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            _measure(timed, threads, Path(folder), lines)
            if options.memory:
                _measure_memory(timed, lines)
        finally:  # of a run that was stopped what there is
            torch.set_num_threads(before)
            if lines:
                lines[:] = [{**line, "machine": machine} for line in lines]
                _write(options, timed, lines, machine)


def _measure(timed: Timed, threads: Sequence[int], folder: Path, lines: list[dict]) -> None:
    """Time everything, for each number of threads and pictures at once; adds to `lines`."""
    import torch

    from spikedet.analysis import timing
    from spikedet.analysis.limit import additions_a_second

    options = timed.options
    pictures = timed.pictures()
    int8 = timed.int8(pictures, folder)
    work = timed.work(pictures)
    clock = time.process_time if options.cpu else time.perf_counter
    table = Table(COLUMNS, left=2)
    table.head()
    sides = len(timed.runs) + (int8 is not None)
    total = len(set(threads)) * len(set(options.batch)) * options.rounds * sides
    with progress(desc="benchmark", total=total, unit="run", leave=False) as bar:
        for number in dict.fromkeys(threads):
            torch.set_num_threads(number)
            runs = timed.all_runs(int8, number)
            on_cpu = options.device == "cpu"
            rate = additions_a_second(1 if options.cpu else number) if on_cpu else None
            for batch in dict.fromkeys(options.batch):
                times: list[dict] = []
                batches = [b.to(options.device) for b in pictures.split(batch) if len(b) == batch]
                rounds = timing.interleaved(runs, batches, options.rounds, clock, bar.update)
                try:
                    for seconds in rounds:
                        times.append(seconds)
                finally:
                    _tell(timing.rows(times, batch, work, rate), options.cpu, table, lines)


def _tell(rows: Sequence[Row], cpu: bool, table: Table, lines: list[dict]) -> None:
    """Show rows, and add them to those that are written."""
    from spikedet.analysis.timing import FLOATS
    from spikedet.engines import library

    for row in rows:
        spikes, limit = row.spikes_a_second, row.limit_share
        table.row(
            row.name,
            row.engine,
            "" if row.name in FLOATS else str(row.T),
            str(row.batch),
            str(row.threads),
            f"{row.ms:.2f}",
            f"{row.ms_low:.2f} to {row.ms_high:.2f}",
            f"{row.passes:.2f}",
            f"{row.over_fastest:.2f}",
            "" if spikes is None else f"{spikes / 1e6:.1f}",
            "" if limit is None else f"{100 * limit:.1f} %",
        )
        kernels = library.chosen() if row.engine == "events" else None
        clock = "processor" if cpu else "wall"
        lines.append({**row.as_json(), "kernels": kernels, "clock": clock})


def _measure_memory(timed: Timed, lines: list[dict]) -> None:
    """Add `peak_bytes` and `run_bytes` to each line."""
    from spikedet.analysis.timing import Subject, peak_memory
    from spikedet.errors import UsageError

    bar: Bar
    with progress(desc="memory", total=len(lines), unit="network", leave=False) as bar:
        for line in lines:
            subject = Subject(line["name"], line["engine"], line["T"])
            line |= {"peak_bytes": None, "run_bytes": None}
            try:
                path, size = timed.files[subject], timed.size
                peak = peak_memory(path, subject, size, line["batch"], line["threads"])
            except UsageError as error:
                note(str(error))
            else:
                line |= {"peak_bytes": peak.process, "run_bytes": peak.run}
                print(
                    f"{line['name']:13} {line['engine']:15} T={line['T']:<3} "
                    f"batch {line['batch']}, {line['threads']} threads: "
                    f"{peak.process / 2**20:.0f} MiB, {peak.run / 2**20:.0f} of them for T steps"
                )
            bar.update()


def _write(options: Options, timed: Timed, lines: list[dict], machine: str) -> None:
    """The files that were asked for, each whole or not at all."""
    from spikedet.files import write_atomic, write_csv

    write_json(options, lines)
    if options.csv is not None:
        write_csv(options.csv, lines)
    if options.plot is None:
        return
    from spikedet.analysis.timing import FLOATS, INT8
    from spikedet.plots import About
    from spikedet.plots.speed import passes

    files = [path.name for subject, path in timed.files.items() if subject.name != INT8]
    weights = ", ".join(dict.fromkeys(files))
    steps = sorted(set(options.T))
    about = About(weights, timed.about_pictures(), steps, machine)
    write_atomic(options.plot, passes(lines, about, FLOATS, options.plot.suffix[1:]))
