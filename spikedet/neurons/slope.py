"""The slope of the negative side of an activation: one number, or one per channel (PReLU)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Slope = float | Sequence[float]


def check_slope(slope: Slope) -> float | tuple[float, ...]:
    """Check a slope and return it as modules store it. Equal slopes become one number.

    Raises:
        ValueError: A slope is outside 0..1. Neurons have a counterpart only in this range.
    """
    each = [slope] if isinstance(slope, int | float) else list(slope)
    for value in each:
        if not 0 <= value <= 1:
            raise ValueError(f"the slope of the negative side is {value}; expected 0 to 1")
    return float(each[0]) if len(set(each)) == 1 else tuple(float(value) for value in each)


def broadcast_slope(slope: float | tuple[float, ...], x: Tensor) -> float | Tensor:
    """Convert a slope so that it broadcasts to [B, C, ...]: a number, or [1, C, 1, ...] float32."""
    if not isinstance(slope, tuple):
        return slope
    return torch.tensor(slope, device=x.device).view(1, -1, *[1] * (x.ndim - 2))
