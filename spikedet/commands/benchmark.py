"""Time the spiking network against the float network, one picture at a time, interleaved.

    spikedet benchmark --T 20 --imgsz 416

Prints the best time of each, their ratio, and the peak memory of the process. The float network
computes in float32, the spiking one as --half says.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from spikedet.commands import parse, shared
from spikedet.settings import option


@dataclass(kw_only=True)
class Options(parse.Options):
    """Options of the command."""

    T: int | None = shared.steps()
    imgsz: int = option(416, "input side in pixels", least=1)
    reference: Path | None = option(
        None, "float weights; the released ones if left out", name="float"
    )
    weights: Path | None = option(None, "spiking weights; the released ones for T if left out")
    rounds: int = option(10, "rounds; the best of each kind counts", least=1)
    device: str = shared.device()
    half: bool | None = shared.half(None)


def peak_memory() -> str:
    """The most memory that this process has had, where the system says."""
    try:
        import resource
    except ImportError:  # on Windows
        return "unknown"
    unit = 2**30 if sys.platform == "darwin" else 2**20
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit:.2f} GiB"


def run(options: Options) -> None:
    import torch

    import spikedet
    from spikedet.errors import UsageError, WeightsError
    from spikedet.networks import expect_stage
    from spikedet.predictor import BasePredictor
    from spikedet.released import released

    spiking = spikedet.load(
        options.weights, options.T, options.device, options.half, engine="torch"
    )
    if not isinstance(spiking, BasePredictor):
        raise UsageError("a network of one's own has no float weights to be compared with")
    reference = spikedet.load(
        options.reference or released("float", task=spiking.task.name), device=options.device
    )
    assert isinstance(reference, BasePredictor)  # float weights are of a task
    expect_stage(spiking.runner, "snn")
    expect_stage(reference.runner, "float")
    if reference.task is not spiking.task:
        kinds = f"{reference.task.name} and {spiking.task.name}"
        raise WeightsError(f"weights for {kinds}; expected those of one task")
    if options.imgsz % reference.stride:
        raise UsageError(f"imgsz is {options.imgsz}; expected a multiple of {reference.stride}")
    runners = {"float": reference.runner, "spiking": spiking.runner}
    picture = torch.rand(1, 3, options.imgsz, options.imgsz, device=options.device)
    best = dict.fromkeys(runners, float("inf"))
    with torch.inference_mode():
        for _ in range(options.rounds):
            for name, runner in runners.items():
                start = time.perf_counter()
                runner(picture, spiking.T if name == "spiking" else None)
                if picture.is_cuda:
                    torch.cuda.synchronize()
                best[name] = min(best[name], time.perf_counter() - start)
    print(
        f"{options.imgsz} pixels, T={spiking.T}, {torch.get_num_threads()} threads: "
        f"float {best['float'] * 1e3:.1f} ms (float32), "
        f"spiking {best['spiking'] * 1e3:.1f} ms ({'bfloat16' if spiking.half else 'float32'}), "
        f"ratio {best['spiking'] / best['float']:.1f}; peak memory {peak_memory()}"
    )
