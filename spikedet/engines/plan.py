"""Plan the kernel calls for an integer program and one picture size.

One layer of neurons with everything that adds to its current (see `views`) is one call of a
compiled kernel (`csrc/kernels.inc`). Layers without a kernel run in the reference code.
`Plan.describe` lists them.
"""

from __future__ import annotations

import ctypes
from ctypes import c_void_p
from dataclasses import dataclass

import numpy as np
import torch

from spikedet.engines import byte_spikes, matrix, views
from spikedet.engines.layout import (
    CURRENT,
    LANES,
    NEURON,
    POOL,
    LayerStruct,
    SourceStruct,
    pad,
)
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
from spikedet.engines.reference import shapes_of
from spikedet.engines.sliding import slide_of
from spikedet.engines.sources import Source, source_of, window_of_pool
from spikedet.engines.storage import Storage
from spikedet.engines.views import NoView, Piece, Pieces, Shape
from spikedet.engines.workspace import Memory
from spikedet.errors import UsageError
from spikedet.kernels import library

CODES = 2**16  # most events that a row of a map can name with 16 bits
SMALL = 24_000  # most bytes of weights stored as int16: they stay in the L1 cache and add faster
SMALL_SLIDING = 48_000  # the same where a window slides over signed events: int8 is slow there
NEVER = 2**31 - 1  # threshold of padding channels, which never fire


@dataclass
class Stage:
    """One layer of the plan. A kernel or the reference code computes it.

    The storage of the plan holds what the struct points to.

    Attributes:
        op: The operation whose events the layer computes.
        layer: Struct for the kernel. None if the reference code computes the layer.
        why: The reason why no kernel computes it.
    """

    op: Op
    layer: LayerStruct | None = None
    why: str = ""
    grids: list[matrix.Grid | None] | None = None  # of its inputs, if it is for the matrix unit

    @property
    def kernel(self) -> LayerStruct:
        """The struct for the kernel. Use it only if there is a kernel."""
        assert self.layer is not None
        return self.layer

    @property
    def sources(self) -> list[SourceStruct]:
        """The structs of the inputs that its kernel reads."""
        if self.layer is None or not self.layer.sources_number:
            return []
        structs = ctypes.cast(self.layer.sources, ctypes.POINTER(SourceStruct))
        return [structs[i] for i in range(self.layer.sources_number)]


class Plan:
    """An integer program for one picture size and one set of kernels.

    Args:
        program: The integer program.
        sizes: Shapes of the constant nodes' values, [1, ...], by their names.
        kernels: Name of the kernels. None: `library.chosen()`.

    Attributes:
        shapes: Shape of every operation's value, [1, ...].
        memory: Memory for the runs of the plan.

    Raises:
        NoLibrary: There are no kernels.
        NoIntegers: A row of a map has too many neurons for 16-bit events.
        UsageError: This machine cannot run the kernels.
    """

    def __init__(
        self, program: Program, sizes: dict[str, tuple[int, ...]], kernels: str | None = None
    ):
        self.program, self.library = program, library.library()
        if kernels is not None:
            library.expect_kernels(kernels)
        self.kernels = kernels or library.chosen()
        self.number = library.kernels().index(self.kernels)
        self.half = self.library.sd_kernels_half(self.number)
        self.matrix = bool(self.library.sd_kernels_matrix(self.number))
        can_hold_bytes = bool(self.library.sd_kernels_bytes(self.number))
        self.shapes = shapes_of(program, sizes)
        self.storage = Storage()
        self.stages: list[Stage] = []
        self.tensors: dict[str, int] = {}  # number by operation
        self.maps: dict[str, Shape] = {}
        self.signs: list[int] = []  # of the events: 1, or 2 if there are negative spikes
        self.most: list[int] = []  # times that one event can occur
        self._plan()
        # tensors that are bytes instead of events
        self.bytes = byte_spikes.tensors_of_bytes(self) if can_hold_bytes else {}
        self.memory = Memory(self)

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
                stage = Stage(op, None, str(reason))
            self.stages.append(stage)
            self._new_tensor(op, self._times(op) if isinstance(op, Pool) else 1)
            if stage.layer is not None:
                stage.layer.output = self.tensors[op.name]

    def _inside_currents(self) -> set[str]:
        """Pooling of currents. It is part of the neurons after it."""
        ops, pools = self.program.ops, set()
        spikes: dict[str, bool] = {}
        for op in ops.values():
            of_spikes = [spikes[source] for source in op.inputs]
            if isinstance(op, Neuron):
                spikes[op.name] = True
            elif isinstance(op, Move | Sums | Pool):
                spikes[op.name] = all(of_spikes)
            else:
                spikes[op.name] = False
            if isinstance(op, Pool) and not spikes[op.name]:
                pools.add(op.name)
        return pools

    def _new_tensor(self, op: Op, most: int = 1) -> int:
        shape = views.as_map(self.shapes[op.name])
        signs = 2 if self._signed(op.name) else 1
        self._expect_room(op.name, shape, max(most, signs))
        self.tensors[op.name] = len(self.signs)
        self.maps[op.name] = shape
        self.signs.append(signs)
        self.most.append(most)
        return self.tensors[op.name]

    def _signed(self, name: str) -> bool:
        if name in self.tensors:
            return self.signs[self.tensors[name]] == 2
        op = self.program.ops[name]
        if isinstance(op, Neuron):
            return op.low is not None
        return any(self._signed(source) for source in op.inputs)

    def _expect_room(self, name: str, shape: Shape, most: int) -> None:
        channels, _, width = shape
        if channels * width * most >= CODES:
            raise NoIntegers(
                f"{name}: a row of {width} places with {channels} channels is longer than the "
                "events engine can name (half as many if there are negative spikes); use smaller "
                "pictures or the torch engine"
            )

    def _neuron(self, op: Neuron) -> Stage:
        source = self.program.ops[op.inputs[0]]
        if isinstance(source, Current):
            return self._constant(op, source)
        sources = []
        for leaf in self._leaves(source):
            pieces = self._pieces(leaf.inputs[0])
            for piece in pieces:
                tensor, base = self.tensors[piece.base], self.maps[piece.base]
                sources.append(source_of(leaf, piece, self.shapes[leaf.name], tensor, base))
        return self._layer(op, sources)

    def _leaves(self, op: Op) -> list[Weighted | Times]:
        if isinstance(op, Plus) and op.offset is None:
            return [leaf for source in op.inputs for leaf in self._leaves(self.program.ops[source])]
        if isinstance(op, Weighted | Times):
            return [op]
        raise NoView(f"{type(op).__name__.lower()} of currents")

    def _pieces(self, name: str) -> Pieces:
        """The pieces of a value. A value that must be computed becomes a separate tensor."""
        op = self.program.ops[name]
        if name in self.tensors:
            return [views.identity_piece(name, self.shapes[name])]
        try:
            inputs = [self._pieces(source) for source in op.inputs]
            shapes = [self.shapes[source] for source in op.inputs]
            return views.pieces_of(op, inputs, shapes, self.shapes[name], self.maps)
        except NoView as reason:
            self.stages.append(Stage(op, None, str(reason)))
            self._new_tensor(op, self._times(op))
            return [views.identity_piece(name, self.shapes[name])]

    def _times(self, op: Op) -> int:
        """The largest integer in a value that is made of spikes."""
        if op.name in self.tensors:
            return self.most[self.tensors[op.name]]
        most = max(self._times(self.program.ops[s]) for s in op.inputs) if op.inputs else 1
        if isinstance(op, Sums):
            ones = torch.ones(self.shapes[op.inputs[0]], dtype=torch.float64)
            most *= round((op.module(ones) * op.times).max().item())
        return most

    # ------------------------------------------------------------------ layers

    def _layer(self, op: Neuron, sources: list[Source]) -> Stage:
        channels, height, width = views.as_map(self.shapes[op.name])
        padded = -(-channels // LANES) * LANES
        stage = self._stage(op, NEURON, channels, padded, height, width)
        layer, storage = stage.kernel, self.storage
        bases = [self.maps[list(self.tensors)[source.tensor]] for source in sources]
        times = [self.most[source.tensor] for source in sources]
        coded = [  # shapes with the codes of a column in place of the channels
            (self.signs[source.tensor] * base[0], *base[1:])
            for source, base in zip(sources, bases, strict=True)
        ]
        if (op.low is None or op.corrects) and (slide := slide_of(sources, coded, times)):
            layer.slide, layer.slide_lead = slide
        blocks, total, most = [], 0, 0
        structs = (SourceStruct * len(sources))()
        if self.matrix and (grids := matrix.grids_of(sources, times, channels)):
            stage.grids = grids
            layer.always = int(matrix.ALWAYS)
            for into, source, grid, shape in zip(structs, sources, grids, bases, strict=True):
                if grid is not None:
                    matrix.fill(into, source, grid, shape[0], padded, storage)
        for source, into, base_shape, often in zip(sources, structs, bases, times, strict=True):
            signs, wide = self.signs[source.tensor], base_shape[0]
            base = total
            if source.weights is not None:
                block = np.zeros((len(source.weights), padded), np.int8)
                block[:, :channels] = source.weights
                blocks.append(_with_negative(block, wide) if signs == 2 else block)
                total += len(blocks[-1])
                taps = max(sum(n for _, n, _ in line) for line in source.columns)
                taps *= max(len(line) for line in source.rows)
                most += taps * base_shape[0] * often
            else:
                assert source.few is not None and source.few_first is not None
                few, few_first = source.few, source.few_first
                if signs == 2:
                    few, few_first = _with_negative(few, wide), np.tile(few_first, 2)
                into.scatter, into.each = 1, int(source.adds_each(channels))
                into.few_size, layer.scattered = source.few.shape[1], 1
                few = np.append(few, np.zeros(LANES, few.dtype))  # read, but never added
                into.few = storage.put(few.astype(np.int32))
                into.few_first = storage.put(few_first.astype(np.int32))
                base = 0
            into.tensor = source.tensor
            rows = [[(y, signs * row + base) for y, row in line] for line in source.rows]
            into.row_first, into.rows = storage.put_table(rows, 2)
            into.column_first, into.columns = storage.put_table(source.columns, 3)
        weights = np.concatenate([*blocks, np.zeros((1, padded), np.int8)])
        if (total + 1) * padded >= 2**31:
            raise NoView("weights of more than 2 GiB")
        layer.zero_row, layer.window_most = total, most
        lines = zip(*(source.rows for source in sources), strict=True)
        layer.rows_most = max(sum(map(len, line)) for line in lines)
        layer.parts_most = max(len(line) for source in sources for line in source.columns)
        signed = any(self.signs[source.tensor] == 2 for source in sources)
        small = SMALL_SLIDING if layer.slide and signed else SMALL
        layer.wide = int(2 * weights.size <= small)
        weights = weights[:, self._order(padded)]
        layer.weights = storage.put(weights.astype(np.int16 if layer.wide else np.int8))
        layer.sources_number = len(sources)
        layer.sources = ctypes.cast(structs, c_void_p)
        storage.hold(structs)
        return stage

    def _order(self, padded: int) -> np.ndarray:
        """The order of channels in the weights: lane 2 i + h of a vector is channel h half + i."""
        group = np.arange(2 * self.half)
        within = group % 2 * self.half + group // 2
        starts = np.arange(0, padded, 2 * self.half)
        return (starts[:, None] + within).ravel()

    def _constant(self, op: Neuron, current: Current) -> Stage:
        channels, height, width = views.as_map(self.shapes[op.name])
        padded = -(-channels // LANES) * LANES
        stage = self._stage(op, CURRENT, channels, padded, height, width)
        inverse, limit = (
            pad(v.numpy().astype(np.float32), padded, 0) for v in (current.inverse, current.limit)
        )
        stage.kernel.inverse = self.storage.put(inverse)
        stage.kernel.limit = self.storage.put(limit)
        return stage

    def _stage(
        self, op: Neuron, kind: int, channels: int, padded: int, height: int, width: int
    ) -> Stage:
        layer = LayerStruct()
        layer.kind, layer.channels, layer.padded = kind, channels, padded
        layer.height, layer.width = height, width
        initial = op.initial.numpy()
        layer.initial_each = int(initial.ndim > 1)
        if initial.ndim > 1:
            if initial.shape[1:] != self.shapes[op.name][2:]:
                raise UsageError(
                    f"{op.name}: a channel has {self.shapes[op.name][2:]} neurons, but initial "
                    f"potentials for {initial.shape[1:]}; use the picture size of the calibration"
                )
            initial = np.moveaxis(initial.reshape(channels, height, width), 0, -1)
        values = {
            "bias": pad(op.bias.numpy(), padded, 0),
            "threshold": pad(op.threshold.numpy(), padded, NEVER),
            "initial": pad(initial, padded, 0),
        }
        if op.low is not None and op.up is not None:
            layer.negative = 2 if op.corrects else 1
            values["low"] = pad(op.low.numpy(), padded, -NEVER - 1)
            values["up"] = pad(op.up.numpy(), padded, 0)
        for name, value in values.items():
            setattr(layer, name, self.storage.put(value.astype(np.int32)))
        return Stage(op, layer)

    def _pool(self, op: Pool) -> Stage:
        """Pooling of counts, from events to events."""
        pieces = self._pieces(op.inputs[0])
        piece, *others = pieces
        whole = views.identity_piece(piece.base, self.shapes[piece.base])
        if others or not isinstance(piece, Piece) or piece != whole:
            raise NoView("pooling of what is put together")
        module, shape = op.module, self.shapes[op.name]
        channels, height, width = views.as_map(shape)
        window = window_of_pool(module)
        taps = window.taps((height, width), (len(piece.rows), len(piece.columns)))
        rows = [[(y, 0) for y, _ in line] for line in taps[0]]
        columns = [[(x, 1, 0) for x, _ in line] for line in taps[1]]
        layer, structs = LayerStruct(), (SourceStruct * 1)()
        structs[0].tensor = self.tensors[piece.base]
        structs[0].row_first, structs[0].rows = self.storage.put_table(rows, 2)
        structs[0].column_first, structs[0].columns = self.storage.put_table(columns, 3)
        layer.kind, layer.channels, layer.padded = POOL, channels, channels
        layer.height, layer.width = height, width
        layer.by_step = int(module.mode == "step")
        layer.sources_number, layer.sources = 1, ctypes.cast(structs, c_void_p)
        layer.rows_most = max(map(len, rows))
        layer.parts_most = max(map(len, columns))
        self.storage.hold(structs)
        return Stage(op, layer)

    def describe(self) -> list[str]:
        """One line for each layer that no kernel computes: its name and the reason."""
        return [
            f"{stage.op.name}: {stage.why}, computed by the reference code"
            for stage in self.stages
            if stage.layer is None
        ]


def _with_negative(weights: np.ndarray, channels: int) -> np.ndarray:
    """Weight rows of columns of `channels` channels, each with those of negative spikes behind."""
    columns = weights.reshape(-1, channels, weights.shape[1])
    return np.concatenate([columns, -columns], 1).reshape(-1, weights.shape[1])
