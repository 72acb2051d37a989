"""Windows that slide along a row: which layers have them, and that no spike changes."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spikedet.engines.events_engine import EventsEngine
from spikedet.engines.sliding import slide_of
from spikedet.engines.sources import Source, Window
from support.engines import CORRECTING, Layer, expect_equal, needs_kernels, spiking


def slides(engine: EventsEngine) -> list[tuple[int, int]]:
    """Columns and lead of each layer behind the first neurons."""
    sizes = {name: engine.graph.shapes[name] for name in engine._currents}
    return [
        (stage.kernel.slide, stage.kernel.slide_lead) for stage in engine.plan(sizes).stages[1:]
    ]


@needs_kernels
@pytest.mark.parametrize(
    ("kernel", "padding", "lead"),
    [(3, 1, 1), (3, 0, 2), (3, 2, 0), (2, 1, 0), (2, 0, 1), ((1, 3), (0, 1), 1), ((3, 2), 1, 0)],
)
@pytest.mark.parametrize(
    ("channels", "size"), [(5, (11, 5)), (32, (7, 12)), (40, (5, 6)), (64, (6, 8))]
)
@pytest.mark.parametrize("slope", [None, CORRECTING])
def test_no_spike_changes(kernel, padding, lead, channels, size, slope):
    torch.manual_seed(4)
    middle = nn.Conv2d(6, channels, kernel, 1, padding)
    pictures = torch.rand(3, 3, *size)
    engine = expect_equal(spiking(Layer(middle, out=channels), pictures, slope=slope), pictures, 6)
    columns = kernel if isinstance(kernel, int) else kernel[1]
    assert slides(engine) == [(columns, lead)]


class Stem(nn.Module):
    """A window over tensors of which one has negative spikes, and the other has not or has."""

    def __init__(self, joined):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, 1, 1), nn.Conv2d(6, 6, 3, 1, 1)
        self.third, self.joined = nn.Conv2d(6, 6, 3, 1, 1), joined
        self.both, self.other = nn.Conv2d(12, 8, 3, 1, 1), nn.Conv2d(6, 8, 3, 1, 1)
        self.one, self.last = nn.Conv2d(6, 8, 3, 1, 1), nn.Conv2d(8, 3, 1)
        self.end = nn.Conv2d(6, 2, 1)

    def forward(self, x):
        x = F.relu(self.first(x))  # a constant current: no negative spikes
        y = F.relu(self.second(x))
        z = F.relu(self.third(y))
        if self.joined == "sum":
            now = self.one(x) + self.other(y)
        else:
            pair = {"plain first": (x, y), "signed first": (y, x), "both signed": (y, z)}
            now = self.both(torch.cat(pair[self.joined], 1))
        return self.last(F.relu(now)), self.end(z)


@needs_kernels
@pytest.mark.parametrize("joined", ["plain first", "signed first", "both signed", "sum"])
def test_windows_over_tensors_of_unlike_signs(joined):
    torch.manual_seed(4)
    pictures = torch.rand(2, 3, 12, 10)
    engine = expect_equal(
        spiking(Stem(joined), pictures, slope=CORRECTING), pictures, 6, negative=True
    )
    widths = slides(engine)
    assert ((3, 1) in widths[-1:]) == (joined == "both signed"), widths


@needs_kernels
@pytest.mark.parametrize(
    ("middle", "slope"),
    [
        (nn.Conv2d(6, 80, 3, 1, 1), 0.0),  # too many channels
        (nn.Conv2d(6, 8, 3, 2, 1), 0.0),
        (nn.Conv2d(6, 8, 3, 1, 2, dilation=2), 0.0),
        (nn.Conv2d(6, 8, 5, 1, 2), 0.0),
        (nn.Conv2d(6, 8, 1), 0.0),
        (nn.Conv2d(6, 6, 3, 1, 1, groups=6), 0.0),
        (nn.ConvTranspose2d(6, 8, 3, 1, 1), 0.0),
        (nn.Conv2d(6, 8, 3, 1, 1), 0.1),  # of a leaky ReLU
    ],
)
def test_other_layers_do_not_slide(middle, slope):
    torch.manual_seed(4)
    pictures = torch.rand(2, 3, 16, 12)
    engine = expect_equal(
        spiking(Layer(middle, out=middle.out_channels), pictures, 4, slope), pictures
    )
    assert slides(engine) == [(0, 0)]


def test_sums_that_could_leave_int16_do_not_slide():
    window = Window((3, 3), (1, 1), (1, 1), (1, 1))
    weights = np.full((9 * 28, 2), 127, np.int8)
    base = (28, 4, 4)
    source = Source(0, [], [], weights, window=window)
    assert 127 * len(weights) < 2**15 < 2 * 127 * len(weights)
    assert slide_of([source], [base], [1]) == (3, 1)
    assert slide_of([source], [base], [2]) is None  # pooled spikes that occur twice
    assert slide_of([source, source], [base, base], [1, 1]) is None
    weights[::2, 1] = -128  # what one output sums up counts, whatever its sign
    assert slide_of([source], [base], [1]) == (3, 1)
    weights[:, 1] = np.tile([-128, 127], len(weights) // 2)
    weights = np.concatenate([weights, weights[:9]])
    assert slide_of([Source(0, [], [], weights, window=window)], [base], [1]) is None


def test_averaged_rows_count_as_often_as_they_read_a_weight():
    window = Window((1, 3), (1, 1), (0, 1), (1, 1))
    weights = np.full((12, 2), 127, np.int8)
    once, often = ([[(y, 0) for y in range(rows)]] for rows in (1, 64))
    assert slide_of([Source(0, once, [], weights, window=window)], [(4, 64, 9)], [1]) == (3, 1)
    assert slide_of([Source(0, often, [], weights, window=window)], [(4, 64, 9)], [1]) is None


@needs_kernels
def test_no_spike_of_averaged_rows_changes():
    torch.manual_seed(4)
    last = nn.Conv2d(16, 8, 3, 1, 1)
    nn.init.constant_(last.weight, 0.01)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1), nn.ReLU(), nn.AvgPool2d((2, 1)), last, nn.ReLU(),
        nn.Conv2d(8, 2, 1),
    )  # fmt: skip
    nn.init.constant_(network[0].bias, 1.0)
    pictures = torch.rand(2, 3, 12, 10)
    engine = expect_equal(spiking(network, pictures), pictures, 6)
    assert slides(engine) == [(0, 0)]


def test_inputs_of_unlike_windows_do_not_slide():
    weights = np.ones((9, 2), np.int8)
    window = Window((3, 3), (1, 1), (1, 1), (1, 1))
    other = Source(1, [], [], weights[:1], window=Window((1, 1), (1, 1), (0, 0), (1, 1)))
    like = Source(1, [], [], weights, window=window)
    moved = Source(1, [], [], weights)  # up-sampled, say
    base = (1, 4, 4)
    assert slide_of([like, like], [base, base], [1, 1]) == (3, 1)
    assert slide_of([like, like], [base, (1, 4, 5)], [1, 1]) is None
    assert slide_of([like, other], [base, base], [1, 1]) is None
    assert slide_of([like, moved], [base, base], [1, 1]) is None
