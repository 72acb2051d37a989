"""Layers by the matrix unit of a processor: grids, tiles, and the same spikes as by events."""

import ctypes
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spikedet.engines import matrix
from spikedet.engines.events_engine import EventsEngine
from spikedet.engines.layout import SourceStruct
from spikedet.engines.matrix import Grid, Rows, grid_of, lead_of, rows_of
from spikedet.engines.sources import Source, merged, taps_of
from support.engines import CORRECTING, MATRIX, Layer, expect_equal, matrix_layers, ran, spiking

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
            lead, stride = lead_of(grid, width), grid.stride_in(rows)
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
    struct, keep = SourceStruct(), []
    matrix.fill(struct, source, grid_of(source.columns), 40, 64, keep)
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
def test_a_row_too_long_for_the_cache_is_added(monkeypatch):
    monkeypatch.setattr(matrix, "ALWAYS", True)
    pictures = torch.rand(1, 3, 16, 16)
    graph = spiking(Layer(nn.Conv2d(6, 8, 3, 1, 1)), pictures)
    amx, portable = (
        ran(EventsEngine(graph, name), pictures, [4000])[0][0][0] for name in ("amx", "portable")
    )
    assert torch.equal(amx, portable)
