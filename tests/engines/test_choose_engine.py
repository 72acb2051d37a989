"""Which engine runs a loaded network, and when torch has to."""

import numpy as np
import pytest
import torch
from torch import nn

import spikedet
from spikedet.engines import registry
from spikedet.engines.program import NoIntegers
from spikedet.errors import UsageError
from spikedet.kernels import library
from spikedet.released import released
from spikedet.runtime.choose import choose_engine
from spikedet.runtime.watch import watching

try:
    FASTEST = f"events: integers, {library.kernels()[0]} kernels"
except library.NoLibrary:
    FASTEST = ""
needs_kernels = pytest.mark.skipif(not FASTEST, reason="no compiled kernels")
NETWORK = nn.Sequential(
    nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 2, 1)
)


@pytest.fixture
def path(tmp_path, batches):
    torch.manual_seed(0)
    snn = spikedet.convert(NETWORK, batches[:2], T=4, layer_steps=0, progress=False)
    spikedet.save(snn, tmp_path / "own.safetensors")
    return tmp_path / "own.safetensors"


@needs_kernels
def test_auto_is_the_default_and_says_so(path, batches):
    snn = spikedet.load(path)
    assert (snn.engine, snn.left_out) == ("events", {})
    assert f"{snn.engine}: {snn.engine_reason}" == FASTEST
    whole = spikedet.load(path, engine="integers")
    assert torch.equal(snn(batches[0]), whole(batches[0]))
    reference = spikedet.load(path, engine="torch")
    assert (reference.engine, reference.engine_reason) == ("torch", "float32 by torch")
    apart = (snn(batches[0]) - reference(batches[0])).abs().mean()
    assert 0 < apart < 0.1 * reference(batches[0]).std()


@needs_kernels
def test_a_number_format_asks_for_torch(path):
    for half in (True, False):
        snn = spikedet.load(path, half=half)
        assert (snn.engine, snn.in_bfloat16) == ("torch", half)
    with pytest.raises(UsageError, match="events engine computes with integers; leave half out"):
        spikedet.load(path, half=True, engine="events")
    with pytest.raises(UsageError, match="no engine 'fast'; expected auto, torch, events"):
        spikedet.load(path, engine="fast")


def test_weights_that_bfloat16_rounded_are_not_saved(path, tmp_path):
    with pytest.raises(UsageError, match="rounded its weights to 8 bits; to save it, load it"):
        spikedet.save(spikedet.load(path, half=True), tmp_path / "again.safetensors")
    assert not (tmp_path / "again.safetensors").exists()


@needs_kernels
def test_gradients_and_watchers_are_torch_s(path, batches):
    snn = spikedet.load(path)
    plain = spikedet.load(path, engine="torch")(batches[0])
    snn.requires_grad_(True)
    output = snn(batches[0])
    output.sum().backward()
    assert torch.allclose(output, plain)
    with torch.no_grad():
        whole = snn(batches[0])
        assert not torch.equal(whole, plain)
        with watching(snn.graph, lambda *_: None):
            assert torch.allclose(snn(batches[0]), plain)
    assert not torch.equal(snn.requires_grad_(False)(batches[0]), plain)


@needs_kernels
def test_weights_that_change_are_compiled_again(path, batches):
    snn = spikedet.load(path)
    before = snn(batches[0])
    state = {name: 2 * x if "weight" in name else x for name, x in snn.state_dict().items()}
    snn.load_state_dict(state)
    other = spikedet.load(path, engine="torch")
    other.load_state_dict(state)
    other.use_engine("events")
    assert not torch.equal(before, snn(batches[0]))
    assert torch.equal(snn(batches[0]), other(batches[0]))


@needs_kernels
def test_what_whole_numbers_cannot_hold_goes_to_torch_with_one_sentence(path, batches):
    snn, strict = spikedet.load(path), spikedet.load(path, engine="events")
    wide = torch.rand(1, 3, 4, 20_000)  # a row of 10,000 places with 8 channels
    with pytest.raises(NoIntegers, match="longer than the events engine can name"):
        strict(wide)
    with pytest.warns(UserWarning, match="longer than .*; the torch engine runs this pass"):
        output = snn(wide)
    assert torch.equal(output, spikedet.load(path, engine="torch")(wide))


def test_without_kernels_torch_runs_and_says_why(path, batches, monkeypatch):
    monkeypatch.setenv("SPIKEDET_NO_KERNELS", "1")
    library.found_once.cache_clear()
    try:
        snn = spikedet.load(path)
        assert (snn.engine, snn.engine_reason) == ("torch", "SPIKEDET_NO_KERNELS is set")
        assert torch.equal(snn(batches[0]), spikedet.load(path, engine="torch")(batches[0]))
        with pytest.raises(UsageError, match="no kernels: SPIKEDET_NO_KERNELS is set"):
            spikedet.load(path, engine="events")
    finally:
        library.found_once.cache_clear()


@needs_kernels
@pytest.mark.parametrize("name", library.kernels() if FASTEST else [])
def test_the_environment_names_the_kernels(name, path, batches, monkeypatch):
    wanted = spikedet.load(path)(batches[0])
    monkeypatch.setenv("SPIKEDET_KERNELS", name)
    snn = spikedet.load(path)
    assert snn.engine_reason == f"integers, {name} kernels" and library.chosen() == name
    assert torch.equal(snn(batches[0]), wanted)
    monkeypatch.setenv("SPIKEDET_KERNELS", "")
    assert library.chosen() == library.kernels()[0]


@needs_kernels
def test_kernels_that_are_not_here_are_refused_with_those_that_are(path, monkeypatch):
    monkeypatch.setenv("SPIKEDET_KERNELS", "sse9")
    for engine in ("auto", "events"):
        with pytest.raises(UsageError) as refused:
            spikedet.load(path, engine=engine)
        there = ", ".join(library.kernels())
        assert str(refused.value) == f"SPIKEDET_KERNELS 'sse9'; this machine has {there}"
    assert spikedet.load(path, engine="torch").engine == "torch"
    with library.choosing(library.kernels()[-1]):
        assert library.chosen() == library.kernels()[-1]
    with pytest.raises(UsageError, match="'sse9'"):  # as it was before
        library.chosen()


@needs_kernels
def test_predictors():
    picture = np.zeros((64, 48, 3), np.uint8)
    detector = spikedet.load(T=8)
    assert (detector.engine, detector.half, detector.why_engine) == ("events", False, FASTEST)
    classifier = spikedet.load(T=8, task="classification")
    assert (classifier.engine, classifier(picture).T) == ("events", 8)
    reference = spikedet.load(T=8, engine="torch", half=False)
    assert (reference.engine, reference.half) == ("torch", False)
    assert detector(picture, conf=0.0).T == reference(picture, conf=0.0).T == 8
    plain = spikedet.load(released("float"))
    assert (plain.engine, plain.why_engine) == ("torch", "torch: the network is not spiking")
    with pytest.raises(UsageError, match="the events engine runs spiking weights"):
        spikedet.load(released("float"), engine="events")
    assert choose_engine(reference.runner.network, "events") == FASTEST


def test_elsewhere_than_on_the_cpu_whole_numbers_are_refused(path):
    graph = spikedet.load(path, engine="torch").graph.to("meta")
    assert registry.make("auto", graph)[0] == "torch"
    with pytest.raises(UsageError, match="integer engines run on the CPU"):
        registry.make("integers", graph)
