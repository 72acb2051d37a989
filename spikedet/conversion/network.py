"""Run a network over time: fold time into the batch, read out the mean input potential."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from spikedet.conversion.trace import WEIGHTED, trace
from spikedet.neurons.layers import CalledInTurn, ConstantInput, IFNeuron, Readout, SpikingMaxPool


class SpikingNetwork(nn.Module):
    """A converted network (see `make_spiking`) with time around it.

    The picture is a constant current in every step; layers before the first neuron run once, the
    others on [t*B, C, H, W] for `chunk` steps at a time, which bounds the memory for every T; the
    output is the mean over time. Nothing of a pass is left when the next one starts.

    Args:
        network: Its activations are `IFNeuron`, its last layers `Readout`.
        T: Time steps.
        chunk: Frames (steps times pictures) that go through the network at once.
    """

    def __init__(self, network: nn.Module, T: int, chunk: int = 32):
        super().__init__()
        self.network, self.T, self.chunk = network, T, chunk
        kinds = (IFNeuron, Readout, ConstantInput, SpikingMaxPool)
        self._timed = [m for m in network.modules() if isinstance(m, kinds)]
        self._neurons = [m for m in network.modules() if isinstance(m, IFNeuron)]
        self._turns = [m for m in network.modules() if isinstance(m, CalledInTurn)]

    def forward(self, pictures: Tensor, T: int | None = None) -> Any:
        """Mean output over T steps.

        Args:
            pictures: [B, 3, H, W].
            T: Time steps, the network's own by default.

        Returns:
            What the network returns, its tensors averaged over time, [B, ...].
        """
        T = self.T if T is None else T
        steps = max(1, self.chunk // len(pictures))
        if len(pictures) > self.chunk:
            parts = [self(part, T) for part in pictures.split(self.chunk)]
            return _join(parts)
        mean = None
        for _, result in self.run(pictures, T, steps):
            mean = result
        return mean

    def run(self, pictures: Tensor, T: int, steps: int = 1) -> Iterator[tuple[int, Any]]:
        """Yield (t, mean output over the first t steps) after every `steps` steps.

        Args:
            pictures: [B, 3, H, W].
            T: Time steps.
            steps: Steps between two results.
        """
        self.reset(len(pictures))
        mean, done = None, 0
        try:
            while done < T:
                now = min(steps, T - done)
                for neuron in self._neurons:
                    neuron.steps = now
                output = self.network(pictures)
                done += now
                mean = output if mean is None else _blend(mean, output, now / done)
                yield done, mean
        finally:
            self.reset(0)

    def rate_gradient(self, pictures: Tensor, T: int | None = None) -> Any:
        """`forward` whose gradient goes through the firing rates (see `rate_through`).

        The network is simulated over T steps without gradients; then every layer runs once more on
        the mean of what it received, which, between the neurons, is the same by linearity.
        """
        T = self.T if T is None else T
        for neuron in self._neurons:
            neuron.keep_rates()
        with torch.no_grad():
            self(pictures, T)
        for neuron in self._neurons:
            neuron.go_through(T)
        self.reset(len(pictures))
        output = self.network(pictures)
        self.reset(0)
        return output

    def use_bfloat16(self, example: Tensor) -> None:
        """Compute the layers that read spikes in bfloat16, twice as fast where a CPU knows it.

        0 and 1 are exact; weights and input currents are rounded to 8 bits of mantissa. First
        layers, potentials and readouts stay in float32. There is no way back.

        Args:
            example: Input [B, C, H, W].
        """
        for neuron in self._neurons:
            neuron.steps = 1
        self.reset(len(example))
        called = trace(self.network, example).of(WEIGHTED)
        self.reset(0)
        exact = {m.layer for m in self._timed if isinstance(m, Readout | ConstantInput)}
        for module in {call.module for call in called} - exact:
            module.to(torch.bfloat16)
        for neuron in self._neurons:
            neuron.spike_dtype = torch.bfloat16

    def reset(self, batch: int) -> None:
        """Forget all potentials; the next pass has `batch` pictures."""
        for module in self._timed:
            module.start(batch)
        for module in self._turns:
            module.turn = 0

    def count_spikes(self, on: bool = True) -> None:
        """Start counting the spikes of all neurons from zero, or stop."""
        for neuron in self._neurons:
            neuron.count_spikes(on)

    def spike_rate(self) -> float:
        """Spikes per neuron and step since `count_spikes`, over all layers."""
        total = sum(neuron.spike_sum.item() for neuron in self._neurons)
        return total / max(1, sum(neuron.spike_size for neuron in self._neurons))


def _blend(mean: Any, new: Any, part: float) -> Any:
    """(1 - part) mean + part new, for nested outputs."""
    if isinstance(mean, Tensor):
        return torch.lerp(mean, new, part) if mean.is_floating_point() else new
    if isinstance(mean, dict):
        return {key: _blend(value, new[key], part) for key, value in mean.items()}
    if isinstance(mean, list | tuple):
        return type(mean)(_blend(a, b, part) for a, b in zip(mean, new, strict=True))
    return new


def _join(parts: list[Any]) -> Any:
    """Concatenate nested outputs along the batch."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(parts)
    if isinstance(first, dict):
        return {key: _join([part[key] for part in parts]) for key in first}
    if isinstance(first, list | tuple):
        return type(first)(_join([part[i] for part in parts]) for i in range(len(first)))
    return first


def has_bfloat16() -> bool:
    """Whether this CPU multiplies in bfloat16; without, it is slower than float32."""
    known = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(known and known())
