"""Base class of the predictors of all tasks."""

from __future__ import annotations

import warnings
from pathlib import Path

from spikedet.checkpoint import load
from spikedet.counts import expect_steps
from spikedet.engines.registry import AUTO, TORCH
from spikedet.networks import can_run_longer, current, restore
from spikedet.precision import present_device
from spikedet.runtime.choose import choose_engine
from spikedet.task import Task


class BasePredictor:
    """A network of a task with its weights.

    Attributes:
        weights: Path of the checkpoint.
        T: Default number of time steps. None for a float or quantised network.
        names: Class names.
        imgsz: Input side in pixels.
        stride: The input side is a multiple of this number.
        why_engine: One sentence: which engine runs the network, and why.
        can_run_longer: Whether the network may also run for more steps than it was made for.
    """

    task: Task

    def __init__(
        self,
        weights: Path,
        T: int | None = None,
        device: str = "cpu",
        half: bool | None = None,
        engine: str = AUTO,
    ):
        expect_steps(T, optional=True)
        device = present_device(device)
        self.weights = Path(weights)
        loaded = current(self.task, load(self.weights))
        self.runner = restore(self.task, loaded).to(device)
        self.why_engine = choose_engine(self.runner.network, engine, half)
        self.stride = self.task.stride(loaded.head)
        self.device = device
        self.names, self.imgsz = self.runner.names, self.runner.imgsz
        self._told: set[int] = set()
        also_for = loaded.origin.get("also_for")
        self._also_for = also_for if isinstance(also_for, list) else []
        self.can_run_longer = loaded.stage == "snn" and can_run_longer(self.runner.network.graph)
        self.T = self._time_steps(T)

    @property
    def engine(self) -> str:
        """Name of the engine that runs the network."""
        return getattr(self.runner.network, "engine", TORCH)

    @property
    def half(self) -> bool:
        """Whether spiking layers compute in bfloat16."""
        return getattr(self.runner.network, "in_bfloat16", False)

    def _time_steps(self, T: int | None) -> int | None:
        """The T to run with. Warns once if the weights were not made for this T."""
        expect_steps(T, optional=True)
        made_for = self.runner.T if self.runner.stage == "snn" else None
        if T is None or made_for is None:
            if T is not None and T not in self._told:
                self._told.add(T)
                weights = f"{self.weights.name}: {self.runner.stage} weights"
                warnings.warn(f"{weights}; T={T} is ignored", stacklevel=3)
            return made_for
        fits = T in (made_for, *self._also_for) or (self.can_run_longer and made_for < T)
        if not fits and T not in self._told:
            self._told.add(T)
            warnings.warn(
                f"{self.weights.name} was calibrated for T={made_for}, not T={T}; "
                "expect lower accuracy, or calibrate for this T with spikedet calibrate",
                stacklevel=3,
            )
        return T
