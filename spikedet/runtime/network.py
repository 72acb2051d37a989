"""Run a spiking graph over time: fold time into the batch, read out the mean input potential."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from spikedet.counts import expect_counts
from spikedet.engines.program import NoIntegers
from spikedet.errors import UsageError
from spikedet.graph.graph import INPUT, Graph, Node
from spikedet.graph.operations import WEIGHTED, Scale, Shift
from spikedet.graph.structure import fill, join
from spikedet.graph.time import CONSTANT, READ, STEPWISE, phases
from spikedet.neurons.layers import IFNeuron, MeanOverTime, SpikingMaxPool, Temporal, count_spikes
from spikedet.runtime.snapshot import Snapshot

if TYPE_CHECKING:
    from spikedet.engines.registry import Engine


@dataclass
class Pass:
    """One run of a spiking network over its time steps; what it must remember lives here alone.

    Attributes:
        batch: Pictures B.
        steps: Time steps that go through the network at once now.
        done: Steps before those.
        each_step: Read out after each step instead of their mean.
        memory: What temporal modules hand on from one call to the next, by name of their node.
    """

    batch: int
    steps: int = 1
    done: int = 0
    each_step: bool = False
    memory: dict[str, Any] = field(default_factory=dict)

    def __call__(self, node: Node, inputs: list[Tensor]) -> Tensor:
        """The value of a node for the steps of now."""
        module = node.module
        if not isinstance(module, Temporal):
            return module(*inputs)
        advance = module.advance
        if self.each_step and isinstance(module, MeanOverTime):
            advance = module.each
        memory = self.memory.get(node.name)
        value, self.memory[node.name] = advance(inputs[0], self.batch, self.steps, memory)
        return value


@dataclass(frozen=True)
class _Plan:
    """What of a spiking graph runs when.

    Attributes:
        edges: Of the graph that it is for.
        before: Nodes that run once for a picture.
        kept: Values of those, and the picture itself where it is read later.
        during: Nodes that run in every step, means over time at their ends.
        means: Those means.
        behind: Nodes that run on them.
        outputs: Nodes that the network returns.
    """

    edges: tuple[tuple[str, tuple[str, ...]], ...]
    before: list[str]
    kept: set[str]
    during: list[str]
    means: list[str]
    behind: list[str]
    outputs: list[str]

    @classmethod
    def of(cls, graph: Graph, edges: tuple[tuple[str, tuple[str, ...]], ...]) -> _Plan:
        """The plan of a graph."""
        when = phases(graph)
        before = [name for name in graph.edges if when[name] == CONSTANT]
        means = [node.name for node in graph.of((MeanOverTime,))]
        during = [n for n in graph.edges if when[n] == STEPWISE or n in means]
        behind = [n for n in graph.edges if when[n] == READ and n not in means]
        later = {source for name in (*during, *behind) for source in graph.edges[name]}
        kept = {name for name in (INPUT, *before) if name in later | set(graph.outputs)}
        return cls(edges, before, kept, during, means, behind, graph.outputs)


Watcher = Callable[[Pass, Node, Sequence[Tensor], Tensor], None]
_watchers: ContextVar[tuple[tuple[Graph, Watcher], ...]] = ContextVar("watchers", default=())


@contextmanager
def watching(graph: Graph, watcher: Watcher) -> Iterator[None]:
    """Call `watcher(pass, node, inputs, output)` whenever a temporal node of a graph has run.

    In the `with` block, and in this thread alone.
    """
    before = _watchers.get()
    _watchers.set((*before, (graph, watcher)))
    try:
        yield
    finally:
        _watchers.set(before)


class SpikingNetwork(nn.Module):
    """A spiking graph with time around it.

    The picture is a constant current in every step; nodes before the first neuron run once, the
    others on [t*B, ...] for `chunk` frames at a time, which bounds the memory for every T; the
    output is the mean over time. A pass keeps its state to itself: one network may run in several
    threads at once, and nothing of a pass is left when it ends.

    Args:
        graph: Its activations are neurons (see `graph.rewrites.spike`).
        T: Time steps.
        chunk: Frames (steps times pictures) that go through the network at once.

    Attributes:
        origin: How the network was made; goes into its file.
        engine: Name of what runs it, see `use_engine`.
        engine_reason: In one sentence how that computes, or why torch does.
        left_out: Why the engine leaves a layer to slower code, by the name of the layer.
        in_bfloat16: Whether `use_bfloat16` was called.
    """

    def __init__(self, graph: Graph, T: int, chunk: int = 32):
        super().__init__()
        if type(T) is not int or T < 1:
            raise UsageError(f"T is {T!r}; expected a whole number of 1 or more")
        self.graph, self.T, self.chunk = graph, T, chunk
        self.origin: dict[str, Any] = {}
        self._planned: _Plan | None = None
        self.engine, self._wanted = "torch", "torch"
        self._engine: Engine | None = None
        self.engine_reason, self.left_out = "float32 by torch", dict[str, str]()
        self._compiled = Snapshot()  # what the engine was made of
        self.in_bfloat16 = False
        self.eval()

    def forward(self, pictures: Tensor, T: int | None = None) -> Any:
        """Mean output over T steps.

        Args:
            pictures: [B, ...].
            T: Time steps, the network's own by default.

        Returns:
            What the converted network returns, its tensors averaged over time, [B, ...].
        """
        expect_counts(T=T)
        (output,) = self.after(pictures, [self.T if T is None else T])
        return output

    def after(self, pictures: Tensor, steps: Sequence[int]) -> list[Any]:
        """Mean outputs over the first t steps for each t of `steps`, all from one run.

        Neurons are causal: each output is that of a run of its own with t steps.

        Args:
            pictures: [B, ...].
            steps: Time steps, 1 or more, ascending.

        Raises:
            UsageError: Other steps, or no pictures.
        """
        expect_counts(pictures=len(pictures))
        for t in steps:
            expect_counts(T=t)
        if list(steps) != sorted(steps):
            raise UsageError(f"steps are {list(steps)}; expected ascending ones")
        if len(pictures) > self.chunk:
            several = [self.after(part, steps) for part in pictures.split(self.chunk)]
            return [join(outputs) for outputs in zip(*several, strict=True)]
        parts = _parts(steps, max(1, self.chunk // len(pictures)))
        larger = _parts(steps, max(steps, default=1))
        wanted, readouts = set(steps), {}
        for done, read in self._simulate(pictures, parts, False, larger):
            if done in wanted:
                readouts[done] = read()
        return [readouts[t] for t in steps]

    def run(self, pictures: Tensor, T: int, steps: int = 1) -> Iterator[tuple[int, Any]]:
        """Yield (t, mean output over the first t steps) after every `steps` steps.

        Nothing is computed ahead: what the layers did last are these steps. For the outputs alone
        `anytime` is faster.

        Args:
            pictures: [B, ...].
            T: Time steps.
            steps: Steps between two results.
        """
        expect_counts(pictures=len(pictures), T=T, steps=steps)
        for done, read in self._simulate(pictures, _parts([T], steps), each_step=False):
            yield done, read()

    def anytime(
        self, pictures: Tensor, T: int | None = None, chunk: int | None = None
    ) -> Iterator[tuple[int, Any]]:
        """Any-time readout: yield (t, mean output over the first t steps) for t = 1..T.

        Neurons are causal, so each is the output of a run of its own with t steps, but all together
        cost one run, and the readouts of every step instead of their mean.

        Args:
            pictures: [B, ...]; at least these B frames go through the network at once.
            T: Time steps, the network's own by default.
            chunk: Frames at once, the network's own by default; with fewer the first results come
                sooner and all of them later.
        """
        T, batch = self.T if T is None else T, len(pictures)
        expect_counts(pictures=batch, T=T, chunk=chunk)
        parts = _parts([T], max(1, (chunk or self.chunk) // batch))
        reported = 0
        for done, read in self._simulate(pictures, parts, each_step=True):
            output = read()
            for first in range(0, (done - reported) * batch, batch):
                reported += 1
                yield reported, _frames(output, first, first + batch)

    @contextmanager
    def spike_rates(self) -> Iterator[SpikeRates]:
        """Count the spikes of every pass of this thread in the `with` block.

        Examples:
            >>> with snn.spike_rates() as rates:
            ...     y = snn(x)
            >>> rates.mean(), rates.by_layer()
        """
        rates = SpikeRates()
        with watching(self.graph, rates):
            yield rates

    def _simulate(
        self,
        pictures: Tensor,
        parts: Iterable[int],
        each_step: bool,
        larger: Iterable[int] | None = None,
    ) -> Iterator[tuple[int, Callable[[], Any]]]:
        """Run so many steps at once, part after part: yield all so far, and how to read them out.

        An engine that bounds its memory itself takes the `larger` parts.

        The output is the mean over all steps so far, [B, ...], or that after each step of the last
        part, [steps*B, ...].
        """
        parts = list(parts)
        own = getattr(self._engine, "bounds_memory", False) and larger is not None
        by_engine = self._by_engine(pictures, list(larger or ()) if own else parts, each_step)
        if by_engine is not None:
            yield from by_engine
            return
        graph, plan = self.graph, self._plan()
        known = graph.run(plan.before, {INPUT: pictures}, plan.kept)
        now = Pass(len(pictures), each_step=each_step)
        call = self._watched(now)
        for steps in parts:
            now.steps = steps
            means = graph.run(plan.during, known, plan.means, call)
            now.done += steps

            def read(means: dict[str, Tensor] = means) -> Any:
                values = graph.run(plan.behind, {**known, **means}, plan.outputs)
                return fill(graph.output, values)

            yield now.done, read

    def _by_engine(
        self, pictures: Tensor, parts: list[int], each_step: bool
    ) -> Iterator[tuple[int, Callable[[], Any]]] | None:
        """As `_simulate`, by the engine; None where torch has to run this pass."""
        if self._engine is None or (torch.is_grad_enabled() and self._learns(pictures)):
            return None
        watchers = self._watchers()
        rates = [watcher for watcher in watchers if isinstance(watcher, SpikeRates)]
        each = [watcher for watcher in watchers if isinstance(watcher, EachSpike)]
        if len(rates) + len(each) < len(watchers):
            return None
        if not self._compiled.holds(self.graph):
            self.use_engine(self._wanted)  # other weights than it was compiled from
            return self._by_engine(pictures, parts, each_step)
        tell, show = _tell(rates) if rates else None, _show(each) if each else None
        steps = self._engine.simulate(pictures, parts, each_step, tell, show)
        try:
            first = next(steps, None)
        except NoIntegers as error:
            if self._wanted != "auto":
                raise
            warnings.warn(f"{error}; torch runs it", stacklevel=4)
            return None
        return steps if first is None else itertools.chain([first], steps)

    def _learns(self, pictures: Tensor) -> bool:
        """Whether gradients are wanted, which engines do not have."""
        return pictures.requires_grad or any(p.requires_grad for p in self.graph.parameters())

    def _plan(self) -> _Plan:
        """What runs when; worked out once for a graph of these edges."""
        edges = tuple(self.graph.edges.items())
        plan = self._planned
        if plan is None or plan.edges != edges:
            plan = self._planned = _Plan.of(self.graph, edges)
        return plan

    def _watchers(self) -> list[Watcher]:
        """What watches passes of this thread."""
        return [watcher for graph, watcher in _watchers.get() if graph is self.graph]

    def _watched(self, now: Pass) -> Callable[[Node, list[Tensor]], Tensor]:
        """How nodes are called: with the watchers of this thread told of the temporal ones."""
        watchers = self._watchers()
        if not watchers:
            return now

        def call(node: Node, inputs: list[Tensor]) -> Tensor:
            value = now(node, inputs)
            if isinstance(node.module, Temporal):
                for watcher in watchers:
                    watcher(now, node, inputs, value)
            return value

        return call

    def use_engine(self, name: str = "auto") -> str:
        """Let an engine run the network from now on, as its weights are now.

        Engines compute without gradients: where they are wanted, and while something else than
        `spike_rates` and `EachSpike` watches a pass, torch runs it. Weights that were changed since
        are compiled again at the next pass (but for changes through `.data`, which torch does not
        tell).

        Args:
            name: One of `engines.registry.names()`: `torch` (float32, the reference), `events`
                (whole numbers on the CPU, fast because most neurons are silent), or `auto`, the
                fastest that this machine and this network allow.

        Returns:
            Which engine, and why, in one sentence.

        Raises:
            UsageError: No such engine, or it cannot run this network or on this machine.
        """
        from spikedet.engines import registry

        chosen, self._engine, why = registry.make(name, self.graph)
        self.engine, self._wanted, self.engine_reason = chosen, name, why
        self.left_out = registry.left_out(self._engine)
        self._compiled = Snapshot(self.graph)
        return f"{self.engine}: {why}"

    def use_bfloat16(self) -> None:
        """Compute the layers that read spikes in bfloat16, twice as fast where a CPU supports it.

        0 and 1 are exact; weights and input currents are rounded to 8 bits of mantissa. First
        layers, potentials and readouts stay in float32. There is no way back.
        """
        self.in_bfloat16 = True
        when = phases(self.graph)
        for node in self.graph:
            if when[node.name] == STEPWISE and isinstance(node.module, (*WEIGHTED, Scale, Shift)):
                node.module.to(torch.bfloat16)
            if isinstance(node.module, IFNeuron):
                node.module.spike_dtype = torch.bfloat16


@dataclass
class EachSpike:
    """A watcher of spikes alone, which engines tell as torch does.

    Attributes:
        take: Called after every part of a pass with the name of each node that fires (neurons, and
            pooling of spikes), its first step from 0 on, and what it sent, [steps*B, ...].
    """

    take: Callable[[str, int, Tensor], None]

    def __call__(self, now: Pass, node: Node, inputs: Sequence[Tensor], sent: Tensor) -> None:
        """Watch a pass, see `watching`."""
        if isinstance(node.module, IFNeuron | SpikingMaxPool):
            self.take(node.name, now.done, sent)


class SpikeRates:
    """Spikes of every step of all passes that were watched.

    Whatever travels for a spike, it counts as one.
    """

    def __init__(self) -> None:
        self._spikes: dict[str, dict[int, Tensor]] = {}  # by layer and step, float64
        self._size: dict[str, dict[int, int]] = {}  # neurons of all pictures

    def __call__(self, now: Pass, node: Node, inputs: Sequence[Tensor], spikes: Tensor) -> None:
        """Watch a pass, see `watching`."""
        if not isinstance(node.module, IFNeuron):
            return
        counts = count_spikes(spikes.detach()).view(now.steps, -1).sum(1, dtype=torch.float64)
        self.add(node.name, now.done, counts, spikes.numel() // now.steps)

    def add(self, name: str, first: int, counts: Tensor, neurons: int) -> None:
        """Add spikes of a layer.

        Args:
            name: Of its node.
            first: The first of the steps, from 0 on.
            counts: Spikes of each of them, [steps] float64.
            neurons: How many there are, of all pictures.
        """
        layer = self._spikes.setdefault(name, {})
        size = self._size.setdefault(name, {})
        for step, count in enumerate(counts, first):
            layer[step] = layer.get(step, 0) + count
            size[step] = size.get(step, 0) + neurons

    def mean(self, t: int | None = None) -> float:
        """Spikes per neuron and step over the first t steps of the passes; all steps when None.

        Raises:
            UsageError: No pass was watched, or none of t steps.
        """
        return self._rate(self._spikes, t)

    def by_layer(self, t: int | None = None) -> dict[str, float]:
        """Spikes per neuron and step of each layer, in the order of execution."""
        return {name: self._rate([name], t) for name in self._spikes}

    def _rate(self, layers: Iterable[str], t: int | None) -> float:
        spikes, size = 0.0, 0
        for name in layers:
            steps = self._spikes[name]
            if t is not None and not 1 <= t <= len(steps):
                raise UsageError(f"rates of {t!r} steps; expected 1 to {len(steps)}")
            for step in range(len(steps) if t is None else t):
                spikes += float(steps[step])
                size += self._size[name][step]
        if not size:
            raise UsageError("no pass was counted yet; run the network inside of the with block")
        return spikes / size


def _tell(watchers: Sequence[SpikeRates]) -> Callable[[str, int, Tensor, int], None]:
    """How an engine reports the spikes of a layer to all who count them."""

    def tell(name: str, first: int, counts: Tensor, neurons: int) -> None:
        for rates in watchers:
            rates.add(name, first, counts, neurons)

    return tell


def _show(watchers: Sequence[EachSpike]) -> Callable[[str, int, Tensor], None]:
    """How an engine shows spikes to all who look at each."""

    def show(name: str, first: int, spikes: Tensor) -> None:
        for watcher in watchers:
            watcher.take(name, first, spikes)

    return show


def _parts(stops: Iterable[int], at_once: int) -> Iterator[int]:
    """Numbers of steps, `at_once` at most, that come by each of `stops` (ascending)."""
    done = 0
    for stop in stops:
        while done < stop:
            yield min(at_once, stop - done)
            done += min(at_once, stop - done)


def _frames(output: Any, start: int, stop: int) -> Any:
    """Frames `start` to `stop` of nested outputs [steps*B, ...]."""
    return tree_map(lambda x: x[start:stop] if isinstance(x, Tensor) else x, output)
