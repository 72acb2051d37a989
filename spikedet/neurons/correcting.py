"""Neurons that take back spikes (signed neurons with memory).

An ordinary neuron cannot take back a spike. If the current is positive at first and negative
later, it has sent too many spikes, and its potential ends below 0. This is one case of the residual
error that stage II reduces. A neuron that corrects itself sends a spike of -1 in this case:

    s[t] = -1 if u[t] < -m theta and it has sent more positive than negative spikes
    and then u[t] = u[t] + theta

Its rate is never negative, like that of a ReLU. In return it sends more spikes, and it needs a
counter beside its potential. A chip must support spikes of -1.

If all currents lie between -theta and theta, and the margin m is 0, the sum of the spikes is always
the rounded sum of the currents, and at least 0. If this sum moves a little around half a threshold,
the neuron sends a spike and takes it back again and again. With a larger margin it does not. Then
it sends fewer spikes, but their sum may be too high by up to m. The margin is not in the
publication.

Source: Wang et al., "Signed Neuron with Memory: Towards Simple, Accurate and High-Efficient ANN-SNN
Conversion", IJCAI 2022. This neuron is not in the paper of the two-stage method.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from spikedet.neurons.layers import IFNeuron
from spikedet.neurons.slope import Slope

MOST_MARGIN = 8.0


def check_margin(margin: float) -> float:
    """Return the margin as a float.

    Raises:
        ValueError: It is not a number from 0 to `MOST_MARGIN`.
    """
    number = isinstance(margin, int | float) and not isinstance(margin, bool)
    if not number or not 0 <= margin <= MOST_MARGIN:
        raise ValueError(
            f"the margin is {str(margin)[:50]}; expected a number from 0 to {MOST_MARGIN:g}"
        )
    return float(margin)


class CorrectingNeuron(IFNeuron):
    """A layer of integrate-and-fire neurons that take back spikes that were too many.

    Spikes are -1, 0 or 1. The sum of the spikes of a neuron is never negative.

    Args:
        threshold, initial, folded: See `IFNeuron`.
        slope: 0. A leaky ReLU has other neurons with negative spikes.
        margin: How far the potential must be below 0 to take back a spike, in units of the
            threshold.

    Shape:
        current [T*B, C, ...], or [B, C, ...] if constant over time -> spikes [T*B, C, ...]

    Raises:
        ValueError: A threshold is not above 0, the slope is not 0, or see `check_margin`.
    """

    LATER_SETTINGS: ClassVar[dict[str, Any]] = {"margin": 0.0}

    def __init__(
        self,
        threshold: Tensor,
        initial: Tensor | None = None,
        slope: Slope = 0.0,
        folded: bool = True,
        margin: float = 0.0,
    ):
        super().__init__(threshold, initial, slope, folded)
        self.margin = check_margin(margin)
        if self.slope:
            raise ValueError(f"a neuron that corrects itself has slope 0, not {slope}")

    @property
    def signed(self) -> bool:
        """True: it can send negative spikes."""
        return True

    def start(self, current: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """The state before the first step: potentials and counts of 0, [B, C, ...] each."""
        potential = self.first_potential(current, batch)
        return potential, torch.zeros_like(potential)

    def fire(
        self, current: Tensor, state: Any, steps: int, alpha: float = 1.0
    ) -> tuple[Tensor, Any]:
        """See `IFNeuron.fire`. The state is potentials and counts."""
        potential, counts = state[0], state[1].clone()
        spikes, potential = self._integrate(
            current, potential, steps, alpha, 1.0, counts, self.margin
        )
        return spikes, (potential, counts)

    def extra_repr(self) -> str:
        margin = f", margin={self.margin:g}" if self.margin else ""
        return super().extra_repr() + margin
