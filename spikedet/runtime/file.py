"""Spiking networks of one's own in files: the graph and its tensors, no code."""

from __future__ import annotations

from pathlib import Path

from spikedet.checkpoint import Checkpoint, of_graph, restore_graph
from spikedet.checkpoint import save as save_checkpoint
from spikedet.errors import UsageError
from spikedet.graph.graph import INPUT
from spikedet.runtime.network import SpikingNetwork

TASK = "none"  # of a network that only its owner knows


def save(network: SpikingNetwork, path: str | Path, *, half: bool = False) -> None:
    """Write a spiking network to a file that `spikedet.load` reads.

    The file (safetensors) holds the graph as JSON and its tensors. Neither the class that the
    network was converted from nor the converter is needed to load it. It is written whole or not at
    all.

    Args:
        network: What `spikedet.convert` returned, or a loaded one.
        path: Where, ending in .safetensors.
        half: Store weights in half precision.

    Raises:
        UsageError: Something else than a spiking network.
        WeightsError: It returns something that a file cannot say.
        OSError: The file cannot be written.

    Examples:
        >>> spikedet.save(snn, "own.safetensors")
    """
    if not isinstance(network, SpikingNetwork):
        raise UsageError(
            f"a {type(network).__name__} cannot be saved; expected what spikedet.convert returns"
        )
    checkpoint = of_graph(
        network.graph,
        stage="snn",
        task=TASK,
        model={},
        names=(),
        imgsz=max(network.graph.shapes[INPUT][1:]),
        T=network.T,
        origin=dict(network.origin),
    )
    save_checkpoint(checkpoint, Path(path), half=half)


def restore(checkpoint: Checkpoint) -> SpikingNetwork:
    """The spiking network of a checkpoint.

    Raises:
        WeightsError: Damaged.
    """
    network = SpikingNetwork(restore_graph(checkpoint), checkpoint.time_steps)
    network.origin = dict(checkpoint.origin)
    return network
