"""Integer engines: kernels against the reference, to the last spike."""

import copy
import pickle
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spikedet.engines import registry
from spikedet.engines.events_engine import EventsEngine
from spikedet.engines.integers import compile_integers
from spikedet.engines.program import NoIntegers, Weighted
from spikedet.engines.reference_engine import ReferenceEngine
from spikedet.errors import UsageError
from spikedet.kernels import library
from spikedet.neurons.layers import IFNeuron, MeanOverTime
from spikedet.runtime.network import SpikingNetwork
from spikedet.runtime.watch import watching
from support.engines import (
    CONVOLUTIONS,
    CORRECTING,
    KERNELS,
    NETWORKS,
    Joined,
    Layer,
    expect_equal,
    needs_kernels,
    ran,
    spiking,
)
from support.exported import fresh


@needs_kernels
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name):
    torch.manual_seed(1)
    middle = copy.deepcopy(CONVOLUTIONS[name])
    middle.reset_parameters()
    pictures = torch.rand(2, 3, 22, 26)
    graph = spiking(Layer(middle, out=middle.out_channels), pictures)
    assert not expect_equal(graph, pictures).describe()[1:]


@needs_kernels
@pytest.mark.parametrize("slope", [0.0, 0.1, 1.0, (0.0, 0.3, 1.0, 0.5, 0.0, 0.1), CORRECTING])
@pytest.mark.parametrize("each_channel", [False, True])
@pytest.mark.parametrize("free", [False, True])
def test_thresholds_slopes_and_initial_potentials(slope, each_channel, free):
    torch.manual_seed(2)
    pictures = torch.rand(2, 3, 16, 12) - 0.3
    network = Layer(nn.Conv2d(6, 6, 3, 1, 1), out=6)
    graph = spiking(network, pictures, 4, slope, each_channel, free)
    expect_equal(graph, pictures, 7, negative=slope == CORRECTING)


@needs_kernels
@pytest.mark.parametrize("seed", range(6))
def test_random_networks(seed):
    random = torch.Generator().manual_seed(seed)

    def pick(*values):
        return values[int(torch.randint(len(values), (), generator=random))]

    torch.manual_seed(seed)
    layers, channels = [], 3
    for _ in range(4):
        wide = pick(5, 16, 31, 33, 64)
        kernel, groups = pick(1, 3, 5), pick(1, 1, channels)
        wide = wide // groups * groups or groups
        options = {"stride": pick(1, 2), "padding": kernel // 2, "groups": groups}
        layers += [nn.Conv2d(channels, wide, kernel, **options), nn.ReLU()]
        if pick(0, 1):
            layers.append(pick(nn.MaxPool2d(2, 1), nn.AvgPool2d(2, 1), nn.ZeroPad2d(1)))
        channels = wide
    network = nn.Sequential(*layers, nn.Conv2d(channels, 4, 1))
    pictures = torch.rand(pick(1, 3), 3, 28, 24)
    expect_equal(spiking(network, pictures, 4, pick(0.0, 0.2, CORRECTING)), pictures, pick(1, 5))


@needs_kernels
@pytest.mark.parametrize("each_channel", [False, True])
@pytest.mark.parametrize("slope", [0.0, 0.2, CORRECTING])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name, slope, each_channel):
    torch.manual_seed(3)
    pictures = torch.rand(2, 3, 16, 16)
    graph = spiking(fresh(NETWORKS[name]), pictures, 4, slope, each_channel)
    expect_equal(graph, pictures, 6)


@needs_kernels
@pytest.mark.parametrize("slope", [0.0, 0.2, CORRECTING])
@pytest.mark.parametrize("name", NETWORKS)
def test_parts_of_a_pass(name, slope):
    """What goes on from one part to the next: potentials, counts, means."""
    torch.manual_seed(3)
    pictures = torch.rand(2, 3, 16, 16)
    graph = spiking(fresh(NETWORKS[name]), pictures, 4, slope, free=True)
    wanted, spikes = ran(ReferenceEngine(graph), pictures, [7])
    engine = EventsEngine(graph)
    for parts in ([7], [1, 4, 2]):
        outputs, counts = ran(engine, pictures, parts)
        assert counts == spikes
        assert torch.equal(outputs[-1], wanted[0])


@needs_kernels
def test_maps_of_one_place_are_read_out_alike():
    """Of size 1, tensors have strides of any kind, and layers behind round by them."""
    torch.manual_seed(0)
    layers = (nn.Flatten(2), nn.Conv1d(64, 64, 1), nn.ReLU(), nn.Conv1d(64, 31, 7, padding=3))
    network = nn.Sequential(nn.Conv2d(3, 64, 1), nn.ReLU(), *layers)
    pictures = torch.rand(3, 3, 1, 1)
    expect_equal(spiking(network, pictures), pictures)


@pytest.fixture
def joined():
    torch.manual_seed(4)
    pictures = torch.rand(3, 3, 16, 24)
    graph = spiking(Joined(), pictures, each_channel=True)
    for node in graph.of((MeanOverTime,)):
        node.module.log_weights = nn.Parameter(torch.randn(5))
    return graph, pictures


@needs_kernels
@pytest.mark.parametrize("kernels", KERNELS)
def test_whole_numbers_are_the_same_for_every_batch_chunk_and_thread(joined, kernels):
    graph, pictures = joined
    wanted, spikes = ran(ReferenceEngine(graph), pictures, [9])
    engine, threads = EventsEngine(graph, kernels), torch.get_num_threads()
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            for parts in ([9], [4, 5], [1, 1, 3, 4]):
                outputs, counts = ran(engine, pictures, parts)
                assert counts == spikes
                for a, b in zip(wanted[-1], outputs[-1], strict=True):
                    assert torch.equal(a, b)
            alone = [ran(engine, picture, [9])[0][0] for picture in pictures.split(1)]
            for a, b in zip(wanted[0], zip(*alone, strict=True), strict=True):
                assert torch.equal(a, torch.cat(b))
    finally:
        torch.set_num_threads(threads)


@needs_kernels
@torch.no_grad()
def test_several_pictures_take_the_memory_of_one(joined):
    graph, pictures = joined
    network = SpikingNetwork(graph, 4, chunk=2)  # of torch; the engine needs no such parts
    network.use_engine("events")
    with network.spike_rates() as rates:
        output = network(pictures)
    each, sizes = [], set()
    for picture in pictures.split(1):
        with network.spike_rates() as alone:
            each.append(network(picture))
        sizes.add(tuple(alone.by_layer()))
    for a, b in zip(output, zip(*each, strict=True), strict=True):
        assert torch.equal(a, torch.cat(b))
    (plan,) = network._engine._plans.values()
    assert set(plan.memory._free) == {(1, 4, False)}
    assert sizes == {tuple(rates.by_layer())} and 0 < rates.mean() < 1


@needs_kernels
@torch.no_grad()
def test_torch_keeps_to_its_chunk_where_it_takes_over(joined):
    graph, pictures = joined
    network = SpikingNetwork(graph, 7, chunk=6)
    network.use_engine("events")
    steps = set()
    with watching(graph, lambda now, *_: steps.add(now.steps)):
        network(pictures)
    assert steps == {1, 2}  # three pictures, six frames


@needs_kernels
def test_readouts_after_every_step_are_those_of_runs_of_their_own(joined):
    graph, pictures = joined
    engine, reference = EventsEngine(graph), ReferenceEngine(graph)
    (whole_a, whole_b), (half_a, half_b) = (
        [torch.cat(outputs) for outputs in zip(*ran(e, pictures, [4, 3], True)[0], strict=True)]
        for e in (engine, reference)
    )
    assert torch.equal(whole_a, half_a) and torch.equal(whole_b, half_b)
    for t in range(1, 8):
        alone = ran(engine, pictures, [t])[0][0]
        assert torch.equal(whole_a[(t - 1) * 3 : t * 3], alone[0])


@needs_kernels
def test_joined_branches_need_no_reference(joined):
    graph, pictures = joined
    assert EventsEngine(graph).describe() == [f"integers, {KERNELS[0]} kernels"]


@needs_kernels
def test_the_network_runs_by_an_engine(small_net, pictures):
    graph = spiking(small_net, pictures)
    network = SpikingNetwork(graph, 6, chunk=8)
    with network.spike_rates() as by_torch:
        plain = network(pictures)
    assert network.use_engine() == f"events: integers, {KERNELS[0]} kernels"
    with network.spike_rates() as rates:
        whole = network(pictures)
    assert (plain - whole).abs().mean() < 0.1 * plain.std()
    for name, rate in by_torch.by_layer().items():
        assert abs(rates.by_layer()[name] - rate) < 0.02
    steps = list(network.anytime(pictures))
    assert [t for t, _ in steps] == [1, 2, 3, 4, 5, 6]
    assert torch.equal(steps[-1][1], whole)
    for t, output in zip((2, 6), network.after(pictures, [2, 6]), strict=True):
        assert torch.equal(output, steps[t - 1][1])
    assert torch.equal(copy.deepcopy(network)(pictures), whole)
    assert torch.is_grad_enabled()
    assert network.use_engine("torch") == "torch: float32 by torch"
    assert torch.equal(network(pictures), plain)


@needs_kernels
@pytest.mark.parametrize("engine", ["events", "integers", "torch"])
def test_copies_and_pickles_run_alike(small_net, pictures, engine):
    network = SpikingNetwork(spiking(small_net, pictures), 4)
    network.use_engine(engine)
    wanted = network(pictures)
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert other.engine == engine and torch.equal(other(pictures), wanted)
    kernels = pickle.loads(pickle.dumps(EventsEngine(network.graph, KERNELS[-1]))).kernels
    assert kernels == KERNELS[-1]


@needs_kernels
def test_whatever_changes_in_a_network_is_compiled_again():
    def shortcut(graph):
        one, two = graph.of((IFNeuron,))
        graph.redirect(two.name, one.name)

    torch.manual_seed(0)
    layers = (nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    pictures = torch.rand(2, 3, 8, 8)
    graph = spiking(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), *layers), pictures)
    network = SpikingNetwork(graph, 4)
    for change in (
        lambda graph: graph.of((nn.Conv2d,))[1].module.weight.mul_(1.5),
        lambda graph: setattr(graph.of((IFNeuron,))[1].module, "slope", 0.5),
        shortcut,
    ):
        network.use_engine("events")
        before = network(pictures)
        with torch.no_grad():
            change(network.graph)
        after = network(pictures)
        assert not torch.equal(before, after)
        fresh_one = SpikingNetwork(copy.deepcopy(network.graph), 4)
        fresh_one.use_engine("events")
        assert torch.equal(fresh_one(pictures), after)


@pytest.mark.parametrize("engine", ["torch", "integers"])
def test_steps_and_batches_that_make_no_sense(small_net, pictures, engine):
    network = SpikingNetwork(spiking(small_net, pictures), 4)
    network.use_engine(engine)
    for T in (0, -1, "abc", 2.5, 10_001):
        for call in (
            lambda T=T: network(pictures, T),
            lambda T=T: network.after(pictures, [T]),
            lambda T=T: list(network.run(pictures, T)),
            lambda T=T: list(network.anytime(pictures, T)),
        ):
            with pytest.raises(UsageError, match="T is .*; expected an integer from 1 to 10000"):
                call()
    with pytest.raises(UsageError, match="steps is 0"):
        list(network.run(pictures, 4, 0))
    with pytest.raises(UsageError, match=r"steps are \[4, 2\]; expected ascending"):
        network.after(pictures, [4, 2])
    for call in (network, lambda x: list(network.anytime(x)), lambda x: list(network.run(x, 2))):
        with pytest.raises(UsageError, match="pictures is 0"):
            call(pictures[:0])


@needs_kernels
def test_several_threads_share_a_network(joined):
    graph, pictures = joined
    network = SpikingNetwork(graph, 5)
    network.use_engine("events")
    wanted, outputs = network(pictures)[0], {}

    def work(number):
        outputs[number] = all(torch.equal(network(pictures)[0], wanted) for _ in range(5))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outputs == dict.fromkeys(range(4), True)


@needs_kernels
def test_other_sizes_than_the_recorded_one(small_net, pictures):
    graph = spiking(small_net, pictures)
    expect_equal(graph, torch.rand(2, 3, 24, 40))


class Average(nn.Module):
    """The mean over all positions, [B, C, H, W] -> [B, C, 1, 1]."""

    def forward(self, x):
        return x.mean((2, 3), keepdim=True)


@needs_kernels
@pytest.mark.parametrize("beside", [False, True])
def test_pooling_windows_in_the_padding_alone(beside):
    """Of a map, and of two maps that are concatenated, which the reference code pools."""

    class Dilated(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8 + 8 * beside, 3, 1)

        def forward(self, x):
            x = F.relu(self.first(x))
            x = torch.cat([x, x], 1) if beside else x
            return self.last(F.max_pool2d(x, 2, 1, 1, 2))

    graph = spiking(Dilated(), torch.rand(1, 3, 8, 8))
    for engine in (ReferenceEngine(graph), *(EventsEngine(graph, name) for name in KERNELS)):
        ran(engine, torch.rand(1, 3, 8, 4), [2])
        with pytest.raises(UsageError, match=r"pictures \[3, 8, 1\]: a window of the max-pooling"):
            ran(engine, torch.rand(1, 3, 8, 1), [2])


@pytest.mark.parametrize("average", [nn.AdaptiveAvgPool2d(4), Average()])
def test_averages_at_other_sizes_are_right_or_refused(average):
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), average, nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)),
    )
    graph = spiking(network, torch.rand(2, 3, 16, 16))
    expect_equal(graph, torch.rand(2, 3, 8, 8))  # whose windows have a quarter of the places
    larger = torch.rand(2, 3, 32, 32)
    for kind in (EventsEngine, ReferenceEngine):
        with pytest.raises(NoIntegers, match=r"pictures \[3, 32, 32\]: the average .* divisors"):
            ran(kind(graph), larger, [4])
    net = SpikingNetwork(graph, 4)
    wanted = net(larger)
    net.use_engine("auto")
    with pytest.warns(UserWarning, match="the torch engine runs this pass"):
        assert torch.equal(net(larger), wanted)


def test_rounding_rules():
    layers = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Conv2d(1, 2, 1), nn.ReLU())
    network = nn.Sequential(layers, nn.Conv2d(2, 1, 1))
    pictures = torch.rand(1, 1, 2, 2)
    graph = spiking(network, pictures)
    name = next(n.name for n in graph if n.kind == "conv2d" and n.module.out_channels == 2)
    graph.module(name).weight.data = torch.tensor([2.54, -1.0]).view(2, 1, 1, 1)
    graph.module(name).bias.data = torch.tensor([0.031, 0.5])
    neuron = graph.of((IFNeuron,))[1].module
    neuron.threshold, neuron.initial.data = torch.tensor([3.0, 2.0]), torch.tensor([1.51, 0.0])
    program = compile_integers(graph)
    op = program.neurons[1]
    weights = next(o for o in program.ops.values() if isinstance(o, Weighted))
    assert weights.weight.flatten().tolist() == [127, -127]
    assert torch.allclose(op.scale, torch.tensor([164 / 2**13, 129 / 2**14], dtype=torch.float64))
    assert op.bias.tolist() == [2, 64]  # 1.55 and 63.504
    assert op.threshold.tolist() == [150, 254]
    assert op.initial.tolist() == [75, 0]  # 75.4


def test_integers_come_close_to_float(small_net, pictures):
    graph = spiking(small_net, pictures, T=16)
    plain = SpikingNetwork(graph, 16)(pictures)
    whole = ran(ReferenceEngine(graph), pictures, [16])[0][0]
    assert (plain - whole).abs().mean() < 0.05 * plain.std()


def test_more_steps_than_32_bits_hold_are_refused(small_net, pictures):
    engine = ReferenceEngine(spiking(small_net, pictures))
    most = engine.program.steps_most
    for op in engine.program.neurons:
        step = op.threshold.max().item()
        assert op.initial.abs().max().item() + most * step < 2**31
    with pytest.raises(UsageError, match=f"T is {most + 1}; .* hold up to {most} steps"):
        next(engine.simulate(pictures, [most + 1], False))


def test_a_sum_that_could_leave_32_bits_is_refused():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 1, 1)

        def forward(self, x):
            x = F.relu(self.first(x))
            for _ in range(2):
                x = F.relu(F.avg_pool2d(F.pad(x, (9, 9, 9, 9)), 19, 1) + x)
            return self.last(x)

    pictures = torch.rand(1, 1, 20, 20)
    graph = spiking(Wide(), pictures)
    for node in graph.of((IFNeuron,))[1:]:
        node.module.threshold = torch.tensor(1e-5)
    program = compile_integers(graph)
    assert 0 < program.steps_most < 2**31


def test_what_has_no_whole_numbers_is_refused(pictures):
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 1, 1)

        def forward(self, x):
            return self.last(F.max_pool2d(F.relu(self.a(x)) + F.relu(self.b(x)), 2))

    graph = spiking(Sum(), pictures)
    with pytest.raises(NoIntegers, match="different thresholds.*use the torch engine"):
        registry.make("integers", graph)
    name, engine, why = registry.make("auto", graph)
    assert (name, engine) == ("torch", None)
    if KERNELS:
        assert "different thresholds" in why


def test_neurons_of_another_kind_are_refused(small_net, pictures):
    class Other(IFNeuron):
        pass

    graph = spiking(small_net, pictures)
    graph.of((IFNeuron,))[1].module.__class__ = Other
    with pytest.raises(NoIntegers, match="a neuron of another kind .Other."):
        compile_integers(graph)


def test_without_a_compiler_everything_runs(small_net, pictures, monkeypatch):
    graph = spiking(small_net, pictures)
    monkeypatch.setattr(library.shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(library, "_opened", lambda path: None)
    library.found_once.cache_clear()
    try:
        network = SpikingNetwork(graph, 4)
        sentence = network.use_engine()
        assert sentence.startswith("torch: no C++ compiler; install")
        assert network(pictures).shape[0] == len(pictures)
        with pytest.raises(UsageError, match="no C..? ?compiler|no C\\+\\+ compiler"):
            network.use_engine("events")
    finally:
        library.found_once.cache_clear()


def test_a_compiler_that_fails_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho 'error: no such thing' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(library.NoLibrary, match="fails .error: no such thing.; install"):
        library._built()
    (tmp_path / "spikedet").chmod(0o777)
    with pytest.raises(library.NoLibrary, match="other users can write to this folder"):
        library._built()


def test_engines_by_name(small_net, pictures):
    graph = spiking(small_net, pictures)
    with pytest.raises(UsageError, match="no engine 'fast'; expected auto, torch, events, "):
        registry.make("fast", graph)
    with pytest.raises(ValueError, match="registered already"):
        registry.register("events", EventsEngine)
    with pytest.raises(UsageError, match="kernels 'mmx'"):
        EventsEngine(graph, "mmx").describe()


COMPILERS = {
    "g++": ("g++", []),
    "clang++": ("clang++", []),
    "aarch64": ("aarch64-linux-gnu-g++", ["qemu-aarch64-static"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILERS)
def test_kernels_against_plain_loops(name, tmp_path):
    """Every compiler, and every processor that this machine can play."""
    compiler, emulator = COMPILERS[name]
    for program in (compiler, *emulator):
        if shutil.which(program) is None:
            pytest.skip(f"no {program}")
    here = Path(library.__file__).parent / "csrc"
    flags = ["-std=c++17", "-O2", "-pthread", "-Wall", "-Wextra", "-Wno-psabi", f"-I{here}"]
    flags += ["-static"] if emulator else []
    binary = tmp_path / "kernels"
    source = Path(__file__).parent / "kernels.cpp"
    done = subprocess.run(
        [compiler, *flags, str(source), "-o", str(binary)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    own = [line for line in done.stderr.splitlines() if "warning" in line and "engines" in line]
    assert not own
    done = subprocess.run([*emulator, str(binary)], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and all(line.endswith(" 0 wrong") for line in lines), done.stdout
    if name == "aarch64":
        assert lines[0].startswith("neon: ")
