"""The `events` engine: whole numbers, and for each spike one row of weights is added.

Between layers nothing but events travels: for every step and row of a map a list of those neurons
that fired. A layer of neurons, whatever adds to its current (`views`), is one call of a compiled
kernel (`csrc/kernels.inc`): for each place, and there for each step, it gathers the events of its
window, adds their rows of weights in registers, fires, and appends the indices of what fired. What
no kernel knows runs by the reference between two calls; `describe` says what.
"""

from __future__ import annotations

import ctypes
import threading
from collections import OrderedDict
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_int32, c_int64, c_void_p
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spikedet.engines import library, views
from spikedet.engines.program import (
    Current,
    Move,
    Neuron,
    NoIntegers,
    Op,
    Plus,
    Pool,
    Program,
    Sums,
    Times,
    Weighted,
)
from spikedet.engines.reference import Reference, at_once
from spikedet.engines.views import Elements, NoView, Piece, Pieces, Shape
from spikedet.errors import UsageError

LANES, LOOSE = 32, 32  # as csrc/events.h
CODES = 2**16  # events of a row
SMALL = 24_000  # bytes of int16 weights that stay in the first cache, where they add faster
NEVER = 2**31 - 1  # threshold of channels that are not there
NEURON, CURRENT, POOL = range(3)


class _Tensor(Structure):
    _fields_ = [
        ("channels", c_int32),
        ("height", c_int32),
        ("width", c_int32),
        ("planes", c_int32),
        ("room", c_int64),
        ("events", c_void_p),
        ("first", c_void_p),
    ]


class _Source(Structure):
    _fields_ = [
        ("tensor", c_int32),
        ("scatter", c_int32),
        ("negative", c_int32),
        ("few_size", c_int32),
        ("row_first", c_void_p),
        ("rows", c_void_p),
        ("column_first", c_void_p),
        ("columns", c_void_p),
        ("few", c_void_p),
        ("few_first", c_void_p),
    ]


def _fields(kind: Any, names: str) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names.split()]


class _Layer(Structure):
    _fields_ = [
        *_fields(c_int32, "kind channels padded height width output wide sources_number scattered"),
        *_fields(c_int32, "zero_row window_most by_step initial_each signed_"),
        *_fields(c_void_p, "sources weights bias threshold initial low up inverse limit"),
        *_fields(c_void_p, "current state counts mean step_mass"),
        ("mean_each", c_int32),
        *_fields(c_void_p, "fired done"),
    ]


class _Run(Structure):
    _fields_ = [
        *_fields(c_int32, "batch steps first_part last_part layers_number tensors_number threads"),
        ("layers", POINTER(_Layer)),
        ("tensors", POINTER(_Tensor)),
        *_fields(c_void_p, "maker parallel"),
    ]


@dataclass
class _Source_:
    """One input of a layer, see csrc/events.h; weights are still apart."""

    tensor: int
    rows: list[list[tuple[int, int]]]  # (input row, weight row) for each output row
    columns: list[list[tuple[int, int, int]]]  # (first, how many, weight column)
    weights: np.ndarray | None = None  # [weight rows, C_out] int8
    few: np.ndarray | None = None  # [weight rows, few_size] int32
    few_first: np.ndarray | None = None


@dataclass
class _Stage:
    """One layer of the plan: a kernel's, or one that the reference computes.

    Attributes:
        op: The operation whose events it makes.
        layer: What the kernel needs; None where the reference computes it.
        why: No kernel knows it.
    """

    op: Op
    layer: _Layer | None = None
    why: str = ""
    arrays: list[Any] = field(default_factory=list)  # that the layer points to


class Plan:
    """An integer program for one size of picture and one set of kernels.

    Args:
        program: The integers.
        sizes: Shapes of the constant nodes' values, [1, ...], by their names.
        kernels: Name of the kernels, the fastest of this machine when None.

    Attributes:
        shapes: Of every operation's value, [1, ...].

    Raises:
        NoLibrary: There are no kernels.
        NoIntegers: A row of a map has more neurons than an event can name.
        UsageError: No such kernels here.
    """

    def __init__(
        self, program: Program, sizes: dict[str, tuple[int, ...]], kernels: str | None = None
    ):
        self.program, self.library = program, library.library()
        names = library.kernels()
        if kernels is not None and kernels not in names:
            raise UsageError(f"kernels {kernels!r}; this machine has {', '.join(names)}")
        self.number = names.index(kernels) if kernels else 0
        self.kernels = names[self.number]
        self.half = self.library.sd_kernels_half(self.number)
        self.shapes = _shapes(program, sizes)
        self.stages: list[_Stage] = []
        self.tensors: dict[str, int] = {}  # number by operation
        self.maps: dict[str, Shape] = {}
        self.planes: list[int] = []
        self.most: list[int] = []  # times that one event can occur
        self.by_layer: list[_Stage] = []
        self._plan()
        self._free: OrderedDict[tuple[int, int], list[_Workspace]] = OrderedDict()
        self._lock = threading.Lock()

    # ------------------------------------------------------------------ planning

    def _plan(self) -> None:
        ops = self.program.ops
        wanted = [
            op
            for op in ops.values()
            if op.name in self.program.running and isinstance(op, Neuron | Pool)
        ]
        private = self._inside_currents()
        for op in wanted:
            if op.name in private:
                continue
            try:
                stage = self._pool(op) if isinstance(op, Pool) else self._neuron(op)
            except NoView as reason:
                stage = _Stage(op, None, str(reason))
            self.stages.append(stage)
            self._new_tensor(op, self._times(op) if isinstance(op, Pool) else 1)
            if stage.layer is not None:
                stage.layer.output = self.tensors[op.name]

    def _inside_currents(self) -> set[str]:
        """Pools of currents: they belong to the neuron behind."""
        ops, found = self.program.ops, set()
        spikes: dict[str, bool] = {}
        for op in ops.values():
            made = [spikes[source] for source in op.inputs]
            if isinstance(op, Neuron):
                spikes[op.name] = True
            elif isinstance(op, Move | Sums | Pool):
                spikes[op.name] = all(made)
            else:
                spikes[op.name] = False
            if isinstance(op, Pool) and not spikes[op.name]:
                found.add(op.name)
        return found

    def _new_tensor(self, op: Op, most: int = 1) -> int:
        shape = views.as_map(self.shapes[op.name])
        self._expect_room(op.name, shape, most)
        signed = isinstance(op, Neuron) and op.low is not None
        if isinstance(op, Pool):
            (source,) = op.inputs
            signed = self._signed(source)
        self.tensors[op.name] = len(self.planes)
        self.maps[op.name] = shape
        self.planes.append(2 if signed else 1)
        self.most.append(most)
        return self.tensors[op.name]

    def _signed(self, name: str) -> bool:
        if name in self.tensors:
            return self.planes[self.tensors[name]] == 2
        op = self.program.ops[name]
        if isinstance(op, Neuron):
            return op.low is not None
        return any(self._signed(source) for source in op.inputs)

    def _expect_room(self, name: str, shape: Shape, most: int) -> None:
        channels, _, width = shape
        if channels * width * most >= CODES:
            raise NoIntegers(
                f"{name}: a row of {width} places with {channels} channels is longer than the "
                "events engine can name; use smaller pictures or the torch engine"
            )

    def _neuron(self, op: Neuron) -> _Stage:
        source = self.program.ops[op.inputs[0]]
        if isinstance(source, Current):
            return self._constant(op, source)
        sources = []
        for leaf in self._leaves(source):
            pieces = self._pieces(leaf.inputs[0])
            for piece in pieces:
                sources.append(self._source(leaf, piece, self.shapes[leaf.name]))
        return self._layer(op, sources)

    def _leaves(self, op: Op) -> list[Weighted | Times]:
        if isinstance(op, Plus) and op.offset is None:
            return [leaf for source in op.inputs for leaf in self._leaves(self.program.ops[source])]
        if isinstance(op, Weighted | Times):
            return [op]
        raise NoView(f"{type(op).__name__.lower()} of currents")

    def _pieces(self, name: str) -> Pieces:
        """Where a value comes from; what has to be computed becomes a tensor of its own."""
        op = self.program.ops[name]
        if name in self.tensors:
            return [views.whole(name, self.shapes[name])]
        try:
            inputs = [self._pieces(source) for source in op.inputs]
            shapes = [self.shapes[source] for source in op.inputs]
            return views.through(op, inputs, shapes, self.shapes[name], self.maps)
        except NoView as reason:
            self.stages.append(_Stage(op, None, str(reason)))
            self._new_tensor(op, self._times(op))
            signed = self._signed(op.inputs[0])
            self.planes[-1] = 2 if signed else 1
            return [views.whole(name, self.shapes[name])]

    def _times(self, op: Op) -> int:
        """The largest whole number that a value of spikes holds."""
        if op.name in self.tensors:
            return self.most[self.tensors[op.name]]
        most = max(self._times(self.program.ops[s]) for s in op.inputs) if op.inputs else 1
        if isinstance(op, Sums):
            ones = torch.ones(self.shapes[op.inputs[0]], dtype=torch.float64)
            most *= round((op.module(ones) * op.times).max().item())
        return most

    # ------------------------------------------------------------------ one source

    def _source(
        self, leaf: Weighted | Times, piece: Piece | Elements, shape: tuple[int, ...]
    ) -> _Source_:
        if isinstance(piece, Elements):
            return self._features(leaf, piece)
        if isinstance(leaf, Times):
            return self._direct(leaf, piece)
        return self._window(leaf, piece, shape)

    def _direct(self, leaf: Times, piece: Piece) -> _Source_:
        """Spikes times a number for each channel."""
        channels = self.maps[piece.base][0]
        few = np.zeros((channels, 1), np.int32)
        few_first = np.full(channels, -1, np.int32)
        for out, channel in enumerate(piece.channels):
            if channel >= 0:
                if few_first[channel] >= 0:
                    raise NoView("a channel that is added twice")
                few[channel], few_first[channel] = leaf.factor[out].item(), out
        rows = [[(y, 0) for y in line] for line in piece.rows]
        columns = [[(x, 1, 0) for x in line] for line in piece.columns]
        return _Source_(self.tensors[piece.base], rows, columns, None, few, few_first)

    def _features(self, leaf: Weighted | Times, piece: Elements) -> _Source_:
        """A vector that may be a flattened map: a window as large as the map."""
        channels, height, width = self.maps[piece.base]
        places = np.array(piece.places)
        there = np.flatnonzero(places >= 0)
        c, rest = np.divmod(places[there], height * width)
        y, x = np.divmod(rest, width)
        weight_rows = (y * width + x) * channels + c
        if len(np.unique(weight_rows)) < len(weight_rows):
            raise NoView("a feature that is read twice")
        rows = [[(y, y * width * channels) for y in range(height)]]
        columns = [[(0, width, 0)]]
        source = _Source_(self.tensors[piece.base], rows, columns)
        size = height * width * channels
        if isinstance(leaf, Times):
            if height * width > 1:
                raise NoView("flattened spikes on a shortcut")
            source.few = np.zeros((size, 1), np.int32)
            source.few_first = np.full(channels, -1, np.int32)
            source.few[weight_rows, 0] = leaf.factor.numpy()[there]
            source.few_first[weight_rows] = there
        else:
            source.weights = np.zeros((size, len(leaf.weight)), np.int8)
            source.weights[weight_rows] = leaf.weight.numpy()[:, there].T
        return source

    def _window(self, leaf: Weighted, piece: Piece, shape: tuple[int, ...]) -> _Source_:
        """A convolution."""
        like, weight = leaf.like, leaf.weight
        if isinstance(like, nn.Linear):
            raise NoView("a linear layer on a map")
        transposed = isinstance(like, nn.ConvTranspose1d | nn.ConvTranspose2d)
        if weight.ndim == 3:
            weight = weight.unsqueeze(2)
        kernel = tuple(weight.shape[2:])
        stride, dilation = (_two(v) for v in (like.stride, like.dilation))
        padding = _padding(like, kernel, dilation)
        _, height, width = views.as_map(shape)
        taps = [
            _taps(out, size, k, s, d, p, transposed)
            for out, size, k, s, d, p in zip(
                (height, width),
                (len(piece.rows), len(piece.columns)),
                kernel,
                stride,
                dilation,
                padding,
                strict=True,
            )
        ]
        channels = self.maps[piece.base][0]
        rows = [
            [(y, k * kernel[1] * channels) for i, k in line for y in piece.rows[i]]
            for line in taps[0]
        ]
        columns = [
            _merged(sorted((x, k) for i, k in line for x in piece.columns[i])) for line in taps[1]
        ]
        read = [c for c in piece.channels if c >= 0]
        if len(set(read)) < len(read):
            raise NoView("a channel that is read twice")
        source = _Source_(self.tensors[piece.base], rows, columns)
        # [groups, in, out, kh, kw]
        groups = like.groups
        if transposed:
            by_group = weight.view(groups, -1, *weight.shape[1:])
        else:
            by_group = weight.view(groups, -1, *weight.shape[1:]).transpose(1, 2)
        by_group = by_group.numpy()
        inside, outside = by_group.shape[1:3]
        dense = groups == 1 or (groups <= 4 and outside >= 32)
        if dense:
            made = np.zeros((*kernel, channels, groups * outside), np.int8)
        else:
            made = np.zeros((*kernel, channels, outside), np.int32)
            source.few_first = np.full(channels, -1, np.int32)
        for i, channel in enumerate(piece.channels):
            if channel < 0:
                continue
            group, number = divmod(i, inside)
            taken = by_group[group, number].transpose(1, 2, 0)  # [kh, kw, out]
            if dense:
                made[:, :, channel, group * outside : (group + 1) * outside] = taken
            else:
                made[:, :, channel] = taken
                source.few_first[channel] = group * outside
        made = made.reshape(-1, made.shape[-1])
        if dense:
            source.weights = made
        else:
            source.few = made
        return source

    # ------------------------------------------------------------------ layers

    def _layer(self, op: Neuron, sources: list[_Source_]) -> _Stage:
        channels, height, width = views.as_map(self.shapes[op.name])
        padded = -(-channels // LANES) * LANES
        stage = self._stage(op, NEURON, channels, padded, height, width)
        layer, keep = stage.layer, stage.arrays
        blocks, total, most = [], 0, 0
        made = (_Source * len(sources))()
        for source, into in zip(sources, made, strict=True):
            signed = self.planes[source.tensor] == 2
            base = total
            if source.weights is not None:
                block = np.zeros((len(source.weights), padded), np.int8)
                block[:, :channels] = source.weights
                blocks += [block, -block] if signed else [block]
                total += len(block) * (2 if signed else 1)
                into.negative = len(block)
                taps = max(sum(n for _, n, _ in line) for line in source.columns)
                taps *= max(len(line) for line in source.rows)
                size = self.maps[list(self.tensors)[source.tensor]][0]
                most += taps * size * self.most[source.tensor]
            else:
                few = np.concatenate([source.few, -source.few]) if signed else source.few
                into.scatter, into.negative = 1, len(source.few)
                into.few_size, layer.scattered = source.few.shape[1], 1
                into.few = _pointer(few.astype(np.int32), keep)
                into.few_first = _pointer(source.few_first.astype(np.int32), keep)
                base = 0
            into.tensor = source.tensor
            rows = [[(y, row + base) for y, row in line] for line in source.rows]
            into.row_first, into.rows = _table(rows, 2, keep)
            into.column_first, into.columns = _table(source.columns, 3, keep)
        weights = np.concatenate([*blocks, np.zeros((1, padded), np.int8)])
        if (total + 1) * padded >= 2**31:
            raise NoView("weights of more than 2 GiB")
        layer.zero_row, layer.window_most = total, most
        layer.wide = int(2 * weights.size <= SMALL)
        weights = weights[:, self._order(padded)]
        layer.weights = _pointer(weights.astype(np.int16 if layer.wide else np.int8), keep)
        layer.sources_number = len(sources)
        layer.sources = ctypes.cast(made, c_void_p)
        keep.append(made)
        return stage

    def _order(self, padded: int) -> np.ndarray:
        """Channels in the order in which weights lie: lane 2 i + h of a vector is h half + i."""
        group = np.arange(2 * self.half)
        within = group % 2 * self.half + group // 2
        starts = np.arange(0, padded, 2 * self.half)
        return (starts[:, None] + within).ravel()

    def _constant(self, op: Neuron, current: Current) -> _Stage:
        channels, height, width = views.as_map(self.shapes[op.name])
        padded = -(-channels // LANES) * LANES
        stage = self._stage(op, CURRENT, channels, padded, height, width)
        inverse, limit = (
            _pad(v.numpy().astype(np.float32), padded, 0) for v in (current.inverse, current.limit)
        )
        stage.layer.inverse = _pointer(inverse, stage.arrays)
        stage.layer.limit = _pointer(limit, stage.arrays)
        return stage

    def _stage(
        self, op: Neuron, kind: int, channels: int, padded: int, height: int, width: int
    ) -> _Stage:
        layer, keep = _Layer(), []
        layer.kind, layer.channels, layer.padded = kind, channels, padded
        layer.height, layer.width = height, width
        initial = op.initial.numpy()
        layer.initial_each = int(initial.ndim > 1)
        if initial.ndim > 1:
            if initial.shape[1:] != self.shapes[op.name][2:]:
                raise UsageError(
                    f"{op.name}: {self.shapes[op.name][2:]} neurons a channel have initial "
                    f"potentials for {initial.shape[1:]}; run this network at the picture size "
                    "that it was calibrated for"
                )
            initial = np.moveaxis(initial.reshape(channels, height, width), 0, -1)
        values = {
            "bias": _pad(op.bias.numpy(), padded, 0),
            "threshold": _pad(op.threshold.numpy(), padded, NEVER),
            "initial": _pad(initial, padded, 0),
        }
        if op.low is not None:
            layer.signed_ = 1
            values["low"] = _pad(op.low.numpy(), padded, -NEVER - 1)
            values["up"] = _pad(op.up.numpy(), padded, 0)
        for name, value in values.items():
            setattr(layer, name, _pointer(value.astype(np.int32), keep))
        return _Stage(op, layer, "", keep)

    def _pool(self, op: Pool) -> _Stage:
        """Pooling of counts, from events to events."""
        pieces = self._pieces(op.inputs[0])
        plain = len(pieces) == 1 and isinstance(pieces[0], Piece)
        if not plain or pieces[0] != views.whole(pieces[0].base, self.shapes[pieces[0].base]):
            raise NoView("pooling of what is put together")
        (piece,) = pieces
        module, shape = op.module, self.shapes[op.name]
        channels, height, width = views.as_map(shape)
        kernel, stride, padding, dilation = (
            (alone, *_last_two(v)[1:]) if module.dimensions == 1 else _last_two(v)
            for v, alone in (  # of rows that there is one of
                (module.kernel_size, 1),
                (module.stride, 1),
                (module.padding, 0),
                (module.dilation, 1),
            )
        )
        lines = [
            [[(i, 0) for i, _ in line] for line in _taps(out, size, k, s, d, p, False)]
            for out, size, k, s, d, p in zip(
                (height, width),
                (len(piece.rows), len(piece.columns)),
                kernel,
                stride,
                dilation,
                padding,
                strict=True,
            )
        ]
        layer, keep, made = _Layer(), [], (_Source * 1)()
        made[0].tensor = self.tensors[piece.base]
        made[0].row_first, made[0].rows = _table(lines[0], 2, keep)
        columns = [[(x, 1, 0) for x, _ in line] for line in lines[1]]
        made[0].column_first, made[0].columns = _table(columns, 3, keep)
        layer.kind, layer.channels, layer.padded = POOL, channels, channels
        layer.height, layer.width = height, width
        layer.by_step = int(module.mode == "step")
        layer.sources_number, layer.sources = 1, ctypes.cast(made, c_void_p)
        keep.append(made)
        return _Stage(op, layer, "", keep)

    def describe(self) -> list[str]:
        """A line for each layer that no kernel computes: its name and why."""
        return [
            f"{stage.op.name}: {stage.why}, by the reference"
            for stage in self.stages
            if stage.layer is None
        ]

    # ------------------------------------------------------------------ memory of a run

    def take(self, batch: int, steps: int) -> _Workspace:
        """Memory for some pictures and steps; give it back afterwards."""
        with self._lock:
            free = self._free.get((batch, steps))
            if free:
                return free.pop()
        return _Workspace(self, batch, steps)

    def give(self, workspace: _Workspace) -> None:
        """Keep memory for the next run; that of the last two sizes."""
        with self._lock:
            key = (workspace.batch, workspace.steps)
            self._free.setdefault(key, []).append(workspace)
            self._free.move_to_end(key)
            while len(self._free) > 2:
                self._free.popitem(last=False)


class _Workspace:
    """What a run over some pictures and steps writes."""

    def __init__(self, plan: Plan, batch: int, steps: int):
        self.batch, self.steps = batch, steps
        self.tensors = (_Tensor * max(1, len(plan.planes)))()
        self.events: list[np.ndarray] = []
        self.first: list[np.ndarray] = []
        for name, number in plan.tensors.items():
            channels, height, width = plan.maps[name]
            room = width * channels * plan.most[number] + LOOSE
            rows = plan.planes[number] * batch * steps * height
            events = np.empty((rows, room), np.uint16)
            first = np.empty((rows, width + 1), np.uint16)
            self.events.append(events)
            self.first.append(first)
            self.tensors[number] = _Tensor(
                channels,
                height,
                width,
                plan.planes[number],
                room,
                events.ctypes.data,
                first.ctypes.data,
            )
        self.fired: dict[str, np.ndarray] = {}
        self.done: dict[str, np.ndarray] = {}
        for stage in plan.stages:
            height = plan.maps[stage.op.name][1]
            self.fired[stage.op.name] = np.zeros((batch, steps, height), np.int32)
            self.done[stage.op.name] = np.zeros(batch * height, np.int32)


class Run:
    """One pass of a plan.

    Args:
        plan: What to run.
        currents: Values of the constant nodes, float32 [B, ...], by their names.
        batch: B.
    """

    def __init__(self, plan: Plan, currents: dict[str, Tensor], batch: int):
        self.plan, self.batch = plan, batch
        self.currents = {
            name: value.float().movedim(1, -1).contiguous() for name, value in currents.items()
        }
        self.reference = Reference(plan.program, currents, batch)
        self.state: dict[str, np.ndarray] = {}
        self.first_part = True

    def advance(
        self,
        steps: int,
        last: bool = True,
        masses: dict[str, np.ndarray] | None = None,
        sums: dict[str, np.ndarray] | None = None,
        each: bool = False,
    ) -> _Workspace:
        """Run the next steps.

        Args:
            steps: How many.
            last: Nothing follows, so that no potentials need to be kept.
            masses: What each of these steps counts in the mean, [steps] float32, by the names of
                the operations whose mean is wanted.
            sums: Where these means are added up, [B, H, W, padded] float32, or with `each`
                [steps, B, H, W, padded], whose first entry holds what was there before.
            each: After every step.

        Returns:
            The memory that holds the events; give it back to the plan.
        """
        plan = self.plan
        memory = plan.take(self.batch, steps)
        together: list[_Stage] = []
        for stage in plan.stages:
            if stage.layer is not None:
                together.append(stage)
                continue
            self._kernels(together, memory, last, masses or {}, sums or {}, each)
            together = []
            self._by_reference(stage, memory, masses or {}, sums or {}, each)
        self._kernels(together, memory, last, masses or {}, sums or {}, each)
        self.first_part = False
        return memory

    def _kernels(
        self,
        stages: Sequence[_Stage],
        memory: _Workspace,
        last: bool,
        masses: dict[str, np.ndarray],
        sums: dict[str, np.ndarray],
        each: bool,
    ) -> None:
        if not stages:
            return
        plan = self.plan
        layers = (_Layer * len(stages))()
        maker = np.full(len(plan.planes), -1, np.int32)
        for i, stage in enumerate(stages):
            layer, name = layers[i], stage.op.name
            ctypes.memmove(ctypes.byref(layer), ctypes.byref(stage.layer), ctypes.sizeof(_Layer))
            maker[plan.tensors[name]] = i
            if layer.kind == CURRENT:
                source = plan.program.ops[stage.op.inputs[0]]
                layer.current = self.currents[source.node].data_ptr()
            if not (last and self.first_part):
                state = self._state(stage)
                layer.state = layer.counts = state.ctypes.data
            if name in sums and layer.kind != POOL:
                layer.mean, layer.mean_each = sums[name].ctypes.data, int(each)
                layer.step_mass = masses[name].ctypes.data
            layer.fired = memory.fired[name].ctypes.data
            layer.done = memory.done[name].ctypes.data
        threads = max(1, torch.get_num_threads())
        run = _Run(
            self.batch,
            memory.steps,
            int(self.first_part),
            int(last),
            len(stages),
            len(plan.planes),
            threads,
            layers,
            memory.tensors,
            maker.ctypes.data,
            library.threads_of_torch(),
        )
        if plan.library.sd_run_layers(ctypes.byref(run), plan.number):
            raise MemoryError("no memory for the events engine")
        for stage in stages:
            name = stage.op.name
            if name in sums and stage.layer.kind == POOL:
                values = self._unpack(name, memory)
                self._add_mean(name, values, masses[name], sums[name], each)

    def _state(self, stage: _Stage) -> np.ndarray:
        """What a layer hands on to the next part: potentials, or counts and the largest of them."""
        name = stage.op.name
        if name not in self.state:
            channels, height, width = self.plan.maps[name]
            if stage.layer.kind == POOL:
                source = self.plan.program.ops[stage.op.inputs[0]].name
                inside = self.plan.maps[source]
                rows = _most_rows(stage)
                size = rows * inside[2] * inside[0] + width * channels
                self.state[name] = np.zeros((self.batch, height, size), np.int16)
            else:
                shape = (self.batch, height, width, stage.layer.padded)
                self.state[name] = np.zeros(shape, np.int32)
        return self.state[name]

    def _by_reference(
        self,
        stage: _Stage,
        memory: _Workspace,
        masses: dict[str, np.ndarray],
        sums: dict[str, np.ndarray],
        each: bool,
    ) -> None:
        name = stage.op.name
        values = self.dense(stage.op, memory, own=True)
        frames = values.reshape(memory.steps, self.batch, *values.shape[1:])
        memory.fired[name][:] = 0
        number = frames.abs().flatten(2).sum(2).T.numpy()
        memory.fired[name][:, :, 0] = number
        self._pack(name, frames, memory)
        if name in sums:
            self._add_mean(name, values, masses[name], sums[name], each)

    def _add_mean(
        self, name: str, values: Tensor, masses: np.ndarray, sums: np.ndarray, each: bool
    ) -> None:
        """Add values [steps*B, ...] to the sums over time, as kernels do it."""
        frames = values.reshape(len(masses), self.batch, *values.shape[1:])
        last = _channels_last(frames, self.plan.maps[name]).numpy().astype(np.float32)
        for t, mass in enumerate(masses):
            if each and t:
                sums[t] = sums[t - 1]
            into = sums[t] if each else sums
            into[..., : last.shape[-1]] += last[t] * mass

    def dense(self, op: Op, memory: _Workspace, own: bool = False) -> Tensor:
        """The value of an operation, [steps*B, ...] float64: of its events, or computed."""
        if op.name in self.plan.tensors and not own:
            return self._unpack(op.name, memory)
        if isinstance(op, Current):
            return self.reference.value(op, [], memory.steps)
        ops = self.plan.program.ops
        inputs = [self.dense(ops[source], memory) for source in op.inputs]
        if isinstance(op, Neuron | Pool):
            return self.reference.value(op, inputs, memory.steps)
        return at_once(op, inputs)

    def _unpack(self, name: str, memory: _Workspace) -> Tensor:
        plan, steps = self.plan, memory.steps
        number = plan.tensors[name]
        channels, height, width = plan.maps[name]
        values = np.empty((self.batch, steps, height, width, channels), np.int16)
        tensor = memory.tensors[number]
        plan.library.sd_unpack(
            ctypes.byref(tensor), self.batch, steps, c_void_p(values.ctypes.data)
        )
        dense = torch.from_numpy(values).permute(1, 0, 4, 2, 3).flatten(0, 1)
        return dense.reshape(steps * self.batch, *plan.shapes[name][1:]).double()

    def _pack(self, name: str, frames: Tensor, memory: _Workspace) -> None:
        plan = self.plan
        number = plan.tensors[name]
        last = _channels_last(frames, plan.maps[name]).transpose(0, 1)
        values = np.ascontiguousarray(last.numpy().astype(np.int16))
        tensor = memory.tensors[number]
        if plan.library.sd_pack(
            ctypes.byref(tensor), self.batch, memory.steps, c_void_p(values.ctypes.data)
        ):
            raise RuntimeError(f"{name}: more events than its row has room for")


def _channels_last(frames: Tensor, shape: Shape) -> Tensor:
    """[T, B, C, ...] -> [T, B, H, W, C]."""
    return frames.reshape(*frames.shape[:2], *shape).movedim(2, -1)


def _most_rows(stage: _Stage) -> int:
    source = ctypes.cast(stage.layer.sources, POINTER(_Source))[0]
    first = ctypes.cast(source.row_first, POINTER(c_int32))
    return max(first[y + 1] - first[y] for y in range(stage.layer.height))


def _shapes(program: Program, sizes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Shapes of all values for one picture, found without computing them."""
    shapes: dict[str, tuple[int, ...]] = {}
    for op in program.ops.values():
        inputs = [torch.empty(shapes[s], dtype=torch.float64, device="meta") for s in op.inputs]
        if isinstance(op, Current):
            shapes[op.name] = tuple(sizes[op.node])
        elif isinstance(op, Neuron):
            shapes[op.name] = shapes[op.inputs[0]]
        elif isinstance(op, Pool):
            shapes[op.name] = tuple(op.module.pool(inputs[0]).shape)
        else:
            shapes[op.name] = tuple(at_once(op, inputs).shape)
    return shapes


def _taps(
    out: int, size: int, kernel: int, stride: int, dilation: int, padding: int, transposed: bool
) -> list[list[tuple[int, int]]]:
    """(input, tap) for each output along one dimension."""
    lines = []
    for o in range(out):
        line = []
        for k in range(kernel):
            if transposed:
                place, rest = divmod(o + padding - k * dilation, stride)
                inside = not rest and 0 <= place < size
            else:
                place = o * stride - padding + k * dilation
                inside = 0 <= place < size
            if inside:
                line.append((place, k))
        lines.append(line)
    return lines


def _merged(pairs: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """(column, tap) that lie side by side, together: (first column, how many, first tap)."""
    found: list[tuple[int, int, int]] = []
    for x, k in pairs:
        if found and found[-1][0] + found[-1][1] == x and found[-1][2] + found[-1][1] == k:
            first, number, tap = found[-1]
            found[-1] = (first, number + 1, tap)
        else:
            found.append((x, 1, k))
    return found


def _two(value: Any) -> tuple[int, int]:
    """A convolution's option for rows and columns; of one dimension it is that of columns."""
    value = value if isinstance(value, tuple) else (value,)
    return (1, value[0]) if len(value) == 1 else (value[0], value[1])


def _last_two(value: Any) -> tuple[int, int]:
    """A pooling's option for rows and columns, which may be one number for both."""
    value = value if isinstance(value, tuple) else (value,)
    return value[0], value[-1]


def _padding(
    like: nn.Module, kernel: tuple[int, ...], dilation: tuple[int, int]
) -> tuple[int, int]:
    """Zeros before the first row and column."""
    if like.padding == "valid":
        return 0, 0
    if like.padding == "same":
        return tuple(d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True))
    value = like.padding
    return (0, value[0]) if len(value) == 1 else (value[0], value[1])


def _pad(value: np.ndarray, padded: int, fill: int) -> np.ndarray:
    """More channels, [..., padded]."""
    widths = [(0, 0)] * (value.ndim - 1) + [(0, padded - value.shape[-1])]
    return np.pad(value, widths, constant_values=fill)


def _table(lines: list[list[tuple[int, ...]]], size: int, keep: list[Any]) -> tuple[int, int]:
    """Where each line begins, and all entries behind each other."""
    first = np.cumsum([0, *(len(line) for line in lines)]).astype(np.int32)
    flat = [entry for line in lines for entry in line] or [(0,) * size]
    return _pointer(first, keep), _pointer(np.array(flat, np.int32), keep)


def _pointer(array: np.ndarray, keep: list[Any]) -> int:
    """The address of an array, which is kept."""
    array = np.ascontiguousarray(array)
    keep.append(array)
    return array.ctypes.data
