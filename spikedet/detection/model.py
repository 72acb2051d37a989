"""The detection network: built from its description, run with or without time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from spikedet import checkpoint
from spikedet.detection.ultra import Detect, DetectionModel
from spikedet.errors import UsageError, WeightsError


class Head(Detect):
    """Ultralytics' detection head, taking the batch size from its outputs and not its inputs.

    A spiking network's features are [T*B, C, H, W] while its readouts are [B, ...].
    """

    def forward_head(self, x, box_head=None, cls_head=None):
        boxes = [branch(f).flatten(2) for branch, f in zip(box_head, x, strict=True)]
        scores = [branch(f).flatten(2) for branch, f in zip(cls_head, x, strict=True)]
        features = [f[: len(boxes[0])] for f in x]  # only their shapes are read
        return {"boxes": torch.cat(boxes, -1), "scores": torch.cat(scores, -1), "feats": features}


class Detector(DetectionModel):
    """Ultralytics' detection model, trained in bfloat16 on a CPU.

    On CPUs the training forward pass runs channels-last under bfloat16 autocast; the loss is
    computed in float32. On GPUs ultralytics' own mixed precision is left alone.
    """

    autocast_cpu = True

    def __init__(self, description: dict[str, Any], classes: int):
        super().__init__(description, nc=classes, verbose=False)
        self.model[-1].__class__ = Head

    def loss(self, batch: dict[str, Any], preds: Any = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Detection loss of a batch (ultralytics' keys: img [B, 3, H, W], cls, bboxes, ...)."""
        if preds is None:
            picture = batch["img"]
            if picture.device.type == "cpu":
                picture = picture.contiguous(memory_format=torch.channels_last)
                enabled = self.autocast_cpu and self.training
                with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                    preds = self.forward(picture)
                preds = as_float(preds)
            else:
                preds = self.forward(picture)
        return super().loss(batch, preds)


def as_float(value: Any) -> Any:
    """Every floating-point tensor of a nested structure in float32."""
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {k: as_float(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(as_float(v) for v in value)
    return value


def read_description(path: Path, width: str | None = None) -> dict[str, Any]:
    """A network description as a dict, its `scale` set to `width` (one of its `scales`).

    Raises:
        UsageError: No such file or no such width.
    """
    if not Path(path).is_file():
        raise UsageError(f"{path}: no such network description; see configs/models")
    description = yaml.safe_load(Path(path).read_text())
    if width is not None:
        scales = description.get("scales", {})
        if width not in scales:
            raise UsageError(f"width {width!r}: {path} has {', '.join(scales) or 'no widths'}")
        description["scale"] = width
    return description


def build(description: dict[str, Any], classes: int) -> Detector:
    """A network with fresh weights from its description."""
    return Detector(dict(description), classes)


def load_backbone(network: Detector, path: Path) -> None:
    """Put pre-trained layers (written by tools/pretrain.py) into `network`.

    Raises:
        WeightsError: The file holds other shapes, or layers that the network has not.
    """
    tensors = checkpoint.load_plain(path)
    state = network.state_dict()
    for name, tensor in tensors.items():
        if name not in state or state[name].shape != tensor.shape:
            raise WeightsError(
                f"{path}: {name} {tuple(tensor.shape)} does not fit; "
                "expected a backbone of the same description and width"
            )
    network.load_state_dict(tensors, strict=False)
