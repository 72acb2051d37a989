"""Where the inputs of a layer come from: through everything that only moves or sums spikes.

Up-sampling, concatenation, slices, padding, shuffles of channels and averages need not be computed:
the layer behind reads the events of the neurons before, with other tables of rows, columns and
channels. A `Piece` is one such path.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from spikedet.engines.program import Move, Op, Sums
from spikedet.engines.weights import adaptive_windows
from spikedet.graph.operations import Concatenate, Mean, Pad, Slice

Lines = tuple[tuple[int, ...], ...]  # for each row (or column): those of the base that add to it
Shape = tuple[int, int, int]


class NoView(Exception):
    """Something that has to be computed."""


@dataclass(frozen=True)
class Piece:
    """Part of a value [C, H, W]: what one base, [C', H', W'], adds to it.

    Attributes:
        base: Name of the operation.
        channels: Of the base for each channel, -1 for none.
        rows, columns: Of the base for each row and column.
    """

    base: str
    channels: tuple[int, ...]
    rows: Lines
    columns: Lines


@dataclass(frozen=True)
class Elements:
    """Part of a value [F]: elements of the base, as (c H' + y) W' + x, -1 for none."""

    base: str
    places: tuple[int, ...]


def as_map(shape: tuple[int, ...]) -> Shape:
    """[1, C], [1, C, W] or [1, C, H, W] as (C, H, W).

    Raises:
        NoView: Neither of these.
    """
    if not 2 <= len(shape) <= 4:
        raise NoView(f"values {list(shape)}")
    _, channels, *size = shape
    return channels, *([1] * (2 - len(size))), *size  # type: ignore[return-value]


def whole(base: str, shape: tuple[int, ...]) -> Piece | Elements:
    """All of a base whose values are [1, ...]."""
    channels, height, width = as_map(shape)
    if len(shape) == 2:
        return Elements(base, tuple(range(channels)))
    return Piece(base, tuple(range(channels)), _same(height), _same(width))


def _same(size: int) -> Lines:
    return tuple((i,) for i in range(size))


Pieces = Sequence[Piece | Elements]


def through(
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
        shapes: Their shapes, [1, ...].
        shape: Of its value.
        bases: (C', H', W') of each base.

    Raises:
        NoView: It has to be computed.
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
    if len(inputs) == 1 and len(shapes[0]) == len(shape):
        for kind, view in _VIEWS.items():
            if isinstance(op.module, kind):
                return [view(op.module, piece) for piece in _maps(inputs[0])]
    raise NoView(type(op.module).__name__)


def _maps(pieces: Pieces) -> list[Piece]:
    maps = [piece for piece in pieces if isinstance(piece, Piece)]
    if len(maps) < len(pieces):
        raise NoView("features as a map")
    return maps


def _beside(inputs: list[list[Piece]], sizes: list[int]) -> list[Piece]:
    """Along channels."""
    joined, start, total = [], 0, sum(sizes)
    for pieces, size in zip(inputs, sizes, strict=True):
        for piece in pieces:
            channels = [-1] * start + list(piece.channels) + [-1] * (total - start - size)
            joined.append(Piece(piece.base, tuple(channels), piece.rows, piece.columns))
        start += size
    return joined


def _elements(
    op: Move, inputs: list[Pieces], shapes: list[tuple[int, ...]], bases: dict[str, Shape]
) -> list[Elements]:
    """What becomes a vector: found by moving the numbers of places."""
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
    """Places of a value's elements in the base, -1 for none, in its own shape."""
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
    there = (channels >= 0) & (rows.view(-1, 1) >= 0) & (columns >= 0)
    return torch.where(there, places, -1).double().view(shape)


def _upsampled(module: nn.Upsample, piece: Piece) -> Piece:
    if module.scale_factor is None:
        raise NoView("up-sampling to a size")
    factor = module.scale_factor
    rows, columns = factor if isinstance(factor, tuple) else (factor, factor)
    if len(piece.rows) == 1 and not isinstance(factor, tuple):
        raise NoView("up-sampling of one dimension")
    if rows != int(rows) or columns != int(columns):
        raise NoView("up-sampling by a fraction")
    return Piece(
        piece.base,
        piece.channels,
        tuple(line for line in piece.rows for _ in range(int(rows))),
        tuple(line for line in piece.columns for _ in range(int(columns))),
    )


def _padded(module: Pad, piece: Piece) -> Piece:
    left, right, top, bottom, *more = (*module.pad, 0, 0, 0, 0)[: max(4, len(module.pad))]
    if any(more):
        raise NoView("padding of channels")
    return Piece(
        piece.base,
        piece.channels,
        _widened(piece.rows, top, bottom),
        _widened(piece.columns, left, right),
    )


def _widened(lines: Lines, before: int, behind: int) -> Lines:
    lines = ((),) * max(before, 0) + lines[max(-before, 0) :]
    return lines[: len(lines) + min(behind, 0)] + ((),) * max(behind, 0)


def _sliced(module: Slice, piece: Piece) -> Piece:
    part = slice(module.start, module.stop, module.step)
    if module.dim == 1:
        return Piece(piece.base, piece.channels[part], piece.rows, piece.columns)
    if module.dim == 2 and len(piece.rows) > 1:
        return Piece(piece.base, piece.channels, piece.rows[part], piece.columns)
    if module.dim == 3:
        return Piece(piece.base, piece.channels, piece.rows, piece.columns[part])
    raise NoView("a slice of one dimension")


def _shuffled(module: nn.ChannelShuffle, piece: Piece) -> Piece:
    order = torch.arange(len(piece.channels)).view(module.groups, -1).t().flatten().tolist()
    channels = tuple(piece.channels[i] for i in order)
    return Piece(piece.base, channels, piece.rows, piece.columns)


_VIEWS: dict[type, Callable[..., Piece]] = {
    nn.Upsample: _upsampled,
    Pad: _padded,
    Slice: _sliced,
    nn.ChannelShuffle: _shuffled,
}


def _averaged(op: Sums, piece: Piece) -> Piece:
    """Windows whose divisor is the same everywhere."""
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
        axes = []
        for lines, size in zip((piece.rows, piece.columns), out, strict=True):
            windows = adaptive_windows(len(lines), size)
            if len({len(window) for window in windows}) > 1:
                raise NoView("an average with several divisors")
            axes.append(_joined(lines, windows))
        return Piece(piece.base, piece.channels, axes[0], axes[1])
    if isinstance(module, Mean) and module.keepdim and {d % 4 for d in module.dims} == {2, 3}:
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
