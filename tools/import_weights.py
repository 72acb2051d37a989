#!/usr/bin/env python
"""Trained weights of torchvision, ultralytics or anybody else -> float checkpoint.

    tools/import_weights.py --model configs/models/imagenet-resnet18.yaml --state resnet18.pth \\
        --names imagenet-classes.txt --imgsz 224 --out resnet18.safetensors
    tools/import_weights.py --model yolov8n.yaml --activation "torch.nn.ReLU()" \\
        --state state.pt --names classes.txt --imgsz 640 --out yolov8n.safetensors

--state is a state dict, saved by torch.save or as safetensors; of a model of ultralytics that of
`YOLO("x.pt").model`. Its names and shapes must be those of the description: every tensor is found
or it is refused. tools/convert.py goes on from --out, which is converted once for a trial before it
is written.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from spikedet import cli  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor


def arguments() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add("--model", type=Path, required=True, help="network description, as of tools/train.py")
    add("--width", help="a detector's scale, n s m l; a classifier's factor, 0.5")
    add("--activation", help="instead of the description's, as of tools/train.py")
    add("--state", type=Path, required=True, help="state dict: .safetensors, or of torch.save")
    add("--names", type=Path, required=True, help="class names, one a line")
    add("--imgsz", type=cli.count, help="input side in pixels (224 for ImageNet's classifiers)")
    add("--out", type=Path, required=True, help="float checkpoint to write")
    return parser


def state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict, as float32 or integers.

    Raises:
        WeightsError: No such file, damaged, or one that holds more than tensors.
    """
    import torch

    from spikedet.checkpoint import load_plain
    from spikedet.errors import WeightsError

    if path.suffix == ".safetensors":
        return load_plain(path)
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror})") from None
    except Exception:  # whatever its bytes make of the reader
        raise WeightsError(
            f"{path}: damaged, or holds more than tensors, which is not opened; save the state "
            "dict of the model: torch.save(model.state_dict(), 'state.pt')"
        ) from None
    if not isinstance(found, dict) or not all(isinstance(v, torch.Tensor) for v in found.values()):
        raise WeightsError(f"{path}: not a state dict, which has a tensor for each name")
    return {name: t.float() if t.is_floating_point() else t for name, t in found.items()}


def main(args: argparse.Namespace) -> None:
    from spikedet import checkpoint, tasks
    from spikedet.errors import DataError, UsageError, WeightsError
    from spikedet.files import read_lines

    cli.expect_new(args.out)
    names = tuple(filter(None, read_lines(args.names)))
    if not names or len(set(names)) < len(names):
        raise DataError(f"{args.names}: expected class names, one a line, each once")
    task = tasks.of_description(args.model)
    description = task.describe(args.model, args.width, args.activation)
    imgsz = args.imgsz or task.usual_side(description)
    if imgsz is None:
        raise UsageError(f"--imgsz: {args.model} has no usual one; expected the side in pixels")
    network = task.network(description, len(names))
    tensors = state_dict(args.state)
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        reason = textwrap.shorten(str(error).splitlines()[1], 200, placeholder=" ...")
        if "running_mean" in str(error) and not any("running_mean" in name for name in tensors):
            reason += " (there is no batch norm in this state)"
        raise WeightsError(
            f"{args.state}: does not fit {args.model} with {len(names)} classes: {reason}"
        ) from None
    task.expect_convertible(description, len(names), imgsz)
    origin = {"command": cli.command_line(), "state": checkpoint.sha256(args.state)}
    made = checkpoint.Checkpoint(
        "float", task.name, description, names, imgsz, network.state_dict(), origin=origin
    )
    checkpoint.save(task.float_checkpoint(made, network), args.out)
    print(f"{args.out}: {task.name}, {len(names)} classes, {imgsz} pixels")


if __name__ == "__main__":
    cli.run(main, arguments())
