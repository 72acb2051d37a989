"""Make weights and rows with the other commands, each only once."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from spikedet.errors import SpikedetError, UsageError, did_you_mean
from spikedet.files import write_atomic
from spikedet.methods import METHODS

SOURCES = ("float", "float-leaky")  # networks that are given
LAYER_WISE = "layer-wise"  # the row of `two-stage` as in the paper, without the end-to-end pass


@dataclass(frozen=True)
class Cell:
    """One row to measure: a method at T, on the first `limit` pictures.

    Attributes:
        pictures: That calibrate it.
        end_to_end: Whether it has this pass, where the method does.
        made_for: T that its network is made for, if not T.
        steps: All T of rows that are read out from one run of that network; T alone if empty.
        penalty: Weight of a penalty on spikes, in a pass of whole weights that begins with this
            network; None for none.
    """

    method: str
    T: int | None
    limit: int | None
    pictures: int
    end_to_end: bool = True
    made_for: int | None = None
    steps: tuple[int, ...] = field(default=(), compare=False)
    penalty: float | None = None

    @classmethod
    def of(cls, row: str, T: int | None, limit: int | None, pictures: int, **options: Any) -> Cell:
        """Of a row's name: a method, or `LAYER_WISE`; the rest as of a cell."""
        method, passes = ("two-stage", False) if row == LAYER_WISE else (row, True)
        return cls(method, T, limit, pictures, passes, **options)

    @property
    def weights_T(self) -> int | None:
        """T that its network is made for."""
        return self.made_for or self.T


def expect_available(
    option: str, asked: Sequence[Any] | None, available: Collection, have: str
) -> None:
    """Refuse what was asked for and is not there.

    Args:
        option: Its name.
        asked: Its values.
        available: What it may be.
        have: What there is instead, in words.

    Raises:
        UsageError: A value that it cannot be.
    """
    if absent := sorted(set(asked or ()) - set(available)):
        meant = (
            did_you_mean(str(absent[0]), map(str, available)) if isinstance(absent[0], str) else ""
        )
        raise UsageError(f"{option} {' '.join(map(str, absent))}: {have}{meant}")


def note_path(path: Path) -> Path:
    """Where it stands how weights, or the folder of a run, were made."""
    return path.with_name(path.name + ".txt")


class Experiment:
    """Makes weights and rows of one float network.

    Args:
        options: Of spikedet reproduce, with `split`.
        out: Folder of `weights` and `rows`.
        model: Float checkpoint; the released one of the task if None.
        task: Its task.
        data: Folders of the data set.
        epochs: Of stage I, those of spikedet finetune if None.
        levels: L of QCFS, the steps that its network is quantised to.
    """

    def __init__(
        self,
        options: Any,
        out: Path,
        model: Path | None,
        task: str,
        data: Sequence[Path],
        epochs: int | None = None,
        levels: int = 8,
    ):
        self.options, self.out, self.task, self.data = options, out, task, data
        self.epochs, self.levels, self.own_model = (
            options.epochs or epochs,
            levels,
            model is not None,
        )
        source = model or self.released("float")
        assert source is not None  # the released one comes with the package
        self.model: Path = source
        self._pictures: dict[int | None, str] = {}

    def run(self, tool: str, *words: Any) -> None:
        """Print a command and run it.

        Raises:
            SpikedetError: It failed; it has said why.
        """
        # not among what is noted: it makes no other network
        none = self.options.device == "cpu" or "spiking-yolo" in words  # which trains nothing
        device = [] if none else ["--device", self.options.device]
        quiet = ["--quiet"] if getattr(self.options, "quiet", False) else []
        command = [tool, *map(str, words), *device, *quiet]
        print("$ spikedet " + shlex.join(command), flush=True)
        done = subprocess.run([sys.executable, "-m", "spikedet", *command])
        if done.returncode:
            raise SpikedetError(f"spikedet {tool} ended with exit code {done.returncode}")

    def released(self, stage: str, T: int | None = None) -> Path | None:
        """Released weights, where the rows are of the released float network."""
        from spikedet.released import released

        return None if self.own_model else released(stage, T, self.task)

    def training(self) -> list[Any]:
        """Options that say what to train on."""
        options = self.options
        words = ["--data", *self.data]
        words += ["--split", options.train_split] if options.train_split else []
        return [*words, "--tuning", options.tuning] if options.tuning else words

    @staticmethod
    def has_unfinished_pass(path: Path) -> bool:
        """Whether a conversion to these weights was killed in its end-to-end pass."""
        from spikedet.stages.pipeline import layers_file

        return layers_file(path).exists()

    def weights(self, cell: Cell, make: bool = True) -> Path:
        """Weights of a row; without `make` only where they are, or would be.

        Raises:
            UsageError: They are there, or begun, and were made in another way.
        """
        if cell.method in SOURCES:
            return Path(self.model if cell.method == "float" else self.options.leaky)
        T = cell.weights_T
        assert T is not None  # of all but float networks
        if cell.method == "quantised":
            return self.stage_one(T, make)
        options = self.options
        if cell.penalty is not None:
            return self.sparse_weights(cell, make)
        usual = cell.pictures == options.pictures and cell.end_to_end
        ready = self.released("snn", cell.weights_T)
        if cell.method == "two-stage" and usual and ready:
            return ready
        path = self.out / "weights" / f"{self.name(cell)}.safetensors"
        make = make and not path.is_file()
        model = options.leaky if cell.method == "spiking-yolo" and options.leaky else self.model
        words = ["convert", "--model", model, "--method", cell.method, "--T", cell.weights_T]
        if cell.method.startswith(("stage1", "two")):
            words += ["--stage1", self.stage_one(T, make)]
        if cell.method == "qcfs":
            words += ["--stage1", self.qcfs(make)]
        method = METHODS.get(cell.method)
        if method and method.calibrated and cell.pictures:
            words += ["--pictures", cell.pictures]
            words += ["--layer-steps", options.layer_steps] if method.fine else []
        elif method and method.calibrated:
            words += ["--no-coarse", "--no-fine"]
        if method and method.end_to_end:
            words += [
                "--end-to-end",
                options.end_to_end if cell.end_to_end and cell.pictures else 0,
            ]
        return self.ensure(path, [*words, *self.training()], make, self.has_unfinished_pass(path))

    def sparse_weights(self, cell: Cell, make: bool = True) -> Path:
        """Weights of a pass with a penalty on spikes."""
        path = self.out / "weights" / f"{self.name(cell)}.safetensors"
        make = make and not path.is_file()
        words = ["calibrate", "--weights", self.weights(replace(cell, penalty=None), make)]
        words += ["--teacher", self.model, "--T", cell.T, "--end-to-end", self.options.end_to_end]
        words += ["--end-int8", "--end-sparsity", f"{cell.penalty:g}", *self.training()]
        return self.ensure(path, words, make, self.has_unfinished_pass(path))

    def stage_one(self, T: int, make: bool = True) -> Path:
        """Stage-I weights for T."""
        return self.released("qc", T) or self.finetuned(f"stage1-T{T}", T, make)

    def qcfs(self, make: bool = True) -> Path:
        """The network of QCFS, quantised to `levels`."""
        return self.finetuned(f"qcfs-L{self.levels}", self.levels, make, "--qcfs")

    def finetuned(self, name: str, T: int, make: bool, *options: Any) -> Path:
        """Weights of a run of spikedet finetune."""
        from spikedet.training import epochs_done

        folder = self.out / "weights" / name
        words = ["finetune", "--weights", self.model, "--T", T, *options]
        words += ["--epochs", self.epochs] if self.epochs else []
        done, asked = epochs_done(folder)
        make = make and not done == asked > 0
        self.ensure(folder, [*words, *self.training()], make, (folder / "state.pt").is_file())
        return folder / "best.safetensors"

    def ensure(self, out: Path, words: Sequence[Any], make: bool, begun: bool) -> Path:
        """`out`, which a command makes now, or has made; what it was told stands beside it.

        Raises:
            UsageError: It is there, or begun, and was made in another way.
        """
        command, note = " ".join(map(self.describe_argument, words)), note_path(out)
        before = note.read_text().strip() if note.is_file() else None
        if before != command and (before is not None or out.exists()):
            was = f"was made with '{before}'" if before else "exists, but not from this command"
            raise UsageError(f"{out}: {was}; this run needs '{command}'; choose another --out")
        if make:
            write_atomic(note, f"{command}\n".encode())
            try:
                self.run(*words, "--out", out, *(["--resume"] if begun else []))
            except SpikedetError:
                if not out.exists() and not self.has_unfinished_pass(out):
                    note.unlink()  # nothing was begun that it would tell about
                raise
        return out

    def describe_argument(self, word: Any) -> str:
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
        pictures = "" if cell.pictures == self.options.pictures else f"-{cell.pictures}-pictures"
        layers = "" if cell.end_to_end else "-layer-wise"
        sparse = "" if cell.penalty is None else f"-sparsity-{cell.penalty:g}"
        return f"{cell.method}{pictures}{layers}{sparse}-T{cell.weights_T or 0}"

    def row(self, cell: Cell, make: bool = True) -> dict[str, Any] | None:
        """What spikedet evaluate measures of a row; without `make` None where it did not yet.

        Rows of each engine are kept in files of their own; a row that names none is torch's.
        """
        steps = cell.steps or (cell.T,)
        spiking = cell.method not in (*SOURCES, "quantised")
        engine = self.options.engine if spiking and not self.options.half else "torch"
        other = "" if engine == "torch" else f"-{engine}"
        path = self.result_path(cell, "-half" if self.options.half else other)
        rows = {row["T"]: row for row in self.load_result(path, cell) or []}
        if cell.T not in rows and make:
            words: list[Any] = ["--half"] if self.options.half else []
            words += ["--engine", engine] if other else []
            if spiking:
                words += ["--T", *(T for T in steps if T not in rows)]
            rows |= {row["T"]: row for row in self.measure("evaluate", cell, path, *words)}
            self.store_result(path, sorted(rows.values(), key=lambda row: row["T"] or 0))
        measured = rows.get(cell.T)
        return None if measured is None else {"engine": "torch", **measured}

    def energy(self, cell: Cell, make: bool = True) -> dict[str, Any] | None:
        """What spikedet energy counts of a row; without `make` None where it did not yet."""
        path = self.result_path(cell, f"-energy-at-{cell.T}")
        entry = self.load_result(path, cell)
        if entry is None and make:
            entry = self.measure("energy", cell, path, "--T", cell.T, "--float", self.model)
            self.store_result(path, entry)
        return entry

    def speed(self, cell: Cell, make: bool = True) -> dict[str, Any] | None:
        """What spikedet benchmark times of a row, on this machine; None as for a row."""
        path = self.result_path(cell, f"-speed-at-{cell.T}")
        entry = self.load_result(path, cell)
        if entry is None and make:
            written = path.with_suffix(".new.json")
            words = ["--weights", self.weights(cell), "--float", self.model, "--T", cell.T]
            self.run("benchmark", *words, "--data", self.data[0], "--json", written)
            rows = {row["name"]: row for row in json.loads(written.read_text())}
            shown = self.row(cell)
            assert shown is not None  # it was measured
            known = {name: shown[name] for name in ("weights_sha256", "data")}
            entry = {**rows["spikedet"], **known}
            self.store_result(path, entry)
        return entry

    def result_path(self, cell: Cell, ending: str) -> Path:
        """Where what is measured of the weights of a row is kept."""
        limit = [] if cell.limit is None else [cell.limit]
        name = "-".join(map(str, [self.name(cell), self.options.split.replace(":", "."), *limit]))
        return self.out / "rows" / f"{name}{ending}.json"

    def load_result(self, path: Path, cell: Cell) -> Any:
        """What is kept there of the weights of a row, None if it is of other weights.

        What was measured of weights that were deleted since counts, if they would be made alike.

        Raises:
            UsageError: It is of other pictures than those of --data.
        """
        from spikedet.checkpoint import identity

        weights = self.weights(cell, make=False)
        if not path.is_file():
            return None
        content = json.loads(path.read_text())
        first = content[0] if isinstance(content, list) else content
        if weights.is_file():
            stands = first["weights_sha256"] == identity(weights)
        else:
            stands = note_path(weights).is_file() or note_path(weights.parent).is_file()
        if stands and first["data"] != self.pictures(cell.limit):
            raise UsageError(
                f"{path}: measured on other pictures than those of --data; choose another --out"
            )
        return content if stands else None

    def pictures(self, limit: int | None) -> str:
        """Fingerprint of the pictures that are measured on."""
        from spikedet import task_registry
        from spikedet.checkpoint import load
        from spikedet.task import Source

        if limit not in self._pictures:
            task, names = task_registry.named(self.task), load(self.model).names
            samples = task.read(Source(self.data, self.options.split, limit, names))
            self._pictures[limit] = samples.fingerprint()
        return self._pictures[limit]

    def measure(self, tool: str, cell: Cell, path: Path, *words: Any) -> Any:
        """What a command that measures the weights of a row writes as JSON, beside `path`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        limit = [] if cell.limit is None else ["--limit", cell.limit]
        arguments = [
            "--weights",
            self.weights(cell),
            "--data",
            *self.data,
            "--split",
            self.options.split,
        ]
        written = path.with_suffix(".new.json")
        self.run(tool, *arguments, *limit, *words, "--json", written)
        return json.loads(written.read_text())

    def store_result(self, path: Path, content: Any) -> None:
        """Put what was measured there, with what was there before, in the place of both."""
        write_atomic(path, (json.dumps(content, indent=2) + "\n").encode())
        path.with_suffix(".new.json").unlink()
