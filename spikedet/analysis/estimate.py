"""Energy of a running network from its firing rates alone, after one picture counted exactly."""

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
    """Energy of pictures like the one that it was made with.

    Operations of that picture are counted exactly (`operations`). Of the next ones only the firing
    rates are known: a spike of a layer costs its mean fan-out, and the sum over all layers is
    scaled so that it is exact for the first picture.

    Args:
        spiking: The network.
        picture: [1, C, H, W], the input of the network.
        T: Time steps of the exact count.

    Attributes:
        float_pj: Energy of the same layers on analog values, pJ a picture.
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
        """Energy of a picture in pJ.

        Args:
            rates: Spikes per neuron and step of each layer, `SpikeRates.by_layer`.
            T: Time steps.
        """
        accumulates = self._accumulates(rates, T) * self._scale
        return float(picojoules(accumulates, self._once + self._each * T))
