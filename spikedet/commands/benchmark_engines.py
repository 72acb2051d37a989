"""Time the engines of a spiking detector against the float network, on real pictures, interleaved.

    spikedet benchmark-engines --data VOCdevkit --T 4 8 20

Prints milliseconds a picture, and passes: that over the time of the float network in float32 in
the same run. How many neurons fire decides the time of the events engine, so that pictures must be
real ones. With --cpu it is the time that the processor was at work, which other programs on the
machine disturb less; with one thread (OMP_NUM_THREADS=1) it is comparable.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from spikedet.commands import kinds, parse
from spikedet.settings import option


@dataclass(kw_only=True)
class Options(parse.Options):
    """Options of the command."""

    data: Path = option(help="VOCdevkit, with VOC2007 in it")
    T: list[int] = option([4, 8, 20], "time steps", kind=kinds.time_steps)
    imgsz: int = option(416, "input side in pixels", least=1)
    engines: list[str] = option(["events"], "by name: torch, events, ...")
    rounds: int = option(20, "pictures; the median and the best are told", least=1)
    cpu: bool = option(False, "time of the processor, not of the clock")
    json: Path | None = option(None, "write a list of results here", kind=kinds.json_file)


def pictures(data: Path, number: int, size: int) -> list:
    """The first pictures of VOC2007's training set, as the detector takes them."""
    import torch

    from spikedet.detection.letterbox import letterbox
    from spikedet.pictures import read_picture

    folder = data / "VOC2007"
    names = (folder / "ImageSets/Main/train.txt").read_text().split()[:number]
    found = []
    for name in names:
        picture, _ = letterbox(read_picture(folder / f"JPEGImages/{name}.jpg"), size)
        found.append(picture[None].contiguous(memory_format=torch.channels_last))
    return found


def run(options: Options) -> None:
    import torch

    from spikedet.detection.predict import Predictor
    from spikedet.released import default_weights, released

    clock = time.process_time if options.cpu else time.perf_counter
    shown = pictures(options.data, min(options.rounds, 100), options.imgsz)
    source = released("float")
    assert source is not None  # it comes with the package
    networks = {("float32", "torch", 1): Predictor(source).runner.network}
    for T in options.T:
        for engine in options.engines:
            network = Predictor(default_weights(T), T, half=False).runner.spiking
            print(f"T = {T}, {network.use_engine(engine)}")
            networks["spikedet", engine, T] = network
    for network in networks.values():
        network.to(memory_format=torch.channels_last)
    times: dict[tuple[str, str, int], list[float]] = {key: [] for key in networks}
    with torch.inference_mode():
        for i in range(options.rounds + 1):
            for key, network in networks.items():
                start = clock()
                network(shown[i % len(shown)])
                if i:  # the first is for warming up
                    times[key].append(clock() - start)
    threads, rows = torch.get_num_threads(), []
    reference = times["float32", "torch", 1]
    for (name, engine, T), found in times.items():
        ms, passes = median(found) * 1e3, median(found) / median(reference)
        best = min(found) / min(reference)
        rows.append(
            {"name": name, "engine": engine, "T": T, "batch": 1, "threads": threads,
             "ms": round(ms, 3), "passes": round(passes, 3), "best_passes": round(best, 3)}
        )  # fmt: skip
        print(
            f"{name:9s} {engine:8s} T = {T:<3d} {ms:8.2f} ms, {passes:5.2f} passes by the median, "
            f"{best:5.2f} by the best"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
