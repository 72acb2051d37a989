"""Exporters by name. A new one is a file and one `register`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from spikedet.errors import UsageError, among

if TYPE_CHECKING:
    from spikedet.exporting.source import Source


class ExportError(UsageError):
    """A network that a format cannot say."""


@dataclass(frozen=True)
class Exporter:
    """A format.

    Attributes:
        name: As `format=` has it.
        endings: Of files that are of this format where nobody says a format.
        build: Called with a `Source` and options; returns the bytes of the file, and a sentence for
            everything that it does not say by itself. Raises `ExportError` naming every node that
            cannot be said.
        options: Names of what `build` takes beside the source.
        packages: That must be installed.
    """

    name: str
    endings: tuple[str, ...]
    build: Callable[..., tuple[bytes, list[str]]]
    options: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()


EXPORTERS: dict[str, Exporter] = {}


def register(exporter: Exporter) -> None:
    """Let `spikedet.export` write one more format.

    Raises:
        ValueError: The name or one of the endings is there already.
    """
    taken = {ending for other in EXPORTERS.values() for ending in other.endings}
    if exporter.name in EXPORTERS or taken & set(exporter.endings):
        raise ValueError(f"an exporter {exporter.name} {exporter.endings} is registered already")
    EXPORTERS[exporter.name] = exporter


def expect_format(name: str) -> None:
    """Refuse what is no name of a format.

    Raises:
        UsageError: Says which there are.
    """
    if name not in EXPORTERS:
        raise UsageError(f"no export format {name!r}; expected one of {among(name, EXPORTERS)}")


def named(name: str, path: Path) -> Exporter:
    """An exporter by its name.

    Args:
        name: Of its format.
        path: What it will write.

    Raises:
        UsageError: There is none, or files that end like this one are of another format.
    """
    expect_format(name)
    said = by_ending(path)
    if said is not None and said.name != name:
        raise UsageError(
            f"{path}: the ending sets the format {said.name}, but the format is {name}"
        )
    return EXPORTERS[name]


def by_ending(path: Path) -> Exporter | None:
    """The exporter whose files end like this one, None where there is none."""
    for exporter in EXPORTERS.values():
        if path.name.lower().endswith(exporter.endings):
            return exporter
    return None


def of_ending(path: Path) -> Exporter:
    """The exporter whose files end like this one.

    Raises:
        UsageError: There is none.
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
    """Refuse a format whose packages are not here.

    Raises:
        UsageError: Names the package, and how to get it.
    """
    for package in exporter.packages:
        if find_spec(package) is None:
            raise UsageError(
                f"{exporter.name} needs the package {package}, which is not installed; "
                "pip install 'spikedet[export]'"
            )


def refuse(format: str, reasons: Iterable[tuple[str, str]]) -> None:
    """Raise for all nodes that a format cannot say, if there are any.

    Args:
        format: As the sentence calls it.
        reasons: Name of each node, and why.

    Raises:
        ExportError: Names them all.
    """
    reasons = list(reasons)
    if reasons:
        each = "; ".join(f"{name}: {why}" for name, why in reasons)
        raise ExportError(f"{format} cannot express this network, so nothing was written: {each}")


def _later(module: str) -> Callable[..., tuple[bytes, list[str]]]:
    """`build` of a module of this room, which is imported when it is needed."""

    def build(source: Source, **options: object) -> tuple[bytes, list[str]]:
        return import_module(f"spikedet.exporting.{module}").build(source, **options)

    return build


register(Exporter("onnx", (".onnx",), _later("onnx"), ("form",), ("onnx",)))
register(Exporter("nir", (".nir",), _later("nir"), (), ("nir",)))
register(Exporter("int8", (".int8.safetensors", ".safetensors"), _later("int8")))
