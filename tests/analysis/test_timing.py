"""Benchmarks: what rows say, another simulator, and peak memory."""

import pytest
import torch

import spikedet
from spikedet.analysis import timing
from spikedet.analysis.timing import Subject
from spikedet.engines import library, whole
from spikedet.errors import UsageError
from spikedet.runtime.network import SpikingNetwork
from support.engines import NETWORKS, spiking

try:
    KERNELS = library.kernels()
except library.NoLibrary:
    KERNELS = []
needs_kernels = pytest.mark.skipif(not KERNELS, reason="no compiled kernels")


def test_runs_are_interleaved_and_the_first_does_not_count():
    now, seen = [0.0], []

    def run(name, seconds):
        def call(batch):
            seen.append((name, int(batch)))
            now[0] += seconds

        return call

    batches = [torch.tensor(7), torch.tensor(8)]
    times = timing.interleaved(
        {"a": run("a", 1.0), "b": run("b", 2.0)}, batches, 3, clock=lambda: now[0]
    )
    assert times == {"a": [1.0] * 3, "b": [2.0] * 3}
    assert [name for name, _ in seen] == ["a", "b"] * 4
    assert [number for name, number in seen if name == "a"] == [7, 7, 8, 7]


def test_rows():
    times = {
        Subject("float32", "torch"): [0.2, 0.1, 0.4, 0.2],
        Subject("spikedet", "events", 8): [0.1, 0.3, 0.3, 0.5],
    }
    plain, spikes = timing.rows(times, batch=2)
    assert (plain.ms, plain.passes, plain.best_passes) == (100.0, 1.0, 1.0)
    assert spikes.ms == pytest.approx(150) and spikes.passes == pytest.approx(1.5)
    assert spikes.best_passes == 1.0 and spikes.ms_low < spikes.ms < spikes.ms_high
    line = spikes.as_json()
    assert (line["name"], line["engine"], line["T"], line["batch"]) == ("spikedet", "events", 8, 2)
    assert line["threads"] == torch.get_num_threads()
    with pytest.raises(UsageError, match="no float network"):
        timing.rows({Subject("spikedet", "events", 8): [0.1]}, 1)
    assert f"{torch.get_num_threads()} threads" in timing.machine()


def test_another_simulator_makes_the_same_spikes():
    pytest.importorskip("spikingjelly.activation_based")
    torch.manual_seed(0)
    pictures = torch.rand(2, 3, 16, 16)
    graph = spiking(NETWORKS["max_pool"], pictures)
    peer = timing.spikingjelly_copy(graph, 6)
    outputs, wanted = peer(pictures), SpikingNetwork(graph, 6)(pictures)
    assert torch.allclose(outputs, wanted, atol=1e-5)
    assert torch.equal(outputs, peer(pictures))  # nothing is left of a pass
    with pytest.raises(UsageError, match="one threshold a layer"):
        timing.spikingjelly_copy(spiking(NETWORKS["linear"], pictures, slope=0.2), 4)


@pytest.fixture
def path(tmp_path):
    torch.manual_seed(0)
    graph = spiking(NETWORKS["max_pool"], torch.rand(1, 3, 64, 64))
    spikedet.save(SpikingNetwork(graph, 4), tmp_path / "w")
    return tmp_path / "w"


@needs_kernels
@pytest.mark.slow
def test_memory_is_bounded_by_a_chunk_whatever_T(path):
    few, many = (timing.peak_memory(path, T, "events", 256).run for T in (64, 1280))
    assert many < 3 * few  # the allocator holds on to some; without a chunk it would be 20 times


@needs_kernels
def test_steps_at_once_change_nothing(path, monkeypatch):
    pictures = torch.rand(3, 3, 64, 64)
    snn = spikedet.load(path, engine="events")
    with snn.spike_rates() as rates:
        wanted = snn.after(pictures, [3, 7])
    (plan,) = snn._engine._plans.values()
    for memory in (1, 2 * plan.bytes_of_a_step * 3):
        monkeypatch.setattr(whole, "MEMORY", memory)
        with snn.spike_rates() as again:
            for a, b in zip(snn.after(pictures, [3, 7]), wanted, strict=True):
                assert torch.equal(a, b)
        assert again.by_layer() == rates.by_layer()


def test_a_process_that_fails_is_told(tmp_path):
    with pytest.raises(UsageError, match="was not measured: .*no such weights file"):
        timing.peak_memory(tmp_path / "nowhere", 4, "torch", 32)
