"""Engines by name. A new one is a file and one `register`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from torch import Tensor

from spikedet.engines.events_engine import EventsEngine
from spikedet.engines.library import NoLibrary
from spikedet.engines.program import NoIntegers
from spikedet.engines.reference_engine import ReferenceEngine
from spikedet.engines.whole import Show, Tell
from spikedet.errors import UsageError, among
from spikedet.graph.graph import Graph


class Engine(Protocol):
    """A compiled spiking graph."""

    def simulate(
        self,
        pictures: Tensor,
        parts: Iterable[int],
        each_step: bool,
        tell: Tell | None = None,
        show: Show | None = None,
    ) -> Iterator[tuple[int, Callable[[], Any]]]:
        """As `SpikingNetwork` runs its graph, see `whole.WholeEngine.simulate`."""

    def describe(self) -> list[str]:
        """How it computes, in a few words, and `layer: why` for each layer that it leaves to
        others."""


ENGINES: dict[str, Callable[[Graph], Engine]] = {}
TORCH, AUTO = "torch", "auto"


def register(name: str, compile_graph: Callable[[Graph], Engine]) -> None:
    """Let `name` stand for an engine that compiles a graph."""
    if name in names():
        raise ValueError(f"an engine {name} is registered already")
    ENGINES[name] = compile_graph


def names() -> list[str]:
    """All that `make` takes: `auto`, `torch`, and what is registered."""
    return [AUTO, TORCH, *ENGINES]


def expect_engine(name: str) -> None:
    """Refuse what is no name of an engine.

    Raises:
        UsageError: Says which there are.
    """
    if name not in names():
        raise UsageError(f"no engine {name!r}; expected {among(name, names())}")


def left_out(engine: Engine | None) -> dict[str, str]:
    """Why an engine leaves a layer to slower code, by the name of the layer."""
    reasons = {}
    for line in engine.describe()[1:] if engine is not None else ():
        layer, _, reason = line.partition(": ")
        reasons[layer] = reason
    return reasons


def make(name: str, graph: Graph) -> tuple[str, Engine | None, str]:
    """An engine for a graph.

    Args:
        name: One of `names()`. `auto` takes `events` where machine and network allow it.
        graph: Spiking.

    Returns:
        Its name, the engine (None: torch runs the graph itself), and in one sentence how it
        computes, or why torch does.

    Raises:
        UsageError: No such engine, or it cannot run this network or on this machine.
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
