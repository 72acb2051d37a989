"""What all exporters share: names, endings, bad input, files; and the released networks."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import spikedet
from spikedet import counts, exporting
from spikedet.conversion.prepare import prepare
from spikedet.detection.letterbox import letterbox
from spikedet.errors import UsageError, WeightsError
from spikedet.exporting import reference, registry
from spikedet.exporting.registry import ExportError
from spikedet.exporting.source import Source, flat_outputs
from spikedet.graph.structure import Name
from spikedet.released import released
from spikedet.runtime.network import SpikingNetwork
from support.commands import command
from support.docs import code
from support.engines import spiking
from support.places import BUS


@pytest.fixture
def network(small_net, pictures):
    return SpikingNetwork(spiking(small_net, pictures), 4)


def test_formats_by_name_and_by_ending(network, tmp_path):
    assert spikedet.export is exporting.export
    for ending in ("a.int8.safetensors", "B.SAFETENSORS"):
        assert spikedet.export(network, tmp_path / ending).format == "int8"
    done = spikedet.export(network, str(tmp_path / "deep" / "file"), "int8", T=3)
    assert done.path.is_file() and done.T == 3
    assert reference.read(done.path)[0]["T"] == 3
    with pytest.raises(UsageError, match="no export format 'tflite'; expected one of onnx, nir"):
        spikedet.export(network, tmp_path / "a.onnx", "tflite")
    with pytest.raises(UsageError, match=r"a.onnx: the ending sets the format onnx, but .* int8"):
        spikedet.export(network, tmp_path / "a.onnx", "int8")
    with pytest.raises(UsageError, match=r"a.bin: this ending sets no format; expected .onnx"):
        spikedet.export(network, tmp_path / "a.bin")
    with pytest.raises(UsageError, match="form is no option of int8; it has none"):
        spikedet.export(network, tmp_path / "a.safetensors", form="step")
    with pytest.raises(ValueError, match="registered already"):
        registry.register(registry.Exporter("other", (".onnx",), lambda source: (b"", [])))


def test_a_package_that_is_missing_is_named(network, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"package onnx.*pip install 'spikedet\[export\]'"):
        spikedet.export(network, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_bad_input(network, small_net, pictures, tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    for T in (0, 2.5, "8"):
        with pytest.raises(UsageError, match="T is .*expected an integer"):
            spikedet.export(network, path, T=T)
    with pytest.raises(UsageError, match="a SmallNet cannot be exported; expected weights"):
        spikedet.export(small_net, path)
    monkeypatch.setattr(counts, "MOST_STEPS", 10**9)  # more than any int8 file can run
    with pytest.raises(UsageError, match="which the integers can count"):
        spikedet.export(network, path, T=10**8)
    with pytest.raises(WeightsError, match="no such weights file"):
        spikedet.export(tmp_path / "none.safetensors", path)
    with pytest.raises(UsageError, match="does not store its number of time steps; pass T"):
        spikedet.export(network.graph, path)
    with pytest.raises(UsageError, match="T is 4; a network of stage float has no time steps"):
        spikedet.export(prepare(small_net, pictures[:1]), tmp_path / "a.onnx", T=4)
    assert not list(tmp_path.iterdir())


def test_the_network_is_not_overwritten(network, tmp_path):
    path = tmp_path / "a.safetensors"
    spikedet.save(network, path)
    before = path.read_bytes()
    with pytest.raises(UsageError, match="would overwrite the network"):
        spikedet.export(path, path)
    assert path.read_bytes() == before
    other = tmp_path / "other.safetensors"
    spikedet.save(network, other)
    with pytest.raises(UsageError, match="would overwrite weights"):
        spikedet.export(path, other)
    assert other.read_bytes() == before
    for _ in range(2):  # an older export may be replaced
        spikedet.export(path, tmp_path / "b.safetensors")
    spikedet.export(network, tmp_path / "c.safetensors")
    one, other = (reference.read(tmp_path / f"{name}.safetensors") for name in "bc")
    assert one[0] == other[0]
    assert all(np.array_equal(one[1][name], tensor) for name, tensor in other[1].items())


def test_a_failure_leaves_the_old_file(network, tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "no space")))
    with pytest.raises(OSError, match="no space"):
        spikedet.export(network, path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_the_network_stays_as_it_was(network, pictures, tmp_path):
    before, state = network(pictures), {k: v.clone() for k, v in network.state_dict().items()}
    spikedet.export(network, tmp_path / "a.safetensors")
    assert torch.equal(network(pictures), before)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    network.use_bfloat16()
    source = Source.of(network)
    assert "rounded" in source.notes[0]
    assert all(t.dtype == torch.float32 for t in source.graph.state_dict().values())


def test_names_of_outputs():
    one, two = Name("a"), Name("b")
    assert flat_outputs(one) == [("output", "a")]
    names = flat_outputs({"boxes": one, "feats": [two, {"x": one}], "size": 3})
    assert names == [("boxes", "a"), ("feats.0", "b"), ("feats.1.x", "a")]


# ---------------------------------------------------------------------- released networks


def test_a_released_classifier_in_every_format(tmp_path):
    ort, nir = pytest.importorskip("onnxruntime"), pytest.importorskip("nir")
    weights = released("snn", 4, "classification")
    for ending in ("onnx", "nir", "safetensors"):
        spikedet.export(weights, tmp_path / f"a.{ending}")
    pictures = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    classifier = spikedet.load(weights, half=False)
    network = classifier.runner.network
    wanted = network(pictures).numpy()
    session = ort.InferenceSession(str(tmp_path / "a.onnx"))
    (output,) = session.run(None, {"input": pictures.numpy()})
    assert np.allclose(output, wanted, atol=1e-4)
    facts = json.loads(session.get_modelmeta().custom_metadata_map["spikedet"])
    assert facts["names"] == list(classifier.names) and facts["T"] == 4
    assert facts["input"]["mean"] == [0.491, 0.482, 0.447]
    assert "32 x 32" in facts["input"]["fit"] and facts["stage"] == "snn"
    told = json.loads(nir.read(tmp_path / "a.nir").metadata["spikedet"])
    header, tensors = reference.read(tmp_path / "a.safetensors")
    for other in (told, header):
        assert {k: other[k] for k in told} == {k: v for k, v in facts.items() if k in told}
    results, _ = reference.run(header, tensors, pictures.numpy())
    network.use_engine("integers")
    assert np.abs(results["output"] - network(pictures).numpy()).max() < 0.05


def test_the_detector_of_the_docs_finds_what_ours_does(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    page = code("export.md")
    start = page.index("import cv2")
    end = page.index('spikedet.export("weights/')  # tests/docs runs it
    exec("import json\nimport numpy as np\nimport onnxruntime\n" + page[start:end], names)
    picture, other = (
        cv2.resize(np.random.default_rng(seed).integers(0, 256, (6, 9, 3), np.uint8), (330, 250))
        for seed in (0, 1)
    )
    weights = released("float")
    spikedet.export(weights, "a.onnx")
    wanted = spikedet.load(weights)(picture, conf=0.01)
    boxes, scores, classes = names["detect"](names["load"]("a.onnx"), picture, conf=0.01)
    assert len(wanted) > 3
    assert classes == wanted.classes
    assert np.allclose(scores, wanted.scores, atol=1e-4)
    assert np.allclose(boxes, wanted.boxes, atol=0.05)
    # in the first step no potential of the other one touches a threshold, where a spike may part
    weights = released("snn", 4)
    spikedet.export(weights, "a.onnx", T=1)
    detector = spikedet.load(weights, half=False)
    tensor = letterbox(other, detector.imgsz)[0][None]
    raw = detector.runner.raw(tensor, 1)
    session, facts = names["load"]("a.onnx")
    for name in ("boxes", "scores"):
        (output,) = session.run([name], {"input": tensor.numpy()})
        assert np.allclose(output, raw[name].numpy(), atol=1e-3)
    assert facts["head"]["strides"] == [16, 32] and "114" in facts["input"]["fit"]
    assert len(names["detect"]((session, facts), picture, conf=0.0)[2]) > 5


def test_predictors_are_exported_from_their_file(tmp_path):
    pytest.importorskip("onnx")
    detector = spikedet.load(T=4)
    done = spikedet.export(detector, tmp_path / "a.onnx", form="step")
    assert done.T == 4 and Path(detector.weights).is_file()


@pytest.mark.parametrize("ending", [".int8.safetensors", ".onnx", ".nir"])
def test_commands_refuse_exported_files_in_one_sentence(
    network, tmp_path, monkeypatch, capsys, ending
):
    pytest.importorskip({".onnx": "onnx", ".nir": "nir"}.get(ending, "torch"))
    path = tmp_path / f"own{ending}"
    try:
        spikedet.export(network, path)
    except ExportError:
        path.write_bytes(b"a file of another program")
    assert command(monkeypatch, "detect", BUS, "--weights", path, "--out", tmp_path / "out") == 4
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and path.name in error
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_an_exported_onnx_refuses_pictures_of_another_size(network, tmp_path):
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    spikedet.export(network, tmp_path / "own.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "own.onnx"))
    side = session.get_inputs()[0].shape[-1]
    with pytest.raises(Exception, match=f"Got: {side + 8} Expected: {side}"):
        session.run(None, {"input": np.zeros((1, 3, side + 8, side + 8), np.float32)})
