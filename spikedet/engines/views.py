"""Find where the inputs of a layer come from, through operations that only move or sum spikes.

Up-sampling, concatenation, slices, padding, channel shuffles and averages need not be computed. The
next layer reads the events of the earlier neurons directly, with changed tables of rows, columns
and channels. A `Piece` is one such path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from spikedet.engines.program import Move, Op, Sums
from spikedet.engines.weights import adaptive_windows
from spikedet.graph.operations import Concatenate, Mean, Pad, Slice

ALONG_AXES = (nn.Upsample, Pad, Slice, nn.ChannelShuffle)
NOWHERE = -1  # index of an entry that is zero or missing
Lines = tuple[tuple[int, ...], ...]  # for each row (or column): those of the base that add to it
Shape = tuple[int, int, int]


class NoView(Exception):
    """A value that cannot be read from events directly. It must be computed."""


@dataclass(frozen=True)
class Piece:
    """A part of a value [C, H, W]: the contribution of one base [C', H', W'].

    Attributes:
        base: Name of the operation that sends the events.
        channels: Channel of the base for each channel, -1 for none.
        rows, columns: Rows and columns of the base for each row and column.
    """

    base: str
    channels: tuple[int, ...]
    rows: Lines
    columns: Lines


@dataclass(frozen=True)
class Elements:
    """A part of a vector [F]: indices of elements of the base, (c H' + y) W' + x; -1 for none."""

    base: str
    places: tuple[int, ...]


def as_map(shape: tuple[int, ...]) -> Shape:
    """Convert the shape [1, C], [1, C, W] or [1, C, H, W] to (C, H, W).

    Raises:
        NoView: The shape is none of these.
    """
    if not 2 <= len(shape) <= 4:
        raise NoView(f"values {list(shape)}")
    _, channels, *size = shape
    return channels, *([1] * (2 - len(size))), *size  # type: ignore[return-value]


def identity_piece(base: str, shape: tuple[int, ...]) -> Piece | Elements:
    """The piece that is the whole base, whose values are [1, ...]."""
    channels, height, width = as_map(shape)
    if len(shape) == 2:
        return Elements(base, tuple(range(channels)))
    return Piece(base, tuple(range(channels)), _same(height), _same(width))


def _same(size: int) -> Lines:
    return tuple((i,) for i in range(size))


Pieces = Sequence[Piece | Elements]


def pieces_of(
    op: Op,
    inputs: list[Pieces],
    shapes: list[tuple[int, ...]],
    shape: tuple[int, ...],
    bases: dict[str, Shape],
) -> Pieces:
    """The pieces of an operation's value.

    Args:
        op: A `Move` or `Sums`.
        inputs: Pieces of its inputs.
        shapes: Shapes of its inputs, [1, ...].
        shape: Shape of its value.
        bases: (C', H', W') of each base.

    Raises:
        NoView: The value must be computed.
    """
    if isinstance(op, Sums):
        return [_averaged(op, piece) for piece in _maps(inputs[0])]
    assert isinstance(op, Move)
    if op.zeros:
        raise NoView("a sum of several terms beside others")
    if isinstance(op.module, Concatenate) and op.module.dim == 1 and len(shape) > 2:
        return _beside([_maps(pieces) for pieces in inputs], [s[1] for s in shapes])
    if len(shape) == 2:
        return _elements(op, inputs, shapes, bases)
    if isinstance(op.module, ALONG_AXES):
        return [_moved(op.module, piece, shapes[0]) for piece in _maps(inputs[0])]
    raise NoView(type(op.module).__name__)


def _maps(pieces: Pieces) -> list[Piece]:
    maps = [piece for piece in pieces if isinstance(piece, Piece)]
    if len(maps) < len(pieces):
        raise NoView("features as a map")
    return maps


def _beside(inputs: list[list[Piece]], sizes: list[int]) -> list[Piece]:
    """Concatenate pieces along the channels."""
    joined, start, total = [], 0, sum(sizes)
    for pieces, size in zip(inputs, sizes, strict=True):
        for piece in pieces:
            behind = [NOWHERE] * (total - start - size)
            channels = [NOWHERE] * start + list(piece.channels) + behind
            joined.append(Piece(piece.base, tuple(channels), piece.rows, piece.columns))
        start += size
    return joined


def _elements(
    op: Move, inputs: list[Pieces], shapes: list[tuple[int, ...]], bases: dict[str, Shape]
) -> list[Elements]:
    """The pieces of a vector. They are found by moving the indices of the elements."""
    elements = []
    for i, pieces in enumerate(inputs):
        for piece in pieces:
            numbers = [torch.full(shape, -1.0, dtype=torch.float64) for shape in shapes]
            numbers[i] = _numbers(piece, shapes[i], bases)
            moved = op.module(*(n + 1 for n in numbers)) - 1  # 0 is padding
            elements.append(Elements(piece.base, tuple(moved[0].long().tolist())))
    return elements


def _numbers(
    piece: Piece | Elements, shape: tuple[int, ...], bases: dict[str, Shape]
) -> torch.Tensor:
    """The index in the base of each element of a value, -1 for none, in the value's shape."""
    if isinstance(piece, Elements):
        return torch.tensor(piece.places, dtype=torch.float64).view(shape)
    if any(len(line) > 1 for line in (*piece.rows, *piece.columns)):
        raise NoView("sums as features")
    _, height, width = bases[piece.base]
    channels = torch.tensor(piece.channels).view(-1, 1, 1)
    rows, columns = (
        torch.tensor([line[0] if line else -1 for line in lines])
        for lines in (piece.rows, piece.columns)
    )
    places = (channels * height + rows.view(-1, 1)) * width + columns
    present = (channels >= 0) & (rows.view(-1, 1) >= 0) & (columns >= 0)
    return torch.where(present, places, -1).double().view(shape)


def _moved(module: nn.Module, piece: Piece, shape: tuple[int, ...]) -> Piece:
    """Apply a module that moves values along axes of [1, C, W] or [1, C, H, W] to a piece."""
    taken = dict(places(module, shape))

    def along(axis: int, line: tuple, nothing: Any) -> tuple:
        order = taken.get(axis, range(len(line)))
        return tuple(nothing if i == NOWHERE else line[i] for i in order)

    columns = len(shape) - 1
    return Piece(
        piece.base,
        along(1, piece.channels, NOWHERE),
        along(2, piece.rows, ()) if columns == 3 else piece.rows,
        along(columns, piece.columns, ()),
    )


def places(module: nn.Module, shape: tuple[int, ...]) -> list[tuple[int, list[int]]]:
    """The input entries that an operation moves to its outputs, for each axis.

    Args:
        module: A slice, padding, nearest up-sampling or a channel shuffle.
        shape: Shape of its input, [1, ...].

    Returns:
        Pairs (axis, input index for each output index). The index is `NOWHERE` where the output is
        zero. Axes along which nothing moves are left out.
    """
    result = []
    for axis in range(1, len(shape)):
        line = torch.arange(1, shape[axis] + 1, dtype=torch.float64)
        line = line.view(-1, *[1] * (len(shape) - axis - 1)).expand(shape).clone()
        moved = module(line)
        other = [dim for dim in range(moved.ndim) if dim != axis]
        taken = [int(value) - 1 for value in moved.amax(other)]
        if taken != list(range(shape[axis])):
            result.append((axis, taken))
    return result


def _averaged(op: Sums, piece: Piece) -> Piece:
    """Apply average pooling whose divisor is the same everywhere."""
    module = op.module
    if isinstance(module, nn.AvgPool2d):
        plain = module.divisor_override is None or module.divisor_override == op.times
        kernel, stride, padding = (
            _pair(v) for v in (module.kernel_size, module.stride, module.padding)
        )
        whole_windows = kernel[0] * kernel[1] == op.times
        if not plain or not whole_windows or module.ceil_mode:
            raise NoView("an average with several divisors")
        if any(padding) and not module.count_include_pad:
            raise NoView("an average with several divisors")
        return Piece(
            piece.base,
            piece.channels,
            _windowed(piece.rows, kernel[0], stride[0], padding[0]),
            _windowed(piece.columns, kernel[1], stride[1], padding[1]),
        )
    if isinstance(module, nn.AdaptiveAvgPool2d):
        out = _pair(module.output_size)
        axes, divisor = [], 1
        for lines, size in zip((piece.rows, piece.columns), out, strict=True):
            windows = adaptive_windows(len(lines), size)
            if len({len(window) for window in windows}) > 1:
                raise NoView("an average with several divisors")
            axes.append(_joined(lines, windows))
            divisor *= len(windows[0])
        if divisor != op.times:
            raise NoView("an average whose divisor is that of other pictures")
        return Piece(piece.base, piece.channels, axes[0], axes[1])
    if isinstance(module, Mean) and module.keepdim and {d % 4 for d in module.dims} == {2, 3}:
        if len(piece.rows) * len(piece.columns) != op.times:
            raise NoView("an average whose divisor is that of other pictures")
        return Piece(
            piece.base,
            piece.channels,
            _joined(piece.rows, [range(len(piece.rows))]),
            _joined(piece.columns, [range(len(piece.columns))]),
        )
    raise NoView(type(module).__name__)


def _windowed(lines: Lines, kernel: int, stride: int, padding: int) -> Lines:
    out = (len(lines) + 2 * padding - kernel) // stride + 1
    windows = [
        range(max(0, i * stride - padding), min(len(lines), i * stride - padding + kernel))
        for i in range(out)
    ]
    return _joined(lines, windows)


def _joined(lines: Lines, windows: list[range]) -> Lines:
    return tuple(tuple(place for i in window for place in lines[i]) for window in windows)


def _pair(value) -> tuple[int, int]:
    return tuple(value) if isinstance(value, tuple) else (value, value)
