"""The detection network: build it from its description, and run it."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spikedet import resources
from spikedet.checkpoint import Checkpoint
from spikedet.conversion.sparsity import StageOnePenalty
from spikedet.detection.assign import SizedLoss
from spikedet.detection.distillation import distillation_loss
from spikedet.detection.parts import Parts
from spikedet.detection.ultra import Conv, Detect, DetectionLoss, DetectionModel, stock_description
from spikedet.errors import UsageError, WeightsError, did_you_mean, list_choices, message_of
from spikedet.files import read_yaml
from spikedet.graph.graph import INPUT, Graph
from spikedet.graph.structure import fill
from spikedet.precision import as_float, channels_last, layout, mixed
from spikedet.runtime.network import SpikingNetwork

MOST_LAYERS, MOST_CHANNELS, MOST_WIDTH = 1000, 8192, 16  # limits for a network description


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

    On CPUs, the forward pass of the training uses channels-last and bfloat16 autocast, and the loss
    is computed in float32. On GPUs, ultralytics' own mixed precision is used.
    """

    autocast_cpu = True
    by_size = False
    parts: Parts | None = None
    penalty: StageOnePenalty | None = None
    criteria: list[Any] | None = None

    def init_criterion(self) -> DetectionLoss:
        """Make the loss of raw outputs. Ultralytics calls this method."""
        return (SizedLoss if self.by_size else DetectionLoss)(self)

    def loss(self, batch: dict[str, Any], preds: Any = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the detection loss of a batch (ultralytics' keys: img [B, 3, H, W], cls, ...).

        A batch may have the key `teacher`: a function from pictures to the raw outputs of a
        teacher, and the weight of the distillation loss.
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
        if preds is None and self.training and self.penalty is not None:
            with self.penalty.counted() as seen:
                preds = self._outputs(batch["img"])
            added.append(self.penalty.of(seen))
        elif preds is None:
            preds = self._outputs(batch["img"])
        loss, items = criterion(preds, batch)
        if self.training and "teacher" in batch:
            taught, weight = batch["teacher"]
            added.append(weight * distillation_loss(as_float(preds), taught(batch["img"])))
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


def decoder(head: dict[str, Any], classes: int) -> Detect:
    """Make ultralytics' head without layers. It decodes raw outputs to boxes.

    Raises:
        WeightsError: The description of the head is damaged.
    """
    strides, reg_max = head.get("strides", []), head.get("reg_max")
    good = isinstance(strides, list) and 0 < len(strides) <= 8
    good = good and all(isinstance(s, int | float) and 1 <= s <= 1024 for s in strides)
    if not good or type(reg_max) is not int or not 1 <= reg_max <= 256:
        raise WeightsError("the weights do not describe their outputs (strides, reg_max)")
    detect = Detect(classes, reg_max, ch=(1,) * len(strides))
    detect.cv2 = detect.cv3 = None
    detect.stride = torch.tensor([float(stride) for stride in strides])
    return detect.eval()


def expect_outputs(graph: Graph, head: dict[str, Any], classes: int, imgsz: int) -> None:
    """Check that the outputs of a graph fit the head and the number of classes.

    Raises:
        WeightsError: They do not fit. The message says what differs.
    """
    decode_head, stride = decoder(head, classes), max(head["strides"])
    if graph.shapes[INPUT][1:2] != (3,) or len(graph.shapes[INPUT]) != 4 or imgsz % stride:
        raise WeightsError(
            f"the detector takes pictures {list(graph.shapes[INPUT][1:])}, and its side is "
            f"{imgsz}; expected 3 colour channels and a multiple of {stride:g}"
        )
    shapes = fill(graph.output, graph.shapes)
    if not isinstance(shapes, dict) or set(shapes) != {"boxes", "scores", "feats"}:
        raise WeightsError("the network does not return boxes, scores and feats")
    feats, edges = shapes["feats"], 4 * decode_head.reg_max
    good = isinstance(feats, list) and len(feats) == len(decode_head.stride)
    if not good or not all(
        isinstance(shape, tuple) and len(shape) == 4 and shape[1] == edges for shape in feats
    ):
        raise WeightsError(
            f"the network returns feats {str(feats)[:80]}; its head expects other shapes"
        )
    places = sum(math.prod(shape[2:]) for shape in feats)
    for name, wanted in (("boxes", (1, edges, places)), ("scores", (1, classes, places))):
        if shapes[name] != wanted:
            raise WeightsError(
                f"the network returns {name} {str(shapes[name])[:80]}; expected {wanted} for "
                f"its head and {classes} classes"
            )


def decode(head: Detect, raw: dict[str, Any]) -> Tensor:
    """Decode raw head outputs to [B, 4 + C, A]: centre and size in pixels, then scores in 0..1.

    The call stores no state, so several calls may run at the same time.
    """
    own = copy.copy(head)  # it notes the anchors of the last picture in itself
    return own._inference(raw)


def read_description(
    path: Path, width: str | None = None, activation: str | None = None
) -> dict[str, Any]:
    """Read a network description.

    Args:
        path: A YAML file, or the name of a description of this package (tiny-yolo) or of
            ultralytics (yolov8n.yaml).
        width: One of the `scales` of the description.
        activation: Replaces the activation of the description; a text such as `torch.nn.ReLU()`.

    Raises:
        UsageError: The description or the width does not exist.
    """
    file, scale = resources.config(path, "models"), None
    if not file.is_file():
        stock = stock_description(file.name) if file.name == str(path) else None
        if stock is None:
            meant = did_you_mean(file.stem, resources.configs("models"))
            raise UsageError(
                f"{path}: no such network description; expected a file, a name such as tiny-yolo, "
                f"or a name of ultralytics such as yolov8n.yaml{meant}"
            )
        file, scale = stock
    description = read_yaml(file)
    width = width or scale
    if width is not None:
        scales = description.get("scales") or {}
        if width not in scales:
            raise UsageError(
                f"width {width!r}: {path} has {list_choices(width, scales) or 'no widths'}"
            )
        description["scale"] = width
    if activation is not None:
        description["activation"] = activation
    return description


def build(description: dict[str, Any], classes: int) -> Detector:
    """Build a network with new weights from its description.

    Raises:
        UsageError: The description names a layer or an activation that does not exist, has no
            Detect head, or its layers do not fit together.
    """
    _expect_buildable(description)
    usual = Conv.default_act  # of all networks; ultralytics leaves another one where it fails
    try:
        return Detector(dict(description), classes)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UsageError(f"the network description cannot be built: {message_of(error)}") from error
    finally:
        Conv.default_act = usual


def _expect_buildable(description: dict[str, Any]) -> None:
    """Check the sizes in a description before the layers are made.

    Raises:
        UsageError: An entry is wrong or too large. The message names it.
    """
    layers = 0
    for part in ("backbone", "head"):
        rows = description.get(part, [])
        if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
            raise UsageError(f"the {part} of the network description is not a list of layers")
        for row in rows:
            if len(row) != 4 or type(row[1]) is not int or not 0 < row[1] <= MOST_LAYERS:
                raise UsageError(
                    f"the network description: {str(row)[:80]}; expected [from, repeats, layer, "
                    f"arguments], repeats of 1 to {MOST_LAYERS}"
                )
            layers += row[1]
            sizes = [value for value in _numbers(row[3])]
            if any(abs(size) > MOST_CHANNELS for size in sizes):
                raise UsageError(
                    f"the network description: {str(row)[:80]}; expected sizes up to "
                    f"{MOST_CHANNELS}"
                )
    if layers > MOST_LAYERS:
        raise UsageError(
            f"the network description has {layers} layers; expected at most {MOST_LAYERS}"
        )
    factors = [description.get(key, 1) for key in ("width_multiple", "depth_multiple")]
    for factor in [*factors, *_numbers(list((description.get("scales") or {}).values()))][:999]:
        if not isinstance(factor, int | float) or not 0 < factor <= MOST_CHANNELS:
            raise UsageError(
                f"the network description has a scale of {factor!r}; expected a number above 0, at "
                f"most {MOST_CHANNELS}"
            )


def _numbers(value: Any) -> Iterator[float]:
    """All numbers in nested lists."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


class Runner:
    """A detection network of any stage with its decoder.

    Attributes:
        network: Module that computes raw head outputs. A `SpikingNetwork` for stage `snn`.
        stage: `float`, `qc` or `snn`.
        T: Time steps that the weights were made for. None for `float`.
        names: Class names.
        imgsz: Input side in pixels.
    """

    def __init__(self, network: nn.Module, checkpoint: Checkpoint):
        self.network, self.head = network, decoder(checkpoint.head, len(checkpoint.names))
        self.stage, self.T = checkpoint.stage, checkpoint.T
        self.names, self.imgsz = tuple(checkpoint.names), checkpoint.imgsz

    def to(self, device: str) -> Runner:
        """Move to a device."""
        self.network.to(device)
        self.head.to(device).stride = self.head.stride.to(device)
        return self

    @property
    def spiking(self) -> SpikingNetwork:
        """The network, if it is spiking."""
        assert isinstance(self.network, SpikingNetwork)
        return self.network

    def raw(self, pictures: Tensor, T: int | None = None) -> dict[str, Any]:
        """Compute raw head outputs: boxes [B, 4 R, A], scores [B, C, A] (logits), and feats."""
        pictures = channels_last(pictures)
        if self.stage == "snn":
            return self.network(pictures, T)
        return self.network(pictures)

    def decode(self, raw: dict[str, Any]) -> Tensor:
        """Decode raw head outputs to [B, 4 + C, A] (see `__call__`)."""
        return decode(self.head, raw)

    def __call__(self, pictures: Tensor, T: int | None = None) -> Tensor:
        """Compute the boxes and class scores of every anchor.

        Args:
            pictures: [B, 3, S, S] float32 RGB in 0..1.
            T: Time steps of a spiking network. None: the T of the network.

        Returns:
            [B, 4 + C, A]: centre x, centre y, width and height in input pixels, then C scores in
            0..1, for each of A anchors.
        """
        return self.decode(self.raw(pictures, T))

    def after(self, pictures: Tensor, steps: Sequence[int]) -> list[Tensor]:
        """The results of `__call__` for each T of `steps` (ascending), from one run."""
        pictures = channels_last(pictures)
        return [self.decode(raw) for raw in self.spiking.after(pictures, steps)]

    def steps(
        self, pictures: Tensor, T: int | None = None, chunk: int | None = None
    ) -> Iterator[tuple[int, Tensor, float]]:
        """Any-time readout of a spiking network in one run (see `SpikingNetwork.anytime`).

        Yields:
            t = 1..T, the result of `__call__` with t steps, and the spike rate so far (spikes per
            neuron and time step).
        """
        pictures = channels_last(pictures)
        with self.spiking.spike_rates() as rates:
            for t, raw in self.spiking.anytime(pictures, T, chunk):
                yield t, self.decode(raw), rates.mean(t)


def raw_outputs(network: Detector) -> None:
    """Make the head return raw outputs in evaluation mode too."""
    network.head.raw = True
