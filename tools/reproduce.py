#!/usr/bin/env python
"""Make the paper's detection results with our networks, and print them beside the paper's.

    tools/reproduce.py table10 --data VOCdevkit --out results

    table10   every method over T: AP by object size (table X), with the float and quantised rows
    figure7   the ablation: copied weights, either stage alone, coarse, fine, both
    table6    AP over the number of calibration pictures
    figure8   one picture after several time steps of one run
    figure9   AP of every class at T = 30

Weights that are not released are made in --out/weights by tools/finetune.py and tools/convert.py,
and measured by tools/evaluate.py; each command is printed before it runs. What is there already is
not made again, so an interrupted run goes on where it stopped. NAME.csv and NAME.png are written
after every row.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from spikedet import cli  # noqa: E402
from spikedet.detection.published import MEASURES, TABLE_10  # noqa: E402
from spikedet.errors import SpikedetError, UsageError  # noqa: E402
from spikedet.files import write_csv  # noqa: E402

NAMES = ("table10", "figure7", "table6", "figure8", "figure9")
STEPS = {  # of each method; `quantised` is the stage-I network itself, the ceiling of stage II
    "table10": {
        "float": (None,),
        "copy": (8, 20, 40, 60),
        "spiking-yolo": (8, 20, 40, 60),
        "quantised": (4, 8, 16, 20, 32, 40, 60),
        "stage1": (8, 20, 40, 60),
        "two-stage": (4, 8, 16, 20, 32, 40, 60),
    },
    "figure7": {
        "float": (None,),
        **{
            method: (4, 8, 20)
            for method in ("copy", "stage1", "stage2", "stage1-coarse", "stage1-fine", "two-stage")
        },
    },
    "table6": {"two-stage": (8,)},
    "figure9": {"float": (None,), "spiking-yolo": (30,), "stage1": (30,), "two-stage": (30,)},
}
LONG = {"float": (None,), "two-stage": (8,), "spiking-yolo": (500, 2000)}  # on --long-limit
CALIBRATION_PICTURES = (0, 16, 32, 64, 128, 256, 512)
SHOWN_STEPS = (2, 5, 8, 12, 20, 40, 100)


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add("name", choices=NAMES, help="what to make")
    cli.add_data_arguments(parser)
    parser.set_defaults(split="VOC2007:val")
    add("--train-split", help="pictures to convert with; those of the training tools if left out")
    add("--model", type=Path, help="float checkpoint; the released one if left out")
    add("--leaky", type=Path, help="leaky ReLU float checkpoint for the Spiking-YOLO rows")
    add("--out", type=Path, default=Path("results"), help="folder of results and made weights")
    add("--T", type=cli.time_steps, nargs="+", help="only these time steps")
    add("--methods", nargs="+", help="only these methods")
    add("--long-limit", type=cli.count, default=200, help="pictures of the rows with T >= 500")
    add("--epochs", type=cli.count, default=2, help="epochs of stage I where it must be run")
    add("--pictures", type=cli.count, default=256, help="calibration pictures")
    add("--layer-steps", type=cli.count, default=120, help="most fine-calibration steps a layer")
    add("--end-to-end", type=int, default=400, help="steps of stage II's end-to-end pass")
    add("--picture", type=Path, help="picture of figure8; a street scene if left out")
    cli.add_half(parser, default=False)
    return parser


@dataclass(frozen=True)
class Cell:
    """One row to measure: a method at T, on the first `limit` pictures."""

    method: str
    T: int | None
    limit: int | None
    pictures: int  # that calibrate it


class Workshop:
    """Makes weights and rows with the other commands, each only once."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.model = args.model or self.released("float")

    def run(self, tool: str, *words: Any) -> None:
        """Print a command and run it.

        Raises:
            SpikedetError: It failed; it has said why.
        """
        command = [f"tools/{tool}.py", *map(str, words)]
        print("$ " + shlex.join(command), flush=True)
        done = subprocess.run([sys.executable, ROOT / command[0], *command[1:]])
        if done.returncode:
            raise SpikedetError(f"tools/{tool}.py ended with exit code {done.returncode}")

    def released(self, stage: str, T: int | None = None) -> Path | None:
        """Released weights, where the rows are of the released float network."""
        from spikedet.released import released

        return None if self.args.model else released(stage, T)

    def training(self) -> list[Any]:
        """Options that say what to train on."""
        args = self.args
        words = ["--data", *args.data]
        words += ["--split", args.train_split] if args.train_split else []
        return [*words, "--tuning", args.tuning] if args.tuning else words

    def stage_one(self, T: int) -> Path:
        """Stage-I weights for T."""
        from spikedet.task import finished

        ready = self.released("qc", T)
        if ready:
            return ready
        folder = self.args.out / "weights" / f"stage1-T{T}"
        if not finished(folder, resume=True):
            resume = ["--resume"] if (folder / "state.pt").is_file() else []
            words = ["--weights", self.model, "--T", T, "--epochs", self.args.epochs]
            self.run("finetune", *words, *self.training(), "--out", folder, *resume)
        return folder / "best.safetensors"

    def name(self, cell: Cell) -> str:
        """Of the files of a row."""
        usual = cell.pictures == self.args.pictures
        return f"{cell.method}{'' if usual else f'-{cell.pictures}-pictures'}-T{cell.T or 0}"

    def weights(self, cell: Cell) -> Path:
        """Weights of a row."""
        if cell.method == "float":
            return self.model
        if cell.method == "quantised":
            return self.stage_one(cell.T)
        args = self.args
        if cell.method == "two-stage" and cell.pictures == args.pictures:
            ready = self.released("snn", cell.T)
            if ready:
                return ready
        path = args.out / "weights" / f"{self.name(cell)}.safetensors"
        if path.is_file():
            return path
        model = args.leaky if cell.method == "spiking-yolo" and args.leaky else self.model
        words = ["--model", model, "--method", cell.method, "--T", cell.T]
        if cell.method.startswith(("stage1", "two")):
            words += ["--stage1", self.stage_one(cell.T)]
        if cell.pictures == 0:
            words += ["--no-coarse", "--no-fine", "--end-to-end", 0]
        else:
            words += ["--pictures", cell.pictures, "--layer-steps", args.layer_steps]
            words += ["--end-to-end", args.end_to_end]
        self.run("convert", *words, *self.training(), "--out", path)
        return path

    def row(self, cell: Cell) -> dict[str, Any]:
        """What tools/evaluate.py measures of a row."""
        from spikedet import checkpoint

        args, weights = self.args, self.weights(cell)
        half = "-half" if args.half else ""
        limit = "" if cell.limit is None else f"-{cell.limit}"
        name = f"{self.name(cell)}-{args.split.replace(':', '.')}"
        path = args.out / "rows" / f"{name}{limit}{half}.json"
        if path.is_file():
            (row,) = json.loads(path.read_text())
            if row["weights_sha256"] == checkpoint.sha256(weights):
                return row
        words = ["--weights", weights, "--data", *args.data, "--split", args.split]
        words += [] if cell.limit is None else ["--limit", cell.limit]
        if cell.method not in ("float", "quantised"):
            words += ["--T", cell.T]
        words += ["--half"] if args.half else []
        path.parent.mkdir(parents=True, exist_ok=True)
        self.run("evaluate", *words, "--json", path)
        return json.loads(path.read_text())[0]


def cells(args: argparse.Namespace) -> list[Cell]:
    """Rows of `args.name`, cheap ones first.

    Raises:
        UsageError: None is left by --T and --methods.
    """
    planned = [(m, t, args.limit) for m, steps in STEPS[args.name].items() for t in steps]
    if args.name == "table10" and (not args.T or max(args.T) >= 500):
        limit = min(args.long_limit, args.limit or args.long_limit)
        planned += [(m, t, limit) for m, steps in LONG.items() for t in steps]
    counts = CALIBRATION_PICTURES if args.name == "table6" else (args.pictures,)
    wanted = [
        Cell(method, T, limit, pictures)
        for method, T, limit in dict.fromkeys(planned)
        for pictures in counts
        if (T is None or not args.T or T in args.T) and (not args.methods or method in args.methods)
    ]
    if not wanted:
        known = ", ".join(STEPS[args.name])
        raise UsageError(f"{args.name} has no row of that method and T; its methods are {known}")
    return sorted(wanted, key=lambda cell: cell.T or 0)


def entry(cell: Cell, row: dict[str, Any]) -> dict[str, Any]:
    """A line of the CSV file."""
    line = {"method": cell.method, "T": cell.T or "", "calibration_pictures": cell.pictures}
    line |= {name: row[name] for name in MEASURES} | {"images": row["images"]}
    published = TABLE_10.get((cell.method, cell.T), [""] * len(MEASURES))
    return line | {f"paper_{name}": v for name, v in zip(MEASURES, published, strict=True)}


def plot(name: str, lines: list[dict[str, Any]], rows: list[dict[str, Any]], path: Path) -> None:
    from spikedet.detection import figures

    floats = [line["AP"] for line in lines if line["method"] == "float"]
    images = lines[0]["images"]
    spiking = [line for line in lines if line["T"] and line["images"] == images]
    if name == "figure9":
        merged = [{**line, **row} for row, line in zip(rows, lines, strict=True)]
        figures.per_class(merged, path, f"AP of each class, {images} pictures")
    elif spiking:
        key = "calibration_pictures" if name == "table6" else "T"
        title = f"{name}, {images} pictures" + (", T=8" if name == "table6" else "")
        figures.over(spiking, key, path, title, floats[0] if floats else None)


def table(args: argparse.Namespace, shop: Workshop) -> None:
    """Measure the rows of a table and write them, after each."""
    lines, rows = [], []
    for cell in cells(args):
        row = shop.row(cell)
        line = entry(cell, row)
        if args.name == "figure9":
            line |= {f"AP_{key}": value for key, value in row["per_class"].items()}
        rows.append({**row, "method": cell.method})
        lines.append(line)
        write_csv(args.out / f"{args.name}.csv", lines)
        plot(args.name, lines, rows, args.out / f"{args.name}.png")
    show(lines)


def show(lines: list[dict[str, Any]]) -> None:
    """Print measured values, the paper's in brackets, in percent."""
    print(f"\n{'method':14}{'T':>5}{'images':>8}" + "".join(f"{m:>16}" for m in MEASURES))
    for line in lines:
        text = f"{line['method']:14}{line['T'] or '-':>5}{line['images']:>8}"
        for name in MEASURES:
            paper = line[f"paper_{name}"]
            ours = "-" if line[name] is None else f"{100 * line[name]:.1f}"
            text += f"{ours + ('' if paper == '' else f' ({100 * paper:.1f})'):>16}"
        print(text)
    print("In brackets: the paper's table X, of another training and evaluation protocol.")


def steps_of_one_picture(args: argparse.Namespace, shop: Workshop) -> None:
    """Figure 8: detections after several time steps of one run, float first."""
    import spikedet
    from spikedet.detection import figures
    from spikedet.detection.ultra import SAMPLE

    picture, T = args.picture or SAMPLE, max(args.T or SHOWN_STEPS)
    shown, lines = [], []
    truth = spikedet.load(shop.model)(picture)
    shown.append(("float", [truth]))
    for method in args.methods or ("spiking-yolo", "stage1", "two-stage"):
        made_for = 20 if method == "two-stage" else T
        weights = shop.weights(Cell(method, made_for, None, args.pictures))
        detector = spikedet.load(weights, made_for, half=args.half)
        steps = [f for f in detector.steps(picture, T) if f.T in (args.T or SHOWN_STEPS)]
        shown.append((method, steps))
        lines += [
            {"method": method, "T": f.T, "weights_for_T": made_for, "objects": len(f),
             "float_objects": len(truth), "found_of_float": agreeing(f, truth)}
            for f in steps
        ]  # fmt: skip
    write_csv(args.out / "figure8.csv", lines)
    figures.grid(shown, args.out / "figure8.png")
    for line in lines:
        print(
            f"{line['method']:14} t={line['T']:<4} {line['objects']} objects, "
            f"{line['found_of_float']} of the float network's {line['float_objects']}"
        )


def agreeing(found, truth) -> int:
    """How many objects of `truth` are found: same class, IoU of at least 0.5."""
    import torch
    from torchvision.ops import box_iou

    if not len(found) or not len(truth):
        return 0
    iou = box_iou(torch.as_tensor(truth.boxes), torch.as_tensor(found.boxes))
    same = torch.as_tensor(truth.labels)[:, None] == torch.as_tensor(found.labels)[None]
    return int(((iou >= 0.5) & same).any(1).sum())


def main(args: argparse.Namespace) -> None:
    shop = Workshop(args)
    make = steps_of_one_picture if args.name == "figure8" else table
    make(args, shop)
    print(f"{args.out / args.name}.csv and .png")


if __name__ == "__main__":
    cli.run(main, arguments())
