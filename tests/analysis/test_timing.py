"""Benchmarks: what rows say, and peak memory."""

import pytest
import torch

import spikedet
from spikedet.analysis import timing
from spikedet.analysis.limit import Work
from spikedet.analysis.timing import Subject
from spikedet.engines import events_engine
from spikedet.errors import UsageError
from spikedet.runtime.network import SpikingNetwork
from support.engines import NETWORKS, needs_kernels, spiking


def test_runs_are_interleaved_and_the_first_does_not_count():
    now, seen = [0.0], []

    def run(name, seconds):
        def call(batch):
            seen.append((name, int(batch)))
            now[0] += seconds

        return call

    class Prepared:
        def prepare(self, batch):
            now[0] += 100
            self.batch = batch

        def __call__(self, batch):
            now[0] += 3.0 if self is warm or batch is self.batch else 0.0

    batches, counted, warm = [torch.tensor(7), torch.tensor(8)], [], Prepared()
    warm.batch = None
    runs = {"a": run("a", 1.0), "b": run("b", 2.0), "c": warm}
    rounds = timing.interleaved(runs, batches, 3, lambda: now[0], lambda: counted.append(1))
    assert list(rounds) == [{"a": 1.0, "b": 2.0, "c": 3.0}] * 3
    assert [name for name, _ in seen] == ["a", "b"] * 4
    assert [number for name, number in seen if name == "a"] == [7, 7, 8, 7]
    assert len(counted) == 9 and warm.batch is batches[0]


def test_rows():
    by_side = {
        Subject("float32", "torch"): [0.2, 0.1, 0.4, 0.2],
        Subject("int8", "onnxruntime"): [0.1, 0.1, 0.1, 0.1],
        Subject("spikedet", "events", 8): [0.1, 0.3, 0.3, 0.5],
    }
    times = [dict(zip(by_side, each, strict=True)) for each in zip(*by_side.values(), strict=True)]
    work = {Subject("spikedet", "events", 8): Work(spikes=300, additions=3000)}
    plain, whole, spikes = timing.rows(times, 2, work, rate=100_000)
    assert (plain.ms, plain.passes, plain.best_passes) == (100.0, 1.0, 1.0)
    assert spikes.ms == pytest.approx(150) and spikes.passes == pytest.approx(1.5)
    ratios = plain.over_fastest, whole.passes, spikes.over_fastest
    assert ratios == pytest.approx((2.0, 0.5, 3.0))
    assert spikes.spikes_a_second == pytest.approx(2000)  # 300 in 150 ms
    assert spikes.limit_share == pytest.approx(0.2)  # 30 ms of 150
    assert plain.limit_share is None and whole.spikes_a_second is None
    assert (
        spikes.best_passes == 1.0
        and spikes.rounds == 4
        and spikes.ms_low < spikes.ms < spikes.ms_high
    )
    line = spikes.as_json()
    assert (line["name"], line["engine"], line["T"], line["batch"]) == ("spikedet", "events", 8, 2)
    assert line["threads"] == torch.get_num_threads()
    with pytest.raises(UsageError, match="no float network"):
        timing.rows([{Subject("spikedet", "events", 8): 0.1}], 1)
    assert timing.rows([], 1) == []
    assert f"{torch.get_num_threads()} thread" in timing.machine()
    assert "1 and 8 threads" in timing.machine([1, 8])


@pytest.fixture
def path(tmp_path):
    torch.manual_seed(0)
    graph = spiking(NETWORKS["max_pool"], torch.rand(1, 3, 64, 64))
    spikedet.save(SpikingNetwork(graph, 4), tmp_path / "w")
    return tmp_path / "w"


@needs_kernels
@pytest.mark.slow
def test_memory_is_bounded_by_a_chunk_whatever_T(path):
    few, many = (
        timing.peak_memory(path, Subject("spikedet", "events", T), 256).run for T in (64, 1280)
    )
    assert many < 3 * few  # the allocator holds on to some; without a chunk it would be 20 times


@needs_kernels
def test_steps_at_once_change_nothing(path, monkeypatch):
    pictures = torch.rand(3, 3, 64, 64)
    snn = spikedet.load(path, engine="events")
    with snn.spike_rates() as rates:
        wanted = snn.after(pictures, [3, 7])
    (plan,) = snn._engine._plans.values()
    for memory in (1, 2 * plan.memory.bytes_of_a_step[False] * 3):
        monkeypatch.setattr(events_engine, "MEMORY", memory)
        with snn.spike_rates() as again:
            for a, b in zip(snn.after(pictures, [3, 7]), wanted, strict=True):
                assert torch.equal(a, b)
        assert again.by_layer() == rates.by_layer()


def test_a_process_that_fails_is_told(tmp_path):
    with pytest.raises(UsageError, match="was not measured: .*no such weights file"):
        timing.peak_memory(tmp_path / "nowhere", Subject("spikedet", "torch", 4), 32)
