"""Networks for other programs and for chips: one file an exporter, found by name or file ending."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikedet.errors import UsageError
from spikedet.exporting import registry
from spikedet.files import write_atomic

if TYPE_CHECKING:
    from spikedet.graph.graph import Graph
    from spikedet.predictor import BasePredictor
    from spikedet.runtime.network import SpikingNetwork

__all__ = ["Exported", "export"]


@dataclass(frozen=True)
class Exported:
    """What `export` wrote.

    Attributes:
        path: The file.
        format: Its format.
        T: Time steps that it was written for, None of a network without.
        notes: One sentence each on what the file does not say by itself, so that whoever runs it
            has to know.
    """

    path: Path
    format: str
    T: int | None
    notes: tuple[str, ...]


def export(
    network: SpikingNetwork | Graph | BasePredictor | str | Path,
    path: str | Path,
    format: str | None = None,
    T: int | None = None,
    **options: Any,
) -> Exported:
    """Write a network in a format that other programs read.

    Nothing is written before every node of the network is known to fit the format. The file is
    written whole or not at all.

    Args:
        network: What `spikedet.convert` or `spikedet.load` returns, or the path of weights of any
            stage.
        path: Where.
        format: `onnx`, `nir`, `int8`, or what else is registered; by the ending of `path` when
            None.
        T: Time steps of a spiking network; those that it was made for when None.
        **options: Of the format; `onnx` takes `form`, which is `unrolled` or `step`.

    Raises:
        UsageError: No such format or option, an ending of another format, a package that is not
            installed, a T that makes no sense, `path` is the file of the network itself, or
            something else than a network.
        ExportError: The format cannot say the network; names every node that it cannot.
        WeightsError: The weights are missing or damaged.
        OSError: The file cannot be written.

    Examples:
        >>> spikedet.export("weights/tiny-yolo-s-snn-T8.safetensors", "detector.onnx")
    """
    from spikedet.exporting.source import Source  # torch, and all that networks need

    path = Path(path)
    exporter = registry.of_ending(path) if format is None else registry.named(format, path)
    unknown = sorted(set(options) - set(exporter.options))
    if unknown:
        allowed = ", ".join(exporter.options) or "none"
        raise UsageError(f"{unknown[0]} is no option of {exporter.name}; it has {allowed}")
    registry.expect_installed(exporter)
    source = Source.of(network, T)
    if source.file is not None and path.exists() and path.samefile(source.file):
        raise UsageError(f"{path}: the export would overwrite the network; choose another file")
    data, notes = exporter.build(source, **options)
    write_atomic(path, data)
    return Exported(path, exporter.name, source.T, (*source.notes, *notes))
