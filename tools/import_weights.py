#!/usr/bin/env python
"""Trained weights of torchvision, ultralytics or anybody else -> float checkpoint.

    tools/import_weights.py --state runs/detect/train/weights/best.pt --out detector.safetensors
    tools/import_weights.py --model torchvision:resnet50 --state resnet50.pth \\
        --names imagenet-classes.txt --out resnet50.safetensors
    tools/import_weights.py --model configs/models/imagenet-resnet18.yaml --state resnet18.pth \\
        --names imagenet-classes.txt --imgsz 224 --out resnet18.safetensors
    tools/import_weights.py --model yolov8n.yaml --activation "torch.nn.ReLU()" \\
        --state state.pt --names classes.txt --imgsz 640 --out yolov8n.safetensors

--state is a best.pt or last.pt of ultralytics' training, which says itself what its network is, how
its classes are called and how large its pictures are. Or it is a state dict, saved by torch.save or
as safetensors, for which --model and --names say so. It may be inside {"state_dict": ...}, "model",
"model_state" or "model_ema" (a mean over training is taken first), and "module." or "_orig_mod."
may stand before its names. Names and shapes must be those of the description: every tensor is found
or it is refused.

No code of a file is run: classes that it names are read as plain data, and only those of a list.
--model torchvision:NAME is any classifier of torchvision. tools/convert.py goes on from --out,
which is converted once for a trial before it is written.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from spikedet import cli  # noqa: E402


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add("--model", type=Path, help="description, as of tools/train.py, or torchvision:NAME")
    add("--width", help="of --model: a detector's scale, n s m l; a classifier's factor, 0.5")
    add("--activation", help="instead of the description's, as of tools/train.py")
    add("--state", type=Path, required=True, help="best.pt, or state dict: .safetensors, .pt, .pth")
    add("--names", type=Path, help="class names, one a line; instead of those of a best.pt")
    add("--imgsz", type=cli.count, help="input side in pixels, where it is not the usual one")
    add("--out", type=Path, required=True, help="float checkpoint to write")
    return parser


def main(args: argparse.Namespace) -> None:
    from spikedet import checkpoint, tasks
    from spikedet.errors import DataError, UsageError
    from spikedet.files import read_lines
    from spikedet.importing import state, ultralytics_checkpoint
    from spikedet.networks import expect_convertible, float_checkpoint

    cli.expect_new(args.out)
    read = state.read(args.state)
    trained = ultralytics_checkpoint.trained(read, args.state)
    if args.model is not None:
        task = tasks.of_description(args.model)
        description = task.describe(args.model, args.width, args.activation)
    elif trained is not None:
        if args.width is not None:
            raise UsageError(f"--width: {args.state} has one width; expected it with --model only")
        task, description = tasks.named("detection"), dict(trained.description)
        if args.activation is not None:
            description["activation"] = args.activation
    else:
        raise UsageError(f"--model: expected, as {args.state} does not say what its network is")
    if args.names is not None:
        names = tuple(filter(None, read_lines(args.names)))
        if not names or len(set(names)) < len(names):
            raise DataError(f"{args.names}: expected class names, one a line, each once")
    elif trained is not None:
        names = trained.names
    else:
        raise UsageError(f"--names: expected, as {args.state} does not name its classes")
    imgsz = args.imgsz or (trained and trained.imgsz) or task.usual_side(description)
    if imgsz is None:
        source = args.model or args.state
        raise UsageError(f"--imgsz: {source} has no usual one; expected the side in pixels")
    network = task.network(description, len(names))
    what = f"{args.model or 'its own description'} with {len(names)} classes"
    left = state.put(network, state.tensors(read, args.state), args.state, what)
    if trained is not None:
        ultralytics_checkpoint.expect_same_layers(trained, network, args.state)
    expect_convertible(task, description, len(names), imgsz)
    origin = {"command": cli.command_line(), "state": checkpoint.sha256(args.state)}
    made = checkpoint.Checkpoint(
        "float", task.name, description, names, imgsz, network.state_dict(), origin=origin
    )
    checkpoint.save(float_checkpoint(task, made, network), args.out)
    if left:
        print(f"left out: {len(left)} tensors of auxiliary heads, which help training only")
    print(f"{args.out}: {task.name}, {len(names)} classes, {imgsz} pixels")


if __name__ == "__main__":
    cli.run(main, arguments())
