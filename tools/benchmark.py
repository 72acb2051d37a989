#!/usr/bin/env python
"""Time the spiking network against the float network, one picture at a time, interleaved.

    tools/benchmark.py --T 20 --imgsz 416

Prints the best time of each, their ratio, and the peak memory of the process. The float network
computes in float32, the spiking one as --half says.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from spikedet import cli  # noqa: E402


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add("--T", type=cli.time_steps, help="time steps; those of the weights if left out")
    add("--imgsz", type=cli.count, default=416, help="input side in pixels")
    add("--float", type=Path, help="float weights; the released ones if left out")
    add("--weights", type=Path, help="spiking weights; the released ones for T if left out")
    add("--rounds", type=cli.count, default=10, help="rounds; the best of each kind counts")
    cli.add_device(parser)
    cli.add_half(parser, default=None)
    return parser


def peak_memory() -> str:
    """The most memory that this process has had, where the system says."""
    try:
        import resource
    except ImportError:  # on Windows
        return "unknown"
    unit = 2**30 if sys.platform == "darwin" else 2**20
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit:.2f} GiB"


def main(args: argparse.Namespace) -> None:
    import torch

    import spikedet
    from spikedet.errors import UsageError, WeightsError
    from spikedet.networks import expect_stage
    from spikedet.released import released

    spiking = spikedet.load(args.weights, args.T, args.device, args.half, engine="torch")
    reference = spikedet.load(
        args.float or released("float", task=spiking.task.name), device=args.device
    )
    expect_stage(spiking.runner, "snn")
    expect_stage(reference.runner, "float")
    if reference.task is not spiking.task:
        kinds = f"{reference.task.name} and {spiking.task.name}"
        raise WeightsError(f"weights for {kinds}; expected those of one task")
    if args.imgsz % reference.stride:
        raise UsageError(f"imgsz is {args.imgsz}; expected a multiple of {reference.stride}")
    runners = {"float": reference.runner, "spiking": spiking.runner}
    picture = torch.rand(1, 3, args.imgsz, args.imgsz, device=args.device)
    best = dict.fromkeys(runners, float("inf"))
    with torch.inference_mode():
        for _ in range(args.rounds):
            for name, runner in runners.items():
                start = time.perf_counter()
                runner(picture, spiking.T if name == "spiking" else None)
                if picture.is_cuda:
                    torch.cuda.synchronize()
                best[name] = min(best[name], time.perf_counter() - start)
    print(
        f"{args.imgsz} pixels, T={spiking.T}, {torch.get_num_threads()} threads: "
        f"float {best['float'] * 1e3:.1f} ms (float32), "
        f"spiking {best['spiking'] * 1e3:.1f} ms ({'bfloat16' if spiking.half else 'float32'}), "
        f"ratio {best['spiking'] / best['float']:.1f}; peak memory {peak_memory()}"
    )


if __name__ == "__main__":
    cli.run(main, arguments())
