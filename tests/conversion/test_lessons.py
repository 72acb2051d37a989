"""Training inside `spikedet.convert`."""

import torch
from torch import nn

import spikedet
from spikedet.conversion import distill


def test_every_batch_is_trained_on_however_many_there_are(batches, monkeypatch):
    """A round of the end-to-end pass goes on with the batch after that of the round before."""
    monkeypatch.setattr(distill, "ROUND", 2)
    torch.manual_seed(1)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    seen = []

    def loss(output, number):
        seen.append(int(number))
        return output.square().mean()

    numbered = [(batch, torch.tensor(number)) for number, batch in enumerate(batches[:5])]
    spikedet.convert(network, numbered, 2, loss=loss, layer_steps=0, end_to_end=6, progress=False)
    assert seen == [0, 1, 4, 0, 1, 4]  # 2 and 3 hold pictures that decide what is kept
