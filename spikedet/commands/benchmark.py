"""Time a spiking network against its float network, engine by engine, interleaved.

    spikedet benchmark --data VOCdevkit --T 4 8 20
    spikedet benchmark --T 8 --engines events torch torch-bfloat16 --peers

Prints milliseconds a picture, and passes: that over the time of the float network in float32 in
the same run. How many neurons fire decides the time of the events engine, so that pictures must be
real ones: --data names them, else it is the street picture that ultralytics brings (a classifier
sees noise). With --cpu it is the time that the processor was at work, which other programs on the
machine disturb less; with one thread (OMP_NUM_THREADS=1) it is comparable. --peers adds
SpikingJelly where it is installed, --memory the peak memory of processes that run one network each.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from spikedet.commands import kinds, parse, shared
from spikedet.commands.result import write_json
from spikedet.settings import option

BFLOAT16 = "torch-bfloat16"
OWN = ("torch", "events", "integers")  # engines whose memory is measured


@dataclass(kw_only=True)
class Options(parse.Options):
    """Options of the command."""

    T: list[int] = option([8], "time steps", kind=kinds.time_steps)
    engines: list[str] = option(["auto"], f"by name: auto, events, torch, {BFLOAT16}, integers")
    weights: Path | None = option(None, "spiking weights; the released ones for T if left out")
    reference: Path | None = option(
        None, "float weights; the released ones if left out", name="float"
    )
    data: Path | None = option(None, "pictures: a VOCdevkit, or a folder of pictures")
    imgsz: int | None = option(None, "input side in pixels; that of the weights", least=1)
    batch: int = option(1, "pictures at once", least=1)
    rounds: int = option(20, "runs of each; the median and the best are told", least=1)
    device: str = shared.device()
    peers: bool = option(False, "SpikingJelly as well, where it is installed")
    cpu: bool = option(False, "time of the processor, not of the clock")
    memory: bool = option(False, "peak memory of each, in processes of their own")
    json: Path | None = option(None, "write a list of results here", kind=kinds.json_file)


def pictures(options: Options, task: str, size: int) -> list[Any]:
    """Batches [B, 3, size, size] as the network takes them."""
    import torch

    count = min(options.rounds, 100) * options.batch
    if task != "detection":
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(count, 3, size, size, generator=generator)
        return list(noise.contiguous(memory_format=torch.channels_last).split(options.batch))
    from spikedet.detection.letterbox import letterbox
    from spikedet.detection.ultra import SAMPLE
    from spikedet.pictures import find_pictures, read_picture

    paths: list[Path] = [Path(SAMPLE)]
    if options.data is not None:
        listed = options.data / "VOC2007/ImageSets/Main/train.txt"
        if listed.is_file():
            names = listed.read_text().split()
            paths = [options.data / f"VOC2007/JPEGImages/{name}.jpg" for name in names]
        else:
            paths, _ = find_pictures([str(options.data)])
    paths = [paths[number % len(paths)] for number in range(count)]
    inputs = torch.stack([letterbox(read_picture(path), size)[0] for path in paths])
    return list(inputs.contiguous(memory_format=torch.channels_last).split(options.batch))


def run(options: Options) -> None:
    import spikedet
    from spikedet.analysis import timing
    from spikedet.errors import UsageError, WeightsError
    from spikedet.networks import expect_stage
    from spikedet.predictor import BasePredictor
    from spikedet.released import default_weights, released

    def load(*weights: Any, **engine_options: Any) -> BasePredictor:
        predictor = spikedet.load(*weights, **engine_options)
        if not isinstance(predictor, BasePredictor):
            raise UsageError("a network of one's own has no float network to be compared with")
        return predictor

    first = load(options.weights, options.T[0], options.device)
    expect_stage(first.runner, "snn")
    task = first.task
    path = options.reference or released("float", task=task.name)
    assert path is not None  # the released one comes with the package
    reference = load(path, device=options.device)
    expect_stage(reference.runner, "float")
    if reference.task is not task:
        kinds_ = f"{reference.task.name} and {task.name}"
        raise WeightsError(f"weights for {kinds_}; expected those of one task")
    size = options.imgsz or first.imgsz
    if size % reference.stride:
        raise UsageError(f"imgsz is {size}; expected a multiple of {reference.stride}")
    runs: dict[Any, Callable[[Any], Any]] = {}
    runs[timing.Subject(timing.FLOAT, "torch")] = reference.runner.network
    print(timing.machine())
    for T in options.T:
        for engine in options.engines:
            engine_options: dict[str, Any] = {"engine": engine}
            if engine in ("torch", BFLOAT16):
                engine_options = {"half": engine == BFLOAT16}
            loaded = load(options.weights, T, options.device, task=task.name, **engine_options)
            print(f"T={T}: {loaded.why_engine}")
            network = loaded.runner.network
            runs[timing.Subject("spikedet", engine, T)] = partial(network, T=T)
        if options.peers:
            graph = load(options.weights, T, task=task.name, half=False)
            try:
                peer = timing.spikingjelly_copy(graph.runner.network.graph, T)
            except UsageError as error:
                print(error)
                continue
            runs[timing.Subject("spikingjelly", "multi-step", T)] = peer.to(options.device)
    shown = [batch.to(options.device) for batch in pictures(options, task.name, size)]
    clock = time.process_time if options.cpu else time.perf_counter
    rows = timing.rows(timing.interleaved(runs, shown, options.rounds, clock), options.batch)
    lines = [row.as_json() for row in rows]
    for row in rows:
        print(
            f"{row.name:12} {row.engine:14} T={row.T:<3} {row.ms:8.2f} ms a picture "
            f"({row.ms_low:.2f} to {row.ms_high:.2f}), {row.passes:5.2f} passes by the median, "
            f"{row.best_passes:5.2f} by the best"
        )
    for row, line in zip(rows, lines, strict=True):
        if not options.memory or row.engine not in OWN:
            continue
        of = path if row.name == timing.FLOAT else options.weights or default_weights(row.T)
        peak = timing.peak_memory(of, row.T, row.engine, size, options.batch, row.threads)
        line |= {"peak_bytes": peak.process, "run_bytes": peak.run}
        print(
            f"{row.name:12} {row.engine:14} T={row.T:<3} {peak.process / 2**20:.0f} MiB, "
            f"{peak.run / 2**20:.0f} of them for T steps"
        )
    write_json(options, lines)
