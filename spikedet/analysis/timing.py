"""Measure the time of networks in interleaved runs on the same pictures, and peak memory."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any, TypeVar

import torch
from torch import Tensor

from spikedet.analysis.limit import Work
from spikedet.errors import UsageError
from spikedet.kernels import library

Key = TypeVar("Key", bound=Hashable)
FLOAT = "float32"  # the float network; `passes` are relative to its time
BFLOAT16, INT8 = "bfloat16", "int8"  # the float network in other number formats
OURS, PEER, LOOP = "spikedet", "spikingjelly", "step-loop"
FLOATS = (FLOAT, BFLOAT16, INT8)
TORCH, IN_BFLOAT16 = "torch", "torch-bfloat16"  # engines of torch, in float32 and bfloat16


@dataclass(frozen=True)
class Subject:
    """The subject of a row of a benchmark.

    Attributes:
        name: `float32`, `bfloat16` or `int8` for the float network; `spikedet`, `spikingjelly` or
            `step-loop` for the spiking network.
        engine: Name of the engine.
        T: Time steps. 1 for a float network.
    """

    name: str
    engine: str
    T: int = 1


@dataclass(frozen=True)
class Row:
    """A row of a benchmark.

    Attributes:
        name, engine, T: See `Subject`.
        batch, threads: Batch size, and number of threads of torch.
        ms: Milliseconds for a picture, the median over all rounds.
        ms_low, ms_high: Lower and upper quartile.
        passes: `ms` divided by `ms` of the float32 network in the same run.
        best_passes: The same for the best rounds.
        over_fastest: `ms` divided by `ms` of the fastest float network: float32, bfloat16 or int8.
        rounds: Number of rounds.
        spikes_a_second: Spikes per second. None if they were not counted.
        limit_share: The time that only the additions would take, divided by `ms` (see `limit`).
    """

    name: str
    engine: str
    T: int
    batch: int
    threads: int
    ms: float
    ms_low: float
    ms_high: float
    passes: float
    best_passes: float
    over_fastest: float
    rounds: int
    spikes_a_second: float | None = None
    limit_share: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain values, rounded to more digits than the measurement is precise to."""
        return {
            k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in asdict(self).items()
        }


@torch.inference_mode()
def interleaved(
    runs: Mapping[Key, Callable[[Tensor], Any]],
    pictures: Sequence[Tensor],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    on_run: Callable[[], None] | None = None,
) -> Iterator[dict[Key, float]]:
    """Time several runs. In every round, all runs follow one another on the same pictures.

    So other work on the machine affects all of them equally. The first call of each run is a
    warm-up and is not measured.

    Args:
        runs: Functions to time. If one has a method `prepare`, it gets the pictures before the time
            is measured.
        pictures: Batches [B, ...], one for each round. They are repeated if there are too few.
        rounds: Number of rounds.
        clock: Function that returns seconds. `time.process_time` counts only the work of the
            threads of this process.
        on_run: Function that is called after each measured run.

    Yields:
        The seconds of each run, after each round.
    """
    for run in runs.values():
        run(pictures[0])
    for number in range(rounds):
        batch = pictures[number % len(pictures)]
        times: dict[Key, float] = {}
        for key, run in runs.items():
            if hasattr(run, "prepare"):
                run.prepare(batch)
            start = clock()
            run(batch)
            if batch.is_cuda:
                torch.cuda.synchronize()
            times[key] = clock() - start
            if on_run is not None:
                on_run()
        yield times


def rows(
    times: Sequence[Mapping[Subject, float]],
    batch: int,
    work: Mapping[Subject, Work] | None = None,
    rate: float | None = None,
) -> list[Row]:
    """Make the rows of interleaved runs. Without a finished round there are no rows.

    Args:
        times: Seconds of each run in each round.
        batch: Batch size.
        work: Work of the spiking networks for one picture.
        rate: Additions per second (see `limit.additions_a_second`).

    Raises:
        UsageError: The float32 network was not timed.
    """
    if not times:
        return []
    seconds = {subject: [each[subject] for each in times] for subject in times[0]}
    middle = {subject: median(each) for subject, each in seconds.items()}
    plain = next((subject for subject in seconds if subject.name == FLOAT), None)
    if plain is None:
        raise UsageError("no float network was timed; passes are given relative to its time")
    fastest = min(value for subject, value in middle.items() if subject.name in FLOATS)
    table = []
    for subject, each in seconds.items():
        low, _, high = quantiles(each, n=4, method="inclusive") if len(each) > 1 else each * 3
        picture, done = middle[subject] / batch, (work or {}).get(subject)
        limit = done.additions / rate / picture if done and rate else None
        row = Row(
            subject.name,
            subject.engine,
            subject.T,
            batch,
            torch.get_num_threads(),
            ms=picture * 1e3,
            ms_low=low / batch * 1e3,
            ms_high=high / batch * 1e3,
            passes=middle[subject] / middle[plain],
            best_passes=min(each) / min(seconds[plain]),
            over_fastest=middle[subject] / fastest,
            rounds=len(each),
            spikes_a_second=done.spikes / picture if done else None,
            limit_share=limit,
        )
        table.append(row)
    return table


def machine(threads: Sequence[int] = ()) -> str:
    """Describe the processor, the kernels, the system and the versions in one line.

    Args:
        threads: Numbers of threads. Without them: the number of torch's threads.
    """
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model n"))
    except (OSError, StopIteration):
        pass
    try:
        kernels = f"{library.chosen()} kernels"
    except library.NoLibrary:
        kernels = "no kernels"
    several = threads or (torch.get_num_threads(),)
    number = " and ".join(map(str, several)) + f" thread{'' if max(several) == 1 else 's'}"
    words = [name, f"{os.cpu_count()} processors", torch.backends.cpu.get_cpu_capability(), kernels]
    words += [number, f"torch {torch.__version__}", platform.system()]
    return ", ".join(words)


# ------------------------------------------------------------------ memory

# ru_maxrss of a child begins with what its parent had, so that Linux is asked for its own
_PEAK = """
import resource, sys, torch, spikedet
from spikedet.analysis import int8_float, sides, timing
path, name, engine, T, side, batch, threads = sys.argv[1:]
torch.set_num_threads(int(threads))

def memory(name):
    try:
        lines = open("/proc/self/status").read().splitlines()
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024

if name == timing.INT8:
    session = int8_float.Int8Float(open(path, "rb").read(), int(threads))
    run = lambda pictures, T: session(pictures)
else:
    ours = name == timing.OURS
    network = spikedet.load(path, **(timing.options_of(engine) if ours else {"half": False}))
    runner = getattr(network, "runner", None)
    network = network if runner is None else runner.network
    run = sides.side(timing.Subject(name, engine, int(T)), network)
picture = torch.rand(int(batch), 3, int(side), int(side))
with torch.inference_mode():
    run(picture, 1)
    before = memory("VmRSS")
    run(picture, int(T))
print(before, memory("VmHWM"))
"""


@dataclass(frozen=True)
class Peak:
    """Memory of a process that runs one network, in bytes.

    Attributes:
        process: Peak memory of the process.
        run: The peak memory minus the memory after a run with one time step.
    """

    process: int
    run: int


def options_of(engine: str) -> dict[str, Any]:
    """The arguments of `spikedet.load` for an engine: a name of an engine, or `IN_BFLOAT16`."""
    if engine in (TORCH, IN_BFLOAT16):
        return {"half": engine == IN_BFLOAT16}
    return {"engine": engine}


def peak_memory(
    weights: str | Path, subject: Subject, side: int, batch: int = 1, threads: int = 1
) -> Peak:
    """Measure the memory of a separate process that loads and runs a network.

    Args:
        weights: File of the network. For `int8`: the quantised model.
        subject: Engine and time steps.
        side: Side of the pictures in pixels.
        batch: Batch size.
        threads: Number of torch's threads.

    Raises:
        UsageError: The process failed, or the system does not report the memory (Windows).
    """
    values = (weights, subject.name, subject.engine, subject.T, side, batch, threads)
    command = [sys.executable, "-c", _PEAK, *map(str, values)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UsageError(f"peak memory of {weights} was not measured: {reason}")
    before, peak = (int(word) for word in done.stdout.split())
    return Peak(peak, max(0, peak - before))
