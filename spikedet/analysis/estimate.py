"""Estimate the energy of a running network from its spike rates, after one exact count."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from spikedet.analysis.operations import (
    costs_of_spikes,
    measure_cost,
    multiplies_once,
    picojoules,
)
from spikedet.runtime.network import SpikingNetwork


class EnergyEstimate:
    """An estimate of the energy for pictures, from their spike rates.

    The operations of one picture are counted exactly (see `operations`). For the next pictures only
    the spike rates are known. The cost of a spike is the mean fan-out of its layer. The sum over
    all layers is scaled so that it is exact for the first picture.

    Args:
        spiking: The network.
        picture: [1, C, H, W], the input of the network.
        T: Time steps of the exact count.

    Attributes:
        float_pj: Energy of the same layers on analog values, in pJ for a picture.
    """

    def __init__(self, spiking: SpikingNetwork, picture: Tensor, T: int):
        cost = measure_cost(spiking, [picture], T)
        self._neurons, self._costs = cost.neurons, costs_of_spikes(spiking, picture)
        counted = float(sum(value.sum() for value in cost.accumulates.values()))
        roughly = self._accumulates({name: float(rate) for name, rate in cost.rates.items()}, T)
        self._scale = counted / roughly if roughly else 1.0
        once = multiplies_once(spiking, picture)
        total = float(sum(value.sum() for value in cost.multiplies.values()))
        self._once, self._each = once, (total - once) / T
        self.float_pj = float(picojoules(0, sum(cost.float_multiplies.values())))

    def _accumulates(self, rates: Mapping[str, float], T: int) -> float:
        return sum(
            rate * self._neurons[name] * T * self._costs.get(name, 0.0)
            for name, rate in rates.items()
            if name in self._neurons
        )

    def picojoules(self, rates: Mapping[str, float], T: int) -> float:
        """Estimate the energy of a picture in pJ.

        Args:
            rates: Spikes per neuron and time step of each layer, from `SpikeRates.by_layer`.
            T: Time steps.
        """
        accumulates = self._accumulates(rates, T) * self._scale
        return float(picojoules(accumulates, self._once + self._each * T))
