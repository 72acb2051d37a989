"""What both stages tell while they run; light to import."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spikedet.conversion.calibrate import LayerReport


class Watcher:
    """What is told while it is done; silent, for commands to show."""

    def layer(self, report: LayerReport, index: int, count: int) -> None:
        """A layer is calibrated."""

    def step(self, done: int, steps: int, loss: float) -> None:
        """A step of the end-to-end pass is done."""

    def say(self, text: str) -> None:
        """A result, in words."""
