"""Convert a float network by SpikingJelly's own converter, run it by SpikingJelly, and measure it.

    pip install spikingjelly
    python examples/spikingjelly_converter.py --data data/VOCdevkit --T 8 20 60
    python examples/spikingjelly_converter.py --weights FLOAT --data data/cifar10 --recipe balance

The float network is handed over as a graph of torch.fx with ordinary modules. Thresholds come from
training pictures: the 99.9th percentile of each channel (`rate`, RateCodingRecipe), or local
threshold balancing (`balance`, LocalThresholdBalancingRecipe), both with the options of
SpikingJelly's own example for ImageNet. Then the network runs T times on the same picture, and the
mean of its outputs is what spikedet measures; the first steps are left out of the mean as
SpikingJelly's `estimate_delay_start` says (`--no-delay` for all steps).
"""

import argparse
import json
import operator
import warnings
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from spikedet import checkpoint, networks, task_registry
from spikedet.commands import shared
from spikedet.graph.graph import INPUT, Graph
from spikedet.graph.operations import Add, Concatenate
from spikedet.graph.structure import fill
from spikedet.released import released

RECIPES = ("rate", "balance")


def as_fx(graph: Graph) -> fx.GraphModule:
    """A float graph as torch.fx has it: modules by torch, additions and concatenations as calls."""
    modules, wanted = nn.ModuleDict(), fx.Graph()
    values = {INPUT: wanted.placeholder("pictures")}
    for name in graph.edges:
        node = graph.node(name)
        inputs = tuple(values[source] for source in node.inputs)
        if isinstance(node.module, Add):
            values[name] = wanted.call_function(operator.add, inputs)
        elif isinstance(node.module, Concatenate):
            values[name] = wanted.call_function(torch.cat, (inputs, node.module.dim))
        else:
            label = name.replace(".", "_")
            modules[label] = node.module
            values[name] = wanted.call_module(label, inputs)
    wanted.output([values[name] for name in graph.outputs])
    return fx.GraphModule(modules, wanted)


class OverTime(nn.Module):
    """A network of SpikingJelly's that runs T times on a picture.

    Its outputs are the mean of those after the first `delay` steps.
    """

    def __init__(self, network: nn.Module, T: int, delay: int, graph: Graph):
        super().__init__()
        self.network, self.T, self.delay = network, T, delay
        self.output, self.names = graph.output, tuple(graph.outputs)

    def forward(self, pictures: Tensor) -> object:
        from spikingjelly.activation_based import functional

        functional.reset_net(self.network)
        steps = [self.network(pictures) for _ in range(self.T)][self.delay :]
        means = [torch.stack(values).mean(0) for values in zip(*steps, strict=True)]
        return fill(self.output, dict(zip(self.names, means, strict=True)))


def converted(network: fx.GraphModule, recipe: str, pictures: list[Tensor]) -> nn.Module:
    """What SpikingJelly's converter makes of it."""
    from spikingjelly.activation_based import ann2snn

    if recipe == "rate":
        how = ann2snn.RateCodingRecipe(
            dataloader=pictures,
            mode="99.9%",
            channel_wise=True,
            pre_spike_maxpool=True,
            half_threshold=True,
        )
    else:
        how = ann2snn.LocalThresholdBalancingRecipe(dataloader=pictures)
    return ann2snn.Converter(how).convert(network).eval()


def main(words: list[str] | None = None) -> list[dict]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, help="float weights (the released detector)")
    parser.add_argument(
        "--data", type=Path, nargs="+", required=True, help="as of spikedet evaluate"
    )
    parser.add_argument("--train-split", help="where the thresholds come from")
    parser.add_argument("--split", help="what is measured")
    parser.add_argument("--T", type=int, nargs="+", default=[8, 20, 60])
    parser.add_argument("--recipe", choices=RECIPES, default="rate")
    parser.add_argument(
        "--pictures", type=int, default=1024, help="training pictures for thresholds"
    )
    parser.add_argument("--no-delay", action="store_true", help="read out all steps")
    parser.add_argument("--limit", type=int, help="measure only so many pictures")
    parser.add_argument("--json", type=Path, help="write the rows here")
    options = parser.parse_args(words)
    options.names = options.images = None

    from spikingjelly.activation_based import ann2snn

    floats = checkpoint.load(options.weights or released("float", None, "detection"))
    task = task_registry.named(floats.task)
    graph = networks.graph_of(task, floats)
    train = shared.read(
        options,
        task,
        options.train_split or shared.usual_split(options.data, task.name),
        options.pictures,
        floats.names,
    )
    test = shared.read(
        options, task, shared.split(options, task.name, test=True), options.limit, floats.names
    )
    batches = list(train.pictures(floats, 16))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spiking = converted(as_fx(graph.eval()), options.recipe, batches)
    rows = []
    for T in options.T:
        delay = 0 if options.no_delay else ann2snn.estimate_delay_start(spiking, batches, "cpu", T)
        network = OverTime(spiking, T, delay, graph)
        ((values, _),) = task.measure(task.runner(network, floats), test)
        numbers = {key: value for key, value in values.items() if isinstance(value, float)}
        row = {"recipe": options.recipe, "T": T, "delay": delay, "images": len(test)}
        rows.append(row | numbers)
        print(json.dumps(rows[-1]), flush=True)
        if options.json:
            options.json.write_text(json.dumps(rows, indent=2) + "\n")
    return rows


if __name__ == "__main__":
    main()
