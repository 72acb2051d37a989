"""Assign objects to output strides by their size.

Ultralytics' task-aligned assigner assigns an object to the anchors that already predict it best, of
any stride. So a head that predicts badly at the start gets no targets, and does not improve. Here
each stride gets the objects in its own range of sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spikedet.detection.ultra import DetectionLoss, TaskAlignedAssigner, make_anchors
from spikedet.errors import TrainingError

# Side of an object, in strides: the square root of its area, from and up to.
RANGE = (3.5, 12.0)
CANDIDATES = 10  # predictions that ultralytics' loss assigns to an object at most


def multiple_of(strides: Sequence[float]) -> int:
    """The number that sides of pictures are a multiple of, for a network with these strides.

    It is 32 or more, as in ultralytics. A network whose largest output stride is 16 may have layers
    of stride 32 inside, which join others only at such sides.
    """
    return max(32, int(max(strides)))


def expect_places(strides: Sequence[float], side: int) -> None:
    """Check that pictures are large enough for the loss.

    Args:
        strides: Output strides of the network.
        side: Side of the pictures in pixels.

    Raises:
        TrainingError: There are fewer than `CANDIDATES` predictions for a picture.
    """
    places = sum((side // int(stride)) ** 2 for stride in strides)
    if places < CANDIDATES:
        raise TrainingError(
            f"pictures of {side} pixels have {places} places for predictions; expected "
            f"{CANDIDATES} or more; use larger pictures"
        )


class SizedAssigner(TaskAlignedAssigner):
    """Task-aligned assignment within the strides that fit an object's size.

    An object with the side d = sqrt(w h) fits the stride s if 3.5 s <= d <= 12 s. The smallest
    stride has no lower limit, and the largest stride has no upper limit. The ranges of two
    neighbouring strides overlap (from 7 to 12 times the smaller stride). There the better
    prediction wins, as usual. If an object contains no anchor of a fitting stride, anchors of all
    strides are used.
    """

    def forward(self, *args: Tensor, anchor_strides: Tensor) -> tuple[Tensor, ...]:
        """Like ultralytics' method. `anchor_strides` [A, 1] are in pixels."""
        self.anchor_strides = anchor_strides[:, 0]
        return super().forward(*args)

    def select_candidates_in_gts(
        self, xy_centers: Tensor, gt_bboxes: Tensor, mask_gt: Tensor, eps: float = 1e-9
    ) -> Tensor:
        """The anchors [B, N, A] to which N objects (x1 y1 x2 y2 in pixels) may be assigned."""
        inside = super().select_candidates_in_gts(xy_centers, gt_bboxes, mask_gt, eps)
        fitting = inside & fits(gt_bboxes, self.anchor_strides)
        return torch.where(fitting.any(-1, keepdim=True), fitting, inside)


def fits(boxes: Tensor, strides: Tensor) -> Tensor:
    """Whether the stride of each anchor fits each object.

    Args:
        boxes: [..., N, 4], x1 y1 x2 y2 in pixels.
        strides: [A], the stride of each anchor in pixels.

    Returns:
        [..., N, A] bool.
    """
    low, high = RANGE
    side = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1, keepdim=True).sqrt()
    large = (side >= low * strides) | (strides == strides.min())
    return large & ((side <= high * strides) | (strides == strides.max()))


class SizedLoss(DetectionLoss):
    """Ultralytics' detection loss with a `SizedAssigner`."""

    def __init__(self, network: torch.nn.Module):
        super().__init__(network)
        old = self.assigner  # type: ignore[has-type]
        self.assigner = SizedAssigner(
            topk=old.topk,
            num_classes=old.num_classes,
            alpha=old.alpha,
            beta=old.beta,
            stride=old.stride,
        )

    def get_assigned_targets_and_loss(
        self, preds: dict[str, Tensor], batch: dict[str, Any], **options: Any
    ) -> tuple:
        _, strides = make_anchors(preds["feats"], self.stride, 0.5)
        return super().get_assigned_targets_and_loss(
            preds, batch, anchor_strides=strides, **options
        )
