"""Makes weights and rows with the other commands, each only once."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spikedet.errors import SpikedetError, UsageError
from spikedet.files import write_atomic
from spikedet.methods import METHODS
from tools.calibrate import begun_with

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Cell:
    """One row to measure: a method at T, on the first `limit` pictures.

    Attributes:
        pictures: That calibrate it.
        end_to_end: Whether it has this pass, where the method does.
        made_for: T that its network is made for, if not T.
        steps: All T of rows that are read out from one run of that network; T alone if empty.
    """

    method: str
    T: int | None
    limit: int | None
    pictures: int
    end_to_end: bool = True
    made_for: int | None = None
    steps: tuple[int, ...] = ()

    @property
    def weights_T(self) -> int | None:
        """T that its network is made for."""
        return self.made_for or self.T


def note_of(made: Path) -> Path:
    """Where it stands how weights, or the folder of a run, were made."""
    return made.with_name(made.name + ".txt")


class Workshop:
    """Makes weights and rows of one float network.

    Args:
        args: Of tools/reproduce.py, with `split`.
        out: Folder of `weights` and `rows`.
        model: Float checkpoint; the released one of the task if None.
        task: Its task.
        data: Folders of the data set.
        epochs: Of stage I, those of tools/finetune.py if None.
        levels: L of QCFS, the steps that its network is quantised to.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        out: Path,
        model: Path | None,
        task: str,
        data: Sequence[Path],
        epochs: int | None = None,
        levels: int = 8,
    ):
        self.args, self.out, self.task, self.data = args, out, task, data
        self.epochs, self.levels, self.given = args.epochs or epochs, levels, model is not None
        self.model = model or self.released("float")

    def run(self, tool: str, *words: Any) -> None:
        """Print a command and run it.

        Raises:
            SpikedetError: It failed; it has said why.
        """
        # not among what is noted: it makes no other network
        device = [] if self.args.device == "cpu" else ["--device", self.args.device]
        command = [f"tools/{tool}.py", *map(str, words), *device]
        print("$ " + shlex.join(command), flush=True)
        done = subprocess.run([sys.executable, ROOT / command[0], *command[1:]])
        if done.returncode:
            raise SpikedetError(f"tools/{tool}.py ended with exit code {done.returncode}")

    def released(self, stage: str, T: int | None = None) -> Path | None:
        """Released weights, where the rows are of the released float network."""
        from spikedet.released import released

        return None if self.given else released(stage, T, self.task)

    def training(self) -> list[Any]:
        """Options that say what to train on."""
        args = self.args
        words = ["--data", *self.data]
        words += ["--split", args.train_split] if args.train_split else []
        return [*words, "--tuning", args.tuning] if args.tuning else words

    def weights(self, cell: Cell, make: bool = True) -> Path:
        """Weights of a row; without `make` only where they are, or would be.

        Raises:
            UsageError: They are there, or begun, and were made in another way.
        """
        if cell.method == "float":
            return self.model
        if cell.method == "quantised":
            return self.stage_one(cell.weights_T, make)
        args = self.args
        usual = cell.pictures == args.pictures and cell.end_to_end
        ready = self.released("snn", cell.weights_T)
        if cell.method == "two-stage" and usual and ready:
            return ready
        path = self.out / "weights" / f"{self.name(cell)}.safetensors"
        make = make and not path.is_file()
        model = args.leaky if cell.method == "spiking-yolo" and args.leaky else self.model
        words = ["convert", "--model", model, "--method", cell.method, "--T", cell.weights_T]
        if cell.method.startswith(("stage1", "two")):
            words += ["--stage1", self.stage_one(cell.weights_T, make)]
        if cell.method == "qcfs":
            words += ["--stage1", self.qcfs(make)]
        method = METHODS.get(cell.method)
        if method and method.calibrated and cell.pictures:
            words += ["--pictures", cell.pictures, "--layer-steps", args.layer_steps]
        elif method and method.calibrated:
            words += ["--no-coarse", "--no-fine"]
        if method and method.end_to_end:
            words += ["--end-to-end", args.end_to_end if cell.end_to_end and cell.pictures else 0]
        return self.made(path, [*words, *self.training()], make, begun_with(path).is_file())

    def stage_one(self, T: int, make: bool = True) -> Path:
        """Stage-I weights for T."""
        return self.released("qc", T) or self.finetuned(f"stage1-T{T}", T, make)

    def qcfs(self, make: bool = True) -> Path:
        """The network of QCFS, quantised to `levels`."""
        return self.finetuned(f"qcfs-L{self.levels}", self.levels, make, "--qcfs")

    def finetuned(self, name: str, T: int, make: bool, *options: Any) -> Path:
        """Weights of a run of tools/finetune.py."""
        from spikedet.stage_one import finished

        folder = self.out / "weights" / name
        words = ["finetune", "--weights", self.model, "--T", T, *options]
        words += ["--epochs", self.epochs] if self.epochs else []
        make = make and not finished(folder, resume=True)
        self.made(folder, [*words, *self.training()], make, (folder / "state.pt").is_file())
        return folder / "best.safetensors"

    def made(self, out: Path, words: Sequence[Any], make: bool, begun: bool) -> Path:
        """`out`, which a command makes now, or has made; what it was told stands beside it.

        Raises:
            UsageError: It is there, or begun, and was made in another way.
        """
        told, note = " ".join(map(self.described, words)), note_of(out)
        before = note.read_text().strip() if note.is_file() else None
        if before != told and (before is not None or out.exists()):
            was = f"with '{before}'" if before else "nobody knows how"
            raise UsageError(f"{out}: made {was}, now wanted with '{told}'; choose another --out")
        if make:
            write_atomic(note, f"{told}\n".encode())
            self.run(*words, "--out", out, *(["--resume"] if begun else []))
        return out

    def described(self, word: Any) -> str:
        """A word of a command wherever files lie: paths by name, weights from outside by content.

        What lies in this folder has a note of its own.
        """
        from spikedet.checkpoint import sha256

        if not isinstance(word, Path):
            return str(word)
        foreign = word.is_file() and self.out not in word.parents
        return f"{word.name}@{sha256(word)[:8]}" if foreign else word.name

    def name(self, cell: Cell) -> str:
        """Of the files of a row."""
        pictures = "" if cell.pictures == self.args.pictures else f"-{cell.pictures}-pictures"
        layers = "" if cell.end_to_end else "-layer-wise"
        return f"{cell.method}{pictures}{layers}-T{cell.weights_T or 0}"

    def row(self, cell: Cell) -> dict[str, Any]:
        """What tools/evaluate.py measures of a row."""
        steps = cell.steps or (cell.T,)
        words = [] if cell.method in ("float", "quantised") else ["--T", *steps]
        words += ["--half"] if self.args.half else []
        ending = "" if steps == (cell.weights_T,) else "-at" + "".join(f"-{T}" for T in steps)
        ending += "-half" if self.args.half else ""
        rows = self.measured("evaluate", cell, ending, *words)
        return next(row for row in rows if row["T"] == cell.T)

    def energy(self, cell: Cell) -> dict[str, Any]:
        """What tools/energy.py counts of a row."""
        return self.measured("energy", cell, "-energy", "--T", cell.T, "--float", self.model)

    def measured(self, tool: str, cell: Cell, ending: str, *words: Any) -> Any:
        """What a command that measures the weights of a row writes as JSON.

        What was measured of weights that were deleted since counts, if they would be made alike.
        """
        from spikedet.checkpoint import sha256

        args, weights = self.args, self.weights(cell, make=False)
        limit = [] if cell.limit is None else ["--limit", cell.limit]
        name = "-".join(map(str, [self.name(cell), args.split.replace(":", "."), *limit[1:]]))
        path = self.out / "rows" / f"{name}{ending}.json"
        if path.is_file():
            found = json.loads(path.read_text())
            first = found[0] if isinstance(found, list) else found
            if weights.is_file():
                stands = first["weights_sha256"] == sha256(weights)
            else:
                stands = note_of(weights).is_file() or note_of(weights.parent).is_file()
            if stands:
                return found
        path.parent.mkdir(parents=True, exist_ok=True)
        given = ["--weights", self.weights(cell), "--data", *self.data, "--split", args.split]
        self.run(tool, *given, *limit, *words, "--json", path)
        return json.loads(path.read_text())
