"""The registry of engines. To add one, write a file and call `register`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from torch import Tensor

from spikedet.engines.events_engine import EventsEngine
from spikedet.engines.integer_engine import OnCounts, OnSpikes
from spikedet.engines.program import NoIntegers
from spikedet.engines.reference_engine import ReferenceEngine
from spikedet.errors import UsageError, list_choices
from spikedet.graph.graph import Graph
from spikedet.kernels.library import NoLibrary


class Engine(Protocol):
    """A compiled spiking graph."""

    def simulate(
        self,
        pictures: Tensor,
        parts: Iterable[int],
        each_step: bool,
        on_counts: OnCounts | None = None,
        on_spikes: OnSpikes | None = None,
    ) -> Iterator[tuple[int, Callable[[], Any]]]:
        """Run the graph over time (see `integer_engine.IntegerEngine.simulate`)."""

    def describe(self) -> list[str]:
        """Describe the engine: first, a few words about how it computes; then one line `layer:
        reason` for each layer that it leaves to slower code."""


ENGINES: dict[str, Callable[[Graph], Engine]] = {}
TORCH, AUTO = "torch", "auto"


def register(name: str, compile_graph: Callable[[Graph], Engine]) -> None:
    """Register an engine: `compile_graph` makes an `Engine` from a spiking graph.

    Raises:
        ValueError: The name is used already.
    """
    if name in names():
        raise ValueError(f"an engine {name} is registered already")
    ENGINES[name] = compile_graph


def names() -> list[str]:
    """All names that `make` accepts: `auto`, `torch` and the registered engines."""
    return [AUTO, TORCH, *ENGINES]


def expect_engine(name: str) -> None:
    """Check the name of an engine.

    Raises:
        UsageError: There is no such engine. The message lists the engines.
    """
    if name not in names():
        raise UsageError(f"no engine {name!r}; expected {list_choices(name, names())}")


def left_out(engine: Engine | None) -> dict[str, str]:
    """The reasons why an engine leaves layers to slower code, by the names of the layers."""
    reasons = {}
    for line in engine.describe()[1:] if engine is not None else ():
        layer, _, reason = line.partition(": ")
        reasons[layer] = reason
    return reasons


def make(name: str, graph: Graph) -> tuple[str, Engine | None, str]:
    """Make an engine for a graph.

    Args:
        name: One of `names()`. `auto` chooses `events` if it works on this machine and for this
            network, else `torch`.
        graph: Spiking graph.

    Returns:
        The name of the engine, the engine (None: torch runs the graph itself), and one sentence:
        how the engine computes, or why torch is used.

    Raises:
        UsageError: The engine does not exist, or it cannot run this network or on this machine.
    """
    expect_engine(name)
    if name == TORCH:
        return TORCH, None, "float32 by torch"
    wanted = "events" if name == AUTO else name
    try:
        if name == AUTO and next(graph.buffers()).device.type != "cpu":
            return TORCH, None, "the network is not on the CPU"
        engine = ENGINES[wanted](graph)
        return wanted, engine, "; ".join(engine.describe())
    except NoLibrary as error:
        if name != AUTO:
            raise UsageError(f"the {name} engine has no kernels: {error}") from None
        return TORCH, None, str(error)
    except NoIntegers as error:
        if name != AUTO:
            raise
        return TORCH, None, str(error)


register("events", EventsEngine)
register("integers", ReferenceEngine)
