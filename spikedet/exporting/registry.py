"""The registry of exporters. To add one, write a file and call `register`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from spikedet.errors import UsageError, list_choices

if TYPE_CHECKING:
    from spikedet.exporting.source import Source


class ExportError(UsageError):
    """A format cannot express the network. The message names the nodes. Exit code 5."""

    exit_code = 5


@dataclass(frozen=True)
class Exporter:
    """An export format.

    Attributes:
        name: Name of the format, as in `format=`.
        endings: File endings that choose this format.
        build: Function of a `Source` and options. It returns the bytes of the file, and notes: one
            sentence for each fact that the file cannot contain. It raises `ExportError` with the
            names of all nodes that the format cannot express.
        options: Names of the options of `build`.
        packages: Packages that must be installed.
    """

    name: str
    endings: tuple[str, ...]
    build: Callable[..., tuple[bytes, list[str]]]
    options: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()


EXPORTERS: dict[str, Exporter] = {}


def register(exporter: Exporter) -> None:
    """Register a format for `spikedet.export`.

    Raises:
        ValueError: The name or one of the endings is registered already.
    """
    taken = {ending for other in EXPORTERS.values() for ending in other.endings}
    if exporter.name in EXPORTERS or taken & set(exporter.endings):
        raise ValueError(f"an exporter {exporter.name} {exporter.endings} is registered already")
    EXPORTERS[exporter.name] = exporter


def expect_format(name: str) -> None:
    """Check the name of a format.

    Raises:
        UsageError: There is no such format. The message lists the formats.
    """
    if name not in EXPORTERS:
        raise UsageError(
            f"no export format {name!r}; expected one of {list_choices(name, EXPORTERS)}"
        )


def named(name: str, path: Path) -> Exporter:
    """Return the exporter of a format.

    Args:
        name: Name of the format.
        path: File that it will write.

    Raises:
        UsageError: There is no such format, or the ending of the file is that of another format.
    """
    expect_format(name)
    said = by_ending(path)
    if said is not None and said.name != name:
        raise UsageError(
            f"{path}: the ending sets the format {said.name}, but the format is {name}"
        )
    return EXPORTERS[name]


def by_ending(path: Path) -> Exporter | None:
    """The exporter with the ending of this file, or None."""
    for exporter in EXPORTERS.values():
        if path.name.lower().endswith(exporter.endings):
            return exporter
    return None


def of_ending(path: Path) -> Exporter:
    """The exporter with the ending of this file.

    Raises:
        UsageError: There is no such exporter.
    """
    exporter = by_ending(path)
    if exporter is not None:
        return exporter
    known = ", ".join(ending for e in EXPORTERS.values() for ending in e.endings)
    raise UsageError(
        f"{path}: this ending sets no format; expected {known}, or name one of "
        f"{', '.join(EXPORTERS)}"
    )


def expect_installed(exporter: Exporter) -> None:
    """Check that the packages of a format are installed.

    Raises:
        UsageError: A package is missing. The message says how to install it.
    """
    for package in exporter.packages:
        if find_spec(package) is None:
            raise UsageError(
                f"{exporter.name} needs the package {package}, which is not installed; "
                "pip install 'spikedet[export]'"
            )


def refuse(format: str, reasons: Iterable[tuple[str, str]]) -> None:
    """Raise an error if there are nodes that a format cannot express.

    Args:
        format: Name of the format in the message.
        reasons: Name of each such node, and the reason.

    Raises:
        ExportError: There is at least one. The message names all of them.
    """
    reasons = list(reasons)
    if reasons:
        each = "; ".join(f"{name}: {why}" for name, why in reasons)
        raise ExportError(f"{format} cannot express this network, so nothing was written: {each}")


def _later(module: str) -> Callable[..., tuple[bytes, list[str]]]:
    """The function `build` of a module in this package. The module is imported when needed."""

    def build(source: Source, **options: object) -> tuple[bytes, list[str]]:
        return import_module(f"spikedet.exporting.{module}").build(source, **options)

    return build


register(Exporter("onnx", (".onnx",), _later("onnx"), ("form",), ("onnx",)))
register(Exporter("nir", (".nir",), _later("nir"), (), ("nir",)))
register(Exporter("int8", (".int8.safetensors", ".safetensors"), _later("int8")))
