"""Spikes of some neurons at one place of a picture, over the time steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spikedet.analysis.record import Recorder
from spikedet.runtime.network import SpikingNetwork

NEURONS = 6  # of each layer


@torch.no_grad()
def raster(
    spiking: SpikingNetwork,
    pictures: Tensor,
    T: int,
    place: tuple[float, float] = (0.5, 0.5),
    neurons: int = NEURONS,
) -> list[dict[str, Any]]:
    """Run on a picture and write down who fires when.

    Args:
        spiking: The network.
        pictures: [B, C, H, W]; the first of them is looked at.
        T: Time steps.
        place: Row and column as parts of height and width; each layer is looked at there.
        neurons: Of each layer those that fire most often at that place, in the order of channels.

    Returns:
        A row a neuron and step: `layer`, `channel`, `row`, `column` (of the layer's map, None in
        layers without places), `T` (the step, 1, 2 ...), `spike` (0 or 1, of either sign).
    """
    recorder = Recorder(spiking)
    heard: dict[str, list[Tensor]] = {}
    places: dict[str, tuple[int | None, int | None]] = {}
    for _ in recorder.run(pictures[:1], T):
        for layer in recorder.neurons:
            spikes = recorder.now[layer.name][0]
            row = column = None
            if spikes.ndim == 3:
                row, column = (
                    min(size - 1, int(part * size))
                    for part, size in zip(place, spikes.shape[1:], strict=True)
                )
                spikes = spikes[:, row, column]
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
