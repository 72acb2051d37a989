"""Decode the raw outputs of a detection head to boxes, and check that they fit together."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor

from spikedet.detection.ultra import Detect
from spikedet.errors import WeightsError
from spikedet.graph.graph import INPUT, Graph
from spikedet.graph.structure import fill


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
