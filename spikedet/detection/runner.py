"""Run a detection network of any stage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from spikedet.checkpoint import Checkpoint
from spikedet.detection.decode import decode, decoder
from spikedet.precision import channels_last
from spikedet.runtime.network import SpikingNetwork


class Runner:
    """A detection network of any stage with its decoder.

    Attributes:
        network: Module that computes raw head outputs. A `SpikingNetwork` for stage `snn`.
        stage: `float`, `qc` or `snn`.
        T: Time steps that the weights were made for. None for `float`.
        names: Class names.
        imgsz: Input side in pixels.
    """

    def __init__(self, network: nn.Module, checkpoint: Checkpoint):
        self.network, self.head = network, decoder(checkpoint.head, len(checkpoint.names))
        self.stage, self.T = checkpoint.stage, checkpoint.T
        self.names, self.imgsz = tuple(checkpoint.names), checkpoint.imgsz

    def to(self, device: str) -> Runner:
        """Move to a device."""
        self.network.to(device)
        self.head.to(device).stride = self.head.stride.to(device)
        return self

    @property
    def spiking(self) -> SpikingNetwork:
        """The network, if it is spiking."""
        assert isinstance(self.network, SpikingNetwork)
        return self.network

    def raw(self, pictures: Tensor, T: int | None = None) -> dict[str, Any]:
        """Compute raw head outputs: boxes [B, 4 R, A], scores [B, C, A] (logits), and feats."""
        pictures = channels_last(pictures)
        if self.stage == "snn":
            return self.network(pictures, T)
        return self.network(pictures)

    def decode(self, raw: dict[str, Any]) -> Tensor:
        """Decode raw head outputs to [B, 4 + C, A] (see `__call__`)."""
        return decode(self.head, raw)

    def __call__(self, pictures: Tensor, T: int | None = None) -> Tensor:
        """Compute the boxes and class scores of every anchor.

        Args:
            pictures: [B, 3, S, S] float32 RGB in 0..1.
            T: Time steps of a spiking network. None: the T of the network.

        Returns:
            [B, 4 + C, A]: centre x, centre y, width and height in input pixels, then C scores in
            0..1, for each of A anchors.
        """
        return self.decode(self.raw(pictures, T))

    def after(self, pictures: Tensor, steps: Sequence[int]) -> list[Tensor]:
        """The results of `__call__` for each T of `steps` (ascending), from one run."""
        pictures = channels_last(pictures)
        return [self.decode(raw) for raw in self.spiking.after(pictures, steps)]

    def steps(
        self, pictures: Tensor, T: int | None = None, chunk: int | None = None
    ) -> Iterator[tuple[int, Tensor, float]]:
        """Any-time readout of a spiking network in one run (see `SpikingNetwork.anytime`).

        Yields:
            t = 1..T, the result of `__call__` with t steps, and the spike rate so far (spikes per
            neuron and time step).
        """
        pictures = channels_last(pictures)
        with self.spiking.spike_rates() as rates:
            for t, raw in self.spiking.anytime(pictures, T, chunk):
                yield t, self.decode(raw), rates.mean(t)
