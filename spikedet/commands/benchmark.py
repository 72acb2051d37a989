"""Measure the speed of a float network and of its spiking networks on each engine.

    spikedet benchmark --data VOCdevkit --T 4 8 20
    spikedet benchmark --T 8 --engines events torch torch-bfloat16 --peers
    spikedet benchmark --data VOCdevkit --T 1 2 4 8 --plot passes.png

The speed of the events engine depends on the number of spikes. Use real pictures: name them with
--data.
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
from spikedet.options import option
from spikedet.terminal import Bar, Table, note

if TYPE_CHECKING:
    from spikedet.analysis.timing import Row
    from spikedet.commands.timed import Timed

MORE = """
All networks take turns on the same pictures. The columns of the table are:

    ms a picture  median time of a picture in milliseconds
    quartiles     quartiles of that time
    passes        the median time, divided by the time of the float network in
                  float32 with the same batch and the same threads
    of fastest    the same, divided by the time of the fastest float network:
                  float32, bfloat16, or int8 (if onnxruntime is installed)
    M spikes/s    millions of spikes per second
    of limit      time that only the additions of the spikes would take, with
                  all numbers in registers, divided by the measured time

Without --data, a detector gets the street picture that comes with ultralytics, and a classifier
gets noise. --peers adds SpikingJelly (if it is installed) and the loop of the published code, which
calls the network once in every time step. --cpu measures processor time, which other programs
disturb less. --memory measures the peak memory of each network in its own process. If you stop the
run with Ctrl-C, the finished rounds are shown and written.
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
        ["auto"], "engines: auto, events, torch, torch-bfloat16, integers", kind=kinds.timed_engine
    )
    weights: Path | None = option(
        None, "spiking weights (default: the released ones for T)", kind=kinds.weights
    )
    reference: Path | None = option(
        None, "float weights (default: the released ones)", name="float", kind=kinds.weights
    )
    data: Path | None = option(None, "pictures: a VOCdevkit, or a folder of pictures")
    imgsz: int | None = option(None, "input side in pixels (default: that of the weights)",
                               least=1, group="measurement")  # fmt: skip
    batch: list[int] = option([1], "pictures in a batch", least=1)
    threads: list[int] | None = option(
        None, "threads of torch and of the kernels", least=1, most=1024,
        shown="default: those of torch",
    )  # fmt: skip
    kernels: str | None = option(
        None,
        "kernels of the events engine, by the names of SPIKEDET_KERNELS",
        shown="default: the fastest",
        group="measurement",
    )
    rounds: int = option(20, "runs of each network; the table shows their median", least=1)
    device: str = shared.device()
    peers: bool = option(False, "also time SpikingJelly (if installed) and the published loop",
                         group="measurement")  # fmt: skip
    cpu: bool = option(False, "measure processor time, not wall time", group="measurement")
    memory: bool = option(False, "also measure peak memory, each network in its own process",
                          group="measurement")  # fmt: skip
    csv: Path | None = parse.written(None, "write the table to this file", kind=kinds.csv_file)
    plot: Path | None = parse.written(
        None, "draw passes over T to this PNG or SVG file", kind=kinds.plot_file
    )
    json: Path | None = parse.written(None, "write the results to this file", kind=kinds.json_file)


def run(options: Options) -> None:
    from spikedet.errors import UsageError
    from spikedet.kernels import library

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
    """Time everything for each number of threads and each batch size. Add rows to `lines`."""
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
    """Print rows, and append them to `lines`."""
    from spikedet.analysis.timing import FLOATS
    from spikedet.kernels import library

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
    """Write the requested files, each atomically."""
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
