"""Base class of the integer engines; see `reference_engine` and `events_engine`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikedet.engines.integers import compile_integers, constant_nodes
from spikedet.engines.program import INT32, Move, Neuron, NoIntegers, Pool, Sums
from spikedet.engines.reference import at_once, shapes_of
from spikedet.engines.sources import window_of_pool
from spikedet.engines.views import as_map
from spikedet.engines.weights import divisors_of
from spikedet.errors import UsageError
from spikedet.graph.graph import INPUT, Graph, Node
from spikedet.graph.structure import fill
from spikedet.graph.time import READ, phases
from spikedet.neurons.layers import MeanOverTime
from spikedet.precision import channels_last

NOT_HERE = "the integer engines run on the CPU only; use the torch engine on other devices"
OnCounts = Callable[[str, int, Tensor, int], None]
OnSpikes = Callable[[str, int, Tensor], None]


@dataclass(frozen=True)
class Part:
    """Time steps that are computed together.

    Attributes:
        first: Number of time steps before this part.
        steps: Number of time steps in this part.
        last: True if no steps follow. Then the potentials need not be stored.
    """

    first: int
    steps: int
    last: bool


class IntegerEngine:
    """A spiking graph, compiled once to an integer program. Several threads may use it.

    Attributes:
        program: The integer program, a `program.Program`.
    """

    def __init__(self, graph: Graph):
        tensor = next(itertools.chain(graph.parameters(), graph.buffers()), None)
        if tensor is not None and tensor.device.type != "cpu":
            raise UsageError(NOT_HERE)
        self.graph, self.program = graph, compile_integers(graph)
        when = phases(graph)
        means = self.program.means
        self._before = constant_nodes(graph)
        self._behind = [name for name in graph.edges if when[name] == READ and name not in means]
        read_later = {s for name in self._behind for s in graph.edges[name]} | set(graph.outputs)
        self._kept = {name for name in self._before if name in read_later}
        if INPUT in read_later:
            self._kept.add(INPUT)
        nodes = {op.node for op in self.program.ops.values() if hasattr(op, "node")}
        self._currents = sorted(nodes)
        ops = self.program.ops.items()
        fire = (name for name, op in ops if isinstance(op, Neuron | Pool))
        self._fire = [name for name in fire if name in graph.edges]  # others pool currents
        self._terms = {  # of each mean: operations, and their amplitudes where those are not 1
            node: [(op, None if bool((a == 1).all()) else a) for op, a in terms]
            for node, terms in means.items()
        }
        running = [op for name, op in ops if name in self.program.running]
        self._averages = [op for op in running if isinstance(op, Sums)]
        self._pools = [op for op in running if isinstance(op, Pool)]
        self._fitting = {graph.shapes[INPUT][1:]}  # sizes of pictures
        self._last_masses: tuple[int, int, dict[str, np.ndarray]] = (0, 0, {})
        self._reading = {  # which means need which bases
            node: {base for op, _ in terms for base in self.program.base(op)}
            for node, terms in means.items()
        }

    def simulate(
        self,
        pictures: Tensor,
        parts: Iterable[int],
        each_step: bool,
        on_counts: OnCounts | None = None,
        on_spikes: OnSpikes | None = None,
    ) -> Iterator[tuple[int, Callable[[], Any]]]:
        """Run the time steps in parts; yield the number of steps so far and a readout function.

        The readout function returns the mean over all steps so far, [B, ...].

        Args:
            pictures: [B, ...] float32.
            parts: Number of time steps of each part.
            each_step: The readout function returns the means after each step of the last part
                instead, [steps*B, ...].
            on_counts: Function that is called after every part for each layer of neurons: with its
                name, the first step, the number of spikes in each step [steps], and the number of
                neurons of all pictures.
            on_spikes: Function that is called after every part for each layer of neurons and each
                pooling of spikes: with its name, the first step, and its spikes [steps*B, ...].

        Raises:
            NoIntegers: There are too many steps for 32 bits, or the program does not support the
                picture size.
            UsageError: The pictures are not on the CPU.
        """
        if pictures.device.type != "cpu":
            raise UsageError(NOT_HERE)
        parts = list(parts)
        self._expect_steps(sum(parts))
        known, currents = self._before_time(pictures)
        self._expect_size(tuple(pictures.shape[1:]), currents)
        run = self._start(currents, len(pictures))
        totals: dict[Any, Any] = {}
        done = 0
        for steps, last in _with_last(parts):
            at_once = steps if each_step else self._at_once(run, on_spikes is not None)
            for number, final in _with_last(_even(steps, at_once)):
                part = Part(done, number, last and final)
                with torch.no_grad():  # never over a yield: it would hold for the caller as well
                    totals = self._part(run, part, each_step, totals, on_counts, on_spikes)
                done += number

            def read(sums: dict[Any, Any] = totals, steps: int = steps) -> Any:
                return self._read(sums, known, len(pictures), steps if each_step else 1)

            yield done, read

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles compile the graph again, because kernels have pointers to memory."""
        return type(self), (self.graph,)

    def _expect_steps(self, steps: int) -> None:
        if steps > self.program.steps_most:
            raise NoIntegers(
                f"T is {steps}; the integers of this network hold up to "
                f"{self.program.steps_most} steps; use the torch engine"
            )

    def _expect_size(self, size: tuple[int, ...], currents: dict[str, Tensor]) -> None:
        """Check that the program holds for pictures of this size.

        An average is a sum of integers only if its divisors divide the number that it was
        multiplied by. These divisors may depend on the size. Max-pooling needs a value in each
        window.

        Raises:
            NoIntegers: An average has other divisors.
            UsageError: A window of max-pooling holds nothing but padding.
        """
        if size in self._fitting:
            return
        shapes = shapes_of(self.program, {n: (1, *v.shape[1:]) for n, v in currents.items()})
        for op in self._averages:
            if any(op.times % divisor for divisor in divisors_of(op.module, shapes[op.inputs[0]])):
                raise NoIntegers(
                    f"pictures {list(size)}: the average {op.name} has other divisors there than "
                    f"for pictures {list(self.graph.shapes[INPUT][1:])}; use the torch engine"
                )
        for pool in self._pools:
            out, inside = (as_map(shapes[name])[1:] for name in (pool.name, pool.inputs[0]))
            if not all(itertools.chain(*window_of_pool(pool.module).taps(out, inside))):
                raise UsageError(
                    f"pictures {list(size)}: a window of the max-pooling {pool.name} holds nothing "
                    "but padding; use larger pictures"
                )
        self._fitting.add(size)

    @torch.no_grad()
    def _before_time(self, pictures: Tensor) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Compute the constant nodes one picture at a time, so that the batch has no influence."""
        known, currents = [], []
        wanted = self._kept | set(self._currents)
        for picture in pictures.split(1):
            values = self.graph.run(self._before, {INPUT: channels_last(picture)}, wanted)
            known.append({name: values[name] for name in self._kept})
            currents.append(values)
        if len(currents) == 1:
            return known, {name: currents[0][name] for name in self._currents}
        return known, {
            name: torch.cat([values[name] for values in currents]) for name in self._currents
        }

    def _masses(self, done: int, steps: int) -> dict[str, np.ndarray]:
        """The weight of each of the next steps, [steps] float32, by `MeanOverTime` node."""
        last = self._last_masses
        if last[:2] == (done, steps):
            return last[2]
        masses = {}
        for node in self._reading:
            module = self.graph.module(node)
            assert isinstance(module, MeanOverTime)
            weights = np.ones(steps, np.float32)
            if module.log_weights is not None:
                now = torch.arange(done, done + steps).clamp(max=len(module.log_weights) - 1)
                weights = module.log_weights.detach()[now].exp().numpy()
            masses[node] = weights
        self._last_masses = done, steps, masses
        return masses

    @torch.no_grad()
    def _read(
        self, totals: dict[Any, Any], known: list[dict[str, Tensor]], batch: int, steps: int
    ) -> Any:
        """Compute the layers after the last neurons, one frame at a time."""
        frames = []
        for frame in range(steps * batch):
            values = dict(known[frame % batch])
            for node, terms in self._terms.items():
                amounts = []
                for op, amplitude in terms:
                    value = self._mean(op, node, totals, frame, batch)
                    amounts.append(value if amplitude is None else value * amplitude)
                values[node] = sum(amounts[1:], amounts[0])
            frames.append(self.graph.run(self._behind, values, set(self.graph.outputs), _called))
        if len(frames) == 1:
            return fill(self.graph.output, frames[0])
        joined = {name: torch.cat([frame[name] for frame in frames]) for name in frames[0]}
        return fill(self.graph.output, joined)

    def _mean(self, name: str, node: str, totals: dict[Any, Any], frame: int, batch: int) -> Tensor:
        """Mean over time of an operation's value, [1, ...] float32."""
        op = self.program.ops[name]
        if isinstance(op, Move | Sums):
            inputs = [self._mean(source, node, totals, frame, batch) for source in op.inputs]
            return op.module(*inputs) * op.times if isinstance(op, Sums) else at_once(op, inputs)
        masses = totals[node]
        mass = masses[min(frame // batch, len(masses) - 1)]
        total = totals[name, node][frame : frame + 1]
        value = torch.from_numpy(total.numpy() / mass)  # a few values: torch would wake its threads
        if value.ndim == 4:  # layers round by the layout: strides of dimensions of size 1, too
            return channels_last(value)
        return value.flatten().view(value.shape)

    # ------------------------------------------------------------------ to be filled in

    def _start(self, currents: dict[str, Tensor], batch: int) -> Any:
        raise NotImplementedError

    def _at_once(self, run: Any, kept: bool) -> int:
        """Largest number of time steps that are computed at once."""
        return INT32

    def _part(
        self,
        run: Any,
        part: Part,
        each_step: bool,
        before: dict[str, Any],
        on_counts: OnCounts | None,
        on_spikes: OnSpikes | None,
    ) -> dict[str, Any]:
        """Run the next time steps. `before` is the result of the part before.

        Returns:
            A dict. The key of a `MeanOverTime` node has the sums of the step weights up to each
            step, a list of float32. The key of a base and a node has the sums over time, [B, ...]
            or [steps*B, ...].
        """
        raise NotImplementedError

    def _mass(
        self, node: str, masses: np.ndarray, before: dict[str, Any], each_step: bool
    ) -> list[np.float32]:
        """The sums of the step weights, added one after the other."""
        total = before[node][-1] if node in before else np.float32(0)
        totals = []
        for mass in masses:
            total = np.float32(total + mass)
            totals.append(total)
        return totals if each_step else totals[-1:]


def _called(node: Node, inputs: list[Tensor]) -> Tensor:
    """Compute a node's value. A 1x1 convolution is computed as a matrix product: half the time."""
    module = node.module
    if not (type(module) is nn.Conv2d and _of_places(module)):
        return module(*inputs)
    (value,) = inputs
    weight = module.weight.flatten(1)
    return F.linear(value.permute(0, 2, 3, 1), weight, module.bias).permute(0, 3, 1, 2)


def _of_places(module: nn.Conv2d) -> bool:
    single = module.kernel_size == (1, 1) and module.stride == (1, 1) and module.groups == 1
    return single and module.padding == (0, 0)


def _even(steps: int, most: int) -> list[int]:
    """Split steps into as few parts as possible, of similar size and at most `most`."""
    parts = -(-steps // most)
    return [steps // parts + (i < steps % parts) for i in range(parts)]


def _with_last(parts: Iterable[int]) -> Iterator[tuple[int, bool]]:
    """Each part, and whether it is the last."""
    waiting = None
    for part in parts:
        if waiting is not None:
            yield waiting, False
        waiting = part
    if waiting is not None:
        yield waiting, True
