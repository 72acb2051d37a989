"""The spikes of some neurons at one position of a picture, over the time steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spikedet.analysis.record import Recorder
from spikedet.runtime.network import SpikingNetwork

NEURONS = 6  # neurons of each layer


@torch.no_grad()
def raster(
    spiking: SpikingNetwork,
    pictures: Tensor,
    T: int,
    place: tuple[float, float] = (0.5, 0.5),
    neurons: int = NEURONS,
) -> list[dict[str, Any]]:
    """Run a network on a picture, and record which neurons fire in which time step.

    Args:
        spiking: The network.
        pictures: [B, C, H, W], or [B, C, L]. Only the first picture is recorded.
        T: Time steps.
        place: Row and column of the position, as fractions of the height and the width. Of [C, L],
            L is the width.
        neurons: Number of neurons of each layer. These are the neurons that fire most often at this
            position, in the order of their channels.

    Returns:
        One row for each neuron and time step: `layer`, `channel`, `row` and `column` (in the map of
        the layer; None if the layer has none), `T` (the time step, from 1 on), and `spike`
        (1 for a spike of either sign, else 0).
    """
    recorder = Recorder(spiking)
    heard: dict[str, list[Tensor]] = {}
    places: dict[str, tuple[int | None, int | None]] = {}
    for _ in recorder.run(pictures[:1], T):
        for layer in recorder.neurons:
            spikes = recorder.now[layer.name][0]
            row = column = None
            if spikes.ndim > 1:
                column = _at(place[1], spikes.shape[-1])
                spikes = spikes[..., column]
            if spikes.ndim > 1:
                row = _at(place[0], spikes.shape[-1])
                spikes = spikes[..., row]
            places[layer.name] = row, column
            heard.setdefault(layer.name, []).append(spikes.flatten())
    rows = []
    for layer_name, steps in heard.items():
        spikes = torch.stack(steps)  # [T, C]
        most = spikes.sum(0).argsort(descending=True, stable=True)[:neurons].sort().values
        row, column = places[layer_name]
        for channel in most.tolist():
            about = {"layer": layer_name, "channel": channel, "row": row, "column": column}
            rows += [
                {**about, "T": t, "spike": int(spike)}
                for t, spike in enumerate(spikes[:, channel].tolist(), 1)
            ]
    return rows


def _at(part: float, size: int) -> int:
    """The position at a fraction of a side."""
    return min(size - 1, int(part * size))
