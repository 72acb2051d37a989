"""How long networks take, side by side: interleaved runs on the same pictures, and peak memory."""

from __future__ import annotations

import copy
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any, TypeVar

import torch
from torch import Tensor

from spikedet.errors import UsageError
from spikedet.graph.graph import Graph
from spikedet.neurons.layers import IFNeuron
from spikedet.runtime.network import SpikingNetwork

Key = TypeVar("Key", bound=Hashable)
FLOAT = "float32"  # what passes are counted in


@dataclass(frozen=True)
class Subject:
    """What a row of a benchmark is of.

    Attributes:
        name: `float32` for the float network, `spikedet`, `spikingjelly`.
        engine: What runs it.
        T: Time steps, 1 for a network without.
    """

    name: str
    engine: str
    T: int = 1


@dataclass(frozen=True)
class Row:
    """A row of a benchmark.

    Attributes:
        name, engine, T: As of `Subject`.
        batch, threads: Pictures at once, threads of torch.
        ms: Milliseconds a picture, the median over all rounds.
        ms_low, ms_high: Their quartiles.
        passes: `ms` over that of the float network in the same run.
        best_passes: The same of the best rounds.
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

    def as_json(self) -> dict[str, Any]:
        """Plain values, rounded to what was measured."""
        return {k: round(v, 3) if isinstance(v, float) else v for k, v in asdict(self).items()}


@torch.inference_mode()
def interleaved(
    runs: dict[Key, Callable[[Tensor], Any]],
    pictures: Sequence[Tensor],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    on_round: Callable[[], None] | None = None,
) -> dict[Key, list[float]]:
    """Seconds of each run in each round; one after the other in every round, on the same pictures.

    What else happens on the machine then falls on all of them. The first call of each is a warm-up
    and does not count.

    Args:
        runs: What is timed.
        pictures: Batches [B, ...], one a round, from the start again where they are fewer.
        rounds: How many.
        clock: Seconds; `time.process_time` counts the work of all threads of this process alone.
        on_round: Called after each round.
    """
    for run in runs.values():
        run(pictures[0])
    times: dict[Key, list[float]] = {key: [] for key in runs}
    for number in range(rounds):
        batch = pictures[number % len(pictures)]
        for key, run in runs.items():
            start = clock()
            run(batch)
            if batch.is_cuda:
                torch.cuda.synchronize()
            times[key].append(clock() - start)
        if on_round is not None:
            on_round()
    return times


def rows(times: dict[Subject, list[float]], batch: int) -> list[Row]:
    """The rows of interleaved runs.

    Raises:
        UsageError: The float network is not among them.
    """
    floats = next((seconds for subject, seconds in times.items() if subject.name == FLOAT), None)
    if floats is None:
        raise UsageError("no float network among what was timed; passes are counted in its time")
    table = []
    for subject, seconds in times.items():
        low, _, high = quantiles(seconds, n=4) if len(seconds) > 1 else seconds * 3
        ms, ms_low, ms_high = (t / batch * 1e3 for t in (median(seconds), low, high))
        table.append(
            Row(
                subject.name,
                subject.engine,
                subject.T,
                batch,
                torch.get_num_threads(),
                ms,
                ms_low,
                ms_high,
                passes=median(seconds) / median(floats),
                best_passes=min(seconds) / min(floats),
            )
        )
    return table


def machine() -> str:
    """Processor, system and versions in one line."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model n"))
    except (OSError, StopIteration):
        pass
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{name}, {capability}, {torch.get_num_threads()} threads, torch {torch.__version__}"


# ------------------------------------------------------------------ another simulator


def spikingjelly_copy(graph: Graph, T: int) -> SpikingNetwork:
    """A spiking network with SpikingJelly's neurons in multi-step mode in the place of ours.

    Everything else, convolutions on [T*B, ...] and the mean at the end, is the same code, so that
    it is their fastest mode on a CPU: constant layers run once, all steps go through together.

    Raises:
        UsageError: SpikingJelly is not installed, or the network has neurons that it has not.
    """
    try:
        from spikingjelly.activation_based import neuron  # noqa: F401
    except ImportError:
        raise UsageError("SpikingJelly is not installed; pip install spikingjelly") from None
    graph = copy.deepcopy(graph)
    for node in graph.of((IFNeuron,)):
        assert isinstance(node.module, IFNeuron)
        graph.replace(node.name, _Peer(node.module))
    network = SpikingNetwork(graph, T, chunk=2**31)
    return network.requires_grad_(False)


class _Peer(IFNeuron):
    """SpikingJelly's integrate-and-fire neuron, soft reset, multi-step, with our start."""

    def __init__(self, ours: IFNeuron):
        from spikingjelly.activation_based import neuron

        super().__init__(ours.threshold, ours.initial, ours.slope, ours.folded)
        theta = ours.threshold.unique().tolist()
        if ours.slope or len(theta) > 1:
            raise UsageError("SpikingJelly has one threshold a layer, and no negative spikes")
        self.theirs = neuron.IFNode(theta[0], v_reset=None, step_mode="m")

    def advance(self, x: Tensor, batch: int, steps: int, memory: Any) -> tuple[Tensor, Any]:
        """As `Temporal.advance`."""
        currents = x.unflatten(0, (-1, batch))
        if len(currents) < steps:  # one that is constant
            currents = currents.expand(steps, *currents.shape[1:])
        self.theirs.v = self.first_potential(x, batch) if memory is None else memory
        spikes = self.theirs(currents)
        return self.on_wire(spikes.flatten(0, 1)), self.theirs.v


# ------------------------------------------------------------------ memory

# ru_maxrss of a child begins with what its parent had, so that Linux is asked for its own
_PEAK = """
import resource, sys, torch, spikedet
path, T, engine, side, batch, threads = sys.argv[1:]
torch.set_num_threads(int(threads))

def memory(name):
    try:
        lines = open("/proc/self/status").read().splitlines()
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024

network = spikedet.load(path, engine=engine, half=None if engine != "torch" else False)
runner = getattr(network, "runner", None)
network = network if runner is None else runner.network
spiking = hasattr(network, "T")
picture = torch.rand(int(batch), 3, int(side), int(side))
with torch.inference_mode():
    network(picture, 1) if spiking else network(picture)
    before = memory("VmRSS")
    network(picture, int(T)) if spiking else network(picture)
print(before, memory("VmHWM"))
"""


@dataclass(frozen=True)
class Peak:
    """Memory of a process that runs one network, in bytes.

    Attributes:
        process: The most that it had.
        run: By how much that is more than what it had after a run of a single step.
    """

    process: int
    run: int


def peak_memory(
    weights: str | Path, T: int, engine: str, side: int, batch: int = 1, threads: int = 1
) -> Peak:
    """The memory that a process of its own needs to load and run a network.

    Args:
        weights: Its file.
        T: Time steps; of no meaning for a network without.
        engine: What runs it; `torch` in float32.
        side: Of its pictures, in pixels.
        batch: Pictures at once.
        threads: Of torch.

    Raises:
        UsageError: The process failed, or the system does not tell (Windows).
    """
    command = [sys.executable, "-c", _PEAK]
    command += [str(value) for value in (weights, T, engine, side, batch, threads)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UsageError(f"peak memory of {weights} was not measured: {reason}")
    before, peak = (int(word) for word in done.stdout.split())
    return Peak(peak, max(0, peak - before))
