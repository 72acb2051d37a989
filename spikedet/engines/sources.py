"""One input of a layer of neurons for the kernels: rows, columns and weights of its events.

There are three kinds: windows of a map (convolutions), vectors (linear layers), and spikes that are
added without weights (shortcuts).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from torch import nn

from spikedet.engines import views
from spikedet.engines.program import Times, Weighted
from spikedet.engines.views import Elements, NoView, Piece, Shape

Lines: TypeAlias = list[list[tuple[int, int]]]  # (input, tap) of each output row or column
Convolution: TypeAlias = nn.Conv1d | nn.Conv2d | nn.ConvTranspose1d | nn.ConvTranspose2d


@dataclass
class Source:
    """One input of a layer (see csrc/events.h), with its weights still separate."""

    tensor: int
    rows: list[list[tuple[int, int]]]  # (input row, weight row) for each output row
    columns: list[list[tuple[int, int, int]]]  # (first, how many, weight column)
    weights: np.ndarray | None = None  # [weight rows, C_out] int8
    few: np.ndarray | None = None  # [weight rows, few_size] int32
    few_first: np.ndarray | None = None
    window: Window | None = None  # of a convolution of all columns of its tensor, as they are

    def adds_each(self, channels: int) -> bool:
        """Whether each channel adds to the output of its own number, of so many."""
        if self.few is None or self.few_first is None or self.few.shape[1] != 1:
            return False
        return self.few_first.tolist() == list(range(channels))


def source_of(
    leaf: Weighted | Times,
    piece: Piece | Elements,
    shape: tuple[int, ...],
    tensor: int,
    base: Shape,
) -> Source:
    """Make the source for one piece of a layer's input.

    Args:
        leaf: The operation on the piece.
        piece: The piece.
        shape: Shape of the operation's value, [1, ...].
        tensor: Number of the piece's base.
        base: (C, H, W) of the base.

    Raises:
        NoView: No kernel supports it.
    """
    if isinstance(piece, Elements):
        return _features(leaf, piece, tensor, base)
    if isinstance(leaf, Times):
        return _direct(leaf, piece, tensor, base)
    return _window(leaf, piece, shape, tensor, base)


def _direct(leaf: Times, piece: Piece, tensor: int, base: Shape) -> Source:
    """Spikes multiplied by one number for each channel."""
    channels = base[0]
    few = np.zeros((channels, 1), np.int32)
    few_first = np.full(channels, -1, np.int32)
    for out, channel in enumerate(piece.channels):
        if channel >= 0:
            if few_first[channel] >= 0:
                raise NoView("a channel that is added twice")
            few[channel], few_first[channel] = leaf.factor[out].item(), out
    rows = [[(y, 0) for y in line] for line in piece.rows]
    columns = [[(x, 1, 0) for x in line] for line in piece.columns]
    return Source(tensor, rows, columns, None, few, few_first)


def _features(leaf: Weighted | Times, piece: Elements, tensor: int, base: Shape) -> Source:
    """A vector, which may be a flattened map. It is a window as large as the map."""
    channels, height, width = base
    places = np.array(piece.places)
    present = np.flatnonzero(places >= 0)
    c, rest = np.divmod(places[present], height * width)
    y, x = np.divmod(rest, width)
    weight_rows = (y * width + x) * channels + c
    if len(np.unique(weight_rows)) < len(weight_rows):
        raise NoView("a feature that is read twice")
    rows = [[(y, y * width * channels) for y in range(height)]]
    columns = [[(0, width, 0)]]
    source = Source(tensor, rows, columns)
    size = height * width * channels
    if isinstance(leaf, Times):
        if height * width > 1:
            raise NoView("flattened spikes on a shortcut")
        source.few = np.zeros((size, 1), np.int32)
        source.few_first = np.full(channels, -1, np.int32)
        source.few[weight_rows, 0] = leaf.factor.numpy()[present]
        source.few_first[weight_rows] = present
    else:
        source.weights = np.zeros((size, len(leaf.weight)), np.int8)
        source.weights[weight_rows] = leaf.weight.numpy()[:, present].T
    return source


def _window(
    leaf: Weighted, piece: Piece, shape: tuple[int, ...], tensor: int, base: Shape
) -> Source:
    """A convolution."""
    like, weight = leaf.like, leaf.weight
    if isinstance(like, nn.Linear):
        raise NoView("a linear layer on a map")
    read = [c for c in piece.channels if c >= 0]
    if len(set(read)) < len(read):
        raise NoView("a channel that is read twice")
    if weight.ndim == 3:
        weight = weight.unsqueeze(2)
    window = window_of(like, (weight.shape[2], weight.shape[3]))
    _, height, width = views.as_map(shape)
    lines = window.taps((height, width), (len(piece.rows), len(piece.columns)))
    channels, tap = base[0], window.kernel[1] * base[0]  # weight rows of a tap in height
    rows = [[(y, k * tap) for i, k in line for y in piece.rows[i]] for line in lines[0]]
    columns = [
        merged(sorted((x, k) for i, k in line for x in piece.columns[i])) for line in lines[1]
    ]
    source = Source(tensor, rows, columns)
    parts = weight.view(like.groups, -1, *weight.shape[1:])
    by_group = parts if window.transposed else parts.transpose(1, 2)
    _put_weights(source, by_group.numpy(), piece.channels, channels)
    if piece.columns == tuple((x,) for x in range(base[2])):
        source.window = window
    return source


def _put_weights(source: Source, by_group: np.ndarray, read: Sequence[int], channels: int) -> None:
    """Store the weights of a convolution in the layout of the kernels.

    Args:
        source: Source to store them in.
        by_group: Weights [groups, in, out, kh, kw].
        read: Channel of the base for each input, -1 for none.
        channels: Number of channels of the base.
    """
    groups, inside, outside, *kernel = by_group.shape
    dense = groups == 1 or (groups <= 4 and outside >= 32)
    if dense:
        table = np.zeros((*kernel, channels, groups * outside), np.int8)
    else:
        table = np.zeros((*kernel, channels, outside), np.int32)
    few_first = np.full(channels, -1, np.int32)
    for i, channel in enumerate(read):
        if channel < 0:
            continue
        group, number = divmod(i, inside)
        taken = by_group[group, number].transpose(1, 2, 0)  # [kh, kw, out]
        if dense:
            table[:, :, channel, group * outside : (group + 1) * outside] = taken
        else:
            table[:, :, channel] = taken
            few_first[channel] = group * outside
    table = table.reshape(-1, table.shape[-1])
    if dense:
        source.weights = table
    else:
        source.few, source.few_first = table, few_first


@dataclass(frozen=True)
class Window:
    """The window of a convolution or of pooling. Each option has two values: (rows, columns)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    transposed: bool = False

    def taps(self, out: tuple[int, int], size: tuple[int, int]) -> list[Lines]:
        """The pairs (input, tap) of each output row, and of each output column.

        Args:
            out: Rows and columns of the output.
            size: Rows and columns of the input.
        """
        options = (self.kernel, self.stride, self.dilation, self.padding)
        return [
            taps_of(o, i, k, s, d, p, self.transposed)
            for o, i, k, s, d, p in zip(out, size, *options, strict=True)
        ]


def window_of(like: Convolution, kernel: tuple[int, int]) -> Window:
    """The window of a convolution with a kernel of these rows and columns."""
    stride, dilation = two(like.stride), two(like.dilation)
    transposed = isinstance(like, nn.ConvTranspose1d | nn.ConvTranspose2d)
    return Window(kernel, stride, padding_of(like, kernel, dilation), dilation, transposed)


def _last_two(value: Any) -> tuple[int, int]:
    """An option of pooling as two numbers, for rows and columns."""
    value = value if isinstance(value, tuple) else (value,)
    return value[0], value[-1]


def window_of_pool(module: Any) -> Window:
    """The window of pooling. A 1-d signal is a map with one row."""
    kernel, stride, padding, dilation = (
        _last_two(option)
        for option in (module.kernel_size, module.stride, module.padding, module.dilation)
    )
    if module.dimensions == 1:
        return Window((1, kernel[1]), (1, stride[1]), (0, padding[1]), (1, dilation[1]))
    return Window(kernel, stride, padding, dilation)


def taps_of(
    out: int, size: int, kernel: int, stride: int, dilation: int, padding: int, transposed: bool
) -> Lines:
    """The pairs (input, tap) of each output along one dimension."""
    lines: Lines = []
    for o in range(out):
        line = []
        for k in range(kernel):
            if transposed:
                place, rest = divmod(o + padding - k * dilation, stride)
                inside = not rest and 0 <= place < size
            else:
                place = o * stride - padding + k * dilation
                inside = 0 <= place < size
            if inside:
                line.append((place, k))
        lines.append(line)
    return lines


def merged(pairs: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Merge neighbouring pairs (column, tap) to (first column, number, first tap)."""
    runs: list[tuple[int, int, int]] = []
    for x, k in pairs:
        if runs and runs[-1][0] + runs[-1][1] == x and runs[-1][2] + runs[-1][1] == k:
            first, number, tap = runs[-1]
            runs[-1] = (first, number + 1, tap)
        else:
            runs.append((x, 1, k))
    return runs


def two(value: Any) -> tuple[int, int]:
    """An option of a convolution as two numbers, for rows and columns.

    For a 1-d convolution the number is that of the columns.
    """
    value = value if isinstance(value, tuple) else (value,)
    return (1, value[0]) if len(value) == 1 else (value[0], value[1])


def padding_of(
    like: Convolution, kernel: tuple[int, ...], dilation: tuple[int, int]
) -> tuple[int, int]:
    """Number of zeros before the first row and before the first column."""
    if like.padding == "valid":
        return 0, 0
    if isinstance(like.padding, str):  # same
        rows, columns = (d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True))
        return rows, columns
    value = like.padding
    return (0, value[0]) if len(value) == 1 else (value[0], value[1])
