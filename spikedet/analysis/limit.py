"""The limit of an engine that adds a row of weights for each spike: the additions alone.

The spikes that really occur need so many additions of weights. A processor that did nothing else,
with all numbers in its registers, would do them at a rate that a loop of the kernels measures. The
time that it would take over the time that a run takes is the share of the limit.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from torch import Tensor

from spikedet.analysis.operations import measure_cost
from spikedet.engines import library
from spikedet.runtime.network import SpikingNetwork

ROUNDS = 2_000_000  # of the loop, some milliseconds
TRIES = 7


@dataclass(frozen=True)
class Work:
    """What a spiking network has to do for a picture, the mean over some.

    Attributes:
        spikes: Of all neurons and time steps.
        additions: Of weights: each spike times its fan-out (see `operations`).
    """

    spikes: float
    additions: float


def work_of(network: SpikingNetwork, batches: Sequence[Tensor], T: int) -> Work:
    """What a network does for a picture in T steps, as its engine runs it.

    Args:
        network: Spiking.
        batches: Pictures [B, ...].
        T: Time steps.
    """
    cost = measure_cost(network, batches, T)
    spikes = sum(float(cost.rates[name].mean()) * size * T for name, size in cost.neurons.items())
    return Work(spikes, sum(float(each.mean()) for each in cost.accumulates.values()))


def additions_a_second(threads: int = 1) -> float | None:
    """At which rate the chosen kernels add int16 in registers.

    Args:
        threads: That do so at once.

    Returns:
        Additions a second of all threads, the best of several tries; None without kernels.
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
