"""The side of the training pictures, which may grow during a training."""

from __future__ import annotations

from torch import Tensor, nn

from spikedet.errors import UsageError


def expect_growth(name: str, first: int | None, last: int, stride: int) -> None:
    """Check that pictures can grow from one side to another (see `growing_side`).

    Args:
        name: Name of the training, for the message.
        first: Side in pixels at the start. None if the pictures do not grow.
        last: Side in pixels at the end.
        stride: Stride of the network.

    Raises:
        UsageError: `first` is larger than `last` or not a multiple of the stride.
    """
    if first is not None and (first % stride or not stride <= first <= last):
        raise UsageError(
            f"{name}: grow_from is {first} pixels; expected a multiple of {stride}, at most {last}"
        )


def growing_side(first: int | None, last: int, done: float, stride: int) -> int:
    """The side of the pictures in pixels after the fraction `done` of a training.

    It grows from `first` to `last` in three quarters of the training.

    Args:
        first: Side at the start. None: always `last`.
        last: Side at the end.
        done: Fraction of the training, 0..1.
        stride: The side is a multiple of it (except `last`).
    """
    if first is None or done >= 0.75:
        return last
    side = first + (last - first) * done / 0.75
    return min(last, round(side / stride) * stride)


def resized(pictures: Tensor, side: int) -> Tensor:
    """Resize square pictures [B, 3, S, S] with antialiasing. uint8 is faster than float."""
    if side == pictures.shape[-1]:
        return pictures
    return nn.functional.interpolate(pictures, size=(side, side), mode="bilinear", antialias=True)
