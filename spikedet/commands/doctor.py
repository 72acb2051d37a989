"""Check whether everything that spikedet needs is here, and say how to get what is missing.

    spikedet doctor
    spikedet doctor --data VOCdevkit --weights weights.safetensors

Checks the installation, the weights, the engine and why it is chosen, the devices, the display, the
camera, the data, the disk and the memory. `ok` means fine. `-` means missing, but only some
commands need it. `!!` means missing and needed. The exit code is 0 if nothing needed is missing.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

from spikedet.commands import kinds, parse, shared
from spikedet.errors import SpikedetError, message_of
from spikedet.options import option
from spikedet.terminal import beside, console

NEEDED = ("torch", "torchvision", "ultralytics", "numpy", "opencv-python", "pillow", "av",
          "safetensors", "pycocotools", "matplotlib", "rich")  # fmt: skip
OPTIONAL = {  # packages, the extra that brings them, and what they are for
    "pillow-heif": ("heic", "HEIC pictures"),
    "trackers": ("tracking", "detect --track"),
    "onnx": ("export", "export to ONNX"),
    "nir": ("export", "export to NIR"),
}
DISK, MEMORY = 1e9, 2e9  # bytes that are enough to detect and convert
OK, MISSING, BAD = "ok", "-", "!!"
COLOURS = {OK: "green", MISSING: "yellow", BAD: "bold red"}


@dataclass(kw_only=True)
class Options(parse.Options):
    """Options of the command."""

    weights: Path | None = option(
        None, "weights to check (default: the released weights)", kind=kinds.weights
    )
    data: list[Path] | None = option(None, "data to check", metavar="FOLDER")
    device: str = shared.device()
    camera: bool = option(False, "open the first camera; its light may switch on")
    json: Path | None = parse.written(None, "write all results to this file", kind=kinds.json_file)


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        name: Subject of the check.
        state: `ok`, `-` (missing, but only some commands need it) or `!!` (missing and needed).
        text: What was found.
        advice: What to do. Empty if there is nothing to do.
    """

    name: str
    state: str
    text: str
    advice: str = ""


def run(options: Options) -> int:
    from spikedet.commands.result import write_json

    findings = list(examine(options))
    wide = max(len(finding.name) for finding in findings) + 2
    for finding in findings:
        show(finding, wide)
    bad = [finding.name for finding in findings if finding.state == BAD]
    print(f"needed and missing: {', '.join(bad)}" if bad else "everything that is needed is here")
    if options.json:
        write_json(options, {"T": None, "ok": not bad, "findings": list(map(asdict, findings))})
    return 1 if bad else 0


def show(finding: Finding, wide: int) -> None:
    """Print a finding, and its advice below it, wrapped to the terminal.

    Args:
        finding: The finding. Its state is coloured on a terminal.
        wide: Width of the column of names in characters.
    """
    advice = f"\n-> {finding.advice}" if finding.advice else ""
    lines = beside(f"{finding.state:>2}  {finding.name:{wide}}", finding.text + advice)
    if sys.stdout.isatty():
        console(sys.stdout).print(f"{finding.state:>2}", style=COLOURS[finding.state], end="")
        lines = lines[2:]
    print(lines)


def examine(options: Options) -> Iterator[Finding]:
    """Run all checks. A check that fails unexpectedly gives a finding too."""
    yield from _packages()
    looks: list[tuple[str, Callable[[], Finding]]] = [
        ("weights", lambda: _weights(options.weights)),
        ("kernels", _kernels),
        ("engine", lambda: _engine(options)),
        ("device", _device),
        ("threads", _threads),
        ("display", _display),
        ("camera", lambda: _camera(options.camera)),
    ]
    looks += [("data", partial(_data, folder)) for folder in options.data or ()]
    looks += [("disk", _disk), ("memory", _memory)]
    for name, look in looks:
        try:
            yield look()
        except Exception as error:  # a broken installation may fail anywhere
            yield Finding(
                name, BAD, f"{type(error).__name__}: {message_of(error)}", "install spikedet again"
            )


def versions() -> dict[str, str | None]:
    """Versions of spikedet, Python, the system and the required packages. None if missing."""
    system: dict[str, str | None] = {
        "spikedet": _version("spikedet"),
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    return system | {name: _version(name) for name in NEEDED}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _packages() -> Iterator[Finding]:
    there = versions()
    own = there.pop("spikedet")
    place = Path(__file__).resolve().parents[1]
    if own is None:
        yield Finding("spikedet", MISSING, f"used from {place}, not installed",
                      "run pip install . in this folder to get the command `spikedet`")  # fmt: skip
    else:
        yield Finding("spikedet", OK, f"{own} in {place}")
    good = sys.version_info >= (3, 10)
    yield Finding("Python", OK if good else BAD, f"{there.pop('Python')}, {there.pop('system')}",
                  "" if good else "expected Python 3.10 or later")  # fmt: skip
    known = ", ".join(f"{name} {version}" for name, version in there.items() if version)
    lacking = [name for name, version in there.items() if version is None]
    if "opencv-python" in lacking and _version("opencv-python-headless"):
        lacking.remove("opencv-python")
    if lacking:
        advice = f"pip install {' '.join(lacking)}"
        yield Finding("packages", BAD, f"missing: {', '.join(lacking)}", advice)
    else:
        yield Finding("packages", OK, known)
    for name, (extra, purpose) in OPTIONAL.items():
        version = _version(name)
        advice = "" if version else f"pip install 'spikedet[{extra}]'"
        text = f"{name} {version}" if version else f"no {name}"
        yield Finding(purpose, OK if version else MISSING, text, advice)


def _weights(path: Path | None) -> Finding:
    from spikedet.checkpoint import load
    from spikedet.released import default_weights, weights_folder
    from spikedet.resources import all_weights

    try:
        checkpoint = load(path or default_weights())
    except SpikedetError as error:
        advice = "name weights with --weights, or train: spikedet train --help"
        return Finding("weights", BAD, str(error), advice)
    name = path.name if path else f"{len(all_weights())} released files in {weights_folder()}"
    text = f"{name}; {checkpoint.task}, T={checkpoint.T}" if path else name
    return Finding("weights", OK, text)


def _kernels() -> Finding:
    from spikedet.errors import UsageError
    from spikedet.kernels.library import CHOICE, HINT, NoLibrary, chosen, kernels

    try:
        text, first = f"of the events engine and of training: {', '.join(kernels())}", kernels()[0]
        chosen_text = "" if chosen() == first else f"; {CHOICE} chooses {chosen()}"
        return Finding("kernels", OK, text + chosen_text)
    except UsageError as error:
        return Finding("kernels", BAD, str(error), f"unset {CHOICE}")
    except NoLibrary as error:
        text = str(error)
        advice = "unset SPIKEDET_NO_KERNELS" if "SPIKEDET_NO" in text else HINT
        return Finding("kernels", MISSING, text.partition(";")[0], advice)


def _engine(options: Options) -> Finding:
    import spikedet

    try:
        loaded = spikedet.load(options.weights, device=options.device)
    except SpikedetError as error:
        return Finding("engine", BAD, str(error), "see the line about the weights")
    why = getattr(loaded, "why_engine", None) or getattr(loaded, "engine_reason", "")
    return Finding("engine", OK, str(why))


def _device() -> Finding:
    import torch

    names = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    if names:
        return Finding("GPU", OK, ", ".join(f"cuda:{n} {name}" for n, name in enumerate(names)))
    built = torch.version.cuda
    text = "torch finds none" + ("" if built else "; this torch is built for CPUs only")
    advice = "training takes many hours without a GPU; detection does not need one"
    return Finding("GPU", MISSING, text, advice)


def _threads() -> Finding:
    import torch

    from spikedet.precision import fast_bfloat16

    fast = "bfloat16 is fast" if fast_bfloat16() else "no fast bfloat16"
    text = f"{torch.get_num_threads()} threads on {os.cpu_count()} processors; {fast}"
    return Finding("CPU", OK, text)


def _display() -> Finding:
    there = sys.platform in ("win32", "darwin") or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )
    if there:
        return Finding("display", OK, "available")
    return Finding("display", MISSING, "none", "demos write a video instead of showing a window")


def _camera(open_it: bool) -> Finding:
    devices = sorted(Path("/dev").glob("video*")) if sys.platform.startswith("linux") else []
    if open_it:
        from spikedet.errors import PictureError
        from spikedet.sources.frame import Problems
        from spikedet.sources.live import Camera

        try:
            frame = next(Camera(0).frames(Problems()))
        except (PictureError, StopIteration) as error:
            advice = "connect one, and close other programs that use it"
            return Finding("camera", MISSING, str(error), advice)
        height, width = frame.picture.shape[:2]
        return Finding("camera", OK, f"camera 0 gives {width} x {height} pixels")
    if devices:
        return Finding("camera", OK, ", ".join(map(str, devices)))
    if sys.platform.startswith("linux"):
        return Finding(
            "camera", MISSING, "none", "only needed for detection from a camera (spikedet detect 0)"
        )
    return Finding("camera", MISSING, "not looked for", "spikedet doctor --camera opens it")


def _data(folder: Path) -> Finding:
    from spikedet.data.formats import recognise

    if not folder.exists():
        advice = "spikedet prepare voc FOLDER downloads VOC"
        return Finding("data", BAD, f"{folder}: no such folder", advice)
    format = recognise(folder)
    if format is None:
        advice = "see docs/own-data.md for the formats"
        return Finding("data", BAD, f"{folder}: unknown format", advice)
    return Finding("data", OK, f"{folder}: {format.name}, for {format.task}")


def _disk() -> Finding:
    low, texts = False, []
    for name, folder in {"here": Path.cwd(), "temporary": Path(tempfile.gettempdir())}.items():
        free = shutil.disk_usage(folder).free
        low |= free < DISK
        texts.append(f"{free / 1e9:.1f} GB free {name}")
    return Finding(
        "disk", MISSING if low else OK, ", ".join(texts), "free some disk space" if low else ""
    )


def _memory() -> Finding:
    free = free_memory()
    if free is None:
        return Finding("memory", MISSING, "not known on this system")
    low = free < MEMORY
    advice = "close other programs, or use a smaller --batch" if low else ""
    return Finding("memory", MISSING if low else OK, f"{free / 1e9:.1f} GB free", advice)


def free_memory() -> int | None:
    """Free memory in bytes, of the system or of the control group. None if it is not known."""
    limits = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(int(line.split()[1]) * 1024)
    except (OSError, ValueError, IndexError):
        return None
    try:
        group = Path("/sys/fs/cgroup")
        most = int((group / "memory.max").read_text())
        limits.append(most - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return min(limits, default=None)
