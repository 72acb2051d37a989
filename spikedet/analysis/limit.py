"""The speed limit of an engine that adds a row of weights for each spike.

The spikes of a run need a certain number of additions of weights. A loop in the kernels measures
how fast the processor can add if it does nothing else and all numbers are in registers. The time of
the additions at this rate, divided by the time of the run, is the share of the limit.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from torch import Tensor

from spikedet.analysis.operations import measure_cost
from spikedet.kernels import library
from spikedet.runtime.network import SpikingNetwork

ROUNDS = 2_000_000  # rounds of the loop, which take some milliseconds
TRIES = 7


@dataclass(frozen=True)
class Work:
    """The work of a spiking network for one picture: the mean over several pictures.

    Attributes:
        spikes: Number of spikes of all neurons and time steps.
        additions: Number of additions of weights: each spike times its fan-out (see `operations`).
    """

    spikes: float
    additions: float


def work_of(network: SpikingNetwork, batches: Sequence[Tensor], T: int) -> Work:
    """Measure the work of a network for one picture in T steps, with its engine.

    Args:
        network: The spiking network.
        batches: Pictures [B, ...].
        T: Time steps.
    """
    cost = measure_cost(network, batches, T)
    spikes = sum(float(cost.rates[name].mean()) * size * T for name, size in cost.neurons.items())
    return Work(spikes, sum(float(each.mean()) for each in cost.accumulates.values()))


def additions_a_second(threads: int = 1) -> float | None:
    """Measure how fast the chosen kernels add int16 numbers in registers.

    Args:
        threads: Number of threads that add at the same time.

    Returns:
        Additions per second of all threads, the best of several tries. None without kernels.
    """
    try:
        loaded = library.library()
        number = library.kernels().index(library.chosen())
    except library.NoLibrary:
        return None

    def add(_: int) -> int:
        return loaded.sd_add(number, ROUNDS)

    best = 0.0
    with ThreadPoolExecutor(threads) as several:
        for _ in range(TRIES):
            start = time.perf_counter()
            added = sum(several.map(add, range(threads)))
            best = max(best, added / (time.perf_counter() - start))
    return best
