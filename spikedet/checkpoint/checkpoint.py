"""The content of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from spikedet.counts import MOST_STEPS
from spikedet.errors import WeightsError

STAGES = ("float", "qc", "snn")
MOST_PIXELS, MOST_CLASSES = 4096, 100_000


@dataclass
class Checkpoint:
    """A network of any stage, as stored in a file.

    Attributes:
        stage: `float`, `qc` (quantise-clip, stage I) or `snn` (spiking).
        task: `detection` or `classification`. `none` for a network of `spikedet.save`.
        model: Network description.
        names: Class names.
        imgsz: Input side in pixels. For the task `none`: the largest side of the input.
        tensors: Tensors of the network by name: for a float network the state dict of its module,
            else that of `Graph.layers`.
        T: Time steps that it was made for. None for `float`.
        origin: How it was made: command, data, settings, parent.
        graph: The graph of the network, from `graph.serialise`. None for a float network that is
            built from its description.
        head: Description of a detector's outputs: `strides`, `reg_max`.
    """

    stage: str
    task: str
    model: dict[str, Any]
    names: tuple[str, ...]
    imgsz: int
    tensors: dict[str, Tensor]
    T: int | None = None
    origin: dict[str, Any] = field(default_factory=dict)
    graph: dict[str, Any] | None = None
    head: dict[str, Any] = field(default_factory=dict)

    @property
    def time_steps(self) -> int:
        """The number of time steps T.

        Raises:
            WeightsError: The network has no T, because it is float.
        """
        if self.T is None:
            raise WeightsError(f"these {self.stage} weights have no time steps")
        return self.T


def plausible(checkpoint: Checkpoint) -> bool:
    """Whether the fields of a header have the right types."""
    return (
        checkpoint.stage in STAGES
        and isinstance(checkpoint.task, str)
        and isinstance(checkpoint.model, dict)
        and (bool(checkpoint.names) or checkpoint.task == "none")
        and len(checkpoint.names) <= MOST_CLASSES
        and all(isinstance(name, str) for name in checkpoint.names)
        and (checkpoint.graph is None or isinstance(checkpoint.graph, dict))
        and type(checkpoint.imgsz) is int
        and 0 < checkpoint.imgsz <= _most_side(checkpoint)
        and (
            checkpoint.T is None
            if checkpoint.stage == "float"
            else type(checkpoint.T) is int and 0 < checkpoint.T <= MOST_STEPS
        )
        and isinstance(checkpoint.origin, dict)
        and isinstance(checkpoint.head, dict)
    )


def _most_side(checkpoint: Checkpoint) -> int:
    """The largest possible `imgsz`: that of pictures, or of the input of a network of one's own."""
    shape = (checkpoint.graph or {}).get("input") if checkpoint.task == "none" else None
    return max([MOST_PIXELS, *shape] if isinstance(shape, list) else [MOST_PIXELS])
