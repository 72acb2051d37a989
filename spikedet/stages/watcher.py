"""Progress reports of both stages. This module imports nothing large."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spikedet.conversion.calibrate import LayerReport


class Watcher:
    """Receives the progress of both stages. This base class ignores it; commands show it."""

    def layer(self, report: LayerReport, index: int, count: int) -> None:
        """Called after a layer is calibrated."""

    def step(self, done: int, steps: int, loss: float) -> None:
        """Called after a training step of the end-to-end pass."""

    def say(self, text: str) -> None:
        """Called with a sentence about a result."""
