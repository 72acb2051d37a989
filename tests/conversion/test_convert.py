"""`convert`: what it refuses, what it keeps, and what it records of that."""

import numpy as np
import pytest
import torch
from torch import nn

import spikedet
from spikedet.conversion.distill import _Pass
from spikedet.errors import ConversionError, DataError, TrainingError, UsageError
from spikedet.graph.record import record
from spikedet.methods import METHODS


def base(*more):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3), *more,
    ).eval()  # fmt: skip


@pytest.fixture
def pictures():
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(8, 1, 8, 8, generator=generator) for _ in range(3)]


def convert(network, batches, T=2, **options):
    if METHODS[options.get("method", "stage2")].fine:
        options = {"layer_steps": 1, **options}
    return spikedet.convert(network, batches, T, progress=False, **options)


@pytest.mark.parametrize("sparsity", [0.0, 0.1])
def test_a_pass_that_diverges_is_an_error(pictures, sparsity):
    with pytest.raises(TrainingError, match="the loss became nan; lower the learning rate"):
        convert(base(), pictures, method="copy", end_to_end=30, end_rate=1e30, sparsity=sparsity)


def test_a_network_that_is_not_finite_is_not_kept(pictures):
    """Its last step broke it, so no loss shows it."""
    snn = convert(base(), pictures, end_to_end=1, end_rate=1e30, sparsity=0.1)
    assert snn(pictures[0]).isfinite().all()


@pytest.mark.parametrize("kept", [True, False])
def test_the_origin_has_the_pass_only_if_it_was_kept(pictures, kept):
    rate = 4e-3 if kept else 50.0
    snn = convert(base(), pictures, 4, end_to_end=20 * kept + 3, end_rate=rate, end_also=[2])
    steps, also = (23, [2]) if kept else (0, None)
    assert snn.origin["end_to_end"] is kept and snn.origin["end_to_end_steps"] == steps
    assert snn.origin.get("also_for") == also


def test_inputs_of_different_shapes_are_refused(pictures):
    different = [torch.rand(4, 1, 8, 8), torch.rand(4, 1, 12, 12)]
    shapes = r"inputs of different shapes: \(1, 8, 8\) and \(1, 12, 12\)"
    for batches in (different, [*pictures, different[1]]):
        with pytest.raises(DataError, match=shapes):
            convert(base(), batches)


def flat(norm):
    torch.manual_seed(0)
    norms = [nn.BatchNorm1d(6)] * norm
    return nn.Sequential(nn.Linear(4, 6), *norms, nn.ReLU(), nn.Linear(6, 5), nn.ReLU(),
                         nn.Linear(5, 2)).eval()  # fmt: skip


def test_a_last_batch_of_one_picture_that_batch_norm_cannot_take():
    batches = [torch.rand(4, 4), torch.rand(4, 4), torch.rand(1, 4)]
    with pytest.raises(DataError, match="a batch of one picture; batch norm needs two or more"):
        convert(flat(norm=True), batches, loss=lambda y: y.mean(), epochs=1)
    passed = {"end_to_end": 3, "end_batch_norm": True, "method": "copy"}
    with pytest.raises(DataError, match="drop_last=True of a DataLoader"):
        convert(flat(norm=False), [batches[0], batches[2], batches[1]], batch=1, held=1, **passed)
    for network, several in (
        (flat(norm=True), batches[:2]),
        (base(), [torch.rand(1, 1, 8, 8)] * 3),
    ):
        convert(network, several, loss=lambda y: y.square().mean(), epochs=1, end_to_end=1)


def test_a_caller_without_gradients(pictures):
    with torch.no_grad():
        snn = convert(base(), pictures, end_to_end=2, loss=lambda y: y.square().mean(), epochs=1)
        assert not torch.is_grad_enabled()
    assert not snn(pictures[0]).requires_grad


class Shuffled:
    """Pictures in batches, in another order each time."""

    def __init__(self, pictures, size):
        self.pictures, self.size, self.times = pictures, size, 0

    def __iter__(self):
        self.times += 1
        order = torch.randperm(
            len(self.pictures), generator=torch.Generator().manual_seed(self.times)
        )
        yield from self.pictures[order].split(self.size)


@pytest.mark.parametrize("shuffled", [False, True])
def test_held_out_pictures_are_neither_fitted_nor_trained_on(monkeypatch, pictures, shuffled):
    together, seen = torch.cat(pictures), {}
    source = Shuffled(together, 2) if shuffled else pictures

    def fit(quantised, spiking, fit, held_out, *others):
        seen["fit"], seen["held"] = torch.cat(fit), torch.cat(held_out)

    def train(spiking, batches, value, options, **others):
        seen["trained"] = torch.cat([next(batches(0))[0] for _ in range(options.steps)])
        return {}

    monkeypatch.setattr("spikedet.conversion.convert.calibrate", fit)
    monkeypatch.setattr("spikedet.conversion.stage_training.distill", train)
    convert(base(), source, end_to_end=12, pictures=20, held=4, batch=4)
    marks = {name: {x.sum().item() for x in seen[name]} for name in seen}
    assert len(marks["held"]) == 4 and len(marks["fit"]) == 20
    assert not marks["held"] & marks["fit"] and not marks["held"] & marks["trained"]
    assert len(marks["trained"]) > 8


@pytest.mark.parametrize("steps", [1, 8, 20])
def test_the_rate_of_a_short_pass_reaches_its_peak_and_decays(monkeypatch, pictures, steps):
    parts = []
    step = _Pass.step

    def noted(training, batch, part):
        parts.append(part)
        return step(training, batch, part)

    monkeypatch.setattr(_Pass, "step", noted)
    convert(base(), pictures, method="copy", end_to_end=steps)
    assert len(parts) == steps and max(parts) == 1
    assert steps == 1 or parts[-1] < 0.1


TRAINED = {"epochs": 1, "loss": nn.functional.mse_loss}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"end_batch_norm": True}, "end_batch_norm has no effect without the end-to-end pass"),
        ({"end_rate": 1e-3}, "end_rate has no effect without the end-to-end pass"),
        ({"end_also": [1]}, "end_also has no effect without the end-to-end pass"),
        ({"noise": 0.9}, "noise has no effect without stage I; set epochs as well"),
        ({"rate": 0.9, "end_to_end": 1}, "rate has no effect without stage I"),
        ({"fold_first": True}, "fold_first has no effect without stage I"),
        ({"distance": nn.functional.mse_loss}, "distance has no effect without training"),
        ({"layers": ["nonsense"], "method": "copy"}, "layers has no effect in method 'copy'"),
        ({"per_neuron": True, "method": "copy"}, "per_neuron has no effect in method 'copy'"),
        ({"layer_steps": 9, "method": "copy"}, "layer_steps has no effect in method 'copy'"),
        ({"pictures": 9, "method": "copy"}, "pictures has no effect in method 'copy'"),
        ({"held": 9, "method": "opi"}, "held has no effect in method 'opi'"),
        ({"layer_steps": 9, "method": "cap"}, "layer_steps has no effect in method 'cap'"),
        ({"layer_loss": "kl", "method": "cap"}, "layer_loss has no effect in method 'cap'"),
        ({"per_neuron": True, "method": "cap"}, "per_neuron has no effect in method 'cap'"),
        ({"per_channel": True, "method": "spiking-yolo"}, "per_channel has no effect in method"),
        (
            {"layer_steps": 9, "method": "stage1-coarse", **TRAINED},
            "layer_steps has no effect in method 'stage1-coarse'",
        ),
        (
            {"method": "qcfs", "noise": 0.9, **TRAINED},
            "noise has no effect in method 'qcfs'; leave it out",
        ),
        (
            {"method": "qcfs", "distance": nn.functional.mse_loss, **TRAINED},
            "distance has no effect without distillation",
        ),
        (
            {"distill": 0, "end_to_end": 0, "distance": nn.functional.mse_loss, **TRAINED},
            "distance has no effect without distillation",
        ),
    ],
)
def test_options_without_effect_are_refused(pictures, options, sentence):
    with pytest.raises(UsageError, match=sentence):
        convert(base(), pictures, **options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"layer_steps": np.int64(-5)}, "layer_steps is .*-5.*; expected an integer of 0 or more"),
        ({"pictures": np.int64(0)}, "pictures is .*0.*; expected an integer of 1 or more"),
        ({"rate": np.float32(-1), **TRAINED}, "rate is .*-1.*; expected a number above 0"),
        ({"noise": None}, "noise is None; expected a number between 0 and 1"),
        ({"end_rate": None}, "end_rate is None; expected a number above 0"),
        ({"layer_loss": None}, "layer_loss is None; expected mse or kl"),
        ({"per_neuron": None}, "per_neuron is None; expected True or False"),
        ({"end_also": 1, "end_to_end": 1}, "end_also is 1; expected a list"),
        ({"layers": "conv"}, "layers is 'conv'; expected a list"),
        ({"epochs": "3"}, "epochs is '3'; expected an integer"),
    ],
)
def test_arguments_of_another_kind_are_refused(pictures, options, sentence):
    with pytest.raises(UsageError, match=sentence):
        convert(base(), pictures, **options)


def test_numbers_of_numpy_are_numbers(pictures, tmp_path):
    options = {"pictures": np.int64(16), "held": np.int32(8), "seed": np.int64(3)}
    options |= {"end_to_end": np.int64(1), "sparsity": np.float32(0.5)}
    network = convert(base(), pictures, **options)
    spikedet.save(network, tmp_path / "w")
    assert spikedet.load(tmp_path / "w").origin["seed"] == 3


def test_a_graph_in_training_mode_is_converted_as_in_evaluation(pictures):
    graph = record(base(), pictures[0])
    wanted, made = (convert(graph.train(mode), pictures, method="copy") for mode in (False, True))
    for name, tensor in wanted.graph.state_dict().items():
        assert torch.equal(made.graph.state_dict()[name], tensor), name


@pytest.mark.parametrize("stage", [{"epochs": 1}, {"end_to_end": 1, "method": "copy"}])
@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (torch.full((8,), 7), r"Target 7 is out of bounds.*\[8, 3\] float32, \[8\] int64"),
        (torch.zeros(8, 5), r"\[8, 3\] float32, \[8, 5\] float32; expected labels that fit"),
        (torch.zeros(5, dtype=torch.long), r"\[8, 3\] float32, \[5\] int64"),
        (torch.zeros(8, dtype=torch.int32), r"\[8, 3\] float32, \[8\] int32"),
        ("cat", "float32, str; expected labels"),
    ],
)
def test_labels_that_do_not_fit_the_loss(pictures, stage, labels, words):
    loss = nn.functional.cross_entropy
    with pytest.raises(TrainingError, match="the loss fails for a batch .*" + words) as error:
        convert(base(), [(x, labels) for x in pictures], loss=loss, **stage)
    assert "\n" not in str(error.value)


def broken(value):
    network = base()
    network[3].weight.data[0, 0, 0, 0] = value
    return network


def infinite():
    """A norm with a statistic that is not a number; no parameter is wrong."""
    network = base()
    network[1].running_mean[0] = torch.nan
    return network


class Several(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = base()

    def forward(self, x, y):
        return self.inner(x) + self.inner(y)


class Starred(Several):
    def forward(self, *inputs):
        return self.inner(inputs[0])


@pytest.mark.parametrize(
    ("network", "sentence"),
    [
        (broken(torch.nan), "3.weight of the network has values that are not finite"),
        (broken(-torch.inf), "3.weight of the network has values that are not finite"),
        (infinite(), "Sequential: its outputs have values that are not finite"),
        (Several(), "Several: its forward has several inputs; only networks of one input"),
        (Starred(), r"Starred: its forward takes \*args; give it one parameter"),
    ],
)
def test_networks_that_cannot_be_recorded_are_told_why(pictures, network, sentence):
    with pytest.raises(ConversionError, match=sentence):
        convert(network, pictures)


@pytest.mark.parametrize(
    ("batches", "sentence"),
    [
        (None, "batches is of type NoneType; expected a list or a loader"),
        (5, "batches is of type int; expected a list or a loader"),
        ([torch.rand(0, 1, 8, 8)], "no pictures; expected two or more"),
        ([torch.zeros(4, 1, 8, 8, dtype=torch.uint8)], "batch 1 is of type torch.uint8; expected"),
        ([torch.rand(4, 1, 8, 8), torch.full((4, 1, 8, 8), torch.nan)], "batch 2 has values that"),
    ],
)
def test_batches_that_are_none_are_told_why(batches, sentence):
    with pytest.raises(DataError, match=sentence):
        convert(base(), batches)


@pytest.mark.parametrize("wrapped", [torch.compile, nn.DataParallel])
def test_a_wrapped_network_is_converted_as_the_network_in_it(pictures, wrapped):
    wanted, made = (convert(n, pictures, method="opi") for n in (base(), wrapped(base())))
    assert torch.equal(made(pictures[0]), wanted(pictures[0]))


def test_training_without_a_loss_is_compared_with_the_float_network(pictures):
    with pytest.warns(UserWarning, match="outputs are far from .* better are a smaller rate, "):
        bad = convert(base(), pictures, T=8, epochs=3, rate=100.0, method="stage1")
    assert bad.origin["output_error"] > 0.25
    other = convert(base(), pictures, epochs=1, distance=nn.functional.l1_loss, method="stage1")
    assert "output_error" not in other.origin
