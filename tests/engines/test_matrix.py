"""Layers by the matrix unit of a processor: grids, tiles, and the same spikes as by events."""

import ctypes
import itertools
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spikedet.engines import matrix
from spikedet.engines.byte_spikes import Rows, lead_of, rows_of, stride_in
from spikedet.engines.events import Run
from spikedet.engines.events_engine import EventsEngine
from spikedet.engines.layout import SourceStruct
from spikedet.engines.matrix import Grid, grid_of
from spikedet.engines.plan import Plan
from spikedet.engines.program import (
    Current,
    Move,
    Neuron,
    Plus,
    Pool,
    Program,
    Times,
    Weighted,
)
from spikedet.engines.sources import Source, merged, taps_of
from spikedet.engines.storage import Storage
from spikedet.graph.operations import Concatenate, Slice
from spikedet.neurons.layers import SpikingMaxPool
from support.engines import (
    CORRECTING,
    KERNELS,
    MATRIX,
    Layer,
    expect_equal,
    matrix_layers,
    needs_kernels,
    ran,
    spiking,
)

needs_unit = pytest.mark.skipif(not MATRIX, reason="no matrix unit")


def columns(out, size, kernel, stride=1, dilation=1, padding=0):
    lines = taps_of(out, size, kernel, stride, dilation, padding, False)
    return [merged(line) for line in lines]


def test_grid_of_a_window_with_padding():
    assert grid_of(columns(4, 4, 3, padding=1)) == Grid(1, [-1, 0, 1, 2, 3, -1], 3)


def test_grid_of_a_strided_window():
    grid = grid_of(columns(3, 6, 3, stride=2, padding=1))
    assert grid == Grid(2, [-1, 0, 1, 2, 3, 4, 5], 3)
    assert grid.pitch == 4


def test_grid_of_an_up_sampled_input():
    up = [[(0, 1, 1), (0, 1, 2)], [(0, 1, 0), (0, 1, 1), (1, 1, 2)], [(0, 1, 0), (1, 1, 1)]]
    assert grid_of(up) == Grid(1, [-1, 0, 0, 1, -1], 3)


def test_grid_of_a_single_window_has_nothing_unused():
    grid = grid_of([[(0, 5, 0)]])
    assert grid == Grid(5, [0, 1, 2, 3, 4], 5) and grid.pitch == 1


def test_windows_with_holes_lie_one_behind_the_other():
    grid = grid_of(columns(4, 4, 3, dilation=2, padding=2))
    assert grid == Grid(3, [-1, 0, 2, -1, 1, 3, 0, 2, -1, 1, 3, -1], 3)


def test_windows_without_a_grid():
    assert grid_of(columns(20, 40, 9, dilation=2)) is None  # wider than the largest stride
    assert grid_of([[(0, 1, 0), (1, 1, 0)]]) is None  # a mean of two columns
    assert grid_of([[(0, 1, 0)], [(5, 1, 0)], [(2, 1, 0)]]) == Grid(1, [0, 5, 2], 1)


def test_the_memory_of_a_tensor_serves_layers_of_different_windows():
    wide, strided = (grid_of(columns(20, 20, 3, 1, 1, 1)), grid_of(columns(10, 20, 3, 2, 1, 1)))
    whole = grid_of([[(0, 20, 0)]])  # of a linear layer: its steps may lie any distance apart
    assert rows_of(20, [wide]) == Rows(1, 21, 16 + 3)
    assert rows_of(20, [wide, whole]) == Rows(1, 21, 16 * 21 + 20)
    assert rows_of(20, [wide, strided]) == Rows(1, 22, 16 * 2 + 3)
    assert rows_of(20, [wide, strided, whole]).columns == 22
    assert rows_of(20, [grid_of([[(0, 1, 0), (0, 1, 1)]])]) == rows_of(20, []) == Rows(0, 20, 0)


@pytest.mark.parametrize("width", [1, 2, 7, 20])
@pytest.mark.parametrize("kernel", range(1, 10))
def test_tiles_lie_inside_the_memory_of_their_tensor(width, kernel):
    draw = random.Random(10 * width + kernel)
    for _ in range(30):
        windows = [(kernel, 1, kernel // 2), (draw.randint(1, 9), draw.randint(1, 8), 0)]
        windows += [(draw.randint(1, 9), draw.randint(1, 8), draw.randint(0, 9))]
        grids = []
        for size, stride, padding in windows:
            out = (width + 2 * padding - size) // stride + 1
            grid = grid_of(columns(out, width, size, stride, 1, padding)) if out > 0 else None
            if grid and lead_of(grid, width) is not None:
                grids.append((grid, out))
        rows = rows_of(width, [grid for grid, _ in grids])
        for grid, out in grids:
            lead, stride = lead_of(grid, width), stride_in(grid, rows)
            pitch, rest = divmod(rows.columns, stride)
            assert not rest and rows.lead >= lead and rows.columns >= len(grid.columns) - lead
            for steps in (1, 2, 5, 16, 17):
                positions = -(-((steps - 1) * pitch + max(pitch, out)) // 16) * 16
                for channels in (1, 33, 512):
                    end = (rows.lead - lead + (positions - 1) * stride) * channels
                    end += -(-grid.taps * channels // 64) * 64
                    memory = (steps * rows.columns + rows.lead + rows.slack) * channels
                    assert end <= memory + 64  # and a cache line (`Memory.bytes`)


def test_tiles_have_four_inputs_beside_each_other():
    rng = np.random.default_rng(0)
    weights = rng.integers(-127, 128, (2 * 3 * 40, 33)).astype(np.int8)  # 2 rows, 3 columns
    source = Source(0, [[(0, 0)], [(0, 0), (1, 120)]], columns(4, 4, 3, padding=1), weights)
    struct, storage = SourceStruct(), Storage()
    matrix.fill(struct, source, grid_of(source.columns), 40, 64, storage)
    assert struct.chunks == 2 and struct.stride == 1 and struct.columns_most == 3
    assert list((ctypes.c_int32 * 3).from_address(struct.row_taps)) == [0, 0, 1]
    size = 2 * 2 * 4 * 16 * 16 * 4
    tiles = np.array((ctypes.c_int8 * size).from_address(struct.tiles)).reshape(2, 2, 4, 16, 16, 4)
    for tap, depth, out in ((0, 0, 0), (0, 63, 32), (1, 64, 15), (1, 119, 31)):
        here = tiles[tap, depth // 64, out // 16, depth % 64 // 4, out % 16, depth % 4]
        assert here == weights[120 * tap + depth, out]
    assert (tiles[:, 1].transpose(0, 2, 4, 1, 3).reshape(2, 64, 64)[:, :, 56:].any()) == 0


class Branches(nn.Module):
    """Two inputs of one layer, one of them up-sampled; widths that fill no vector."""

    def __init__(self, one, two):
        super().__init__()
        self.first, self.down = nn.Conv2d(3, one, 3, 2, 1), nn.Conv2d(one, two, 3, 2, 1)
        self.mix, self.last = nn.Conv2d(one + two, 70, 3, 1, 1), nn.Conv2d(70, 3, 1)

    def forward(self, x):
        x = F.relu(self.first(x))
        up = F.interpolate(F.relu(self.down(x)), scale_factor=2.0)
        return self.last(F.relu(self.mix(torch.cat([up, x], 1))))


@needs_unit
@pytest.mark.parametrize("slope", [0.0, 0.2, CORRECTING])
@pytest.mark.parametrize("channels", [(16, 40), (33, 64), (96, 5)])
def test_channels_and_branches(channels, slope):
    pictures = torch.rand(2, 3, 24, 40)
    graph = spiking(Branches(*channels), pictures, slope=slope)
    for steps in (1, 5, 17):
        engine = expect_equal(graph, pictures, steps)
    assert len(matrix_layers(next(iter(engine._plans.values())))) == 2


@needs_unit
def test_parts_and_threads(monkeypatch):
    """The state goes on from part to part, and rows that a thread has kept belong to one run."""
    monkeypatch.setattr(matrix, "ALWAYS", True)
    graph = spiking(Branches(16, 40), torch.rand(1, 3, 32, 32), slope=CORRECTING)
    engine, threads = EventsEngine(graph, "amx"), torch.get_num_threads()
    other = EventsEngine(graph, "portable")
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            for _ in range(3):
                pictures = torch.rand(3, 3, 32, 32)
                *_, whole = ran(other, pictures, [9])[0]
                *_, parts = ran(engine, pictures, [2, 3, 4])[0]
                assert torch.equal(whole[0], parts[0])
    finally:
        torch.set_num_threads(threads)


@needs_unit
def test_spikes_that_occur_several_times():
    """Sums of spikes are events and no bytes, and are counted."""

    class Sums(Layer):
        def forward(self, x):
            x = F.relu(self.first(x))
            return self.last(F.relu(self.middle(F.avg_pool2d(x, 2) + F.max_pool2d(x, 2))))

    pictures = torch.rand(1, 3, 32, 32)
    expect_equal(spiking(Sums(nn.Conv2d(6, 8, 3, 1, 1)), pictures), pictures, 6)


@needs_unit
def test_the_last_windows_of_a_step_may_lie_in_the_zeros_of_the_next():
    """Outputs that see padding alone, and columns of a step that fill whole tiles."""
    pictures = torch.rand(1, 3, 12, 20)
    expect_equal(spiking(Layer(nn.Conv2d(6, 8, 3, 1, 6)), pictures), pictures, 8)


class Residual(nn.Module):
    """Layers with shortcuts of pooled spikes, and of a layer that may be wider than its input."""

    def __init__(self, channels, kernel, padding):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, channels, 3, 1, 1), nn.Conv2d(channels, 3, 1)
        self.one, self.two = (nn.Conv2d(channels, channels, kernel, 1, padding) for _ in range(2))
        self.stays = kernel == 2 * padding + 1

    def forward(self, x):
        x = F.relu(self.first(x))
        if self.stays:
            pooled = F.max_pool2d(x, 2)
            x = F.relu(self.one(pooled) + pooled)
        return self.last(F.relu(self.two(x) + (x if self.stays else F.relu(self.one(x)))))


@needs_unit
@pytest.mark.parametrize("slope", [0.0, CORRECTING])
@pytest.mark.parametrize(("kernel", "padding"), [(3, 1), (1, 0), (1, 4)])
@pytest.mark.parametrize("channels", [16, 33, 64])
def test_shortcuts(channels, kernel, padding, slope):
    """Outputs may lie in the padding alone: they have no windows, but shortcuts."""
    pictures = torch.rand(2, 3, 12, 20)
    graph = spiking(Residual(channels, kernel, padding), pictures, slope=slope)
    for steps in (1, 5, 17):
        engine = expect_equal(graph, pictures, steps)
    assert len(matrix_layers(next(iter(engine._plans.values())))) == 2


class Cropped(nn.Module):
    """A shortcut from a part of a map that is wider than the layer."""

    def __init__(self, left):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 40, 3, 1, 1), nn.Conv2d(40, 3, 1)
        self.down, self.one = nn.Conv2d(40, 40, 3, 4, 1), nn.Conv2d(40, 40, 3, 1, 1)
        self.left = left

    def forward(self, x):
        x = F.relu(self.first(x))
        small = F.relu(self.down(x))
        rows, columns = (slice(start, start + size) for start, size in ((1, 3), (self.left, 5)))
        return self.last(F.relu(self.one(small) + x[..., rows, columns]))


@needs_kernels
@pytest.mark.parametrize("left", [0, 1, 15])
def test_shortcuts_of_a_part_of_a_map(left):
    pictures = torch.rand(2, 3, 12, 20)
    graph = spiking(Cropped(left), pictures)
    for steps in (1, 5, 17):
        expect_equal(graph, pictures, steps)


class Separable(nn.Module):
    """Windows of each channel by itself, between 1x1 convolutions; beside a shortcut."""

    def __init__(self, channels, multiplier):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, channels, 3, 2, 1), nn.Conv2d(channels, 3, 1)
        self.each = nn.Conv2d(channels, multiplier * channels, 3, 1, 1, groups=channels)
        self.mix = nn.Conv2d(multiplier * channels, channels, 1)
        self.strided = nn.Conv2d(channels, channels, 5, 2, 2, groups=channels)

    def forward(self, x):
        x = F.relu(self.first(x))
        x = F.relu(self.mix(F.relu(self.each(x))) + x)
        return self.last(F.relu(self.strided(x)))


@needs_kernels
@pytest.mark.parametrize("slope", [0.0, 0.2, CORRECTING])
@pytest.mark.parametrize(("channels", "multiplier"), [(16, 1), (33, 1), (64, 1), (40, 2)])
def test_windows_of_each_channel(channels, multiplier, slope):
    """They read bytes, where a channel adds to one output only."""
    pictures = torch.rand(2, 3, 20, 36)
    graph = spiking(Separable(channels, multiplier), pictures, slope=slope)
    for steps in (1, 5, 17):
        engine = expect_equal(graph, pictures, steps)
    plan = next(iter(engine._plans.values()))
    sources = [source for stage in plan.stages for source in stage.sources]
    assert sum(source.each for source in sources) == (3 if multiplier == 1 else 2)
    if MATRIX:
        assert len(plan.bytes) == (4 if multiplier == 1 else 3)


class Pooled(nn.Module):
    """Pooling of bytes to bytes, twice, and of bytes to the events of a linear layer."""

    def __init__(self, channels):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, channels, 3, 1, 1), nn.Linear(channels * 15, 3)
        self.middle = nn.Conv2d(channels, channels, 3, 1, 1)

    def forward(self, x):
        x = F.max_pool2d(F.max_pool2d(F.relu(self.first(x)), 2), 3, 1, 1)
        x = F.max_pool2d(F.relu(self.middle(x)), (2, 2))
        return self.last(F.relu(x).flatten(1))


@needs_kernels
@pytest.mark.parametrize("mode", ["count", "step"])
@pytest.mark.parametrize("slope", [0.0, 0.2, CORRECTING])
@pytest.mark.parametrize("channels", [16, 33, 64])
def test_pooling_of_bytes(channels, slope, mode):
    pictures = torch.rand(2, 3, 12, 20)
    graph = spiking(Pooled(channels), pictures, slope=slope)
    for pool in graph.only(SpikingMaxPool):
        pool.mode = mode
    for steps in (1, 5, 17):
        engine = expect_equal(graph, pictures, steps)
    if MATRIX:
        plan = next(iter(engine._plans.values()))
        pools = [stage.op.name for stage in plan.stages if isinstance(stage.op, Pool)]
        assert len(pools) == 3 and set(pools[:2]) < plan.bytes.keys()


def random_program(draw, numbers):
    """An integer program whose layers read few tensors in many ways, and its constant values."""
    program, sizes, shapes = Program(None), {}, {}

    def emit(op, module=None):
        program.ops[op.name] = op
        program.running.add(op.name)
        inputs = [torch.zeros(shapes[name]) for name in op.inputs]
        shapes[op.name] = tuple(module(*inputs).shape) if module else shapes[op.inputs[0]]
        return op.name

    def fire(source, size, bias=0.2):
        C, kind = shapes[source][1], draw.choice(["plain", "signed", "correcting"])
        threshold = (size * (0.5 + torch.rand(C, generator=numbers))).int() + 1
        low = None if kind == "plain" else -threshold // 2 - 1
        emit(
            Neuron(
                f"neurons{len(shapes)}", (source,), (bias * threshold).int(), threshold,
                threshold // 3, low, threshold, torch.ones(C), kind == "correcting",
            )
        )  # fmt: skip

    def weighted(source, like):
        weight = torch.randint(-127, 128, like.weight.shape, generator=numbers).to(torch.int8)
        return emit(Weighted(f"weighted{len(shapes)}", (source,), like, weight), like)

    height, width = draw.randint(1, 4), draw.choice([1, 2, 5, 15, 16, 20, 31])
    for C in draw.sample([1, 16, 33, 64, 70], 2):
        name = f"current{C}"
        sizes[name] = shapes[name] = (1, C, height, width)
        current = Current(name, (), name, torch.full((C,), 1e4), torch.full((C,), 2e4))
        program.ops[name] = current
        program.running.add(name)
        fire(name, 1e4, 0.0)
    for _ in range(8):
        maps = [name for name, shape in shapes.items() if name[0] == "n" and len(shape) == 4]
        source, other = draw.choices(maps, k=2)
        _, C, *inside = shapes[source]
        kind = draw.choice(
            ["window"] * 5
            + ["sum", "each", "each"] * 2
            + ["shortcut"] * 4
            + ["beside", "linear", "pool", "pool"]
        )
        kernel, stride = draw.randint(1, 9), draw.choice([1, 1, 1, 2, 3, 4, 8])
        padding, dilation = draw.randint(0, kernel + 1), draw.choice([1, 1, 1, 2, 3])
        window = (1, kernel), (1, stride), (0, padding), (1, dilation)
        if inside[1] + 2 * padding <= dilation * (kernel - 1):
            continue
        if kind == "beside" and shapes[other][2:] == shapes[source][2:]:
            beside = Move(f"beside{len(shapes)}", (source, other), Concatenate(1))
            source, C = emit(beside, beside.module), C + shapes[other][1]
        elif kind == "pool" and min(inside) > 1:
            size, mode = (
                draw.choice([(2, 1, 0), (2, 2, 0), (2, 1, 1)]),
                draw.choice(["count", "step"]),
            )
            pool = Pool(f"pool{len(shapes)}", (source,), SpikingMaxPool(*size, mode=mode))
            source, window = emit(pool, pool.module.pool), (1,)
        elif kind == "linear":
            flat = Move(f"flat{len(shapes)}", (source,), nn.Flatten())
            source = emit(flat, flat.module)
            fire(weighted(source, nn.Linear(shapes[source][1], 20, bias=False)), 500)
            continue
        channels = shapes[other][1] if kind == "shortcut" else draw.choice([3, 32, 40, 65])
        groups = 1
        if kind == "each":
            channels, groups = C * draw.choice([1, 1, 1, 2]), C
        terms = [weighted(source, nn.Conv2d(C, channels, *window, groups=groups, bias=False))]
        if kind == "sum" and shapes[other][2:] == shapes[source][2:]:
            like = nn.Conv2d(shapes[other][1], channels, *window, bias=False)
            terms.append(weighted(other, like))
        elif kind == "shortcut":
            _, _, *size = shapes[terms[0]]
            for like in draw.sample(maps, len(maps)):
                _, number, *most = shapes[like]
                if number != channels or most[0] < size[0] or most[1] < size[1]:
                    continue
                for dim in (2, 3):  # a part of a larger map
                    if most[dim - 2] > size[dim - 2]:
                        start = draw.randint(0, most[dim - 2] - size[dim - 2])
                        part = Slice(dim, start, start + size[dim - 2])
                        like = emit(Move(f"part{len(shapes)}", (like,), part), part)
                factor = torch.randint(-2000, 2000, (channels,), generator=numbers).int()
                terms.append(emit(Times(f"times{len(shapes)}", (like,), factor)))
                break
        fire(emit(Plus(f"sum{len(shapes)}", tuple(terms))), 40 * (kernel * C / groups) ** 0.5)
    return program, sizes


@needs_kernels
@pytest.mark.parametrize("seed", range(40))
def test_tensors_that_several_layers_read(monkeypatch, seed):
    """Every spike, whatever was in the memory before, in one part or in several."""
    draw, numbers = random.Random(seed), torch.Generator().manual_seed(seed)
    program, sizes = random_program(draw, numbers)
    batch, steps = draw.randint(1, 2), draw.choice([3, 8, 16, 17])
    values = {
        name: torch.randn(batch, *shape[1:], generator=numbers) for name, shape in sizes.items()
    }
    wanted = Run(Plan(program, sizes, "portable"), values, batch)
    truth = wanted.advance(steps, kept=True)
    kinds = [*((name, False) for name in KERNELS), *MATRIX]
    for (kernels, always), kept in itertools.product(kinds, (True, False)):
        parts = [steps] if kept else [1, 2]
        monkeypatch.setattr(matrix, "ALWAYS", always)
        run, done = Run(Plan(program, sizes, kernels), values, batch), 0
        for number in parts:
            memory = run.plan.memory.take(batch, number, kept)
            memory.scratch(2**22)
            for block in (memory._memory, memory._scratch):
                block[:] = np.random.default_rng(seed).integers(0, 256, len(block))
            run.plan.memory.give(memory)
            memory = run.advance(number, kept=kept, last=len(parts) == 1)
            for name in program.running & memory.fired.keys():
                fired = truth.fired[name][:, done : done + number]
                assert (memory.fired[name] == fired).all(), name
                op = program.ops[name]
                if kept:
                    assert torch.equal(run.dense(op, memory), wanted.dense(op, truth)), name
            run.plan.memory.give(memory)
            done += number


@needs_unit
def test_a_row_too_long_for_the_cache_is_added(monkeypatch):
    monkeypatch.setattr(matrix, "ALWAYS", True)
    pictures = torch.rand(1, 3, 16, 16)
    graph = spiking(Layer(nn.Conv2d(6, 8, 3, 1, 1)), pictures)
    amx, portable = (
        ran(EventsEngine(graph, name), pictures, [4000])[0][0][0] for name in ("amx", "portable")
    )
    assert torch.equal(amx, portable)
