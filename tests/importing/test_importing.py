"""Files of other people's programs are read as data: what they hold comes out, nothing runs."""

import argparse
import importlib
import os
import pathlib
import pickle
import zipfile
from collections import OrderedDict

import numpy
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from spikedet.classification.models import build, foreign
from spikedet.detection import ultra
from spikedet.errors import WeightsError
from spikedet.importing import state
from spikedet.importing.safe_pickle import LISTED, Shell, load

WEIGHT = torch.arange(6.0).view(2, 3)


def saved(path, what, **options):
    torch.save(what, path, **options)
    return path


class Runs:
    """A pickle of it calls a function when it is opened."""

    def __init__(self, function, *words):
        self.call = function, words

    def __reduce__(self):
        return self.call


def calls(mark):
    """Functions that a hostile file may name; the file `mark` would be there if they ran."""
    touch = f"touch {mark}"
    return {
        f"{os.system.__module__}.system": Runs(os.system, touch),
        "eval": Runs(eval, f"open({str(mark)!r}, 'w')"),
        "getattr": Runs(getattr, mark, "touch"),
        "torch.hub.load_state_dict_from_url": Runs(torch.hub.load_state_dict_from_url, "x"),
        "numpy.testing._private.utils.runstring": Runs(
            numpy.testing._private.utils.runstring, f"open({str(mark)!r}, 'w')", {}
        ),
    }


@pytest.mark.parametrize("name", list(calls("")))
@pytest.mark.parametrize("around", ["alone", "in a state", "in a layer", "as a name"])
@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_a_file_that_would_run_something_is_refused(tmp_path, name, around, new):
    mark = tmp_path / "mark"
    hostile = calls(mark)[name]
    layer = nn.Conv2d(1, 1, 1)
    layer.note = hostile
    refused = {
        "alone": hostile,
        "in a state": {"fc.weight": WEIGHT, "fc.bias": hostile},
        "in a layer": {"model": nn.Sequential(layer)},
        "as a name": {"state_dict": {(hostile,): WEIGHT}},
    }
    path = saved(tmp_path / "x.pt", refused[around], _use_new_zipfile_serialization=new)
    words = f"holds the Python object {name}, which is not read"
    if around == "in a layer" and not new:  # the old form holds the source of layers first
        words = "damaged, or not a file of torch.save that holds tensors"
    with pytest.raises(WeightsError, match=words):
        load(path)
    assert not mark.exists()


def test_such_a_file_would_have_run_it(tmp_path):
    mark = tmp_path / "mark"
    path = saved(tmp_path / "x.pt", calls(mark)["eval"])
    torch.load(path, weights_only=False)
    assert mark.exists()


class Own(nn.Module):
    """A class that only this file knows."""


def test_an_unknown_class_is_named(tmp_path):
    path = saved(tmp_path / "x.pt", {"model": Own()})
    words = (
        rf"x.pt: holds the Python object {Own.__module__}.Own, which is not .*model.state_dict\(\)"
    )
    with pytest.raises(WeightsError, match=words):
        load(path)


def test_classes_that_others_let_torch_read_are_not_read_here_and_stay_known(tmp_path):
    path = saved(tmp_path / "x.pt", {"model": Own()})
    before = set(torch.serialization.get_safe_globals())
    with torch.serialization.safe_globals([Own]):
        with pytest.raises(WeightsError, match="Own"):
            load(path)
        assert set(torch.serialization.get_safe_globals()) == before | {Own}
    assert set(torch.serialization.get_safe_globals()) == before


def test_a_shell_keeps_what_an_object_has_and_is_not_of_its_class(tmp_path):
    layer = load(saved(tmp_path / "x.pt", nn.Conv2d(3, 4, 5, stride=2)))
    assert isinstance(layer, Shell) and not isinstance(layer, nn.Module)
    assert layer.kind == "torch.nn.modules.conv.Conv2d"
    assert (layer.stride, layer.kernel_size) == ((2, 2), (5, 5))
    assert not callable(layer)


def test_attributes_without_a_name_are_dropped(tmp_path):
    layer = nn.Identity()
    vars(layer)[("no", "name")] = 1
    assert all(type(key) is str for key in vars(load(saved(tmp_path / "x.pt", layer))))


def test_the_settings_of_a_run_are_read(tmp_path):
    content = {
        "args": argparse.Namespace(lr=0.1),
        "fitness": numpy.float64(0.5),
        "curve": numpy.arange(3),
        "folder": pathlib.PurePosixPath("runs/x"),
        "state_dict": {"w": WEIGHT},
    }
    loaded = load(saved(tmp_path / "x.pt", content))
    assert loaded["args"].lr == 0.1
    assert torch.equal(loaded["state_dict"]["w"], WEIGHT)


def test_every_listed_class_is_there():
    assert ultra.DetectionModel.__module__ in LISTED
    for module, names in LISTED.items():
        if module.partition(".")[0] in ("torch", "ultralytics"):
            real = importlib.import_module(module)
            assert all(hasattr(real, name) for name in names.split()), module


def test_damaged_files(tmp_path):
    whole = saved(tmp_path / "x.pt", {"w": torch.rand(50, 50)}).read_bytes()
    path = tmp_path / "y.pt"
    for data in (b"", whole[: len(whole) // 2], whole[:40] + b"\0" * 400 + whole[440:], b"no"):
        path.write_bytes(data)
        with pytest.raises(WeightsError, match="y.pt: damaged, or not a file of torch.save"):
            load(path)
    with pytest.raises(WeightsError, match="z.pt: cannot be read .No such file"):
        load(tmp_path / "z.pt")
    with pytest.raises(WeightsError, match="cannot be read .Is a directory"):
        load(tmp_path)
    torch.jit.script(nn.Linear(1, 1)).save(path)
    with pytest.raises(WeightsError, match="y.pt: damaged, or not a file of torch.save"):
        load(path)


def test_a_newer_pickle_protocol_with_a_hidden_name(tmp_path):
    """The name of its function is put together while it is read (STACK_GLOBAL)."""
    mark = tmp_path / "mark"
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x/data.pkl", pickle.dumps(calls(mark)["eval"], protocol=4))
        file.writestr("x/version", "3\n")
    with pytest.raises(WeightsError):
        load(path)
    assert not mark.exists()


# ------------------------------------------------------------------------------------------ states


def plain():
    torch.manual_seed(0)
    return nn.Sequential(OrderedDict(a=nn.Linear(3, 2), n=nn.BatchNorm1d(2)))


def expect_read(network, path):
    fresh = plain()
    assert state.load_into(fresh, state.tensors(state.read(path), path), path, "it") == ()
    for name, tensor in network.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], tensor), name


@pytest.fixture
def network():
    module = plain()
    module.n.running_mean.copy_(torch.tensor([0.25, -3.0]))
    module.a.weight.data.copy_(WEIGHT)
    return module


NESTED = {
    "alone": lambda s: s,
    "state_dict": lambda s: {"epoch": 3, "state_dict": s},
    "model": lambda s: {"model": s, "optimizer": {"state": {}}, "args": argparse.Namespace(lr=1)},
    "model_state": lambda s: {"model_state": s},
    "deep": lambda s: {"model": {"state_dict": s}},
    "ordered": lambda s: OrderedDict(state_dict=s),
    "mean": lambda s: {
        "model": {name: torch.zeros_like(t) for name, t in s.items()},
        "model_ema": {"n_averaged": torch.tensor(7), **{f"module.{n}": t for n, t in s.items()}},
    },
}


@pytest.mark.parametrize("nest", NESTED)
@pytest.mark.parametrize("before", ["", "module.", "_orig_mod.", "_orig_mod.module."])
def test_nested_and_prefixed_states(tmp_path, network, nest, before):
    tensors = {before + name: tensor for name, tensor in network.state_dict().items()}
    expect_read(network, saved(tmp_path / "x.pth", NESTED[nest](tensors)))


@pytest.mark.parametrize("new", [True, False])
def test_states_as_data_parallel_and_a_mean_save_them(tmp_path, network, new):
    for wrapped in (nn.DataParallel(network), torch.optim.swa_utils.AveragedModel(network)):
        path = tmp_path / "x.pth"
        expect_read(network, saved(path, wrapped.state_dict(), _use_new_zipfile_serialization=new))


def test_prefixed_safetensors_and_whole_networks(tmp_path, network):
    save_file(
        {f"module.{n}": t for n, t in network.state_dict().items()}, tmp_path / "x.safetensors"
    )
    expect_read(network, tmp_path / "x.safetensors")
    expect_read(network, saved(tmp_path / "x.pt", network))
    expect_read(network, saved(tmp_path / "y.pt", {"model": nn.DataParallel(network).module}))


def test_half_precision_becomes_single(tmp_path):
    network = plain().half()
    path = saved(tmp_path / "x.pt", network.state_dict())
    fresh = plain()
    state.load_into(fresh, state.tensors(state.read(path), path), path, "it")
    assert fresh.a.weight.dtype == torch.float32
    assert torch.equal(fresh.a.weight, network.a.weight.float())


def test_buffers_that_are_not_kept_are_left_out(tmp_path):
    layer = nn.Linear(1, 1)
    layer.register_buffer("kept", torch.ones(1))
    layer.register_buffer("passing", torch.ones(1), persistent=False)
    path = saved(tmp_path / "x.pt", nn.Sequential(layer))
    tensors = state.tensors(state.read(path), path)
    assert list(tensors) == ["0.weight", "0.bias", "0.kept"]


def endless():
    layer = nn.Sequential()
    layer._modules["0"] = layer
    return layer


def wide():
    layer = nn.Sequential()
    for _ in range(60):  # 2 ** 60 layers
        layer = nn.Sequential(layer, layer)
    return layer


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "not a state dict; expected a dict from names to tensors"),
        ([WEIGHT], "not a state dict"),
        (WEIGHT, "not a state dict"),
        ({"a.weight": WEIGHT, "epoch": 3}, "not a state dict.*'epoch' is of type int"),
        ({3: WEIGHT}, "not a state dict.*3 is of type Tensor"),
        ({(3,): WEIGHT}, "not a state dict.*tuple is of type Tensor"),
        ({"model": nn.ReLU()}, "not a state dict"),
        ({"a.weight": WEIGHT.to_sparse()}, "a.weight is not a plain tensor of real numbers"),
        ({"a.weight": WEIGHT.to(torch.complex64)}, "a.weight is not a plain tensor"),
        ({"a.weight": WEIGHT.to("meta")}, "a.weight is not a plain tensor"),
        (endless(), "a layer contains itself"),
        (wide(), "more than 100000 layers in one network"),
    ],
)
def test_what_is_no_state(tmp_path, content, words):
    path = saved(tmp_path / "x.pt", content)
    with pytest.raises(WeightsError, match=words):
        state.tensors(state.read(path), path)


def test_states_of_other_networks(network):
    tensors = network.state_dict()
    for name, tensor, words in [
        ("a.weight", torch.zeros(2, 4), "x: does not fit it: size mismatch for a.weight"),
        ("b.weight", torch.zeros(2), "x: does not fit it: Unexpected key.*b.weight"),
        ("n.bias", torch.tensor([1.0, float("nan")]), "x: n.bias holds a number that is not fin"),
        ("n.bias", torch.tensor([1.0, float("inf")]), "x: n.bias holds a number that is not fin"),
    ]:
        with pytest.raises(WeightsError, match=words):
            state.load_into(plain(), tensors | {name: tensor}, "x", "it")
    with pytest.raises(WeightsError, match="does not fit it: Missing key"):
        state.load_into(plain(), {"x.a.weight": WEIGHT, "y.a.weight": WEIGHT}, "x", "it")
    with pytest.raises(WeightsError, match="does not fit it: Missing key"):
        state.load_into(plain(), {"weight": WEIGHT}, "x", "it")


# ------------------------------------------------------------------------------ torchvision's own


LISTED_NAMES = """
alexnet densenet121 googlenet inception_v3 mnasnet0_5 mnasnet1_0 mobilenet_v2 regnet_x_400mf
resnet50 resnext50_32x4d shufflenet_v2_x1_0 squeezenet1_1 vgg11_bn
"""


@pytest.mark.parametrize("name", LISTED_NAMES.split())
def test_a_state_of_each_classifier_comes_out_with_equal_outputs(tmp_path, name):
    torch.manual_seed(0)
    more = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    source = torchvision.models.get_model(name, weights=None, num_classes=3, **more).eval()
    path = saved(tmp_path / "x.pth", source.state_dict())
    network = build(foreign(name), 3).eval()
    left = state.load_into(network, state.tensors(state.read(path), path), path, name)
    heads = {"googlenet": {"aux1", "aux2"}, "inception_v3": {"AuxLogits"}}
    assert {key.partition(".")[0] for key in left} == heads.get(name, set())
    side = 96
    with torch.no_grad():
        pictures = torch.rand(1, 3, side, side)
        assert torch.equal(network(pictures), source(pictures))


def test_the_older_names_of_published_densenets():
    source = torchvision.models.densenet121(num_classes=3)
    older = {
        name.replace("norm1", "norm.1").replace("norm2", "norm.2").replace("conv1", "conv.1")
        if "denselayer" in name
        else name: tensor
        for name, tensor in source.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in older
    network = build(foreign("densenet121"), 3)
    assert state.load_into(network, older, "x", "it") == ()
    for name, tensor in source.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor), name


def test_auxiliary_names_of_other_networks_are_not_left_out():
    tensors = torchvision.models.alexnet(num_classes=3).state_dict()
    with pytest.raises(WeightsError, match="Unexpected key.*aux1.x"):
        state.load_into(
            build(foreign("alexnet"), 3), tensors | {"aux1.x": torch.ones(1)}, "x", "it"
        )
