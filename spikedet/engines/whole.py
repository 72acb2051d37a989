"""Engines in whole numbers: what they share. One runs by torch (`reference`), one by events."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikedet.engines import library
from spikedet.engines.events import Run
from spikedet.engines.integers import compile_integers, constant_nodes
from spikedet.engines.layout import LANES
from spikedet.engines.plan import Plan
from spikedet.engines.program import INT32, Move, Neuron, NoIntegers, Pool, Sums
from spikedet.engines.reference import Reference, at_once
from spikedet.errors import UsageError
from spikedet.graph.graph import INPUT, Graph, Node
from spikedet.graph.structure import fill, join
from spikedet.graph.time import READ, phases
from spikedet.neurons.layers import MeanOverTime

MEMORY = 64 * 2**20  # bytes that events of the steps that are computed at once may take
MOST_STEPS = 256  # at once, whatever they take: each thread keeps something for every step
NOT_HERE = "integer engines compute on the CPU; use the torch engine elsewhere"
Tell = Callable[[str, int, Tensor, int], None]
Show = Callable[[str, int, Tensor], None]


@dataclass(frozen=True)
class Part:
    """Time steps that are computed together.

    Attributes:
        first: The steps before them.
        steps: How many they are.
        last: Nothing follows, so that no potentials need to be kept.
    """

    first: int
    steps: int
    last: bool


class WholeEngine:
    """A spiking graph in whole numbers, compiled once; safe to be used by several threads.

    Attributes:
        program: The integers, as `program.Program`.
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
        self._bases = {
            base: node
            for node, terms in means.items()
            for op, _ in terms
            for base in self.program.base(op)
        }
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
        tell: Tell | None = None,
        show: Show | None = None,
    ) -> Iterator[tuple[int, Callable[[], Any]]]:
        """Run so many steps at once, part after part: yield all so far, and how to read them out.

        Args:
            pictures: [B, ...] float32.
            parts: Numbers of steps.
            each_step: Outputs of each step of the last part, [steps*B, ...], instead of the mean.
            tell: Called after every part with each layer's name, its first step, the spikes of
                each of its steps [steps], and the number of neurons of all pictures.
            show: Called after every part with the name of each layer of neurons, and of each
                pooling of spikes, its first step, and its spikes [steps*B, ...].

        Raises:
            NoIntegers: More steps than 32 bits can hold, or a size that the integers do not fit.
            UsageError: Pictures that are not on the CPU.
        """
        if pictures.device.type != "cpu":
            raise UsageError(NOT_HERE)
        parts = list(parts)
        self._expect_steps(sum(parts))
        known, currents = self._before_time(pictures)
        run = self._start(currents, len(pictures))
        totals: dict[Any, Any] = {}
        done = 0
        for steps, last in _with_last(parts):
            at_once = steps if each_step else self._at_once(run, show is not None)
            for number, final in _with_last(_even(steps, at_once)):
                part = Part(done, number, last and final)
                with torch.no_grad():  # never over a yield: it would hold for the caller as well
                    totals = self._part(run, part, each_step, totals, tell, show)
                done += number

            def read(sums: dict[Any, Any] = totals, steps: int = steps) -> Any:
                return self._read(sums, known, len(pictures), steps if each_step else 1)

            yield done, read

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles are compiled anew: kernels point to memory."""
        return type(self), (self.graph,)

    def _expect_steps(self, steps: int) -> None:
        if steps > self.program.steps_most:
            raise NoIntegers(
                f"T is {steps}; the integers of this network hold up to "
                f"{self.program.steps_most} steps; use the torch engine"
            )

    @torch.no_grad()
    def _before_time(self, pictures: Tensor) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """What constant nodes give, picture by picture, so that no batch changes it."""
        known, currents = [], []
        wanted = self._kept | set(self._currents)
        for picture in pictures.split(1):
            values = self.graph.run(self._before, {INPUT: picture}, wanted)
            known.append({name: values[name] for name in self._kept})
            currents.append(values)
        if len(currents) == 1:
            return known, {name: currents[0][name] for name in self._currents}
        return known, {
            name: torch.cat([values[name] for values in currents]) for name in self._currents
        }

    def _masses(self, done: int, steps: int) -> dict[str, np.ndarray]:
        """What each of the next steps counts, [steps] float32, by `MeanOverTime` node."""
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
        """Behind the last neuron, frame by frame, so that no batch changes it."""
        frames = []
        for frame in range(steps * batch):
            values = dict(known[frame % batch])
            for node, terms in self.program.means.items():
                amounts = []
                for op, amplitude in terms:
                    value = self._mean(op, node, totals, frame, batch)
                    amounts.append(value if bool((amplitude == 1).all()) else value * amplitude)
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
        if value.ndim != 4:
            return value.clone(memory_format=torch.contiguous_format)  # strides of size 1, too
        return value.clone(memory_format=torch.channels_last)  # layers round by the layout

    # ------------------------------------------------------------------ to be filled in

    def _start(self, currents: dict[str, Tensor], batch: int) -> Any:
        raise NotImplementedError

    def _at_once(self, run: Any, kept: bool) -> int:
        """Steps that are computed at once at most, whatever the caller's parts are."""
        return INT32

    def _part(
        self,
        run: Any,
        part: Part,
        each_step: bool,
        before: dict[str, Any],
        tell: Tell | None,
        show: Show | None,
    ) -> dict[str, Any]:
        """Run the next steps; `before` is what this returned of the part before.

        Returns:
            By `MeanOverTime` node what all steps count up to each one, a list of float32; by base
            and node the sums over time, [B, ...] or [steps*B, ...].
        """
        raise NotImplementedError

    def _mass(
        self, node: str, masses: np.ndarray, before: dict[str, Any], each_step: bool
    ) -> list[np.float32]:
        """What all steps count, added one after the other."""
        total = before[node][-1] if node in before else np.float32(0)
        totals = []
        for mass in masses:
            total = np.float32(total + mass)
            totals.append(total)
        return totals if each_step else totals[-1:]


class ReferenceEngine(WholeEngine):
    """The integers by torch, operation by operation: slow, and the truth."""

    def describe(self) -> list[str]:
        """How it computes."""
        return ["whole numbers, by torch"]

    def _start(self, currents: dict[str, Tensor], batch: int) -> Reference:
        return Reference(self.program, currents, batch)

    def _part(self, run, part, each_step, before, tell, show):
        steps, done = part.steps, part.first
        values, batch = run.advance(steps), run.batch
        totals: dict[Any, Any] = {}
        for node, masses in self._masses(done, steps).items():
            totals[node] = self._mass(node, masses, before, each_step)
            for base in self._reading[node]:
                total = before[base, node][-batch:] if (base, node) in before else None
                sums = []
                for value, mass in zip(values[base].float().split(batch), masses, strict=True):
                    added = value * torch.tensor(mass)
                    total = added if total is None else total + added
                    sums.append(total)
                totals[base, node] = torch.cat(sums) if each_step else sums[-1]
        if tell is not None:
            for op in self.program.neurons:
                spikes = values[op.name]
                number = spikes.abs().reshape(steps, -1).sum(1)
                tell(op.name, done, number, spikes.numel() // steps)
        if show is not None:
            for name in self._fire:
                show(name, done, values[name])
        return totals


class EventsEngine(WholeEngine):
    """The integers by compiled kernels that add a row of weights for each spike.

    Args:
        graph: To compile.
        kernels: Name of one of `library.kernels()`; `library.chosen` when None.

    Attributes:
        bounds_memory: It bounds the memory of a pass itself, however many steps it is told to run.

    Raises:
        NoLibrary: There are no kernels.
        NoIntegers: The network cannot be computed in whole numbers.
    """

    bounds_memory = True

    def __init__(self, graph: Graph, kernels: str | None = None):
        library.library()
        super().__init__(graph)
        self.kernels = kernels
        self._plans: OrderedDict[tuple, Plan] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.graph, self.kernels)

    def plan(self, sizes: dict[str, tuple[int, ...]]) -> Plan:
        """The plan for constant nodes of some shapes [1, ...]; the last few are kept."""
        key = tuple(sorted(sizes.items()))
        with self._lock:
            if key not in self._plans:
                self._plans[key] = Plan(self.program, sizes, self.kernels)
            self._plans.move_to_end(key)
            while len(self._plans) > 4:
                self._plans.popitem(last=False)
            return self._plans[key]

    def describe(self) -> list[str]:
        """Which kernels there are, and a line for each layer that none of them computes."""
        sizes = {name: self.graph.shapes[name] for name in self._currents}
        plan = self.plan(sizes)
        return [f"whole numbers, {plan.kernels} kernels", *plan.describe()]

    def simulate(self, pictures, parts, each_step, tell=None, show=None):
        """As `WholeEngine.simulate`, picture by picture, so that events stay in the cache."""
        if len(pictures) < 2 or each_step or show is not None:
            yield from super().simulate(pictures, parts, each_step, tell, show)
            return
        told: dict[tuple[str, int], tuple[Tensor, int]] = {}

        def gather(name: str, first: int, counts: Tensor, neurons: int) -> None:
            others, size = told.get((name, first), (0, 0))
            told[name, first] = counts + others, neurons + size

        parts = list(parts)
        runs = [
            super(EventsEngine, self).simulate(picture, parts, False, tell and gather)
            for picture in pictures.split(1)
        ]
        for several in zip(*runs, strict=True):
            for (name, first), (counts, neurons) in told.items():
                tell(name, first, counts, neurons)
            told.clear()
            yield several[0][0], lambda reads=several: join([read() for _, read in reads])

    def _start(self, currents: dict[str, Tensor], batch: int) -> Run:
        sizes = {name: (1, *value.shape[1:]) for name, value in currents.items()}
        return Run(self.plan(sizes), currents, batch)

    def _at_once(self, run: Run, kept: bool) -> int:
        step = run.plan.bytes_of_a_step[kept] * run.batch
        return max(1, min(MOST_STEPS, MEMORY // max(1, step)))

    def _part(self, run, part, each_step, before, tell, show):
        steps, done = part.steps, part.first
        plan, batch = run.plan, run.batch
        totals: dict[Any, Any] = {}
        masses, sums = {}, {}
        later = []  # a second mean of the same spikes
        by_node = self._masses(done, steps)
        for node, weights in by_node.items():
            totals[node] = self._mass(node, weights, before, each_step)
            for base in self._reading[node]:
                channels, height, width = plan.maps[base]
                padded = -(-channels // LANES) * LANES
                shape = (batch, height, width, padded)
                into = np.zeros((steps, *shape) if each_step else shape, np.float32)
                if (base, node) in before:
                    old = before["sums", base, node]
                    (into[0] if each_step else into)[...] = old[-1] if each_step else old
                totals["sums", base, node] = into
                totals[base, node] = _as_values(into, channels, self._shape(plan, base))
                if base in sums:
                    later.append((base, weights, into))
                else:
                    masses[base], sums[base] = np.ascontiguousarray(weights), into
        kept = show is not None or bool(later)
        memory = run.advance(steps, part.last, masses, sums, each_step, kept)
        for base, weights, into in later:
            values = run.dense(self.program.ops[base], memory)
            run._add_mean(base, values, weights, into, each_step)
        if tell is not None:
            for op in self.program.neurons:
                number = memory.fired[op.name].sum((0, 2), dtype=np.int64)
                channels, height, width = plan.maps[op.name]
                neurons = batch * channels * height * width
                tell(op.name, done, torch.from_numpy(number).double(), neurons)
        if show is not None:
            for name in self._fire:
                show(name, done, run.dense(self.program.ops[name], memory))
        plan.give(memory)
        return totals

    @staticmethod
    def _shape(plan: Plan, base: str) -> tuple[int, ...]:
        return plan.shapes[base][1:]


def _as_values(sums: np.ndarray, channels: int, shape: tuple[int, ...]) -> Tensor:
    """[..., B, H, W, padded] -> [N, C, ...], a view of the same memory where it can be one."""
    values = torch.from_numpy(sums)[..., :channels].flatten(0, -4).permute(0, 3, 1, 2)
    return values if len(shape) == 3 else values.reshape(len(values), *shape)


def _called(node: Node, inputs: list[Tensor]) -> Tensor:
    """A node's value; a convolution of single places as what it is, which takes half the time."""
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
    """So many steps in as few parts of `most` as there can be, all about as large."""
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
