"""Save and restore spiking networks: a file holds the graph and its tensors, and no code."""

from __future__ import annotations

from pathlib import Path

from spikedet.checkpoint import Checkpoint, of_graph, restore_graph
from spikedet.checkpoint import save as save_checkpoint
from spikedet.errors import UsageError
from spikedet.graph.graph import INPUT
from spikedet.runtime.network import SpikingNetwork

TASK = "none"  # the task of a saved network is not known


def save(network: SpikingNetwork, path: str | Path, *, half: bool = False) -> None:
    """Write a spiking network to a file that `spikedet.load` reads.

    The file (safetensors) holds the graph as JSON, and its tensors. To load it you need neither the
    original network class nor the conversion. If writing fails, no partial file is left.

    Args:
        network: A spiking network of `spikedet.convert` or `spikedet.load`.
        path: File to write, ending in .safetensors.
        half: Store the weights in half precision.

    Raises:
        UsageError: `network` is not a spiking network, or it computes in bfloat16, which rounded
            its weights.
        WeightsError: The network returns something other than dictionaries, lists and tuples of
            tensors.
        OSError: The file cannot be written.

    Examples:
        >>> spikedet.save(snn, "own.safetensors")
    """
    if not isinstance(network, SpikingNetwork):
        raise UsageError(
            f"a {type(network).__name__} cannot be saved; expected what spikedet.convert returns"
        )
    if network.in_bfloat16:
        raise UsageError(
            "this network computes in bfloat16, which rounded its weights to 8 bits; to save it, "
            "load it again with half=False"
        )
    shape = network.graph.shapes[INPUT]
    checkpoint = of_graph(
        network.graph,
        stage="snn",
        task=TASK,
        model={},
        names=(),
        imgsz=max(shape[2:] or shape[1:]),  # without the channels
        T=network.T,
        origin=dict(network.origin),
    )
    save_checkpoint(checkpoint, Path(path), half=half)


def restore(checkpoint: Checkpoint) -> SpikingNetwork:
    """Build the spiking network of a checkpoint.

    Raises:
        WeightsError: The checkpoint is damaged.
    """
    network = SpikingNetwork(restore_graph(checkpoint), checkpoint.time_steps)
    network.origin = dict(checkpoint.origin)
    return network
