"""The structs that the compiled kernels are called with, as declared in `csrc/events.h`."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import POINTER, Structure, c_int32, c_int64, c_void_p
from typing import Any

import numpy as np

from spikedet.kernels.structs import fields

LANES, LOOSE = 32, 32
LINE = 64  # bytes of a cache line
NEURON, CURRENT, POOL = range(3)


class TensorStruct(Structure):
    _fields_ = [
        ("channels", c_int32),
        ("height", c_int32),
        ("width", c_int32),
        ("codes", c_int32),
        ("room", c_int64),
        ("events", c_void_p),
        ("first", c_void_p),
        ("bytes", c_void_p),
        ("row_bytes", c_int64),
        *fields(c_int32, "columns lead"),
    ]


class SourceStruct(Structure):
    _fields_ = [
        ("tensor", c_int32),
        ("scatter", c_int32),
        ("few_size", c_int32),
        ("row_first", c_void_p),
        ("rows", c_void_p),
        ("column_first", c_void_p),
        ("columns", c_void_p),
        ("few", c_void_p),
        ("few_first", c_void_p),
        *fields(c_int32, "stride direct lead grid_number"),
        ("grid", c_void_p),
        ("columns_most", c_int32),
        ("chunks", c_int32),
        ("row_taps", c_void_p),
        ("tiles", c_void_p),
    ]


class LayerStruct(Structure):
    _fields_ = [
        *fields(c_int32, "kind channels padded height width output wide sources_number scattered"),
        *fields(c_int32, "zero_row window_most by_step initial_each negative after_number"),
        ("after", c_void_p),
        *fields(c_int32, "slide slide_lead pitch always"),
        *fields(c_void_p, "sources weights bias threshold initial low up inverse limit"),
        *fields(c_void_p, "current state counts mean step_mass"),
        ("mean_each", c_int32),
        *fields(c_void_p, "fired done"),
    ]


class RunStruct(Structure):
    _fields_ = [
        *fields(c_int32, "batch steps first_part last_part layers_number tensors_number threads"),
        ("layers", POINTER(LayerStruct)),
        ("tensors", POINTER(TensorStruct)),
        *fields(c_void_p, "maker parallel"),
    ]


def pad(value: np.ndarray, padded: int, fill: int) -> np.ndarray:
    """Pad the last dimension (channels) to the size `padded` with the value `fill`."""
    widths = [(0, 0)] * (value.ndim - 1) + [(0, padded - value.shape[-1])]
    return np.pad(value, widths, constant_values=fill)


def table(
    lines: Sequence[Sequence[tuple[int, ...]]], size: int, keep: list[Any]
) -> tuple[int, int]:
    """Store lists of entries in one array. Returns the addresses of the starts and the entries."""
    first = np.cumsum([0, *(len(line) for line in lines)]).astype(np.int32)
    flat = [entry for line in lines for entry in line] or [(0,) * size]
    return pointer(first, keep), pointer(np.array(flat, np.int32), keep)


def pointer(array: np.ndarray, keep: list[Any]) -> int:
    """Copy an array to the start of a cache line; returns its address. `keep` holds the copy."""
    memory = np.empty(array.nbytes + LINE, np.uint8)
    start = -memory.ctypes.data % LINE
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    keep.append(copy)
    return copy.ctypes.data
