"""The code in docs/ runs as it stands, page by page."""

import pytest
import torch

from spikedet import methods
from spikedet.engines.registry import ENGINES
from spikedet.exporting.registry import EXPORTERS
from spikedet.graph import operations, table
from spikedet.neurons import registry
from support.docs import code
from support.places import BUS, ROOT

REGISTRIES = (
    methods.METHODS, operations.KINDS, operations._BY_MODULE, table.HANDLERS, registry.NEURONS,
    EXPORTERS, ENGINES,
)  # fmt: skip


@pytest.fixture
def registries():
    """What a page registers is forgotten after the test."""
    kept = [dict(one) for one in REGISTRIES]
    yield
    for one, before in zip(REGISTRIES, kept, strict=True):
        one.clear()
        one.update(before)


@pytest.mark.parametrize("page", ["convert.md", "export.md", "extending.md"])
def test_the_code_of_a_page_runs(page, registries, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").symlink_to(ROOT / "weights")
    (tmp_path / "street.jpg").write_bytes(BUS.read_bytes())
    names: dict = {}
    exec(compile(code(page), page, "exec"), names)
    assert names["snn"].T == 8
    if page == "export.md":  # the street as numpy and onnxruntime see it
        assert {"person", "bus"} <= set(names["names"])
    if page == "extending.md":
        kinds = {node.kind for node in names["snn"].graph}
        assert {"flip", "neuron"} <= kinds
        assert "p99" in methods.METHODS and "hard-reset" in registry.NEURONS
        y = names["snn"](names["batches"][0])
        assert names["snn"].engine == "bfloat16" and torch.equal(y, names["y"])
        names["snn"].use_engine("torch")
        names["snn"].use_bfloat16()
        assert torch.equal(names["snn"](names["batches"][0]), y)
