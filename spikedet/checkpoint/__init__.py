"""Checkpoints: one safe file format for every stage, based on safetensors.

A file contains no code. Its header is JSON. It describes the task, the origin, and the network as a
graph (`graph.serialise`). So neither the original network class nor the conversion is needed to run
it. `load` checks everything before anything is built.
"""

from spikedet.checkpoint.checkpoint import Checkpoint
from spikedet.checkpoint.file import FORMAT, identity, is_checkpoint, load, save
from spikedet.checkpoint.graph import of_graph, restore_graph
from spikedet.checkpoint.tensors import (
    fingerprint,
    load_plain,
    load_plain_into,
    sha256,
    stored_in_half,
)

__all__ = [
    "FORMAT",
    "Checkpoint",
    "fingerprint",
    "identity",
    "is_checkpoint",
    "load",
    "load_plain",
    "load_plain_into",
    "of_graph",
    "restore_graph",
    "save",
    "sha256",
    "stored_in_half",
]
