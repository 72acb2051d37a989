"""Fit a picture into the square input of a network, and convert boxes back."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

GREY = 114  # ultralytics' padding


@dataclass(frozen=True)
class Letterbox:
    """How a picture was fitted into a square: scaled, then padded.

    Attributes:
        scale_x, scale_y: Network pixels per picture pixel.
        pad_x, pad_y: Padding at the left and at the top, in network pixels.
        width, height: Size of the picture in its own pixels.
    """

    scale_x: float
    scale_y: float
    pad_x: int
    pad_y: int
    width: int
    height: int

    def to_original(self, boxes: np.ndarray) -> np.ndarray:
        """Convert boxes [N, 4] (x1 y1 x2 y2) from network to picture pixels, and clip them."""
        scale = np.array([self.scale_x, self.scale_y] * 2)
        pad = np.array([self.pad_x, self.pad_y] * 2)
        limit = np.array([self.width, self.height] * 2)
        moved = (np.asarray(boxes, np.float64).reshape(-1, 4) - pad) / scale
        return np.clip(moved, 0, limit).astype(np.float32)


def letterbox(picture: np.ndarray, side: int) -> tuple[Tensor, Letterbox]:
    """Fit a picture into the centre of a grey square, with the same aspect ratio.

    Args:
        picture: [H, W, 3] uint8 BGR.
        side: Side of the square in pixels.

    Returns:
        The square, [3, side, side] float32 RGB in 0..1, and its letterbox.
    """
    height, width = picture.shape[:2]
    scale = min(side / height, side / width)
    new_width, new_height = max(1, round(width * scale)), max(1, round(height * scale))
    if (new_height, new_width) != (height, width):
        picture = cv2.resize(picture, (new_width, new_height), interpolation=cv2.INTER_LINEAR)
    left = round((side - new_width) / 2 - 0.1)
    top = round((side - new_height) / 2 - 0.1)
    square = np.full((side, side, 3), GREY, np.uint8)
    square[top : top + new_height, left : left + new_width] = picture
    tensor = torch.from_numpy(square[..., ::-1].copy()).permute(2, 0, 1).float() / 255
    fitted = Letterbox(new_width / width, new_height / height, left, top, width, height)
    return tensor, fitted
