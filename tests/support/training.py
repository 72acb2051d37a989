"""A small classifier, its samples, and a run of its training."""

import torch
from safetensors.torch import save_file
from torch import nn

from spikedet.checkpoint import Checkpoint
from spikedet.classification import train as training
from spikedet.classification.data import Samples
from spikedet.classification.defaults import Settings
from spikedet.neurons.quantize import QuantClip
from spikedet.task import Run

DESCRIPTION = {"mean": [0.5] * 3, "std": [0.25] * 3}


CLASSES = 4


def samples(count, seed=0):
    """Noise, brighter in the channel of its class; the last class in none."""
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.randint(0, 150, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
    labels = [number % CLASSES for number in range(count)]
    for picture, label in zip(pictures, labels, strict=True):
        if label < 3:
            picture[label] += 100
    return Samples(tuple("rgbk"), labels, list(pictures))


def toy(norm=True, seed=0):
    """Two convolutions; the second activation is a quantiser."""
    torch.manual_seed(seed)
    norms = [nn.BatchNorm2d(8) if norm else nn.Identity() for _ in range(2)]
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), norms[0], nn.ReLU(),
        nn.Conv2d(8, 8, 3, 2, 1), norms[1], QuantClip(torch.tensor(2.0), 4),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES),
    )  # fmt: skip


def settings(**given):
    return Settings(**{"epochs": 3, "imgsz": 8, "batch": 16, "rate": 0.1, **given})


def save(network, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, path)


def run(folder, network=None, resume=False, teacher=None, distill=1.0, **given):
    """A trained network."""
    network = toy() if network is None else network
    what = (samples(64), samples(32, 1), folder, settings(**given), save, resume)
    training.train(network, Run(described(), *what, teacher, distill))
    return network


def described(side=8):
    """What a checkpoint says of the network."""
    return Checkpoint("float", "classification", DESCRIPTION, tuple("rgbk"), side, {})
