"""What a network returns: dictionaries, lists and tuples with nodes in place of tensors."""

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
    """Stands for the value of a node."""

    name: str


def names_in(value: Any) -> list[str]:
    """Names in a nested value, each once."""
    return list(dict.fromkeys(leaf.name for leaf in tree_leaves(value) if isinstance(leaf, Name)))


def fill(value: Any, values: Mapping[str, Any]) -> Any:
    """A nested value with names replaced by what they stand for."""
    return tree_map(lambda leaf: values[leaf.name] if isinstance(leaf, Name) else leaf, value)


def join(parts: Sequence[Any]) -> Any:
    """Nested values with their tensors concatenated along the batch."""
    return tree_map(
        lambda *xs: torch.cat(xs) if isinstance(xs[0], Tensor) else xs[0], parts[0], *parts[1:]
    )


def rename(value: Any, change: Callable[[str], str]) -> Any:
    """A nested value with other names."""
    return tree_map(lambda leaf: Name(change(leaf.name)) if isinstance(leaf, Name) else leaf, value)


def to_json(value: Any) -> Any:
    """A nested value as JSON has it.

    Raises:
        TypeError: It holds something else than containers with text keys, names, numbers, text.
    """
    if isinstance(value, Name):
        return {"node": value.name}
    if isinstance(value, dict):
        if not all(isinstance(key, str | int) for key in value):
            raise TypeError("a dictionary with other keys than text and whole numbers")
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
    """What `to_json` was given; a named tuple comes back as one of a class of its own.

    Raises:
        ValueError, TypeError, KeyError: Not what `to_json` gives.
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
