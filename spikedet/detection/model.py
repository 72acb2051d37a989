"""Detection networks with their loss: layers of ultralytics, or a graph with its outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spikedet.conversion.features import Features, watched
from spikedet.conversion.sparsity import StageOnePenalty
from spikedet.detection.assign import SizedLoss
from spikedet.detection.decode import decode, decoder
from spikedet.detection.distillation import distillation_loss
from spikedet.detection.parts import Parts
from spikedet.detection.ultra import Detect, DetectionLoss, DetectionModel
from spikedet.errors import UsageError
from spikedet.graph.graph import Graph
from spikedet.precision import as_float, layout, mixed


class Head(Detect):
    """Ultralytics' detection head. It can also return its outputs before decoding.

    The loss and the decoder use only the height and the width of the features. So the raw boxes
    take the place of the features here, and a spiking network need not return more.
    """

    raw = False

    def forward(self, x: list[Tensor]) -> Any:
        if self.raw:
            return self.forward_head(x, **self.one2many)
        return super().forward(x)

    def forward_head(self, x, box_head=None, cls_head=None):
        boxes = [branch(f) for branch, f in zip(box_head, x, strict=True)]
        scores = [branch(f).flatten(2) for branch, f in zip(cls_head, x, strict=True)]
        flat = torch.cat([box.flatten(2) for box in boxes], -1)
        return {"boxes": flat, "scores": torch.cat(scores, -1), "feats": boxes}

    @torch.no_grad()
    def start_boxes(self) -> None:
        """Set the initial boxes to a side of 7 strides.

        In ultralytics the side is 15 strides. At stride 32 this is 480 pixels, more than an input
        of 384 pixels. Then the anchors of stride 32 would predict every object worse than those of
        stride 16, and would never get a target.
        """
        if self.reg_max > 1:
            bins = torch.arange(self.reg_max)
            for branch in self.cv2:  # the mean of these distances to an edge is 3.5 strides
                branch[-1].bias.copy_((-0.5 * (bins - 3).abs()).repeat(4))

    def layers(self, strides: Sequence[int]) -> tuple[str, ...]:
        """The prefixes of the layer names of these output strides.

        Raises:
            UsageError: The network has no output of this stride.
        """
        own = [int(stride) for stride in self.stride]
        for stride in strides:
            if stride not in own:
                raise UsageError(
                    f"stride {stride}: expected an output stride of the network: "
                    f"{', '.join(map(str, own))}"
                )
        names = (f"model.{self.i}.cv{part}.{own.index(s)}." for s in strides for part in (2, 3))
        return tuple(names)


class _Trained(nn.Module):
    """The detection loss, for networks with layers of ultralytics or with a graph.

    With `by_size`, an object is assigned only to strides that fit its size (see `SizedAssigner`).
    With `parts`, a training step runs in parts of the batch (see the module `parts`). The gradients
    of the returned losses are then already in the parameters.

    On CPUs, the forward pass of the training uses channels-last and, if it is faster, bfloat16. The
    loss is computed in float32. On GPUs, ultralytics' own mixed precision is used.
    """

    autocast_cpu = True
    by_size = False
    parts: Parts | None = None
    penalty: StageOnePenalty | None = None
    features: Features | None = None
    criteria: list[Any] | None = None

    def init_criterion(self) -> DetectionLoss:
        """Make the loss of raw outputs. Ultralytics calls this method."""
        return (SizedLoss if self.by_size else DetectionLoss)(self)

    def loss(self, batch: dict[str, Any], preds: Any = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the detection loss of a batch (ultralytics' keys: img [B, 3, H, W], cls, ...).

        A batch may have the key `teacher`: a function from pictures to the raw outputs and the
        activations of a teacher, and the weight of the distillation loss.
        """
        if getattr(self, "criterion", None) is None:
            self.criterion = self.init_criterion()
        if self.parts is None or preds is not None or not self.training:
            return self._loss(batch, self.criterion, preds)
        if self.criteria is None:  # an assigner remembers what it does
            self.criteria = [self.init_criterion() for _ in range(self.parts.number)]
        criteria = self.criteria
        return self.parts.step(lambda piece, part: self._loss(piece, criteria[part]), batch)

    def _loss(
        self, batch: dict[str, Any], criterion: Any, preds: Any = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Like `loss`, for a whole batch or for a part of one."""
        added = []  # further losses, each a mean over the pictures
        own: dict[str, Tensor] = {}
        if preds is None and self.training and self.penalty is not None:
            with self.penalty.counted() as seen, watched(self.features) as own:
                preds = self._outputs(batch["img"])
            added.append(self.penalty.of(seen))
        elif preds is None:
            with watched(self.features) as own:
                preds = self._outputs(batch["img"])
        loss, items = criterion(preds, batch)
        if self.training and "teacher" in batch:
            taught, weight = batch["teacher"]
            outputs, activations = taught(batch["img"])
            added.append(weight * distillation_loss(as_float(preds), outputs))
            if self.features is not None:
                added.append(self.features.loss(own, activations))
        theirs = [one.view(1) * len(batch["img"]) for one in added]  # a sum, as `loss`
        return torch.cat([loss, *theirs]), items

    def _outputs(self, picture: Tensor) -> Any:
        """The outputs for pictures [B, 3, H, W], on CPUs in float32."""
        if picture.device.type != "cpu":
            return self.forward(picture)
        picture = picture.contiguous(memory_format=layout(self))
        with mixed("cpu", self.autocast_cpu and self.training):
            preds = self.forward(picture)
        return as_float(preds)


class Detector(_Trained, DetectionModel):
    """Ultralytics' detection model, trained in bfloat16 on a CPU."""

    model: nn.Sequential
    stride: Tensor

    def __init__(self, description: dict[str, Any], classes: int):
        super().__init__(description, nc=classes, verbose=False)
        head = self.model[-1]
        if type(head) is not Detect or hasattr(head, "one2one_cv2"):
            kind = "an end-to-end Detect" if type(head) is Detect else type(head).__name__
            raise UsageError(f"the last layer of the description is {kind}; expected Detect")
        head.__class__ = Head
        self.head.start_boxes()

    @property
    def head(self) -> Head:
        """The last layer, which returns raw outputs."""
        head = self.model[-1]
        assert isinstance(head, Head)
        return head


class GraphDetector(_Trained):
    """A graph with raw outputs of a head, with the interface that ultralytics' trainer expects.

    Args:
        graph: Float, quantised or spiking graph.
        head: `strides` and `reg_max`, as in checkpoints.
        classes: Number of classes.
    """

    decoder: Detect

    def __init__(self, graph: Graph, head: dict[str, Any], classes: int):
        super().__init__()
        self.graph = graph
        self.__dict__["decoder"] = decoder(head, classes)  # no layer of the network
        self.stride, self.nc = self.decoder.stride, classes
        self.yaml: dict[str, Any] = {}
        self.names = {number: str(number) for number in range(classes)}
        self.args: Any = None
        self.criterion: Any = None

    @property
    def model(self) -> list[nn.Module]:
        """The layers, with the head last. Ultralytics' loss reads them."""
        return [self.decoder]

    def set_head_attr(self, **values: Any) -> None:
        """Change settings of the decoder, such as the largest number of boxes."""
        for name, value in values.items():
            setattr(self.decoder, name, value)

    def forward(self, x: Any, *_: Any, **__: Any) -> Any:
        """Compute the loss of a batch (a dict), or the outputs for pictures [B, 3, H, W].

        The outputs are raw in training mode and decoded in evaluation mode.
        """
        if isinstance(x, dict):
            return self.loss(x)
        raw = self.graph(x)
        return raw if self.training else (decode(self.decoder, raw), raw)


def head_of(network: Detector) -> dict[str, Any]:
    """The description of a detector's outputs, as in checkpoints."""
    head = network.head
    return {"strides": [float(stride) for stride in head.stride], "reg_max": head.reg_max}


def raw_outputs(network: Detector) -> None:
    """Make the head return raw outputs in evaluation mode too."""
    network.head.raw = True
