#!/usr/bin/env python
"""Time the engines of a spiking detector against the float network, on real pictures, interleaved.

    tools/benchmark_engines.py --data VOCdevkit --T 4 8 20

Prints milliseconds a picture, and passes: that over the time of the float network in float32 in
the same run. How many neurons fire decides the time of the events engine, so that pictures must be
real ones. With --cpu it is the time that the processor was at work, which other programs on the
machine disturb less; with one thread (OMP_NUM_THREADS=1) it is comparable. --peers adds
SpikingJelly where it is installed, --memory the peak memory of processes that run one network each.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from spikedet import cli  # noqa: E402

BFLOAT16 = "torch-bfloat16"


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="VOCdevkit, with VOC2007 in it")
    add("--T", type=cli.time_steps, nargs="+", default=[4, 8, 20], help="time steps")
    add("--imgsz", type=cli.count, default=416, help="input side in pixels")
    help = f"by name: events, torch, {BFLOAT16}, integers"
    add("--engines", nargs="+", default=["events"], help=help)
    add("--peers", action="store_true", help="SpikingJelly as well, where it is installed")
    add("--batch", type=cli.count, default=1, help="pictures at once")
    add("--rounds", type=cli.count, default=20, help="pictures; the median and the best are told")
    add("--cpu", action="store_true", help="time of the processor, not of the clock")
    add("--memory", action="store_true", help="peak memory of each, in processes of their own")
    add("--json", type=Path, help="write a list of results here")
    return parser


def pictures(data: Path, number: int, size: int, batch: int) -> list:
    """The first pictures of VOC2007's training set in batches, as the detector takes them."""
    import torch

    from spikedet.detection.letterbox import letterbox
    from spikedet.pictures import read_picture

    folder = data / "VOC2007"
    names = (folder / "ImageSets/Main/train.txt").read_text().split()[: number * batch]
    found = [letterbox(read_picture(folder / f"JPEGImages/{n}.jpg"), size)[0] for n in names]
    groups = [torch.stack(found[i : i + batch]) for i in range(0, len(found) - batch + 1, batch)]
    return [group.contiguous(memory_format=torch.channels_last) for group in groups]


def networks(args: argparse.Namespace) -> dict:
    """What is timed, by its `timing.Subject`."""
    import torch

    import spikedet
    from spikedet.analysis import timing
    from spikedet.errors import UsageError
    from spikedet.released import released

    found = {timing.Subject(timing.FLOAT, "torch"): spikedet.load(released("float")).runner.network}
    for T in args.T:
        for engine in args.engines:
            how = {"half": True} if engine == BFLOAT16 else {"engine": engine, "half": None}
            if engine == "torch":
                how = {"half": False}
            detector = spikedet.load(None, T, **how)
            print(f"T = {T}, {detector.why_engine}")
            found[timing.Subject("spikedet", engine, T)] = detector.runner.network
        if args.peers:
            graph = spikedet.load(None, T, half=False).runner.network.graph
            try:
                peer = timing.spikingjelly_copy(graph, T)
            except UsageError as error:
                print(error)
                continue
            found[timing.Subject("spikingjelly", "multi-step", T)] = peer
    return {key: net.to(memory_format=torch.channels_last) for key, net in found.items()}


def main(args: argparse.Namespace) -> None:
    from spikedet.analysis import timing
    from spikedet.released import default_weights, released

    print(timing.machine())
    shown = pictures(args.data, min(args.rounds, 100), args.imgsz, args.batch)
    clock = time.process_time if args.cpu else time.perf_counter
    times = timing.interleaved(networks(args), shown, args.rounds, clock)
    rows = timing.rows(times, args.batch)
    lines = [row.as_json() for row in rows]
    for row in rows:
        print(
            f"{row.name:12s} {row.engine:14s} T = {row.T:<3d} {row.ms:8.2f} ms a picture "
            f"({row.ms_low:.2f} to {row.ms_high:.2f}), {row.passes:5.2f} passes by the median, "
            f"{row.best_passes:5.2f} by the best"
        )
    for row, line in zip(rows, lines, strict=True):
        own = row.engine in ("torch", "events", "integers")
        if not args.memory or not own:
            continue
        path = released("float") if row.name == timing.FLOAT else default_weights(row.T)
        peak = timing.peak_memory(path, row.T, row.engine, args.imgsz, args.batch, row.threads)
        line |= {"peak_bytes": peak.process, "run_bytes": peak.run}
        print(
            f"{row.name:12s} {row.engine:14s} T = {row.T:<3d} {peak.process / 2**20:.0f} MiB, "
            f"{peak.run / 2**20:.0f} of them for T steps"
        )
    if args.json:
        args.json.write_text(json.dumps(lines, indent=1) + "\n")


if __name__ == "__main__":
    cli.run(main, arguments())
