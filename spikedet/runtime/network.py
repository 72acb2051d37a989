"""Run a spiking graph over time.

Time is folded into the batch dimension, [T*B, ...]. Readouts read the mean of their input over
time.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_map

from spikedet.counts import expect_counts, expect_steps
from spikedet.engines.program import NoIntegers
from spikedet.errors import UsageError
from spikedet.graph.graph import INPUT, Graph, Node
from spikedet.graph.operations import WEIGHTED, Scale, Shift
from spikedet.graph.structure import fill, join
from spikedet.graph.time import STEPWISE, phases
from spikedet.neurons.layers import IFNeuron, Temporal
from spikedet.runtime.passes import Pass, Schedule
from spikedet.runtime.snapshot import Snapshot
from spikedet.runtime.watch import (
    EachSpike,
    SpikeRates,
    counts_callback,
    spikes_callback,
    watchers_of,
    watching,
)

if TYPE_CHECKING:
    from spikedet.engines.registry import Engine


class SpikingNetwork(nn.Module):
    """A spiking graph that runs over T time steps.

    The picture is a constant input current in every step. Nodes before the first neuron run once.
    The other nodes run on [t*B, ...] for at most `chunk` frames at a time, so that the memory does
    not grow with T. The output is the mean over time. The state of a run is not stored in the
    network, so one network may run in several threads at the same time.

    Args:
        graph: Graph whose activations are neurons (see `graph.rewrites.spike`).
        T: Default number of time steps.
        chunk: Largest number of frames (time steps times pictures) that go through the network at
            once.

    Attributes:
        origin: How the network was made. It is stored in the file.
        engine: Name of the engine that runs the network (see `use_engine`).
        engine_reason: One sentence: how the engine computes, or why torch is used.
        left_out: Layers that the engine leaves to slower code: from the name of the layer to the
            reason.
        in_bfloat16: Whether `use_bfloat16` was called.
    """

    def __init__(self, graph: Graph, T: int, chunk: int = 32):
        super().__init__()
        expect_steps(T)
        self.graph, self.T, self.chunk = graph, int(T), chunk
        self.origin: dict[str, Any] = {}
        self._scheduled: Schedule | None = None
        self.engine, self._wanted = "torch", "torch"
        self._engine: Engine | None = None
        self.engine_reason, self.left_out = "float32 by torch", dict[str, str]()
        self._compiled = Snapshot()  # what the engine was made of
        self.in_bfloat16 = False
        self.eval()

    def forward(self, pictures: Tensor, T: int | None = None) -> Any:
        """Compute the mean output over T time steps.

        Args:
            pictures: [B, ...].
            T: Time steps. None: the T of the network.

        Returns:
            The same structure as the original network returns. Its tensors are means over time,
            [B, ...].

        Raises:
            UsageError: T is not an integer from 1 to 10,000, there are no pictures, they are not
                float values or not finite, or the network cannot take pictures of this size.
        """
        expect_steps(T, optional=True)
        (output,) = self.after(pictures, [self.T if T is None else T])
        return output

    def after(self, pictures: Tensor, steps: Sequence[int]) -> list[Any]:
        """Compute the mean outputs over the first t steps for several t in one run.

        Neurons are causal: each output equals that of a separate run with t steps.

        Args:
            pictures: [B, ...].
            steps: The numbers of time steps t, each 1 or more, in ascending order.

        Returns:
            The mean output for each t of `steps`.

        Raises:
            UsageError: `steps` are not ascending numbers of 1 or more, or there are no pictures.
        """
        expect_counts(pictures=len(pictures))
        for t in steps:
            expect_steps(t)
        if list(steps) != sorted(steps):
            raise UsageError(f"steps are {list(steps)}; expected ascending numbers")
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
        """Yield (t, mean output over the first t steps) after every `steps` time steps.

        No later step is computed before a result is yielded. So the state of the layers belongs to
        that result. If you need only the outputs, `anytime` is faster.

        Args:
            pictures: [B, ...].
            T: Time steps.
            steps: Time steps between two results.
        """
        expect_counts(pictures=len(pictures), steps=steps)
        expect_steps(T)
        for done, read in self._simulate(pictures, _parts([T], steps), each_step=False):
            yield done, read()

    def anytime(
        self, pictures: Tensor, T: int | None = None, chunk: int | None = None
    ) -> Iterator[tuple[int, Any]]:
        """Any-time readout: yield (t, mean output over the first t steps) for t = 1..T.

        Neurons are causal: each output equals that of a separate run with t steps. All outputs
        together cost one run with T steps, plus one readout in each step.

        Args:
            pictures: [B, ...]. At least B frames go through the network at once.
            T: Time steps. None: the T of the network.
            chunk: Frames that go through the network at once. None: the `chunk` of the network.
                With a smaller number the first results come sooner, but the whole run takes longer.
        """
        T, batch = self.T if T is None else T, len(pictures)
        expect_counts(pictures=batch, chunk=chunk)
        expect_steps(T)
        parts = _parts([T], max(1, (chunk or self.chunk) // batch))
        reported = 0
        for done, read in self._simulate(pictures, parts, each_step=True):
            output = read()
            for first in range(0, (done - reported) * batch, batch):
                reported += 1
                yield reported, _frames(output, first, first + batch)

    @contextmanager
    def spike_rates(self) -> Iterator[SpikeRates]:
        """Count the spikes of all runs of the current thread inside the `with` block.

        Examples:
            >>> with snn.spike_rates() as rates:
            ...     y = snn(x)
            >>> rates.mean(), rates.by_layer()
        """
        rates = SpikeRates()
        with watching(self.graph, rates):
            yield rates

    def _expect_input(self, pictures: Tensor) -> None:
        """Check the input. A neuron would take a value that is not a number for silence.

        Raises:
            UsageError: It is not a tensor of finite float values of a possible size.
        """
        recorded = self.graph.shapes[INPUT]
        if not isinstance(pictures, Tensor) or not pictures.is_floating_point():
            kind = pictures.dtype if isinstance(pictures, Tensor) else type(pictures).__name__
            raise UsageError(f"the input is of type {kind}; expected a tensor of float32")
        weight = next(self.graph.parameters(), pictures)
        read = {"the input": pictures} | ({} if self.in_bfloat16 else {"this network": weight})
        for what, tensor in read.items():
            if tensor.dtype != torch.float32:
                form = str(tensor.dtype).removeprefix("torch.")
                raise UsageError(f"{what} is in {form}; call .float() on it")
        if pictures.ndim != len(recorded):
            sizes = ", ".join(["B", *map(str, recorded[1:])])
            raise UsageError(
                f"the input is {list(pictures.shape)}; expected as many dimensions as [{sizes}]"
            )
        self.graph.expect_size(pictures)
        if isinstance(pictures, FakeTensor):
            return  # it has no values
        # a sum takes a tenth of the time
        if not bool(pictures.sum().isfinite()) and not bool(pictures.isfinite().all()):
            raise UsageError("the input has values that are not finite (NaN or infinite)")

    def _simulate(
        self,
        pictures: Tensor,
        parts: Iterable[int],
        each_step: bool,
        larger: Iterable[int] | None = None,
    ) -> Iterator[tuple[int, Callable[[], Any]]]:
        """Run the time steps in parts; yield the number of steps so far and a readout function.

        `parts` are the numbers of steps of each part. An engine that limits its memory itself takes
        the `larger` parts.

        The readout function returns the mean over all steps so far, [B, ...], or the means after
        each step of the last part, [steps*B, ...].
        """
        self._expect_input(pictures)
        parts = list(parts)
        own = getattr(self._engine, "bounds_memory", False) and larger is not None
        by_engine = self._by_engine(pictures, list(larger or ()) if own else parts, each_step)
        if by_engine is not None:
            yield from by_engine
            return
        graph, order = self.graph, self._schedule()
        known = graph.run(order.before, {INPUT: pictures}, order.kept)
        now = Pass(len(pictures), each_step=each_step)
        call = self._watched(now)
        for steps in parts:
            now.steps = steps
            means = graph.run(order.during, known, order.means, call)
            now.done += steps

            def read(means: dict[str, Tensor] = means) -> Any:
                values = graph.run(order.behind, {**known, **means}, order.outputs)
                return fill(graph.output, values)

            yield now.done, read

    def _by_engine(
        self, pictures: Tensor, parts: list[int], each_step: bool
    ) -> Iterator[tuple[int, Callable[[], Any]]] | None:
        """Like `_simulate`, with the engine. None if torch must run this pass."""
        if self._engine is None:
            return None
        compiled = self._compiled.holds(self.graph)
        if torch.is_grad_enabled() and self._learns(pictures, compiled):
            return None
        watchers = watchers_of(self.graph)
        rates = [watcher for watcher in watchers if isinstance(watcher, SpikeRates)]
        each = [watcher for watcher in watchers if isinstance(watcher, EachSpike)]
        if len(rates) + len(each) < len(watchers):
            return None
        if not compiled:
            self.use_engine(self._wanted)  # other weights than it was compiled from
            if self._engine is None:
                return None
        on_counts, on_spikes = (
            counts_callback(rates) if rates else None,
            spikes_callback(each) if each else None,
        )
        steps = self._engine.simulate(pictures, parts, each_step, on_counts, on_spikes)
        try:
            first = next(steps, None)
        except NoIntegers as error:
            if self._wanted != "auto":
                raise
            warnings.warn(f"{error}; the torch engine runs this pass", stacklevel=4)
            return None
        return steps if first is None else itertools.chain([first], steps)

    def _learns(self, pictures: Tensor, compiled: bool) -> bool:
        """Whether gradients are needed, which engines do not compute."""
        if pictures.requires_grad:
            return True
        if compiled:
            return self._compiled.learns()  # without a walk over all modules
        return any(p.requires_grad for p in self.graph.parameters())

    def _schedule(self) -> Schedule:
        """The order of execution. It is computed again when the edges of the graph change."""
        edges = tuple(self.graph.edges.items())
        known = self._scheduled
        if known is None or known.edges != edges:
            known = self._scheduled = Schedule.of(self.graph, edges)
        return known

    def _watched(self, now: Pass) -> Callable[[Node, list[Tensor]], Tensor]:
        """The function that calls nodes. It also tells the watchers about temporal nodes."""
        watchers = watchers_of(self.graph)
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
        """Choose the engine that runs the network from now on.

        Engines compute no gradients. torch runs a pass that needs gradients, or that is watched by
        anything other than `spike_rates` and `EachSpike`. If the weights change later, the next
        pass compiles them again. Changes through `.data` are not noticed.

        Args:
            name: One of `engines.registry.names()`. `torch` is the float32 reference. `events`
                computes with integers on the CPU; it is fast because most neurons are silent.
                `auto` is the fastest engine that works on this machine and for this network.

        Returns:
            One sentence: the name of the engine, and how it computes or why it was chosen.

        Raises:
            UsageError: The engine does not exist, or it cannot run this network or on this machine.
        """
        from spikedet.engines import registry

        chosen, self._engine, why = registry.make(name, self.graph)
        self.engine, self._wanted, self.engine_reason = chosen, name, why
        self.left_out = registry.left_out(self._engine)
        self._compiled = Snapshot(self.graph)
        return f"{self.engine}: {why}"

    def use_bfloat16(self) -> None:
        """Compute the layers that read spikes in bfloat16.

        On a CPU that supports bfloat16 this is about twice as fast. The spikes 0 and 1 are exact.
        Weights and input currents are rounded to 8 bits of mantissa. The first layers, the
        potentials and the readouts stay in float32. You cannot undo this for the network.
        """
        self.in_bfloat16 = True
        when = phases(self.graph)
        for node in self.graph:
            if when[node.name] == STEPWISE and isinstance(node.module, (*WEIGHTED, Scale, Shift)):
                node.module.to(torch.bfloat16)
            if isinstance(node.module, IFNeuron):
                node.module.spike_dtype = torch.bfloat16


def _parts(stops: Iterable[int], at_once: int) -> Iterator[int]:
    """Split time steps into parts of at most `at_once`; a part ends at each of `stops`."""
    done = 0
    for stop in stops:
        while done < stop:
            yield min(at_once, stop - done)
            done += min(at_once, stop - done)


def _frames(output: Any, start: int, stop: int) -> Any:
    """Frames `start` to `stop` of nested outputs [steps*B, ...]."""
    return tree_map(lambda x: x[start:stop] if isinstance(x, Tensor) else x, output)
