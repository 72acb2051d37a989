"""Files of the package: network descriptions, experiments, splits and released weights."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def folder(name: str) -> Path:
    """Where files of the package lie: inside it when it is installed, beside it in a clone.

    Args:
        name: `configs` or `weights`.
    """
    package = Path(str(files("spikedet")))
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


def configs(kind: str) -> list[str]:
    """Names of the configurations that come with the package, see `config`."""
    return sorted(path.stem for path in (folder("configs") / kind).glob("*.yaml"))


def all_weights() -> list[str]:
    """Names of the weights that come with the package, see `weights`."""
    return sorted(path.stem for path in folder("weights").glob("*.safetensors"))


def config(path: Path | str, kind: str) -> Path:
    """A configuration that a user names: a file of his own, or one that comes with the package.

    Args:
        path: A path, or the name of a shipped file, with or without `configs/models/` before it and
            `.yaml` behind it. A file of that path wins over a shipped one.
        kind: Folder of the shipped ones, `models` or `experiments`.

    Returns:
        The file; `path` itself where there is no such file in either place.
    """
    return _own_or_shipped(Path(path), Path("configs", kind), ".yaml")


def weights(path: Path | str) -> Path:
    """Weights that a user names: a file of his own, or one that comes with the package.

    Args:
        path: A path, or the name of a released file, with or without `weights/` before it and
            `.safetensors` behind it. A file of that path wins over a released one.

    Returns:
        The file; `path` itself where there is no such file in either place.
    """
    return _own_or_shipped(Path(path), Path("weights"), ".safetensors")


def _own_or_shipped(path: Path, place: Path, ending: str) -> Path:
    if path.is_file() or path.parent not in (Path("."), place):
        return path
    shipped = folder(place.parts[0]).joinpath(*place.parts[1:])
    for name in (path.name, f"{path.name}{ending}"):
        if name.endswith(ending) and (shipped / name).is_file():
            return shipped / name
    return path
