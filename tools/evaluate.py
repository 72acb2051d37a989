#!/usr/bin/env python
"""Average precision on annotated pictures, float, quantised or spiking.

    tools/evaluate.py --data VOCdevkit --split VOC2007:val --T 20
    tools/evaluate.py --data VOCdevkit --split VOC2007:val --compare --json table.json

Without --weights the shipped ones for that T are measured. --compare prints the whole story in one
table: float, then for each T weights copied without any fine-tuning, the stage-I network, its
weights copied into spiking neurons (stage I alone), and stages I + II.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from spikedet import cli  # noqa: E402

if TYPE_CHECKING:
    from spikedet.checkpoint import Checkpoint

COLUMNS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "VOC07_AP50")


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add("--weights", type=Path, nargs="+", help="checkpoints; the shipped ones if left out")
    add("--data", type=Path, nargs="+", required=True, help="VOCdevkit folder, or several")
    add("--split", default="VOC2007:val", help="data sets and splits, joined by +")
    add("--limit", type=cli.count, help="only the first so many pictures")
    add("--T", type=cli.time_steps, nargs="+", help="time steps; those of the weights if left out")
    add("--compare", action="store_true", help="float, stage-I and spiking rows, with baselines")
    add(
        "--threshold-split",
        default="VOC2007:train",
        help="training pictures that give the thresholds of the copied-weights row",
    )
    add("--classes", action="store_true", help="AP of every class as well")
    add("--batch", type=int, default=8, help="pictures at a time")
    add("--device", type=cli.device, default="cpu", help="cpu or cuda:N")
    cli.add_half(parser, default=False)
    add("--json", type=Path, help="write the rows to this file")
    return parser


def chosen(args: argparse.Namespace) -> list[tuple[Path, list[int] | None]]:
    """Weights to measure and the time steps to run each with, None for its own."""
    from spikedet.detection.predict import default_weights, weights_folder

    if args.weights:
        return [(path, None if args.compare else args.T) for path in args.weights]
    if not args.compare:
        return [(default_weights(t), t and [t]) for t in args.T or [None]]
    files = sorted(weights_folder().glob("*.safetensors"))
    steps = {f"T{t}" for t in args.T or ()}
    wanted = [f for f in files if not steps or "float" in f.stem or f.stem.split("-")[-1] in steps]
    return [(path, None) for path in wanted]


def rows(args: argparse.Namespace) -> list[tuple[str, Checkpoint, str, int | None]]:
    """(method, checkpoint, sha256 of its file, T) of every row to measure."""
    from spikedet import checkpoint
    from spikedet.detection import stages
    from spikedet.detection.data import read_voc

    loaded = [(checkpoint.load(p), checkpoint.sha256(p), steps) for p, steps in chosen(args)]
    order = {"float": 0, "qc": 1, "snn": 2}
    loaded.sort(key=lambda item: (item[0].T or 0, order[item[0].stage]))
    found = []
    for made, digest, wanted in loaded:
        steps = wanted if wanted and made.stage == "snn" else [made.T]
        if args.compare and made.stage == "qc":
            floats = [item for item in loaded if item[0].stage == "float"]
            for origin, origin_digest, _ in floats:
                samples = read_voc(args.data, args.threshold_split, names=origin.names)
                plain = stages.untuned(origin, samples, made.T)
                copied = stages.spiking_checkpoint(plain, stages.copied(plain), {})
                found.append(("copied weights", copied, origin_digest, made.T))
        found += [(label(made), made, digest, t) for t in steps]
        if args.compare and made.stage == "qc":
            alone = stages.spiking_checkpoint(made, stages.copied(made), {})
            found.append(("stage I alone", alone, digest, made.T))
    return found


def label(made: Checkpoint) -> str:
    """What the table calls a checkpoint."""
    from spikedet.detection.settings import METHODS

    if made.stage != "snn":
        return {"float": "float", "qc": "stage I, quantised"}[made.stage]
    method = made.origin.get("method", "two-stage")
    return METHODS[method].label if method in METHODS else str(method)


def main(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from spikedet.detection.data import read_voc
    from spikedet.detection.measure import SETTINGS, measure
    from spikedet.detection.model import restore

    entries: list[dict[str, Any]] = []
    samples = read_voc(args.data, args.split, limit=args.limit)
    for method, made, digest, T in rows(args):
        if not entries:
            print(f"{len(samples)} pictures of {args.split}; {SETTINGS.format(imgsz=made.imgsz)}")
            print(f"spiking layers in {'bfloat16' if args.half else 'float32'}")
            print(f"{'':20}{'T':>5} " + "".join(f"{name:>11}" for name in COLUMNS) + "  spike rate")
        runner = restore(made, args.half).to(args.device)
        steps = T if made.stage == "snn" else None
        with tqdm(total=len(samples), desc=f"{method} T={T}", unit="picture", leave=False) as bar:

            def advance(done, bar=bar):
                bar.update(done - bar.n)

            precision, rate = measure(runner, samples, T=steps, batch=args.batch, on_batch=advance)
        values = {name: getattr(precision, name) for name in COLUMNS}
        entry = {"stage": made.stage, "method": method, "T": T, **values}
        entry = {key: none_if_undefined(value) for key, value in entry.items()}
        entry |= {"images": len(samples), "spike_rate": rate, "weights_sha256": digest}
        entry["per_class"] = {k: none_if_undefined(v) for k, v in precision.per_class.items()}
        entries.append(entry)
        shown = "".join(f"{'-' if entry[n] is None else f'{entry[n]:.4f}':>11}" for n in COLUMNS)
        print(f"{method:20}{T or '-':>5} {shown}  {'-' if rate is None else f'{rate:.4f}'}")
        if args.classes:
            for name, value in entry["per_class"].items():
                print(f"    {name:16} {'-' if value is None else f'{value:.4f}'}")
    if args.json:
        from spikedet.files import write_atomic

        write_atomic(args.json, (json.dumps(entries, indent=2) + "\n").encode())


def none_if_undefined(value: Any) -> Any:
    """NaN, which JSON cannot hold, becomes None."""
    return None if value != value else value


if __name__ == "__main__":
    cli.run(main, arguments())
