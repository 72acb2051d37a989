"""A helper to declare the structs that the compiled kernels are called with."""

from __future__ import annotations

from typing import Any


def fields(kind: Any, names: str) -> list[tuple[str, Any]]:
    """Entries of `_fields_` of a `ctypes.Structure`: all names, in order, with one type."""
    return [(name, kind) for name in names.split()]
