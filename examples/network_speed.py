"""Measure how fast networks of torchvision run as spiking networks.

    python examples/network_speed.py resnet18 mobilenet_v2 vgg11_bn --T 8

The networks have random weights, and their thresholds are estimated from random pictures. The speed
depends on the number of spikes, so the table also shows the firing rate. A trained network of yours
has another one: convert it as in docs/convert.md, and measure it in the same way.
"""

import argparse
import time
from statistics import median

import torch
import torchvision
from torch import Tensor, nn

import spikedet


def smooth_pictures(number: int, side: int) -> Tensor:
    """Random pictures whose neighbouring pixels are alike, [number, 3, side, side]."""
    coarse = torch.rand(number, 3, side // 8, side // 8)
    return nn.functional.interpolate(coarse, size=side, mode="bilinear")


def random_network(name: str, side: int) -> nn.Module:
    """A network of torchvision with random weights and the batch norm of random pictures."""
    network = torchvision.models.get_model(name, weights=None)
    for parameter in network.parameters():
        if parameter.ndim == 4:
            nn.init.kaiming_normal_(parameter)
    with torch.no_grad():
        for _ in range(8):
            network.train()(smooth_pictures(8, side))
    return network.eval()


def measure(name: str, T: int, side: int, rounds: int) -> dict[str, float]:
    """Milliseconds of the float and of the spiking network for a picture, and the firing rate."""
    network, pictures = random_network(name, side), smooth_pictures(8, side)
    snn = spikedet.convert(network, pictures.split(4), T=T, method="copy", progress=False)
    snn.use_engine("auto")
    picture = pictures[:1].contiguous(memory_format=torch.channels_last)
    network.to(memory_format=torch.channels_last)
    with snn.spike_rates() as rates:
        snn(picture)
    times: dict[str, list[float]] = {"float": [], "spiking": []}
    with torch.no_grad():
        for _ in range(rounds + 2):  # the first two warm up
            for kind, call in (("float", network), ("spiking", snn)):
                start = time.perf_counter()
                call(picture)
                times[kind].append(1e3 * (time.perf_counter() - start))
    return {kind: median(values[2:]) for kind, values in times.items()} | {"rate": rates.mean()}


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="+", help="names of torchvision's classifiers")
    parser.add_argument("--T", type=int, default=8, help="time steps (default: 8)")
    parser.add_argument("--side", type=int, default=224, help="pixels (default: 224)")
    parser.add_argument("--rounds", type=int, default=20, help="pictures timed (default: 20)")
    options = parser.parse_args(words)
    torch.manual_seed(0)
    print(f"T = {options.T}, {torch.get_num_threads()} threads")
    print(f"{'network':20}{'spikes':>8}{'float ms':>10}{'spiking ms':>12}{'passes':>8}")
    for name in options.networks:
        row = measure(name, options.T, options.side, options.rounds)
        passes = row["spiking"] / row["float"]
        print(f"{name:20}{row['rate']:8.3f}{row['float']:10.1f}{row['spiking']:12.1f}{passes:8.2f}")


if __name__ == "__main__":
    main()
