"""Early exit: steps are run until what is read out has settled, and no longer.

Neurons are causal, so that what is read out after t steps is what a run of t steps gives. A picture
that needs few of them costs only these.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from torch import Tensor

from spikedet.runtime.network import SpikingNetwork

Answer = TypeVar("Answer")


class EarlyExit(Generic[Answer]):
    """Runs a spiking network on pictures until its answer has settled.

    Args:
        network: To run.
        read: From its outputs, as it returns them, to an answer.
        alike: `alike(before, now)`: whether an answer is that of the readout before.
        patience: Readouts in a row that are alike before it stops: 1 for two answers that are.
        every: Steps between two readouts.

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
        """The steps that were run, and the answer after them.

        Args:
            pictures: [B, ...]; all of them stop together, so give one.
            T: Most time steps, the network's own by default.
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
