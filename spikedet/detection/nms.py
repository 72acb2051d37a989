"""Non-maximum suppression for each class separately."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms

CANDIDATES = 30_000


def select(
    raw: Tensor, confidence: float, iou: float, most: int = 100
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Select the boxes of one picture by non-maximum suppression for each class.

    Args:
        raw: [4 + C, A]: centre x, centre y, width and height in pixels, then C class scores.
        confidence: Confidence threshold. Scores must be greater. One box may count for several
            classes.
        iou: If two boxes of a class overlap with a larger IoU, the one with the lower score is
            dropped.
        most: Largest number of boxes to keep.

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
