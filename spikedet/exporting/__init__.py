"""Export networks to formats of other programs and chips.

Each exporter is one module. It is chosen by its name or by the ending of the file.
"""

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
    """The result of `export`.

    Attributes:
        path: The written file.
        format: Name of the format.
        T: Time steps of the exported network. None for a network without time steps.
        notes: Sentences about what the file itself cannot say, and what you need to know to run it.
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

    All nodes are checked before the file is written. If writing fails, no partial file is left.

    Args:
        network: A result of `spikedet.convert` or `spikedet.load`, or the path of a checkpoint of
            any stage.
        path: File to write.
        format: `onnx`, `nir`, `int8`, or another registered format. None: the ending of `path`
            sets the format.
        T: Time steps of a spiking network. None: the T that it was made for.
        **options: Options of the format. `onnx` has the option `form`, `unrolled` or `step`.

    Returns:
        The file, its format, its T, and notes for its user.

    Raises:
        UsageError: The format or the option does not exist, the ending is that of another format,
            a package is not installed, T is not possible, `path` is a file of weights,
            or `network` is not a network.
        ExportError: The format cannot express the network. The message names each node that the
            format cannot express.
        WeightsError: The weights are missing or damaged.
        OSError: The file cannot be written.

    Examples:
        >>> spikedet.export("weights/tiny-yolo-s-snn-T8.safetensors", "detector.onnx")
    """
    from spikedet.checkpoint import is_checkpoint  # torch, and all that networks need
    from spikedet.exporting.source import Source

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
    if is_checkpoint(path):
        raise UsageError(f"{path}: the export would overwrite weights; choose another file")
    data, notes = exporter.build(source, **options)
    write_atomic(path, data)
    return Exported(path, exporter.name, source.T, (*source.notes, *notes))
