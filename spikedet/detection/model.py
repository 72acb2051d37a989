"""The detection network: built from its description, run with or without time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spikedet import checkpoint
from spikedet.conversion.network import SpikeRates, SpikingNetwork
from spikedet.detection.distillation import distillation_loss
from spikedet.detection.ultra import Detect, DetectionModel, stock_description
from spikedet.errors import UsageError
from spikedet.files import read_yaml
from spikedet.precision import layout, mixed
from spikedet.task import as_float


class Head(Detect):
    """Ultralytics' detection head, taking the batch size from its outputs and not its inputs.

    A spiking network's features are [T*B, C, H, W] while its readouts are [B, ...].
    """

    def forward_head(self, x, box_head=None, cls_head=None):
        boxes = [branch(f) for branch, f in zip(box_head, x, strict=True)]
        scores = [branch(f).flatten(2) for branch, f in zip(cls_head, x, strict=True)]
        flat = torch.cat([box.flatten(2) for box in boxes], -1)
        # of the features only height and width are read
        return {"boxes": flat, "scores": torch.cat(scores, -1), "feats": boxes}


class Detector(DetectionModel):
    """Ultralytics' detection model, trained in bfloat16 on a CPU.

    On CPUs the training forward pass runs channels-last under bfloat16 autocast; the loss is
    computed in float32. On GPUs ultralytics' own mixed precision is left alone.
    """

    autocast_cpu = True

    def __init__(self, description: dict[str, Any], classes: int):
        super().__init__(description, nc=classes, verbose=False)
        head = self.model[-1]
        if type(head) is not Detect or hasattr(head, "one2one_cv2"):
            kind = "an end-to-end Detect" if type(head) is Detect else type(head).__name__
            raise UsageError(f"the last layer of the description is {kind}; expected Detect")
        head.__class__ = Head

    def loss(self, batch: dict[str, Any], preds: Any = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Detection loss of a batch (ultralytics' keys: img [B, 3, H, W], cls, bboxes, ...).

        A batch may hold `teacher`: raw outputs to come near as well, and the weight of that.
        """
        if preds is None:
            picture = batch["img"]
            if picture.device.type == "cpu":
                picture = picture.contiguous(memory_format=layout(self))
                enabled = self.autocast_cpu and self.training
                with mixed("cpu", enabled):
                    preds = self.forward(picture)
                preds = as_float(preds)
            else:
                preds = self.forward(picture)
        loss, items = super().loss(batch, preds)
        if self.training and "teacher" in batch:
            wanted, weight = batch["teacher"]
            apart = weight * distillation_loss(as_float(preds), wanted)
            loss = torch.cat([loss, apart.view(1) * len(batch["img"])])  # theirs is a sum as well
        return loss, items


def read_description(
    path: Path, width: str | None = None, activation: str | None = None
) -> dict[str, Any]:
    """A network description as a dict.

    Args:
        path: A YAML file, or the name of one that ultralytics brings along (yolov8n.yaml).
        width: One of its `scales`.
        activation: Put in place of its own, as text: `torch.nn.ReLU()`.

    Raises:
        UsageError: No such description, or no such width.
    """
    file, scale = Path(path), None
    if not file.is_file():
        stock = stock_description(file.name) if file.name == str(path) else None
        if stock is None:
            raise UsageError(
                f"{path}: no such network description; see configs/models, or name one of "
                "ultralytics' as in yolov8n.yaml"
            )
        file, scale = stock
    description = read_yaml(file)
    width = width or scale
    if width is not None:
        scales = description.get("scales") or {}
        if width not in scales:
            raise UsageError(f"width {width!r}: {path} has {', '.join(scales) or 'no widths'}")
        description["scale"] = width
    if activation is not None:
        description["activation"] = activation
    return description


def build(description: dict[str, Any], classes: int) -> Detector:
    """A network with fresh weights from its description.

    Raises:
        UsageError: It names a layer or an activation that does not exist, has no Detect head, or
            its layers do not fit together.
    """
    try:
        return Detector(dict(description), classes)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UsageError(f"the network description cannot be built: {error}") from error


class Runner:
    """A detection network of any stage, ready to run.

    Attributes:
        network: The module that computes raw head outputs; a `SpikingNetwork` for `snn`.
        stage: `float`, `qc` or `snn`.
        T: Time steps the weights were made for, None for `float`.
        names: Class names.
        imgsz: Input side in pixels.
    """

    def __init__(self, network: nn.Module, made: checkpoint.Checkpoint):
        bare = network.network if isinstance(network, SpikingNetwork) else network
        self.network, self.head = network, bare.model[-1]
        self.stage, self.T = made.stage, made.T
        self.names, self.imgsz = tuple(made.names), made.imgsz

    def to(self, device: str) -> Runner:
        """Move to a device."""
        self.network.to(device)
        return self

    def raw(self, pictures: Tensor, T: int | None = None) -> dict[str, Any]:
        """Head outputs before decoding: boxes [B, 4 R, A], scores [B, C, A] (logits), feats."""
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        if self.stage == "snn":
            return self.network(pictures, T)
        return self.network(pictures)

    def decode(self, raw: dict[str, Any]) -> Tensor:
        """Raw head outputs -> [B, 4 + C, A]."""
        return self.head._inference(raw)

    def __call__(self, pictures: Tensor, T: int | None = None) -> Tensor:
        """Boxes and class scores of every anchor.

        Args:
            pictures: [B, 3, S, S] float32 RGB in 0..1.
            T: Time steps of a spiking network, its own by default.

        Returns:
            [B, 4 + C, A]: centre x, centre y, width, height in input pixels, scores in 0..1.
        """
        return self.decode(self.raw(pictures, T))

    def after(self, pictures: Tensor, steps: Sequence[int]) -> list[Tensor]:
        """What `__call__` gives for each T of `steps`, ascending, but all from one run."""
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        return [self.decode(raw) for raw in self.network.after(pictures, steps)]

    def steps(
        self, pictures: Tensor, T: int | None = None, chunk: int | None = None
    ) -> Iterator[tuple[int, Tensor, float]]:
        """Any-time readout of a spiking network, in one run (see `SpikingNetwork.anytime`).

        Yields:
            t = 1..T, what `__call__` gives with t steps, and spikes per neuron and step so far.
        """
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        with SpikeRates(self.network) as rates:
            for t, raw in self.network.anytime(pictures, T, chunk):
                yield t, self.decode(raw), rates.mean(t)


def raw_outputs(network: Detector) -> None:
    """Let the head return its outputs before decoding, as it does while training."""
    network.model[-1].training = True
