"""Trained weights of torchvision, ultralytics or anybody else -> float checkpoint.

    spikedet import --state runs/detect/train/weights/best.pt --out W
    spikedet import --model torchvision:resnet50 --state resnet50.pth \\
        --names imagenet-classes.txt --out W
    spikedet import --model yolov8n.yaml --activation "torch.nn.ReLU()" \\
        --state state.pt --names classes.txt --imgsz 640 --out W

--state is a best.pt or last.pt of ultralytics' training, which says itself what its network is, how
its classes are called and how large its pictures are. Or it is a state dict, for which --model and
--names say so. No code of a file is run. spikedet convert goes on from --out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spikedet.commands import parse
from spikedet.commands.checks import expect_new
from spikedet.commands.main import command_line
from spikedet.settings import option

MORE = """
A state dict is one of torch.save or of safetensors. It may be inside {"state_dict": ...}, "model",
"model_state" or "model_ema" (a mean over training is taken first), and "module." or "_orig_mod."
may stand before its names. Names and shapes must be those of the description: every tensor is found
or it is refused. --model torchvision:NAME is any classifier of torchvision.

Classes that a file names are read as plain data, and only those of a list. What is written is
converted once for a trial before.
"""


@dataclass(kw_only=True)
class Options(parse.Options):
    """Options of the command."""

    state: Path = option(help="best.pt, or state dict: .safetensors, .pt, .pth", metavar="FILE")
    out: Path = parse.written(help="float checkpoint to write")
    model: Path | None = option(None, "description, as of spikedet train, or torchvision:NAME")
    width: str | None = option(
        None, "of --model: a detector's scale, n s m l; a classifier's factor, 0.5"
    )
    activation: str | None = option(None, "instead of the description's, as of spikedet train")
    names: Path | None = option(
        None, "class names, one a line; instead of those of a best.pt", metavar="FILE"
    )
    imgsz: int | None = option(None, "input side in pixels, where it is not the usual one", least=1)


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
                f"--width: {options.state} has one width; expected it with --model only"
            )
        task, description = task_registry.named("detection"), dict(trained.description)
        if options.activation is not None:
            description["activation"] = options.activation
    else:
        raise UsageError(f"--model: expected, as {options.state} does not say what its network is")
    if options.names is not None:
        lines = read_lines(options.names, "class names")
        names = expect_names([line for line in lines if line], options.names)
    elif trained is not None:
        names = trained.names
    else:
        raise UsageError(f"--names: expected, as {options.state} does not name its classes")
    imgsz = options.imgsz or (trained and trained.imgsz) or task.usual_side(description)
    if imgsz is None:
        source = options.model or options.state
        raise UsageError(f"--imgsz: {source} has no usual one; expected the side in pixels")
    network = task.network(description, len(names))
    described = f"{options.model or 'its own description'} with {len(names)} classes"
    left = state.put(network, state.tensors(read, options.state), options.state, described)
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
