"""Make the weights and the results of one float network by running other commands.

Each command runs only once: its output is stored, and reused in later runs.
"""

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
from spikedet.settings import Plan

SOURCES = ("float", "float-leaky")  # float networks
LAYER_WISE = "layer-wise"  # the row of `two-stage` as in the paper, without the end-to-end pass
CORRECTING = "stage1-correcting"  # the row of `stage1` with neurons that take back spikes


@dataclass(frozen=True)
class Cell:
    """One row to measure: a method at T, on the first `limit` pictures.

    Attributes:
        method: Name of the method (see `methods`), or `float`, `float-leaky` or `quantised`.
        T: Time steps. None for a float network.
        limit: Number of pictures to measure on. None: all.
        pictures: Number of calibration pictures.
        end_to_end: Whether to run the end-to-end pass, if the method has one.
        made_for: T that the network is made for. None: T.
        steps: All T that are measured in one run of this network. Empty: only T.
        penalty: Weight of the penalty on spikes in an end-to-end pass with integer weights, which
            starts from this network. None: no such pass.
        neuron: Neurons of a network that is made: a name in `neurons.registry`.
    """

    method: str
    T: int | None
    limit: int | None
    pictures: int
    end_to_end: bool = True
    made_for: int | None = None
    steps: tuple[int, ...] = field(default=(), compare=False)
    penalty: float | None = None
    neuron: str = Plan.neuron

    @classmethod
    def of(cls, row: str, T: int | None, limit: int | None, pictures: int, **options: Any) -> Cell:
        """Make a cell from the name of a row: a method, `LAYER_WISE` or `CORRECTING`."""
        if row == LAYER_WISE:
            return cls("two-stage", T, limit, pictures, end_to_end=False, **options)
        if row == CORRECTING:
            return cls("stage1", T, limit, pictures, neuron="correcting", **options)
        return cls(row, T, limit, pictures, **options)

    @property
    def row_name(self) -> str:
        """The name of the row, from which `of` makes the cell."""
        if self.neuron != Plan.neuron:
            return f"{self.method}-{self.neuron}"
        return self.method if self.end_to_end else LAYER_WISE

    @property
    def weights_T(self) -> int | None:
        """T that the network is made for."""
        return self.made_for or self.T


def expect_available(
    option: str, asked: Sequence[Any] | None, available: Collection, have: str
) -> None:
    """Check that requested values are available.

    Args:
        option: Name of the option, for the message.
        asked: Requested values. None: no values.
        available: Available values.
        have: Description of the available values, for the message.

    Raises:
        UsageError: A value is not available.
    """
    if absent := sorted(set(asked or ()) - set(available)):
        meant = (
            did_you_mean(str(absent[0]), map(str, available)) if isinstance(absent[0], str) else ""
        )
        raise UsageError(f"{option} {' '.join(map(str, absent))}: {have}{meant}")


def note_path(path: Path) -> Path:
    """Path of the note that describes how weights, or the folder of a run, were made."""
    return path.with_name(path.name + ".txt")


class Experiment:
    """Makes weights and rows of results for one float network.

    Args:
        options: Options of spikedet reproduce, with `split`.
        out: Folder with the subfolders `weights` and `rows`.
        model: Float checkpoint. None: the released checkpoint of the task.
        task: Name of the task.
        data: Folders of the data set.
        epochs: Epochs of stage I. None: the default of spikedet finetune.
        levels: L of QCFS, the number of quantisation steps.
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
        assert source is not None  # the package contains the released one
        self.model: Path = source
        self._pictures: dict[int | None, str] = {}

    def run(self, tool: str, *words: Any) -> None:
        """Print a command and run it.

        Raises:
            SpikedetError: The command failed. It has printed the reason itself.
        """
        # not part of the note, because the weights do not depend on the device
        none = self.options.device == "cpu" or "spiking-yolo" in words  # which trains nothing
        device = [] if none else ["--device", self.options.device]
        quiet = ["--quiet"] if getattr(self.options, "quiet", False) else []
        command = [tool, *map(str, words), *device, *quiet]
        print("$ spikedet " + shlex.join(command), flush=True)
        done = subprocess.run([sys.executable, "-m", "spikedet", *command])
        if done.returncode:
            raise SpikedetError(f"spikedet {tool} ended with exit code {done.returncode}")

    def released(self, stage: str, T: int | None = None) -> Path | None:
        """The released weights of a stage and T. None if there are none, or for an own network."""
        from spikedet.released import released

        return None if self.own_model else released(stage, T, self.task)

    def training(self) -> list[Any]:
        """Command-line options for the training pictures."""
        options = self.options
        words = ["--data", *self.data]
        words += ["--split", options.train_split] if options.train_split else []
        return [*words, "--tuning", options.tuning] if options.tuning else words

    @staticmethod
    def has_unfinished_pass(path: Path) -> bool:
        """Whether the conversion to these weights was interrupted in its end-to-end pass."""
        from spikedet.stages.run_files import layers_file

        return layers_file(path).exists()

    def weights(self, cell: Cell, make: bool = True) -> Path:
        """Path of the weights of a row. With `make`, make them if they do not exist.

        Raises:
            UsageError: The weights exist, or were started, with other settings.
        """
        if cell.method in SOURCES:
            return Path(self.model if cell.method == "float" else self.options.leaky)
        T = cell.weights_T
        assert T is not None  # only float networks have no T
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
        words += ["--neuron", cell.neuron] if cell.neuron != Plan.neuron else []
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
        """Path of the weights after an end-to-end pass with a penalty on spikes. See `weights`."""
        path = self.out / "weights" / f"{self.name(cell)}.safetensors"
        make = make and not path.is_file()
        words = ["calibrate", "--weights", self.weights(replace(cell, penalty=None), make)]
        words += ["--teacher", self.model, "--T", cell.T, "--end-to-end", self.options.end_to_end]
        words += ["--end-int8", "--end-sparsity", f"{cell.penalty:g}", *self.training()]
        return self.ensure(path, words, make, self.has_unfinished_pass(path))

    def stage_one(self, T: int, make: bool = True) -> Path:
        """Path of the stage-I weights for T."""
        return self.released("qc", T) or self.finetuned(f"stage1-T{T}", T, make)

    def qcfs(self, make: bool = True) -> Path:
        """Path of the weights of QCFS, quantised to `levels`."""
        return self.finetuned(f"qcfs-L{self.levels}", self.levels, make, "--qcfs")

    def finetuned(self, name: str, T: int, make: bool, *options: Any) -> Path:
        """Path of the weights of a run of spikedet finetune."""
        from spikedet.training.run import epochs_done

        folder = self.out / "weights" / name
        words = ["finetune", "--weights", self.model, "--T", T, *options]
        words += ["--epochs", self.epochs] if self.epochs else []
        done, asked = epochs_done(folder)
        make = make and not done == asked > 0
        self.ensure(folder, [*words, *self.training()], make, (folder / "state.pt").is_file())
        return folder / "best.safetensors"

    def ensure(self, out: Path, words: Sequence[Any], make: bool, begun: bool) -> Path:
        """Return `out`. With `make`, run the command that makes it, and note the command.

        Args:
            out: File or folder that the command makes.
            words: The command without `--out`.
            make: Whether to run the command.
            begun: Whether the command was interrupted. Then it is resumed.

        Raises:
            UsageError: `out` exists, or was started, with another command.
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
            except BaseException:  # Ctrl-C as well
                if not out.exists() and not self.has_unfinished_pass(out):
                    note.unlink()  # nothing was started
                raise
        return out

    def describe_argument(self, word: Any) -> str:
        """An argument of a command as text that does not depend on where files are.

        Files in the folder of the experiment are described by their name, because they have notes.
        Other files are described by name and content. An upgraded checkpoint has the content of the
        old one.
        """
        from spikedet.checkpoint import identity, sha256

        if not isinstance(word, Path):
            return str(word)
        if not word.is_file() or self.out in word.parents:
            return word.name
        digest = identity(word) if word.suffix == ".safetensors" else sha256(word)
        return f"{word.name}@{digest[:8]}"

    def name(self, cell: Cell) -> str:
        """File name of a row, without suffix."""
        pictures = "" if cell.pictures == self.options.pictures else f"-{cell.pictures}-pictures"
        layers = "" if cell.end_to_end else "-layer-wise"
        sparse = "" if cell.penalty is None else f"-sparsity-{cell.penalty:g}"
        neuron = "" if cell.neuron == Plan.neuron else f"-{cell.neuron}"
        return f"{cell.method}{neuron}{pictures}{layers}{sparse}-T{cell.weights_T or 0}"

    def row(self, cell: Cell, make: bool = True) -> dict[str, Any] | None:
        """The results of spikedet evaluate for a row. With `make`, measure missing ones.

        The rows of each engine are stored in separate files. Rows without an engine are of torch.

        Returns:
            The results. None if they do not exist and `make` is False.
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
        """The results of spikedet energy for a row. See `row`."""
        path = self.result_path(cell, f"-energy-at-{cell.T}")
        entry = self.load_result(path, cell)
        if entry is None and make:
            entry = self.measure("energy", cell, path, "--T", cell.T, "--float", self.model)
            self.store_result(path, entry)
        return entry

    def speed(self, cell: Cell, make: bool = True) -> dict[str, Any] | None:
        """The results of spikedet benchmark for a row, on this machine. See `row`."""
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
        """Path of the stored results of a row."""
        limit = [] if cell.limit is None else [cell.limit]
        name = "-".join(map(str, [self.name(cell), self.options.split.replace(":", "."), *limit]))
        return self.out / "rows" / f"{name}{ending}.json"

    def load_result(self, path: Path, cell: Cell) -> Any:
        """Read stored results of the weights of a row. None if they are of other weights.

        Results of weights that were deleted later are valid if the weights would be made by the
        same command.

        Raises:
            UsageError: The results were measured on other pictures than those of --data.
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
        """Fingerprint of the pictures to measure on."""
        from spikedet import task_registry
        from spikedet.checkpoint import load
        from spikedet.task import Source

        if limit not in self._pictures:
            task, names = task_registry.named(self.task), load(self.model).names
            samples = task.read(Source(self.data, self.options.split, limit, names))
            self._pictures[limit] = samples.fingerprint()
        return self._pictures[limit]

    def measure(self, tool: str, cell: Cell, path: Path, *words: Any) -> Any:
        """Run a command that measures the weights of a row, and return its JSON results."""
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
        """Write results to `path`, and delete the file of the command."""
        write_atomic(path, (json.dumps(content, indent=2) + "\n").encode())
        path.with_suffix(".new.json").unlink()
