"""Run a network over time: fold time into the batch, read out the mean input potential."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spikedet.conversion.trace import Trace, trace
from spikedet.neurons.layers import (
    CalledInTurn,
    ConstantInput,
    IFNeuron,
    Readout,
    SpikingMaxPool,
    count_spikes,
)


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
        self._readouts = [m for m in network.modules() if isinstance(m, Readout)]
        self._turns = [m for m in network.modules() if isinstance(m, CalledInTurn)]
        self._pass: object | None = None  # the pass that the potentials belong to
        self.done = 0  # its steps before those that are computed now

    def forward(self, pictures: Tensor, T: int | None = None) -> Any:
        """Mean output over T steps.

        Args:
            pictures: [B, 3, H, W].
            T: Time steps, the network's own by default.

        Returns:
            What the network returns, its tensors averaged over time, [B, ...].
        """
        (output,) = self.after(pictures, [self.T if T is None else T])
        return output

    def after(self, pictures: Tensor, steps: Sequence[int]) -> list[Any]:
        """Mean outputs over the first t steps for each t of `steps`, all from one run.

        Neurons are causal: each output is that of a run of its own with t steps.

        Args:
            pictures: [B, 3, H, W].
            steps: Time steps, 1 or more, ascending.
        """
        if len(pictures) > self.chunk:
            parts = [self.after(part, steps) for part in pictures.split(self.chunk)]
            return [_join(outputs) for outputs in zip(*parts, strict=True)]
        parts = _parts(steps, max(1, self.chunk // len(pictures)))
        simulated = self._simulate(pictures, parts, each_step=False)
        outputs = {t: output for t, output in simulated if t in steps}  # the others are let go
        return [outputs[t] for t in steps]

    def run(self, pictures: Tensor, T: int, steps: int = 1) -> Iterator[tuple[int, Any]]:
        """Yield (t, mean output over the first t steps) after every `steps` steps.

        Nothing is computed ahead: what the layers did last are these steps. For the outputs alone
        `anytime` is faster.

        Args:
            pictures: [B, 3, H, W].
            T: Time steps.
            steps: Steps between two results.

        Raises:
            RuntimeError: Another pass was started before this one was read to its end.
        """
        yield from self._simulate(pictures, _parts([T], steps), each_step=False)

    def anytime(
        self, pictures: Tensor, T: int | None = None, chunk: int | None = None
    ) -> Iterator[tuple[int, Any]]:
        """Any-time readout: yield (t, mean output over the first t steps) for t = 1..T.

        Neurons are causal, so each is the output of a run of its own with t steps, but all together
        cost one run, and the readouts of every step instead of their mean.

        Args:
            pictures: [B, 3, H, W]; at least these B frames go through the network at once.
            T: Time steps, the network's own by default.
            chunk: Frames at once, the network's own by default; with fewer the first results come
                sooner and all of them later.

        Raises:
            RuntimeError: Another pass was started before this one was read to its end.
        """
        T, batch = self.T if T is None else T, len(pictures)
        parts = _parts([T], max(1, (chunk or self.chunk) // batch))
        read = 0
        for done, output in self._simulate(pictures, parts, each_step=True):
            for first in range(0, (done - read) * batch, batch):
                read += 1
                yield read, _frames(output, first, first + batch)

    def _simulate(
        self, pictures: Tensor, parts: Iterable[int], each_step: bool
    ) -> Iterator[tuple[int, Any]]:
        """Run so many steps at once, part after part: yield all so far and the network's output.

        The output is the mean over all steps so far, [B, ...], or that after each step of the last
        part, [steps*B, ...].
        """
        self.reset(len(pictures))
        this = self._pass = object()
        try:
            for steps in parts:
                if self._pass is not this:
                    raise RuntimeError("another pass of this network has begun; read one at a time")
                for neuron in self._neurons:
                    neuron.steps = steps
                for readout in self._readouts:
                    readout.each_step = each_step
                output = self.network(pictures)
                self.done += steps
                yield self.done, output
        finally:
            if self._pass is this:
                self.reset(0)

    def use_bfloat16(self, example: Tensor) -> None:
        """Compute the layers that read spikes in bfloat16, twice as fast where a CPU supports it.

        0 and 1 are exact; weights and input currents are rounded to 8 bits of mantissa. First
        layers, potentials and readouts stay in float32. There is no way back.

        Args:
            example: Input [B, C, H, W].
        """
        for call in trace_steps(self.network, example).run_in_every_step():
            call.module.to(torch.bfloat16)
        for neuron in self._neurons:
            neuron.spike_dtype = torch.bfloat16

    def reset(self, batch: int) -> None:
        """Forget all potentials; the next pass has `batch` pictures."""
        self.done = 0
        for module in self._timed:
            module.start(batch)
        for module in self._turns:
            module.turn = 0


class SpikeRates:
    """Counts the spikes of every step of all passes that run inside the `with` block.

    Whatever travels for a spike, it counts as one.

    Args:
        network: Its neurons are watched.
    """

    def __init__(self, network: SpikingNetwork):
        self._network = network
        self._spikes: dict[int, Tensor] = {}  # float64, of all neurons in each step of the passes
        self._size: dict[int, int] = {}  # neurons of all pictures, by step too
        self._handles: list[Any] = []

    def __enter__(self) -> SpikeRates:
        neurons = self._network._neurons
        self._handles = [neuron.register_forward_hook(self._count) for neuron in neurons]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _count(self, neuron: IFNeuron, inputs: tuple, spikes: Tensor) -> None:
        counts = count_spikes(spikes.detach()).view(neuron.steps, -1).sum(1, dtype=torch.float64)
        for step, count in enumerate(counts, self._network.done):
            self._spikes[step] = self._spikes.get(step, 0) + count
            self._size[step] = self._size.get(step, 0) + spikes.numel() // neuron.steps

    def mean(self, t: int) -> float:
        """Spikes per neuron and step over the first t steps of the passes, once computed."""
        spikes = torch.stack([self._spikes[step] for step in range(t)])
        return spikes.sum().item() / sum(self._size[step] for step in range(t))


def _parts(stops: Iterable[int], at_once: int) -> Iterator[int]:
    """Numbers of steps, `at_once` at most, that come by each of `stops` (ascending)."""
    done = 0
    for stop in stops:
        while done < stop:
            yield min(at_once, stop - done)
            done += min(at_once, stop - done)


def trace_steps(network: nn.Module, pictures: Tensor, steps: int = 1) -> Trace:
    """Record a pass of so many time steps from fresh potentials, and leave none behind.

    Args:
        network: Spiking, or one without time, for which `steps` means nothing.
        pictures: [B, C, H, W].
        steps: Time steps that go through the network at once.

    Raises:
        ConversionError: As `trace`.
    """
    timed = [module for module in network.modules() if hasattr(module, "start")]
    for module in timed:
        module.start(len(pictures))
        if isinstance(module, IFNeuron):
            module.steps = steps
        if isinstance(module, Readout):
            module.each_step = False
    record = trace(network, pictures)
    for module in timed:
        module.start(0)
    return record


def _frames(output: Any, start: int, stop: int) -> Any:
    """Frames `start` to `stop` of nested outputs [steps*B, ...]."""
    if isinstance(output, Tensor):
        return output[start:stop]
    if isinstance(output, dict):
        return {key: _frames(value, start, stop) for key, value in output.items()}
    if isinstance(output, list | tuple):
        return type(output)(_frames(value, start, stop) for value in output)
    return output


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
