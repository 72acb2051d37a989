"""The structs that the compiled kernels are called with, as declared in `csrc/events.h`."""

from __future__ import annotations

from ctypes import POINTER, Structure, c_int32, c_int64, c_void_p

import numpy as np

from spikedet.kernels.structs import fields

LANES, LOOSE = 32, 32
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
        ("each", c_int32),
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
        *fields(
            c_int32,
            "zero_row window_most rows_most parts_most by_step initial_each negative after_number",
        ),
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
        *fields(c_void_p, "maker parallel scratch"),
        ("scratch_bytes", c_int64),
    ]


def pad(value: np.ndarray, padded: int, fill: int) -> np.ndarray:
    """Pad the last dimension (channels) to the size `padded` with the value `fill`."""
    widths = [(0, 0)] * (value.ndim - 1) + [(0, padded - value.shape[-1])]
    return np.pad(value, widths, constant_values=fill)
