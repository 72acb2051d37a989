"""Neurons traced by hand, and their gradient against the formula."""

import pytest
import torch

from spikedet.graph.rewrites.spike import make_spiking
from spikedet.neurons.functional import (
    integrate_and_fire,
    integrate_and_fire_surrogate,
    pictures_per_pass,
)
from spikedet.neurons.layers import IFNeuron, MeanOverTime, mean_over_time
from spikedet.runtime.network import SpikingNetwork
from support.stages import quantised
from support.surrogate import step_function


def run(current, u0, theta, steps):
    current = torch.tensor(current).view(-1, 1)
    return integrate_and_fire(current, torch.tensor([[u0]]), torch.tensor(theta), steps)


def test_traced_by_hand():
    # theta 2, u0 1:  u 1.5 | 3 fires, 1 | 2 fires (>=), 0 | -1 | 4 fires once only, 2
    spikes, u = run([0.5, 1.5, 1.0, -1.0, 5.0], 1.0, 2.0, 5)
    assert spikes.flatten().tolist() == [0, 1, 1, 0, 1]
    assert u.item() == 2.0


def test_constant_current_equals_the_same_current_every_step():
    current, u0 = torch.randn(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    theta = torch.tensor(0.7)
    once, u_once = integrate_and_fire(current, u0, theta, 6)
    every, u_every = integrate_and_fire(current.repeat(6, 1, 1, 1), u0, theta, 6)
    assert torch.equal(once, every) and torch.equal(u_once, u_every)


def test_arguments_are_not_modified():
    current, u0 = torch.ones(3, 2), torch.zeros(1, 2)
    integrate_and_fire(current, u0, torch.tensor(1.0), 3)
    assert current.eq(1).all() and u0.eq(0).all()


@pytest.mark.parametrize("theta", [0.25, 1.0, 3.0])
def test_residual_is_current_minus_spikes(theta):
    current = torch.randn(20, 5)
    spikes, u = integrate_and_fire(current, torch.zeros(1, 5), torch.tensor(theta), 20)
    assert torch.allclose(u[0], current.sum(0) - theta * spikes.sum(0), atol=1e-5)


@pytest.mark.parametrize("steps", [1, 4, 8, 20])
def test_rate_of_constant_current_is_the_quantiser(steps):
    theta = 1.5
    # levels k / T and points between them, away from the rounding boundaries k + 1/2
    x = (torch.arange(-3 * steps, 6 * steps) + 0.23).view(1, -1) * theta / (2 * steps)
    u0 = torch.full_like(x, theta / 2)
    spikes, _ = integrate_and_fire(x, u0, torch.tensor(theta), steps)
    rate = spikes.mean(0)
    level = (x[0] * steps / theta + 0.5).floor().clamp(0, steps) / steps
    assert torch.equal((rate * steps).round(), (level * steps).round())


def reference(current, u, theta, steps, alpha):
    """Back-propagation through time by autograd, with eq 20 as the derivative of the step."""
    fire = step_function(alpha)
    spikes = []
    for now in current.chunk(steps):
        u = u + now
        fired = fire(u / theta)
        u = u - theta * fired
        spikes.append(fired)
    return torch.cat(spikes), u


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("theta", [0.3, 1.0, 4.0])
def test_surrogate_gradient(theta, alpha):
    torch.manual_seed(0)
    theta = torch.tensor(theta)
    current = (torch.randn(6 * 2, 3, 4, 4) * theta).requires_grad_()
    u0 = (torch.rand(2, 3, 4, 4) * theta).requires_grad_()
    weight, weight_u = torch.randn(12, 3, 4, 4), torch.randn(2, 3, 4, 4)
    results = []
    for spikes, u in (
        integrate_and_fire_surrogate(current, u0, theta, 6, alpha),
        reference(current, u0, theta, 6, alpha),
    ):
        loss = (spikes * weight).sum() + (u * weight_u).sum()
        results.append((spikes, u, *torch.autograd.grad(loss, [current, u0])))
    for ours, truth in zip(*results, strict=True):
        assert torch.allclose(ours, truth, atol=1e-5)
    assert results[0][2].abs().sum() > 0


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_surrogate_at_the_threshold_and_at_the_edges_of_its_window(alpha):
    """theta 2: u = theta fires and has the full gradient; |u / theta - 1| = alpha / 2 has none."""
    theta = torch.tensor(2.0)
    low, high = 2 - alpha, 2 + alpha
    x = torch.tensor([[2.0, low, low + 1e-3, high - 1e-3, high, 1.999]], requires_grad=True)
    spikes, u = integrate_and_fire_surrogate(x, torch.zeros_like(x), theta, 1, alpha)
    assert spikes[0].tolist() == [1, 0, 0, 1, 1, 0]
    assert torch.equal(spikes, integrate_and_fire(x.detach(), torch.zeros(1, 6), theta, 1)[0])
    (grad,) = torch.autograd.grad(spikes.sum(), x, retain_graph=True)
    height = 1 / (alpha * 2)
    assert grad[0].tolist() == [height, 0, height, height, 0, height]
    (grad,) = torch.autograd.grad(u.sum(), x)
    passed = 1 - 1 / alpha
    assert grad[0].tolist() == pytest.approx([passed, 1, passed, passed, 1, passed])


@pytest.mark.parametrize(
    ("slope", "below", "edges"), [(0.5, -4.0, (-6.0, -2.0)), (1.0, 0.0, (-1.0, 1.0))]
)
def test_surrogate_of_the_lower_threshold_at_the_edges_of_its_window(slope, below, edges):
    """theta 2: u = -theta / slope fires downwards (with slope 1 only u < 0), edges have none."""
    theta, low, high = torch.tensor(2.0), *edges
    x = torch.tensor([[below, low, low + 1e-3, high - 1e-3, high]], requires_grad=True)
    spikes, _ = integrate_and_fire_surrogate(x, torch.zeros_like(x), theta, 1, 1.0, slope)
    assert spikes[0].tolist() == [-1 if slope < 1 else 0, -1, -1, 0, 0]
    sent = integrate_and_fire(x.detach(), torch.zeros(1, 5), theta, 1, slope=slope)[0]
    assert torch.equal(spikes, sent)
    (grad,) = torch.autograd.grad(spikes.sum(), x)
    height = slope / 2
    assert grad[0].tolist() == [height, 0, height, height, 0]


@pytest.mark.parametrize("slope", [0.0, 0.5])
def test_surrogate_gradient_over_several_chunks_of_the_cache(slope):
    """More than a core's cache holds goes through a few pictures at a time."""
    torch.manual_seed(0)
    current = torch.randn(2 * 3, 4, 128, 72).requires_grad_()  # 36,864 of 65,536 elements each
    u0 = torch.rand(3, 4, 128, 72).requires_grad_()
    theta, weight = torch.tensor(0.8), torch.randn_like(current)
    assert pictures_per_pass(u0) == 1
    spikes, u = integrate_and_fire_surrogate(current, u0, theta, 2, 1.0, slope)
    whole = torch.autograd.grad((spikes * weight).sum() + u.sum(), [current, u0])
    for b in range(3):
        one = current[b::3].detach().requires_grad_(), u0[b : b + 1].detach().requires_grad_()
        sent, end = integrate_and_fire_surrogate(*one, theta, 2, 1.0, slope)
        assert torch.equal(sent, spikes[b::3]) and torch.equal(end, u[b : b + 1])
        alone = torch.autograd.grad((sent * weight[b::3]).sum() + end.sum(), one)
        assert torch.equal(alone[0], whole[0][b::3]) and torch.equal(alone[1], whole[1][b : b + 1])


def test_surrogate_gradient_of_a_constant_current_is_the_sum_over_steps():
    torch.manual_seed(0)
    x = torch.randn(2, 3).requires_grad_()
    u0, theta = torch.full((2, 3), 0.5), torch.tensor(1.0)
    weight = torch.randn(10, 3)
    once, _ = integrate_and_fire_surrogate(x, u0, theta, 5)
    (ours,) = torch.autograd.grad((once * weight).sum(), x)
    every, _ = integrate_and_fire_surrogate(x.repeat(5, 1), u0, theta, 5)
    (truth,) = torch.autograd.grad((every * weight).sum(), x)
    assert torch.allclose(ours, truth, atol=1e-6)


def test_neuron_hands_on_its_potential_within_a_pass_and_forgets_it_between():
    neuron = IFNeuron(torch.tensor(1.0), torch.zeros(1))
    x = torch.full((1, 1, 1, 1), 0.6)

    def two_steps():
        first, memory = neuron.advance(x, 1, 1, None)
        second, _ = neuron.advance(x, 1, 1, memory)
        return [first.item(), second.item()]

    assert two_steps() == [0, 1]
    assert two_steps() == [0, 1]
    _, one = neuron.advance(x, 1, 1, None)  # two passes at once
    first, other = neuron.advance(2 * x, 1, 1, None)
    assert first.item() == 1 and neuron.advance(x, 1, 1, one)[0].item() == 1
    assert neuron.advance(x, 1, 1, other)[0].item() == 0
    assert neuron(x).item() == 0  # the first step


def test_neuron_per_channel_threshold_and_initial_potential():
    neuron = IFNeuron(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.5]))
    assert neuron(torch.full((1, 2, 1, 1), 0.6)).flatten().tolist() == [0, 1]


def test_threshold_must_be_positive():
    with pytest.raises(ValueError, match="expected thresholds above 0"):
        IFNeuron(torch.tensor(0.0))


@pytest.mark.parametrize("log_weights", [None, [0.0, -1.0, 1.0]])
@pytest.mark.parametrize("each_step", [False, True])
def test_readout_runs_its_layer_on_the_mean_over_time(log_weights, each_step):
    layer, mean = torch.nn.Linear(3, 2), MeanOverTime(3 if log_weights else None)
    counts = torch.ones(5)
    if log_weights:
        mean.log_weights.data.copy_(torch.tensor(log_weights))
        counts = torch.tensor([0.0, -1.0, 1.0, 1.0, 1.0]).exp()  # the last one goes on
    spikes = torch.rand(5, 2, 3).round()
    weighted = (spikes * counts.view(5, 1, 1)).cumsum(0) / counts.cumsum(0).view(5, 1, 1)
    expected = layer(weighted)
    advance = mean.each if each_step else mean.advance
    for chunks in ([5], [2, 2, 1], [1, 4]):  # however many steps go through at once
        done, memory = 0, None
        for part in spikes.bfloat16().split(chunks):
            read, memory = advance(part.flatten(0, 1), 2, len(part), memory)
            done += len(part)
            wanted = expected[done - len(part) : done] if each_step else expected[done - 1 : done]
            assert torch.allclose(layer(read), wanted.flatten(0, 1), atol=1e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mean_over_time_in_every_layout(layout, dtype):
    spikes = (torch.rand(3 * 2, 5, 4, 6) > 0.5).to(dtype).contiguous(memory_format=layout)
    with torch.autocast("cpu", torch.bfloat16):  # which would round the mean
        mean = mean_over_time(spikes, 2, weights=torch.tensor([1.0, 1.0, 3.0]))
    first, second, third = spikes.float().unflatten(0, (3, 2))
    torch.testing.assert_close(mean, first / 5 + second / 5 + third * 3 / 5)
    assert mean.is_contiguous(memory_format=layout)  # no copy before the next layer


def test_what_comes_before_the_first_neuron_runs_once_a_pass(pictures):
    calls = []
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 1), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 1)
    )
    graph = quantised(network.eval(), [pictures], 4)
    make_spiking(graph)
    graph.module("0").register_forward_hook(lambda *_: calls.append(1))
    spiking = SpikingNetwork(graph, 4, chunk=4)  # one step at a time
    spiking(pictures)
    assert len(calls) == 1
    list(spiking.anytime(pictures))
    assert len(calls) == 2
