"""The structure of a network's output: dictionaries, lists and tuples of nodes."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map


@dataclass(frozen=True)
class Name:
    """A placeholder for the value of a node."""

    name: str


def names_in(value: Any) -> list[str]:
    """The names in a nested value, without repetition."""
    return list(dict.fromkeys(leaf.name for leaf in tree_leaves(value) if isinstance(leaf, Name)))


def fill(value: Any, values: Mapping[str, Any]) -> Any:
    """Replace the names in a nested value by their values."""
    return tree_map(lambda leaf: values[leaf.name] if isinstance(leaf, Name) else leaf, value)


def join(parts: Sequence[Any]) -> Any:
    """Concatenate the tensors of nested values along the batch dimension."""
    return tree_map(
        lambda *xs: torch.cat(xs) if isinstance(xs[0], Tensor) else xs[0], parts[0], *parts[1:]
    )


def rename(value: Any, change: Callable[[str], str]) -> Any:
    """Change the names in a nested value."""
    return tree_map(lambda leaf: Name(change(leaf.name)) if isinstance(leaf, Name) else leaf, value)


def to_json(value: Any) -> Any:
    """Convert a nested value to values that JSON can store.

    Raises:
        TypeError: It holds something other than containers with text keys, names, numbers and text.
    """
    if isinstance(value, Name):
        return {"node": value.name}
    if isinstance(value, dict):
        if not all(isinstance(key, str | int) for key in value):
            raise TypeError("a dictionary with other keys than text and integers")
        return {"dict": [[key, to_json(item)] for key, item in value.items()]}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        items = [[key, to_json(item)] for key, item in zip(value._fields, value, strict=True)]
        return {"namedtuple": type(value).__name__, "fields": items}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [to_json(item) for item in value]}
    if value is None or isinstance(value, str | bool | int | float):
        return {"value": value}
    raise TypeError(f"a {type(value).__name__}")


def from_json(value: Any) -> Any:
    """The inverse of `to_json`. A named tuple becomes a named tuple of a new class.

    Raises:
        ValueError, TypeError, KeyError: The value is not a result of `to_json`.
    """
    if "node" in value:
        if not isinstance(value["node"], str):
            raise TypeError("a node without a name")
        return Name(value["node"])
    if "dict" in value:
        return {key: from_json(item) for key, item in value["dict"]}
    if "namedtuple" in value:
        fields = [key for key, _ in value["fields"]]
        return namedtuple(value["namedtuple"], fields)(*(from_json(v) for _, v in value["fields"]))
    if "list" in value:
        return [from_json(item) for item in value["list"]]
    if "tuple" in value:
        return tuple(from_json(item) for item in value["tuple"])
    return value["value"]
