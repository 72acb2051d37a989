"""Compiled neurons and the compiled activation of stage I: equal to those of torch."""

import random
import warnings

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from spikedet.errors import UsageError
from spikedet.kernels import library
from spikedet.neurons import compiled
from spikedet.neurons.correcting import CorrectingNeuron
from spikedet.neurons.functional import integrate_and_fire, integrate_and_fire_surrogate
from spikedet.neurons.layers import IFNeuron
from spikedet.neurons.quantize import QuantClip, _QuantClip
from support.engines import KERNELS, needs_kernels

pytestmark = needs_kernels
KINDS = ["ordinary", "one slope", "each channel its slope", "takes spikes back"]


@pytest.fixture(params=KERNELS)
def both(request, monkeypatch):
    """Compute something by torch, and then by the kernels; both results."""
    monkeypatch.setenv(library.CHOICE, request.param)

    def compute(function):
        with monkeypatch.context() as without:
            without.setattr(compiled, "present", lambda: False)
            by_torch = function()
        return by_torch, function()

    return compute


def watch(monkeypatch):
    """How often kernels ran, by their number."""
    ran = []
    run = compiled.Places.run
    monkeypatch.setattr(
        compiled.Places, "run", lambda self, kind, a: (ran.append(kind), run(self, kind, a))[1]
    )
    return ran


def draw(seed):
    """Random sizes and values of neurons: keywords for `integrate_and_fire`, and more."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    batch, steps = rng.randint(1, 4), rng.randint(1, 5)
    channels = rng.choice([1, 3, 16, 20, 64, 300, 600, 1500])
    size = rng.choice([(), (7,), (5, 3), (24, 2), (40, 5), (2, 3, 3)])
    kind = KINDS[seed % 4]
    dtype = rng.choice([torch.float32, torch.bfloat16])
    last = len(size) == 2 and rng.random() < 0.5
    layout = torch.channels_last if last else torch.contiguous_format
    each = (1, channels, *[1] * len(size))
    slope = {"ordinary": 0.0, "takes spikes back": 1.0}.get(kind, rng.choice([0.1, 0.25, 1.0]))
    if kind == "each channel its slope":
        slope = torch.randint(0, 3, each) / 2
    frames = batch if rng.random() < 0.3 else steps * batch  # constant over time, or not
    potential = torch.rand(batch, *each[1:2], *size).contiguous(memory_format=layout)
    return {
        "current": torch.randn(frames, channels, *size).to(dtype).contiguous(memory_format=layout),
        "potential": potential,
        "threshold": rng.choice([torch.tensor(0.7), torch.rand(each) + 0.5]),
        "steps": steps,
        "slope": slope,
        "counts": torch.randint_like(potential, 3) if kind == KINDS[3] else None,
        "margin": rng.choice([0.0, 0.25, 1.5]) if kind == KINDS[3] else 0.0,
    }


def of_new_counts(drawn):
    counts = drawn["counts"]
    return {**drawn, "counts": None if counts is None else counts.clone()}


@pytest.mark.parametrize("seed", range(40))
def test_neurons_are_those_of_torch(both, seed, monkeypatch):
    drawn = draw(seed)
    ran = watch(monkeypatch)

    def run():
        results = []
        for dtype in (None, torch.bfloat16):
            arguments = of_new_counts(drawn)
            results += integrate_and_fire(**arguments, dtype=dtype)
            if arguments["counts"] is not None:
                results.append(arguments["counts"])
        return results

    by_torch, by_kernels = both(run)
    assert ran == [compiled.ADVANCE] * 2
    for a, b in zip(by_torch, by_kernels, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(24))
def test_gradients_of_neurons_are_those_of_torch(both, seed, alpha, monkeypatch):
    drawn = draw(seed)
    ran = watch(monkeypatch)
    sent = drawn["steps"] * len(drawn["potential"])
    shape = (sent, *drawn["current"].shape[1:])
    weights = torch.empty_like(drawn["current"][:1].expand(shape)).normal_()
    weights = weights.contiguous(memory_format=memory_of(drawn["current"]))

    def run():
        arguments = of_new_counts(drawn)
        current = arguments["current"] = arguments["current"].clone().requires_grad_()
        potential = arguments["potential"] = arguments["potential"].clone().requires_grad_()
        spikes, after = integrate_and_fire_surrogate(**arguments, alpha=alpha)
        torch.autograd.backward([spikes, after], [weights, torch.ones_like(after)])
        return spikes.detach(), after.detach(), current.grad, potential.grad

    by_torch, by_kernels = both(run)
    assert ran == [compiled.ADVANCE, compiled.RETREAT]
    for a, b in zip(by_torch, by_kernels, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


def memory_of(x):
    return torch.contiguous_format if x.is_contiguous() else torch.channels_last


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(24))
def test_the_activation_of_stage_one_is_that_of_torch(both, seed, noise, monkeypatch):
    drawn = draw(seed)
    ran = watch(monkeypatch)
    slope = 0.0 if drawn["counts"] is not None else drawn["slope"]
    lag = 0.5 / drawn["steps"] if isinstance(slope, float) and slope == 0 and seed % 8 else 0.0
    keep = (torch.rand_like(drawn["current"][:1].float()) < noise).float() if noise else None
    weights = torch.randn_like(drawn["current"])

    def run():
        x = drawn["current"].clone().requires_grad_()
        theta = drawn["threshold"].clone().requires_grad_()
        y = _QuantClip.apply(x, theta, drawn["steps"], keep, slope, lag)
        y.backward(weights)
        return y.detach(), x.grad, theta.grad

    by_torch, by_kernels = both(run)
    assert ran == [compiled.QUANTISE] * 2
    for a, b in zip(by_torch[:2], by_kernels[:2], strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)
    assert by_torch[2].shape == by_kernels[2].shape
    # a sum of up to 1,000 numbers in another order
    torch.testing.assert_close(by_torch[2], by_kernels[2], rtol=1e-4, atol=1e-3)


def test_not_a_number_stays_one(both):
    """A broken network must not look like a working one."""
    x = torch.tensor([[torch.nan, torch.inf, -torch.inf, 1.0]])

    def run():
        half = QuantClip(torch.tensor(1.0), 4, 0.0)(x.bfloat16())
        spikes, after = integrate_and_fire(x, torch.zeros(1, 4), torch.tensor(1.0), 2)
        return QuantClip(torch.tensor(1.0), 4, 0.0)(x), half, spikes, after

    for a, b in zip(*both(run), strict=True):
        assert torch.equal(a.isnan(), b.isnan())
        assert torch.equal(a.nan_to_num(7), b.nan_to_num(7))
    assert both(run)[1][0].isnan().any()


def test_infinite_values_that_are_not_rounded_are_clipped(both):
    x = torch.tensor([[torch.inf, -torch.inf, 1.0]])

    def run(slope):
        theta = torch.tensor(1.0)
        return _QuantClip.apply(x, theta, 4, torch.ones(1, 3), slope, 0.0)

    for slope, low in ((0.0, 0.0), (1.0, -1.0), (0.1, -1.0)):
        for result in both(lambda slope=slope: run(slope)):
            assert result.tolist() == [[1.0, low, 1.0]]


def test_threads_change_nothing(both):
    """Sums of gradients are made in the same order by any number of threads."""
    x, weights = torch.randn(4, 24, 40, 40), torch.randn(4, 24, 40, 40)

    def run(threads):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            layer = QuantClip(torch.rand(24, generator=torch.Generator().manual_seed(1)) + 1, 8, 0)
            layer(x).backward(weights)
            return layer.threshold.grad
        finally:
            torch.set_num_threads(before)

    one, two = both(lambda: run(1))[1], both(lambda: run(3))[1]
    assert torch.equal(one, two)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.double(),
        lambda x: x.half(),
        lambda x: x.transpose(2, 3),
        lambda x: x[:, ::2],
        lambda x: x[:1].expand(4, -1, -1, -1),
    ],
    ids=["float64", "float16", "transposed", "every second channel", "expanded"],
)
def test_other_tensors_are_computed_by_torch(change, monkeypatch):
    x = change(torch.randn(4, 6, 5, 5))
    ran = watch(monkeypatch)
    neuron = CorrectingNeuron(torch.tensor(0.5), margin=0.25)
    spikes = neuron.advance(x, 2, 2, None)[0]
    expected = neuron.advance(x.contiguous().float(), 2, 2, None)[0]
    assert ran == [compiled.ADVANCE]
    assert torch.equal(spikes.float(), expected)


def refuse(monkeypatch, function):
    """The error of torch, with kernels and without."""
    errors = []
    for there in (True, False):
        with monkeypatch.context() as patched:
            if not there:
                patched.setattr(compiled, "present", lambda: False)
            with pytest.raises(RuntimeError) as error:
                function()
            errors.append(str(error.value))
    assert errors[0] == errors[1]


def test_sizes_that_do_not_fit_are_refused_by_torch(monkeypatch):
    """The kernels would read and write behind the end of a tensor."""
    one = torch.tensor(1.0)
    neuron = IFNeuron(one)
    state = neuron.advance(torch.rand(1, 8, 16, 16), 1, 1, None)[1]
    refuse(monkeypatch, lambda: neuron.advance(torch.rand(1, 8, 64, 64), 1, 1, state))
    wide, small = torch.rand(4, 3, 8, 8), torch.zeros(2, 3, 4, 4)
    refuse(monkeypatch, lambda: integrate_and_fire(wide, small, one, 2))
    refuse(
        monkeypatch,
        lambda: integrate_and_fire(wide, wide[:2], one, 2, slope=1.0, counts=small),
    )
    refuse(monkeypatch, lambda: integrate_and_fire(wide[:3], wide[:2], one, 2))
    keep = torch.zeros(1, 3, 5, 5)
    refuse(monkeypatch, lambda: _QuantClip.apply(wide, one, 4, keep, 0.0, 0.0))


def test_counts_with_a_slope_for_each_channel_are_left_to_torch(monkeypatch):
    ran = watch(monkeypatch)
    slope, counts = torch.tensor([[1.0, 0.5]]), torch.zeros(1, 2)
    current = torch.tensor([[1.2, 1.2], [-0.5, -3.0]])
    integrate_and_fire(current, torch.zeros(1, 2), torch.tensor(1.0), 2, None, slope, counts)
    assert counts.tolist() == [[0.0, 0.0]] and not ran


def test_the_default_type_changes_nothing(both):
    x, slope = torch.randn(4, 6, 5, 5), torch.rand(1, 6, 1, 1)
    weights, thresholds = torch.randn_like(x), torch.ones(1, 6, 1, 1)

    def run():
        theta = thresholds.clone().requires_grad_()
        y = _QuantClip.apply(x, theta, 4, None, 0.25, 0.0)
        y.backward(weights)
        spikes, after = integrate_and_fire(x, torch.zeros_like(x[:2]), thresholds, 2)
        more, _ = integrate_and_fire(x, torch.zeros_like(x[:2]), thresholds, 2, slope=slope)
        return y.detach(), theta.grad, spikes, after, more

    expected = both(run)[0]
    for dtype in (torch.float64, torch.bfloat16):
        torch.set_default_dtype(dtype)
        try:
            found = both(run)[1]
        finally:
            torch.set_default_dtype(torch.float32)
        for a, b in zip(expected, found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_a_whole_number_as_slope(both):
    x, weights = torch.randn(4, 6, 5, 5), torch.randn(4, 6, 5, 5)

    def run():
        current = x.clone().requires_grad_()
        spikes, _ = integrate_and_fire_surrogate(
            current, torch.zeros_like(x[:2]), torch.tensor(1.0), 2, slope=1
        )
        spikes.backward(weights)
        return spikes.detach(), current.grad

    for a, b in zip(*both(run), strict=True):
        assert torch.equal(a, b)


def test_numbers_too_small_for_a_processor_that_skips_them(both):
    """A neuron at rest with slope 1 stays silent when denormal numbers count as 0."""
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot skip them")
    try:
        for spikes in both(
            lambda: integrate_and_fire(
                torch.zeros(4, 6), torch.zeros(1, 6), torch.tensor(1.0), 4, slope=1.0
            )[0]
        ):
            assert not spikes.any()
    finally:
        torch.set_flush_denormal(False)


def test_no_lower_threshold_not_even_at_minus_infinity(both):
    x = torch.full((2, 2), -torch.inf)
    slope = torch.tensor([[0.0, 0.5]])
    by_torch, by_kernels = both(
        lambda: integrate_and_fire(x, torch.zeros(1, 2), torch.tensor(1.0), 2, slope=slope)[0]
    )
    assert torch.equal(by_torch, by_kernels) and not by_kernels[:, 0].any()


def test_gradients_in_another_layout_use_the_kernels(monkeypatch):
    """As behind a mean over a map: a gradient that is the same everywhere."""
    ran = watch(monkeypatch)
    x = torch.randn(4, 6, 5, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    y = QuantClip(torch.tensor(1.0), 4, 0.0)(x)
    spikes, _ = integrate_and_fire_surrogate(x, torch.zeros_like(x[:2]), torch.tensor(1.0), 2)
    (y.mean() + spikes.mean()).backward()
    assert sorted(ran) == sorted([compiled.QUANTISE, compiled.ADVANCE] + [1, 2])
    assert [compiled.RETREAT, compiled.QUANTISE] == [1, 2]


def test_there_is_no_second_derivative():
    x = torch.rand(2, 3, requires_grad=True)
    spikes, _ = integrate_and_fire_surrogate(x, torch.zeros(1, 3), torch.tensor(1.0), 2)
    for y in (spikes, QuantClip(torch.tensor(1.0), 4, 0.0)(x)):
        grad = torch.autograd.grad((y**2).sum(), x, create_graph=True)[0]
        with pytest.raises(RuntimeError, match="differentiate twice"):
            grad.sum().backward()


def test_tensors_without_values_are_left_to_torch(monkeypatch):
    ran = watch(monkeypatch)
    neuron = IFNeuron(torch.tensor(1.0))
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(torch.rand(4, 3, 5, 5))
        assert _QuantClip.apply(fake, torch.ones(()), 4, None, 0.0, 0.0).shape == fake.shape
    neuron.requires_grad_(False)
    x = torch.tensor([[0.2, 0.7, 1.4]] * 4)
    with warnings.catch_warnings():  # tracing is deprecated
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(
            lambda x: neuron.advance(x, 2, 2, None)[0], torch.rand(4, 3), check_trace=False
        )
    assert torch.equal(traced(x), neuron.advance(x, 2, 2, None)[0])
    negative = torch._neg_view(torch.rand(4, 3))
    spikes = neuron.advance(negative, 2, 2, None)[0]
    assert torch.equal(spikes, neuron.advance(negative.clone().resolve_neg(), 2, 2, None)[0])
    assert ran == [compiled.ADVANCE] * 2  # the checks, not what is checked


def test_one_threshold_for_each_neuron_is_computed_by_torch(monkeypatch):
    ran = watch(monkeypatch)
    threshold = torch.rand(1, 6, 5, 5) + 0.5
    integrate_and_fire(torch.rand(4, 6, 5, 5), torch.zeros(2, 6, 5, 5), threshold, 2)
    assert not ran


def test_without_kernels_torch_computes(monkeypatch):
    monkeypatch.setenv("SPIKEDET_NO_KERNELS", "1")
    library.found_once.cache_clear()
    try:
        ran = watch(monkeypatch)
        spikes = IFNeuron(torch.tensor(1.0)).advance(torch.ones(2, 3), 1, 2, None)[0]
        assert spikes.tolist() == [[1.0, 1.0, 1.0]] * 2 and not ran
    finally:
        library.found_once.cache_clear()


@pytest.mark.parametrize("broken", ["no home", "a folder that is no folder", "no source code"])
def test_a_library_that_cannot_be_built_is_no_error(broken, tmp_path, monkeypatch):
    def lost():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(library, "_opened", lambda path: None)  # none is there yet
    if broken == "no home":
        monkeypatch.setattr(library.Path, "home", lost)
    elif broken == "no source code":
        monkeypatch.setattr(library, "SOURCES", ("missing.cpp",))
    else:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    library.found_once.cache_clear()
    try:
        with pytest.raises(library.NoLibrary):
            library.library()
        spikes = IFNeuron(torch.tensor(1.0)).advance(torch.ones(2, 3), 1, 2, None)[0]
        assert spikes.tolist() == [[1.0, 1.0, 1.0]] * 2
    finally:
        library.found_once.cache_clear()


def test_kernels_that_are_not_there_are_refused(monkeypatch):
    monkeypatch.setenv(library.CHOICE, "sse9")
    with pytest.raises(UsageError, match=r"SPIKEDET_KERNELS 'sse9'; this machine has "):
        IFNeuron(torch.tensor(1.0)).advance(torch.ones(2, 3), 1, 2, None)
