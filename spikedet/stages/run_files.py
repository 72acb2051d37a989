"""The files of a run of stage II.

It writes `out`. Beside `out` there may be:

    out.layers.safetensors    the layer-wise result; deleted after the end-to-end pass
    out.state.pt              the state of the end-to-end pass; deleted after it
    out.last.safetensors      the result of the end-to-end pass, if it is not better than before.
                              Then `out` is the layer-wise result
"""

from __future__ import annotations

from pathlib import Path

from spikedet.checkpoint import load, sha256
from spikedet.errors import UsageError


def sibling_path(out: Path, ending: str) -> Path:
    """Path of a file beside `out`, with this ending."""
    return out.with_name(out.name.removesuffix(".safetensors") + ending)


def last_file(out: Path) -> Path:
    """Path of the result of an end-to-end pass that was not kept."""
    return sibling_path(out, ".last.safetensors")


def layers_file(out: Path) -> Path:
    """Path of the network before the end-to-end pass; deleted after the pass."""
    return sibling_path(out, ".layers.safetensors")


def state_file(out: Path) -> Path:
    """Path of the state of the end-to-end pass; deleted after the pass."""
    return sibling_path(out, ".state.pt")


def delete_resume_files(out: Path) -> None:
    """Delete the files that an end-to-end pass would be resumed from."""
    for path in (state_file(out), layers_file(out)):
        path.unlink(missing_ok=True)


def is_finished(out: Path, resume: bool, command: str, weights: Path) -> bool:
    """Whether `out` exists already and was made by the same command. Then delete left-over files.

    Args:
        out: File that the command writes.
        resume: Whether `--resume` was given.
        command: The command line. `--resume` is ignored in the comparison.
        weights: Checkpoint that the command starts from. The command line does not have its folder.

    Raises:
        UsageError: `out` exists, but was made by another command, or `resume` is False.
        WeightsError: `out` cannot be read.
    """
    existing = next((path for path in (out, last_file(out)) if path.exists()), None)
    if existing is None or (resume and existing != out and layers_file(out).is_file()):
        return False
    if resume and existing == out:
        origin = load(out).origin
        same = _without_resume(str(origin.get("command"))) == _without_resume(command)
        if same and weights.is_file() and origin.get("parent") == sha256(weights):
            delete_resume_files(out)
            return True
    raise UsageError(f"{existing} exists already; choose another --out")


def _without_resume(command: str) -> list[str]:
    return [word for word in command.split() if word != "--resume"]
