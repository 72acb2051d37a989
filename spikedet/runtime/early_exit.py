"""Early exit: run a spiking network only until its answer no longer changes.

Neurons are causal: the output after t steps of a longer run equals the output of a run with t
steps. So a picture that needs few steps costs only these steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from torch import Tensor

from spikedet.runtime.network import SpikingNetwork

Answer = TypeVar("Answer")


class EarlyExit(Generic[Answer]):
    """Run a spiking network on pictures until its answer no longer changes.

    Args:
        network: Spiking network to run.
        read: Function from the outputs of the network to an answer.
        alike: `alike(before, now)` returns True if two answers count as equal.
        patience: Stop after this number of readouts in a row that equal the readout before them.
            With 1, two equal answers are enough.
        every: Time steps between two readouts.

    Examples:
        >>> exits = EarlyExit(snn, lambda y: y.argmax(1), torch.equal, patience=2)
        >>> T, label = exits(picture)
    """

    def __init__(
        self,
        network: SpikingNetwork,
        read: Callable[[Any], Answer],
        alike: Callable[[Answer, Answer], bool],
        patience: int = 2,
        every: int = 1,
    ):
        self.network, self.read, self.alike = network, read, alike
        self.patience, self.every = patience, every

    def __call__(self, pictures: Tensor, T: int | None = None) -> tuple[int, Answer]:
        """Run the network on pictures.

        Args:
            pictures: [B, ...]. All pictures of a batch stop together, so it is best to give one.
            T: Largest number of time steps. None: the T of the network.

        Returns:
            The number of time steps that were run, and the answer after them.
        """
        T = self.network.T if T is None else T
        alike, t = 0, 0
        before: Answer | None = None
        for t, output in self.network.run(pictures, T, self.every):  # noqa: B007
            now = self.read(output)
            alike = alike + 1 if before is not None and self.alike(before, now) else 0
            before = now
            if alike >= self.patience:
                break
        assert before is not None
        return t, before
