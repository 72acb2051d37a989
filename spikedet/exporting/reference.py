"""Run a file of the int8 exporter with numpy only.

This code is slow and simple. It defines the meaning of the file. It needs numpy and safetensors,
but nothing else of this package, so you can copy it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

NEURONS = ("neuron", "correcting_neuron")


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read the header and the tensors of a file.

    Raises:
        ValueError: The file is damaged, or has another format.
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
        header: The header of `read`.
        tensors: The tensors of `read`.
        pictures: [B, ...] float32, with the size and normalisation that the header gives.
        T: Time steps. None: the T of the header.
        currents: int32 values to use instead of the results of `round` nodes, by their names.

    Returns:
        The outputs by their names, [B, ...] float32, and the spikes of each layer of neurons,
        [T, B, ...] int32.

    Raises:
        ValueError: T is below 1 or too large for 32 bits, or the pictures are missing or have
            another size.
    """
    steps = header["T"] if T is None else T
    if not isinstance(steps, int) or not 1 <= steps <= header["steps_most"]:
        raise ValueError(f"T is {steps!r}; expected 1 or more, at most {header['steps_most']}")
    if not len(pictures) or list(pictures.shape[1:]) != header["size"]:
        raise ValueError(f"pictures are {list(pictures.shape)}; expected [B, *{header['size']}]")
    own = _by_node(header, tensors)
    known = {"input": pictures.astype(np.float32)}
    _through(header["before"], known, own, {}, {})
    given: dict[str, np.ndarray] = {}
    if currents is not None:
        rounds = (node["name"] for node in header["steps"] if node["op"] == "round")
        given = {name: currents[name] for name in rounds}
    spikes, means = _over_time(header, known, own, given, steps)
    _through(header["behind"], known, own, {}, means)
    results = {name: known[node] for name, node in header["results"].items()}
    return results, {name: np.stack(result) for name, result in spikes.items()}


def _over_time(
    header: dict[str, Any],
    known: dict[str, np.ndarray],
    own: dict[str, dict[str, np.ndarray]],
    given: dict[str, np.ndarray],
    steps: int,
) -> tuple[dict[str, list[np.ndarray]], dict[str, np.ndarray]]:
    """Run the time steps; returns the spikes of each layer, and each mean over time."""
    means = [node for node in header["behind"] if node["op"] == "mean"]
    state: dict[str, Any] = {}
    spikes: dict[str, list[np.ndarray]] = {}
    sums: dict[str, Any] = {}
    masses: dict[str, Any] = {}
    for t in range(steps):
        values = dict(known)
        _through(header["steps"], values, own, state, given)
        for node in header["steps"]:
            if node["op"] in NEURONS:
                spikes.setdefault(node["name"], []).append(values[node["name"]])
        for node in means:
            name, weights = node["name"], own[node["name"]]["weights"]
            weight = weights[min(t, len(weights) - 1)]
            value = values[node["inputs"][0]].astype(np.float32) * weight
            sums[name] = sums.get(name, np.float32(0)) + value
            masses[name] = masses.get(name, np.float32(0)) + weight
    return spikes, {name: sums[name] / masses[name] for name in sums}


def _by_node(
    header: dict[str, Any], tensors: dict[str, np.ndarray]
) -> dict[str, dict[str, np.ndarray]]:
    """The tensors of each node by their names; integer weights are converted to int32."""
    own: dict[str, dict[str, np.ndarray]] = {name: {} for name in _names(header)}
    for key, tensor in tensors.items():
        node, _, name = key.rpartition(".")
        own[node][name] = tensor.astype(np.int32) if tensor.dtype == np.int8 else tensor
    return own


def _through(
    nodes: list[dict[str, Any]],
    known: dict[str, np.ndarray],
    own: dict[str, dict[str, np.ndarray]],
    state: dict[str, Any],
    given: dict[str, np.ndarray],
) -> None:
    """Compute the values of nodes, and add them to `known`. Values in `given` are used as they are.

    `state` holds the state of the nodes between time steps.
    """
    for node in nodes:
        name = node["name"]
        if name in given:
            known[name] = given[name]
        else:
            inputs = [known[source] for source in node["inputs"]]
            known[name] = compute(node, inputs, own[name], state.setdefault(name, {}))


def _names(header: dict[str, Any]) -> list[str]:
    return [node["name"] for part in ("before", "steps", "behind") for node in header[part]]


def compute(
    node: dict[str, Any], inputs: list[np.ndarray], own: dict[str, np.ndarray], state: dict
) -> np.ndarray:
    """Compute the value of one node, [B, ...].

    Args:
        node: The node's entry in the header.
        inputs: Values of its inputs.
        own: Tensors of the node.
        state: State of the node from earlier time steps. It is changed.
    """
    op, x = node["op"], inputs[0]
    if op == "round":
        return rounded(x, own)
    if op in NEURONS:
        return fired(x, own, state, corrects=op == "correcting_neuron")
    if "weight" in own:
        return weighted(x, node, own)
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
    if op == "count_maximum":
        return most_often(x, node, own, state)
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


def broadcast(value: np.ndarray, dimensions: int) -> np.ndarray:
    """Reshape [C] to [C, 1, ...] with `dimensions` dimensions; [C, H, W] is not changed."""
    return value.reshape(-1, *[1] * (dimensions - 2)) if value.ndim == 1 else value


def rounded(x: np.ndarray, own: dict[str, np.ndarray]) -> np.ndarray:
    """Round currents to integers, and clip them to their limits."""
    limit, inverse = (broadcast(own[name], x.ndim) for name in ("limit", "inverse"))
    return np.rint(np.clip(x * inverse, -limit, limit)).astype(np.int32)


def fired(
    x: np.ndarray, own: dict[str, np.ndarray], state: dict, corrects: bool = False
) -> np.ndarray:
    """Spikes (0/1, or -1/0/1) of neurons with soft reset.

    `state` holds the potentials. With `corrects` it also holds the sum of the spikes so far, and a
    negative spike is sent only where that sum is above 0.
    """
    value = {name: broadcast(tensor, x.ndim) for name, tensor in own.items()}
    u = state.get("u", value["initial"]) + x + value["bias"]
    above = u >= value["threshold"]
    below = u <= value["low"] if "low" in own else np.zeros_like(above)
    if corrects:
        below = below & (state.get("sent", 0) > 0)
    u = u - above * value["threshold"]
    state["u"] = u + below * value["up"] if "low" in own else u
    spikes = above.astype(np.int32) - below
    if corrects:
        state["sent"] = state.get("sent", 0) + spikes
    return spikes


def weighted(x: np.ndarray, node: dict[str, Any], own: dict[str, np.ndarray]) -> np.ndarray:
    """Compute a convolution or linear layer with its bias."""
    layer = {"convolution": convolution, "transposed_convolution": transposed_convolution}
    # float64 holds all of these integers, and is what numpy multiplies fast
    exact = np.float64 if x.dtype.kind == "i" else x.dtype
    weight = own["weight"].astype(exact)
    result = layer.get(node["op"], linear)(x.astype(exact), weight, node).astype(x.dtype)
    bias = own.get("bias", np.zeros(1, x.dtype))
    return result + (bias if node["op"] == "linear" else broadcast(bias, x.ndim))


def most_often(
    x: np.ndarray, node: dict[str, Any], own: dict[str, np.ndarray], state: dict
) -> np.ndarray:
    """Max-pooling of spike counts: the largest count so far, minus the outputs so far."""
    state["counts"] = state.get("counts", 0) + x
    largest = over_windows(state["counts"], node, own, np.iinfo(np.int32).min, np.max)
    sent, state["largest"] = largest - state.get("largest", 0), largest
    return sent


def taken(x: np.ndarray, axis: int, index: np.ndarray, nothing: Any) -> np.ndarray:
    """Select entries along an axis. Where the index is -1, the value is `nothing`."""
    shape = (1,) * axis + index.shape + (1,) * (x.ndim - axis - 1)
    return np.where(index.reshape(shape) < 0, x.dtype.type(nothing), np.take(x, index, axis))


def over_windows(x: np.ndarray, node: dict, own: dict, nothing: Any, reduce: Any) -> np.ndarray:
    """Sum or maximum over windows, computed for one axis after the other."""
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
