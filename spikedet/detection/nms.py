"""Non-maximum suppression, class by class."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms

CANDIDATES = 30_000


def select(
    raw: Tensor, confidence: float, iou: float, most: int = 100
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes of one picture after class-wise non-maximum suppression.

    Args:
        raw: [4 + C, A]: centre x, centre y, width, height in pixels, then class scores.
        confidence: Threshold of scores, exclusive. One box may count for several classes.
        iou: IoU above which the lower score of the same class is dropped.
        most: Most boxes that are kept.

    Returns:
        Boxes [N, 4] x1 y1 x2 y2, scores [N], labels [N], highest score first.
    """
    scores = raw[4:]
    labels, anchors = (scores > confidence).nonzero(as_tuple=True)
    chosen = scores[labels, anchors]
    order = chosen.sort(descending=True, stable=True).indices[:CANDIDATES]
    labels, anchors, chosen = labels[order], anchors[order], chosen[order]
    centre, half = raw[:2, anchors].T, raw[2:4, anchors].T / 2
    boxes = torch.cat([centre - half, centre + half], 1)
    kept = batched_nms(boxes, chosen, labels, iou)[:most]
    return boxes[kept].numpy(), chosen[kept].numpy(), labels[kept].numpy()
