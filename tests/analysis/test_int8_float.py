"""A float network in int8 by onnxruntime."""

import sys

import pytest
import torch

from spikedet.analysis import int8_float
from spikedet.errors import UsageError
from spikedet.graph.record import record

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture
def model(small_net):
    from spikedet.exporting import onnx
    from spikedet.exporting.source import Source

    return onnx.build(Source.of(record(small_net, torch.zeros(1, 3, 16, 16))))[0]


def test_outputs_are_near_those_of_float32(model, small_net, pictures):
    data = int8_float.quantised(model, pictures.split(1))
    import onnx

    kinds = {tensor.data_type for tensor in onnx.load_from_string(data).graph.initializer}
    assert onnx.TensorProto.INT8 in kinds
    run = int8_float.Int8Float(data, 1)
    with torch.no_grad():
        wanted = small_net(pictures)
    (output,) = run(pictures)
    apart = (torch.from_numpy(output) - wanted).abs().mean()
    assert 0 < apart < 0.1 * wanted.abs().mean()
    run.prepare(pictures)  # in another layout, for the next call alone
    assert (run(pictures)[0] == output).all()
    assert (run(pictures[:2])[0] == output[:2]).all()


def test_without_onnxruntime_one_sentence(model, pictures, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime.quantization", None)
    with pytest.raises(UsageError, match=r"int8 needs onnx and onnxruntime; pip install"):
        int8_float.quantised(model, pictures.split(1))


def test_what_it_refuses_is_one_sentence(pictures):
    with pytest.raises(UsageError, match="onnxruntime does not quantise this network: "):
        int8_float.quantised(b"no model", pictures.split(1))
