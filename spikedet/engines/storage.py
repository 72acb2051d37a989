"""Memory that the compiled kernels use.

Processors translate the addresses of programs, page by page, and remember some pages. With large
pages they need not look them up again and again. On a virtual machine this saves a quarter of the
time of a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

LINE = 64  # bytes of a cache line
PAGE = 2 * 2**20  # bytes of a large page
LEAST = 2 * PAGE  # NumPy asks Linux for large pages for arrays of at least so many bytes


def block(size: int) -> np.ndarray:
    """Allocate memory, [size] uint8 without values, in large pages if the system has them."""
    pages = -(-max(size, LEAST) // PAGE)
    memory = np.empty((pages + 1) * PAGE, np.uint8)  # what is never written takes no memory
    start = -memory.ctypes.data % PAGE
    return memory[start : start + size]


def lines(size: int) -> int:
    """A number of bytes, rounded up to whole cache lines."""
    return -(-size // LINE) * LINE


class Storage:
    """The arrays and structs that other structs point to. They live as long as the storage."""

    def __init__(self) -> None:
        self._held: list[Any] = []
        self._free = np.empty(0, np.uint8)

    def hold(self, thing: Any) -> None:
        """Hold a struct that lies in memory of its own."""
        self._held.append(thing)

    def put(self, array: np.ndarray) -> int:
        """Copy an array to the start of a cache line. Returns its address."""
        size = lines(array.nbytes)
        if size > LEAST // 4:  # in a block of its own
            memory = block(array.nbytes)
        else:
            if size > self._free.size:
                self._free = block(LEAST)
            memory, self._free = self._free[: array.nbytes], self._free[size:]
        memory.view(array.dtype).reshape(array.shape)[...] = array
        self.hold(memory)
        return memory.ctypes.data

    def put_table(self, rows: Sequence[Sequence[tuple[int, ...]]], size: int) -> tuple[int, int]:
        """Put lists of entries into one array. Returns the addresses of the starts and the entries.

        Args:
            rows: The lists.
            size: Numbers in an entry.
        """
        first = np.cumsum([0, *(len(row) for row in rows)]).astype(np.int32)
        flat = [entry for row in rows for entry in row] or [(0,) * size]
        return self.put(first), self.put(np.array(flat, np.int32))
