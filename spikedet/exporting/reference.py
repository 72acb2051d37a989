"""A file of the int8 exporter, run with numpy alone: slow, plain, and what the file means.

It needs numpy and safetensors and nothing of this package, so that it can be copied.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header and tensors of a file.

    Raises:
        ValueError: It is damaged, or of another format.
    """
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path}: no safetensors file, or damaged: {error}") from None
    if metadata.get("format") != "spikedet-int8-1":
        raise ValueError(f"{path}: format {metadata.get('format')}; expected spikedet-int8-1")
    try:
        header = json.loads(metadata["header"])
        nodes = set(_names(header))
        damaged = not {"T", "size", "steps_most", "results"} <= header.keys()
    except (KeyError, TypeError, ValueError):
        damaged, header, nodes = True, {}, set()
    if damaged or any(name.rpartition(".")[0] not in nodes for name in tensors):
        raise ValueError(f"{path}: the header is damaged, or does not fit the tensors")
    return header, tensors


def run(
    header: dict[str, Any],
    tensors: dict[str, np.ndarray],
    pictures: np.ndarray,
    T: int | None = None,
    currents: dict[str, np.ndarray] | None = None,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Run a network.

    Args:
        header: As `read` gives it.
        tensors: As well.
        pictures: [B, ...] float32, fitted and normalised as the header says.
        T: Time steps, those of the header by default.
        currents: In place of what `round` makes of the pictures, int32 by name of its node.

    Returns:
        Results by their names, [B, ...] float32, and the spikes of each layer of neurons,
        [T, B, ...] int32.

    Raises:
        ValueError: More steps than 32 bits hold, or pictures of another size.
    """
    steps = header["T"] if T is None else T
    if steps > header["steps_most"] or list(pictures.shape[1:]) != header["size"]:
        raise ValueError(
            f"T = {steps} and pictures {list(pictures.shape[1:])}; expected at most "
            f"{header['steps_most']} and {header['size']}"
        )
    own: dict[str, dict[str, np.ndarray]] = {n: {} for n in _names(header)}  # tensors of each node
    for key, tensor in tensors.items():
        node, _, name = key.rpartition(".")
        own[node][name] = tensor.astype(np.int32) if tensor.dtype == np.int8 else tensor
    known = {"input": pictures.astype(np.float32)}
    for node in header["before"]:
        inputs = [known[source] for source in node["inputs"]]
        known[node["name"]] = compute(node, inputs, own[node["name"]], {})
    state: dict[str, Any] = {name: {} for name in own}
    spikes: dict[str, list[np.ndarray]] = {}
    sums: dict[str, Any] = {}  # of each mean over time
    masses: dict[str, Any] = {}
    for t in range(steps):
        values = dict(known)
        for node in header["steps"]:
            name, inputs = node["name"], [values[source] for source in node["inputs"]]
            if node["op"] == "round" and currents is not None:
                values[name] = currents[name]
            else:
                values[name] = compute(node, inputs, own[name], state[name])
            if node["op"] == "neuron":
                spikes.setdefault(name, []).append(values[name])
        for node in header["behind"]:
            if node["op"] == "mean":
                name, weights = node["name"], own[node["name"]]["weights"]
                weight = weights[min(t, len(weights) - 1)]
                value = values[node["inputs"][0]].astype(np.float32) * weight
                sums[name] = sums.get(name, np.float32(0)) + value
                masses[name] = masses.get(name, np.float32(0)) + weight
    for node in header["behind"]:
        name = node["name"]
        if node["op"] == "mean":
            known[name] = sums[name] / masses[name]
        else:
            known[name] = compute(node, [known[i] for i in node["inputs"]], own[name], {})
    results = {name: known[node] for name, node in header["results"].items()}
    return results, {name: np.stack(result) for name, result in spikes.items()}


def _names(header: dict[str, Any]) -> list[str]:
    return [node["name"] for part in ("before", "steps", "behind") for node in header[part]]


def compute(
    node: dict[str, Any], inputs: list[np.ndarray], own: dict[str, np.ndarray], state: dict
) -> np.ndarray:
    """The value of one node, [B, ...].

    Args:
        node: Its entry in the header.
        inputs: What it reads.
        own: Its tensors.
        state: What it remembers of the steps before; changed.
    """
    op, x = node["op"], inputs[0]

    def channels(name: str) -> np.ndarray:  # [C] -> [C, 1, 1], [C, H, W] as it is
        value = own[name]
        return value.reshape(-1, *[1] * (x.ndim - 2)) if value.ndim == 1 else value

    if op == "round":
        limit = channels("limit")
        return np.rint(np.clip(x * channels("inverse"), -limit, limit)).astype(np.int32)
    if op == "neuron":
        u = state.get("u", channels("initial")) + x + channels("bias")
        above = u >= channels("threshold")
        below = u <= channels("low") if "low" in own else np.zeros_like(above)
        u = u - above * channels("threshold")
        state["u"] = u + below * channels("up") if "low" in own else u
        return above.astype(np.int32) - below
    if "weight" in own:
        layer = {"convolution": convolution, "transposed_convolution": transposed_convolution}
        # float64 holds all of these whole numbers, and is what numpy multiplies fast
        exact = np.float64 if x.dtype.kind == "i" else x.dtype
        weight = own["weight"].astype(exact)
        result = layer.get(op, linear)(x.astype(exact), weight, node).astype(x.dtype)
        bias = own.get("bias", np.zeros(1, x.dtype))
        return result + (bias if op == "linear" else bias.reshape(-1, *[1] * (x.ndim - 2)))
    if op == "times":
        return x * own["factor"].astype(x.dtype)
    if op == "plus":
        return sum(inputs[1:], x) + own.get("offset", x.dtype.type(0))
    if op == "minus":
        return x - inputs[1]
    if op == "sum":
        return over_windows(x, node, own, 0, np.sum)
    if op == "maximum":
        lowest = np.iinfo(x.dtype).min if x.dtype.kind == "i" else -np.inf
        return over_windows(x, node, own, lowest, np.max)
    if op == "count_maximum":  # of the spikes so far, less what was sent before
        state["counts"] = state.get("counts", 0) + x
        largest = over_windows(state["counts"], node, own, np.iinfo(np.int32).min, np.max)
        sent, state["largest"] = largest - state.get("largest", 0), largest
        return sent
    if op == "take":
        for axis in node["axes"]:
            x = taken(x, axis, own[f"axis{axis}"], 0)
        return x
    if op == "reshape":
        return x.reshape(len(x), *node["size"])
    if op == "transpose":
        return x.transpose(node["axes"])
    if op == "concatenate":
        return np.concatenate(inputs, node["axis"])
    if op == "zeros":
        return np.zeros((len(x), *node["size"]), x.dtype)
    raise ValueError(f"{node['name']}: unknown operation {op}")


def taken(x: np.ndarray, axis: int, index: np.ndarray, nothing: Any) -> np.ndarray:
    """Entries along an axis, `nothing` where the index is -1."""
    shape = (1,) * axis + index.shape + (1,) * (x.ndim - axis - 1)
    return np.where(index.reshape(shape) < 0, x.dtype.type(nothing), np.take(x, index, axis))


def over_windows(x: np.ndarray, node: dict, own: dict, nothing: Any, reduce: Any) -> np.ndarray:
    """Sum or maximum of the entries that each output is made of, axis by axis."""
    for axis in node["axes"]:
        x = reduce(taken(x, axis, own[f"axis{axis}"], nothing), axis + 1).astype(x.dtype)
    return x


def convolution(x: np.ndarray, weight: np.ndarray, node: dict[str, Any]) -> np.ndarray:
    """[B, C, ...] and weight [O, C / groups, ...] -> [B, O, ...]."""
    groups, kernel = node["groups"], weight.shape[2:]
    x = np.pad(x, [(0, 0), (0, 0), *map(tuple, node["padding"])])
    stride, dilation = node["stride"], node["dilation"]
    dims = range(len(kernel))
    out = [(x.shape[2 + i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in dims]
    result = np.zeros((len(x), groups, len(weight) // groups, int(np.prod(out))), x.dtype)
    for tap in np.ndindex(*kernel):
        window = x[_last(_line(tap[i] * dilation[i], stride[i], out[i]) for i in dims)]
        rows = weight[_last(tap)].reshape(groups, -1, weight.shape[1])
        result += rows @ window.reshape(len(x), groups, weight.shape[1], -1)
    return result.reshape(len(x), -1, *out)


def transposed_convolution(x: np.ndarray, weight: np.ndarray, node: dict[str, Any]) -> np.ndarray:
    """[B, C, ...] and weight [C, O / groups, ...] -> [B, O, ...]."""
    groups, kernel, size = node["groups"], weight.shape[2:], x.shape[2:]
    stride, dilation = node["stride"], node["dilation"]
    dims = range(len(kernel))
    whole = [
        stride[i] * (size[i] - 1) + dilation[i] * (kernel[i] - 1) + 1 + node["output_padding"][i]
        for i in dims
    ]
    result = np.zeros((len(x), groups * weight.shape[1], *whole), x.dtype)
    columns = x.reshape(len(x), groups, x.shape[1] // groups, -1)
    for tap in np.ndindex(*kernel):
        rows = weight[_last(tap)].reshape(groups, -1, weight.shape[1]).swapaxes(1, 2)
        place = [_line(tap[i] * dilation[i], stride[i], size[i]) for i in dims]
        result[_last(place)] += (rows @ columns).reshape(len(x), -1, *size)
    inside = [slice(node["padding"][i][0], whole[i] - node["padding"][i][1]) for i in dims]
    return result[_last(inside)]


def _last(index: Iterable[Any]) -> Any:
    """An index of the last dimensions."""
    return (..., *index)


def _line(start: int, step: int, number: int) -> slice:
    return slice(start, start + step * (number - 1) + 1, step)


def linear(x: np.ndarray, weight: np.ndarray, node: dict[str, Any]) -> np.ndarray:
    """[B, C] and weight [O, C] -> [B, O]; in float layers also [B, N, C] -> [B, N, O]."""
    return x @ weight.T
