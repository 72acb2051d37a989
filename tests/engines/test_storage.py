"""Memory of the compiled kernels: where it begins, and what is in it."""

import ctypes

import numpy as np
import pytest

from spikedet.engines.storage import LEAST, LINE, PAGE, Storage, block, lines


@pytest.mark.parametrize("size", [1, LINE, PAGE - 1, PAGE + 1, LEAST + PAGE + 1])
def test_a_block_begins_at_a_large_page_and_its_last_page_is_whole(size):
    memory = block(size)
    assert memory.shape == (size,) and memory.dtype == np.uint8
    start = memory.ctypes.data
    assert start % PAGE == 0
    whole = memory.base
    while whole.base is not None:
        whole = whole.base
    assert whole.nbytes >= LEAST  # NumPy asks for large pages from here on
    assert start + -(-size // PAGE) * PAGE <= whole.ctypes.data + whole.nbytes


def test_lines_are_whole():
    assert [lines(size) for size in (0, 1, LINE, LINE + 1)] == [0, LINE, LINE, 2 * LINE]


def test_arrays_are_copied_to_lines_of_their_own():
    storage, rng = Storage(), np.random.default_rng(0)
    arrays = [
        rng.integers(-99, 99, shape).astype(kind)
        for shape, kind in (((3, 5), np.int8), ((7,), np.int32), ((0,), np.int32), ((9,), np.int16))
    ]
    arrays.append(np.arange(LEAST + PAGE, dtype=np.uint8))  # larger than a block
    arrays.append(np.arange(LEAST // 4, dtype=np.uint8))  # the largest that shares one
    arrays.append(rng.integers(0, 9, (4, 6)).astype(np.int32).T)  # not in order in memory
    places = [storage.put(array) for array in arrays]
    spans = sorted(zip(places, arrays, strict=True), key=lambda pair: pair[0])
    for (place, array), (behind, _) in zip(spans, spans[1:], strict=False):
        assert place % LINE == 0 and place + lines(array.nbytes) <= behind
    for place, array in zip(places, arrays, strict=True):
        read = np.frombuffer(ctypes.string_at(place, array.nbytes), array.dtype)
        np.testing.assert_array_equal(read.reshape(array.shape), array)


def test_a_table_has_the_starts_of_its_rows():
    storage = Storage()
    first, entries = storage.put_table([[(1, 2)], [], [(3, 4), (5, 6)]], 2)
    assert list((ctypes.c_int32 * 4).from_address(first)) == [0, 1, 1, 3]
    assert list((ctypes.c_int32 * 6).from_address(entries)) == [1, 2, 3, 4, 5, 6]
