"""Every classification network: built, trained a step, converted, against its quantised form."""

import copy

import pytest
import torch
import torchvision
import yaml
from torch import nn

from spikedet.classification import transforms
from spikedet.classification.models import (
    AUXILIARY,
    NETWORKS,
    TORCHVISION,
    build,
    foreign,
    usual_side,
)
from spikedet.conversion.prepare import prepare
from spikedet.conversion.thresholds import estimate_thresholds
from spikedet.errors import UsageError
from spikedet.graph.rewrites.fold_batch_norm import fold_batch_norm
from spikedet.graph.rewrites.quantise import quantise
from spikedet.graph.rewrites.spike import make_spiking
from spikedet.neurons.layers import IFNeuron, SpikingMaxPool
from spikedet.runtime.network import SpikingNetwork
from support.places import ROOT

CONFIGS = ROOT / "configs/models"
FORMS = [(arch, form) for arch, forms in NETWORKS.items() for form in forms]
WIDTHS = {"resnet20": 0.5, "mobilenetv2": 0.25}  # elsewhere 1/8


def describe(arch, form="cifar", **more):
    return {"arch": arch, "form": form, "width": WIDTHS.get(arch, 0.125), **more}


def alive(description):
    """(network in evaluation mode, the pictures that its batch norms have seen).

    Biases of batch norm are 1, which keeps most units active: see `test_foreign.alive`.
    """
    torch.manual_seed(0)
    network = build(description, 10)
    small = description["form"] == "cifar" and "vgg16" not in description["arch"]
    size = 16 if small else 64
    coarse = torch.rand(8, 3, 8, 8)
    pictures = nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None
            nn.init.ones_(norm.bias)
    with torch.no_grad():
        network.train()(pictures)
    return network.eval(), pictures[:4]


def stages(network, pictures, T):
    """(quantised, spiking) graphs of a network."""
    quantised = prepare(network, pictures[:1])
    quantise(quantised, estimate_thresholds(quantised, [pictures], T), T)
    quantised.eval()
    spiking = copy.deepcopy(quantised)
    make_spiking(spiking)
    return quantised, SpikingNetwork(spiking, T)


def expect_equal(quantised, spiking, pictures):
    with torch.no_grad():
        wanted, outputs = quantised(pictures), spiking(pictures)
    assert centred(wanted).abs().amax(1).min() > 0
    expect_mostly_equal(outputs, wanted)


def expect_mostly_equal(outputs, wanted):
    """A current on the very edge of a level may be rounded to the other side in one picture."""
    errors = (outputs - wanted).abs().amax(1)
    assert (errors < 1e-3 * wanted.std()).sum() >= len(wanted) - 1, errors


def cosine(a, b):
    return nn.functional.cosine_similarity(a.flatten(), b.flatten(), 0).item()


def centred(x):
    """[B, K] without the mean over pictures, which biases alone could get right."""
    return x - x.mean(0)


@pytest.mark.parametrize(("arch", "form"), FORMS)
def test_trains_a_step(arch, form):
    torch.manual_seed(0)
    network = build(describe(arch, form), 7).train()
    optimiser = torch.optim.SGD(network.parameters(), 1e-2)
    output = network(torch.rand(4, 3, 32, 32))
    assert output.shape == (4, 7)
    loss = nn.functional.cross_entropy(output, torch.tensor([0, 3, 6, 6]))
    loss.backward()
    assert loss.isfinite()
    before = [p.detach().clone() for p in network.parameters()]
    optimiser.step()
    for old, (name, new) in zip(before, network.named_parameters(), strict=True):
        assert new.grad.isfinite().all() and not torch.equal(new, old), name


@pytest.mark.parametrize(
    ("arch", "form", "activation"),
    [
        *[(arch, form, "relu") for arch, form in FORMS],
        *[(arch, "cifar", "leaky") for arch in ("resnet20", "vgg16", "mobilenetv2")],
    ],
)
def test_one_time_step_equals_the_quantised_network(arch, form, activation):
    """With T = 1 every current is constant over time, so every spike is a level, however deep."""
    network, pictures = alive(describe(arch, form, activation=activation))
    quantised, spiking = stages(network, pictures, 1)
    slopes = {m.slope for m in spiking.modules() if isinstance(m, IFNeuron)}
    expected = {0.0 if activation == "relu" else 0.1}
    assert slopes == (expected | {1.0} if arch == "mobilenetv2" else expected)
    expect_equal(quantised, spiking, pictures)


@pytest.mark.parametrize(("arch", "form"), FORMS)
def test_batch_norm_may_be_folded_after_quantised_training(arch, form):
    """The same modules as of a network that is folded first, computing what was trained."""
    network, pictures = alive(describe(arch, form))
    example = pictures[:1]
    first, later = (prepare(network, example, fold) for fold in (True, False))
    for quantised in (first, later):
        quantise(quantised, estimate_thresholds(quantised, [pictures], 4), 4, 0.0)
    with torch.no_grad():
        expect_mostly_equal(later.eval()(pictures), first.eval()(pictures))
        for norm in (m for m in later.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.running_mean += 0.1 * torch.rand_like(norm.running_mean)  # as training would
            norm.running_var *= 1.1
        wanted = later(pictures)
        fold_batch_norm(later)
        expect_mostly_equal(later(pictures), wanted)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in later.modules())
    shapes = [{k: v.shape for k, v in n.state_dict().items()} for n in (first, later)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(("arch", "form"), [form for form in FORMS if form[1] == "cifar"])
def test_many_time_steps_approach_the_float_network(arch, form):
    network, pictures = alive(describe(arch, form))
    _, spiking = stages(network, pictures, 256)
    with torch.no_grad():
        wanted, outputs = network(pictures), spiking(pictures)
    assert cosine(outputs, wanted) > 0.99
    assert cosine(centred(outputs), centred(wanted)) > 0.95


PARAMETERS = {
    ("resnet20", "cifar"): 272_474,
    ("resnet20-wide", "cifar"): 11_247_946,
    ("resnet18", "cifar"): 11_173_962,
    ("resnet18", "imagenet"): 11_181_642,
    ("resnet34", "cifar"): 21_282_122,
    ("resnet34", "imagenet"): 21_289_802,
    ("resnext29-2x64d", "cifar"): 9_130_314,
    ("vgg16", "cifar"): 14_728_266,
    ("vgg16", "imagenet"): 134_309_962,
    ("mobilenetv2", "cifar"): 2_236_682,
    ("mobilenetv2", "imagenet"): 2_236_682,
}


@pytest.mark.parametrize(("arch", "form"), FORMS)
def test_parameters_of_the_configured_networks(arch, form):
    """For ten classes; torchvision's own state dicts fit the ImageNet forms."""
    description = yaml.safe_load((CONFIGS / f"{form}-{arch}.yaml").read_text())
    assert (description["arch"], description["form"]) == (arch, form)
    with torch.device("meta"):
        network = build(description, 10)
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[arch, form]
    if form == "imagenet":
        name = {"vgg16": "vgg16_bn", "mobilenetv2": "mobilenet_v2"}.get(arch, arch)
        with torch.device("meta"):
            other = torchvision.models.get_model(name, num_classes=10).state_dict()
        shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
        assert shapes == {name: tensor.shape for name, tensor in other.items()}


def test_every_form_has_one_configuration():
    paths = [*CONFIGS.glob("cifar-*.yaml"), *CONFIGS.glob("imagenet-*.yaml")]
    assert sorted(path.stem for path in paths) == sorted(f"{form}-{arch}" for arch, form in FORMS)


# of each family of torchvision's one
LISTED = """
alexnet densenet121 googlenet inception_v3 mnasnet1_0 mobilenet_v2 regnet_x_400mf resnet18 resnet34
resnet50 resnext50_32x4d shufflenet_v2_x1_0 squeezenet1_1 vgg11_bn vgg13_bn vgg16 vgg16_bn vgg19_bn
wide_resnet50_2
"""


@pytest.mark.parametrize("name", LISTED.split())
def test_classifiers_of_torchvision_are_built_by_name(name):
    assert f"torchvision/{name}" in TORCHVISION
    plain = (
        {"aux_logits": False, "init_weights": False} if f"torchvision/{name}" in AUXILIARY else {}
    )
    with torch.device("cpu" if "regnet" in name else "meta"):
        source = torchvision.models.get_model(name, weights=None, num_classes=7, **plain)
        network = build(foreign(name), 7)
    source = source.state_dict()
    network.load_state_dict(source, assign=True)  # refuses what is missing, and other shapes
    assert list(network.state_dict()) == list(source)


def test_what_torchvision_s_weights_take():
    assert usual_side(foreign("resnet50")) == 224 and usual_side(foreign("inception_v3")) == 299
    assert "mean" not in foreign("resnet50")
    for name in ("googlenet", "inception_v3"):
        # its own way from pictures normalised as all others to the range -1..1
        source = torchvision.models.get_model(
            name, weights=None, transform_input=True, init_weights=False
        )
        picture = torch.randint(256, (1, 3, 299, 299), dtype=torch.uint8)
        wanted = source._transform_input(transforms.view({"form": "cifar"}, 299)(picture))
        tensor = transforms.view(foreign(name) | {"form": "cifar"}, 299)(picture)
        assert torch.allclose(tensor, wanted, atol=1e-6)
        assert not build(foreign(name), 7).transform_input


def test_the_imagenet_form_computes_what_torchvision_does():
    torch.manual_seed(0)
    source = torchvision.models.resnet18(num_classes=10).eval()
    network = build({"arch": "resnet18", "form": "imagenet"}, 10).eval()
    network.load_state_dict(source.state_dict())
    pictures = torch.rand(2, 3, 48, 48)
    with torch.no_grad():
        assert torch.allclose(network(pictures), source(pictures), atol=1e-5)


@pytest.mark.parametrize("arch", ["vgg16_bn", "resnet18", "resnet34", "mobilenet_v2"])
def test_torchvision_networks_convert(arch):
    network, pictures = alive({"arch": f"torchvision/{arch}", "form": "cifar"})
    expect_equal(*stages(network, pictures, 1), pictures)


@pytest.mark.parametrize(("pooling", "pools"), [("max", 5), ("avg", 0)])
def test_either_pooling_converts(pooling, pools):
    network, pictures = alive(describe("vgg16", pooling=pooling))
    quantised, spiking = stages(network, pictures, 1)
    assert sum(isinstance(m, SpikingMaxPool) for m in spiking.modules()) == pools
    assert sum(isinstance(m, nn.AvgPool2d) for m in spiking.modules()) == 5 - pools
    expect_equal(quantised, spiking, pictures)


@pytest.mark.parametrize(
    ("description", "words"),
    [
        ({}, f"arch: None; there are {', '.join(NETWORKS)}, torchvision/NAME"),
        ({"arch": "resnet50"}, "arch: resnet50; there are resnet20, resnet20-wide, "),
        (
            {"arch": "torchvision/resnet5"},
            "torchvision/resnet5; torchvision has no such classifier; similar .*/resnet50",
        ),
        ({"arch": "torchvision/fasterrcnn_resnet50_fpn"}, "torchvision has no such classifier"),
        (
            {"arch": "torchvision/densenet121", "activation": "leaky"},
            "activation: leaky; torchvision/densenet121 has relu",
        ),
        (
            {"arch": "torchvision/inception_v3", "pooling": "avg"},
            "pooling: avg; torchvision/inception_v3 has max",
        ),
        ({"arch": "resnet20", "form": "imagenet"}, "form: imagenet; resnet20 has cifar"),
        ({"arch": "resnet18", "form": "mnist"}, "form: mnist; resnet18 has cifar, imagenet"),
        ({"arch": "vgg16", "depth": 3}, "depth: no such key in a classifier; there are task, arch"),
        ({"arch": "vgg16", "task": "detection"}, "task: detection; there is classification"),
        ({"arch": "vgg16", "activation": "gelu"}, "activation: gelu; there are relu, leaky"),
        ({"arch": "vgg16", "pooling": "min"}, "pooling: min; there are max, avg"),
        ({"arch": "resnet20", "pooling": "avg"}, "pooling: avg; resnet20 has no max-pooling"),
        ({"arch": "vgg16", "width": 0}, "width: 0; expected a number above 0"),
        ({"arch": "vgg16", "width": "big"}, "width: big; expected a number above 0"),
        ({"arch": "torchvision/resnet18", "width": 0.5}, "torchvision/resnet18 has width 1.0 only"),
        ({"arch": "vgg16", "mean": [0.5]}, r"mean: \[0.5\]; expected three numbers"),
        ({"arch": "vgg16", "std": [0.5, 0, 1]}, r"std: \[0.5, 0, 1\]; expected numbers above 0"),
        ({"arch": ["vgg16"]}, r"arch: \['vgg16'\]; there are"),
    ],
)
def test_what_there_is_not_is_refused_by_name(description, words):
    with pytest.raises(UsageError, match=words):
        build(description, 10)


def test_a_network_without_classes_is_refused():
    with pytest.raises(UsageError, match="0 classes; expected 1 or more"):
        build({"arch": "resnet20"}, 0)
