"""Write a network in a format that other programs and chips read: ONNX, NIR, int8.

    spikedet export weights.safetensors network.onnx
    spikedet export weights.safetensors --format nir --T 8 --out network.nir

The command prints what the file itself cannot say, and what you need to know to run it. If the
format cannot express a layer, nothing is written, and the error names each such layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spikedet.commands import kinds, parse, shared
from spikedet.errors import UsageError
from spikedet.options import option


@dataclass(kw_only=True)
class Options(parse.Options):
    """Options of the command."""

    weights: Path = option(
        help="checkpoint of any stage", positional=True, metavar="WEIGHTS", kind=kinds.weights
    )
    file: Path | None = parse.written(
        None,
        "file to write; its ending sets the format: .onnx, .nir or .int8.safetensors",
        positional=True,
        metavar="FILE",
    )
    out: Path | None = parse.written(None, "the same as FILE", metavar="FILE")
    format: str | None = option(
        None, "onnx, nir or int8, if the ending does not set it", kind=kinds.export_format
    )
    T: int | None = shared.steps()
    form: str | None = option(
        None,
        "form of a spiking ONNX file: all time steps in one run, or one time step per run",
        choices=("unrolled", "step"),
    )


def run(options: Options) -> None:
    from spikedet.exporting import export

    if options.file is not None and options.out is not None:
        raise UsageError(
            f"{options.file} and --out {options.out}: expected one file to write, not two"
        )
    path = options.out or options.file
    if path is None:
        raise UsageError("expected a file to write: WEIGHTS FILE, or WEIGHTS --out FILE")
    form = {} if options.form is None else {"form": options.form}
    done = export(options.weights, path, options.format, options.T, **form)
    steps = "" if done.T is None else f", T={done.T}"
    size = path.stat().st_size / 1e6
    print(f"{done.path}: {done.format}{steps}, {size:.1f} MB")
    for note in done.notes:
        print(f"note: {note}")
