"""Import trained weights of torchvision, ultralytics or others as a float checkpoint.

    spikedet import --state runs/detect/train/weights/best.pt --out W
    spikedet import --model torchvision:resnet50 --state resnet50.pth \\
        --names imagenet-classes.txt --out W
    spikedet import --model yolov8n.yaml --activation "torch.nn.ReLU()" \\
        --state state.pt --names classes.txt --imgsz 640 --out W

--state is a best.pt or last.pt of an ultralytics training. Such a file contains its network, its
class names and its picture size. --state may also be a state dict. Then --model and --names must
give the network and the class names. No code in a file is ever run. Use the result with spikedet
convert.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spikedet.commands import parse
from spikedet.commands.checks import expect_new
from spikedet.commands.main import command_line
from spikedet.options import option

MORE = """
A state dict is a file of torch.save or of safetensors. It may be an entry of a dict, named
"state_dict", "model", "model_state" or "model_ema". An entry with a moving average of the weights
is preferred. Tensor names may begin with "module." or "_orig_mod.". Names and shapes must match the
description. A missing tensor, or one too many, is an error. --model torchvision:NAME is any
classifier of torchvision.

Python classes in a file are read as plain data, and only those on a fixed list. Before writing, the
command converts the network once as a test.
"""


@dataclass(kw_only=True)
class Options(parse.Options):
    """Options of the command."""

    state: Path = option(help="best.pt, or state dict: .safetensors, .pt, .pth", metavar="FILE")
    out: Path = parse.written(help="float checkpoint to write")
    model: Path | None = option(
        None, "network description (see spikedet train), or torchvision:NAME"
    )
    width: str | None = option(
        None, "width of --model: scale of a detector (n s m l), or factor of a classifier"
    )
    activation: str | None = option(
        None, "replaces the activation of the description (see spikedet train)"
    )
    names: Path | None = option(
        None, "file with class names, one per line; replaces the names of a best.pt", metavar="FILE"
    )
    imgsz: int | None = option(
        None, "input side in pixels (default: that of the file or the description)", least=1
    )


def run(options: Options) -> None:
    from spikedet import task_registry
    from spikedet.checkpoint import Checkpoint, save, sha256
    from spikedet.data.samples import expect_names
    from spikedet.errors import UsageError
    from spikedet.files import read_lines
    from spikedet.importing import state, ultralytics_checkpoint
    from spikedet.networks import expect_convertible, float_checkpoint

    expect_new(options.out)
    read = state.read(options.state)
    trained = ultralytics_checkpoint.trained(read, options.state)
    if options.model is not None:
        task = task_registry.of_description(options.model)
        description = task.describe(options.model, options.width, options.activation)
    elif trained is not None:
        if options.width is not None:
            raise UsageError(
                f"--width: {options.state} sets its own width; use --width only with --model"
            )
        task, description = task_registry.named("detection"), dict(trained.description)
        if options.activation is not None:
            description["activation"] = options.activation
    else:
        raise UsageError(
            f"--model is missing: {options.state} does not contain a network description"
        )
    if options.names is not None:
        lines = read_lines(options.names, "class names")
        names = expect_names([line for line in lines if line], options.names)
    elif trained is not None:
        names = trained.names
    else:
        raise UsageError(f"--names is missing: {options.state} does not contain class names")
    imgsz = options.imgsz or (trained and trained.imgsz) or task.usual_side(description)
    if imgsz is None:
        source = options.model or options.state
        raise UsageError(
            f"--imgsz is missing: {source} does not give a picture size; expected the side in "
            "pixels"
        )
    network = task.network(description, len(names))
    described = f"{options.model or 'its own description'} with {len(names)} classes"
    left = state.load_into(network, state.tensors(read, options.state), options.state, described)
    if trained is not None:
        ultralytics_checkpoint.expect_same_layers(trained, network, options.state)
    expect_convertible(task, description, len(names), imgsz)
    origin = {"command": command_line(), "state": sha256(options.state)}
    checkpoint = Checkpoint(
        "float", task.name, description, names, imgsz, network.state_dict(), origin=origin
    )
    save(float_checkpoint(task, checkpoint, network), options.out)
    if left:
        print(f"left out: {len(left)} tensors of auxiliary heads, which help training only")
    print(f"{options.out}: {task.name}, {len(names)} classes, {imgsz} pixels")
