"""The network to export: a graph, and the meaning of its inputs and outputs."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import spikedet
from spikedet import networks, task_registry
from spikedet.checkpoint import Checkpoint, load
from spikedet.counts import expect_steps
from spikedet.errors import UsageError
from spikedet.graph.graph import INPUT, Graph
from spikedet.graph.rewrites.fold_batch_norm import fold_batch_norm
from spikedet.graph.structure import Name, to_json
from spikedet.neurons.layers import MeanOverTime
from spikedet.predictor import BasePredictor
from spikedet.runtime.file import TASK, restore
from spikedet.runtime.network import SpikingNetwork

BOXES = (
    "feats[k] is [4 * reg_max, H, W] of strides[k]; boxes [4 * reg_max, A] and scores [C, A] are "
    "all of their places behind each other, row by row. Of a place (x, y) of stride s and for each "
    "of left, top, right, bottom: distance = sum over i of i * softmax(its reg_max values)[i] (the "
    "value itself where reg_max is 1). Box in pixels of the input: "
    "((x + 0.5 - left) s, (y + 0.5 - top) s, (x + 0.5 + right) s, (y + 0.5 + bottom) s). Score: "
    "1 / (1 + exp(-scores)). Then non-maximum suppression, class by class."
)


@dataclass(frozen=True)
class Source:
    """A network to export.

    Attributes:
        graph: A copy of the graph on the CPU, in float32 and in evaluation mode.
        stage: `float`, `qc` or `snn`.
        T: Time steps. None for a network without time steps.
        facts: JSON values that a user of the file needs: the kind of pictures, the meaning of the
            outputs, the class names and T.
        file: Path of the weights, if they came from a file.
        notes: Notes that hold for every format.
    """

    graph: Graph
    stage: str
    T: int | None
    facts: dict[str, Any]
    file: Path | None = None
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, network: Any, T: int | None = None) -> Source:
        """Make a source from any argument of `spikedet.export`.

        Raises:
            UsageError: The argument is not a network, or T is given for a network without time
                steps.
            WeightsError: The weights are missing or damaged.
        """
        expect_steps(T, optional=True)
        if isinstance(network, BasePredictor):
            T, network = (network.T if T is None else T), network.weights
        if isinstance(network, str | Path):
            return cls._of_file(Path(network), T)
        if isinstance(network, SpikingNetwork):
            calibrated_for, stage, network = network.T, "snn", network.graph
        elif isinstance(network, Graph):
            spiking = bool(network.of((MeanOverTime,)))
            calibrated_for, stage = None, "snn" if spiking else "float"
        else:
            raise UsageError(
                f"a {type(network).__name__} cannot be exported; expected weights, or what "
                "spikedet.convert or spikedet.load returns"
            )
        description = {"task": TASK, "names": [], "input": {"shape": _shape(network)}}
        return cls._of_graph(network, stage, calibrated_for, T, description, None)

    @classmethod
    def _of_file(cls, path: Path, T: int | None) -> Source:
        checkpoint = load(path)
        if checkpoint.task == TASK:
            network = restore(checkpoint)
            description = {"task": TASK, "names": [], "input": {"shape": _shape(network.graph)}}
            return cls._of_graph(network.graph, "snn", checkpoint.T, T, description, path)
        task = task_registry.of(checkpoint)
        checkpoint = networks.current(task, checkpoint)
        graph = networks.graph_of(task, checkpoint)
        description = _described(checkpoint, graph)
        return cls._of_graph(graph, checkpoint.stage, checkpoint.T, T, description, path)

    @classmethod
    def _of_graph(
        cls,
        graph: Graph,
        stage: str,
        calibrated_for: int | None,
        T: int | None,
        description: dict[str, Any],
        path: Path | None,
    ) -> Source:
        notes = []
        if stage != "snn":
            if T not in (None, calibrated_for):
                raise UsageError(f"T is {T}; a network of stage {stage} has no time steps")
            T = calibrated_for
        elif T is None:
            T = calibrated_for
        elif calibrated_for not in (None, T) and not (
            calibrated_for < T and networks.can_run_longer(graph)
        ):
            notes.append(
                f"the network was calibrated for T={calibrated_for}, not T={T}; "
                "expect lower accuracy"
            )
        if stage == "snn" and T is None:
            raise UsageError("a spiking graph does not store its number of time steps; pass T")
        if any(tensor.dtype == torch.bfloat16 for tensor in graph.state_dict().values()):
            notes.append("use_bfloat16 had rounded the weights of this network to 8 bits")
        own = copy.deepcopy(graph).cpu().float().eval().requires_grad_(False)
        fold_batch_norm(own)
        own.requires_grad_(False)
        facts = {
            "producer": f"spikedet {spikedet.__version__}",
            "stage": stage,
            "T": T,
            **description,
            "outputs": to_json(own.output),
        }
        return cls(own, stage, T, facts, path, notes)

    def facts_json(self, **more: Any) -> str:
        """The facts, with further entries of a format, as JSON text."""
        return json.dumps({**self.facts, **more}, sort_keys=True)


def _shape(graph: Graph) -> list[int | None]:
    return [None, *graph.shapes[INPUT][1:]]


def _described(checkpoint: Checkpoint, graph: Graph) -> dict[str, Any]:
    """Describe the pictures and the outputs of a task's network."""
    side = checkpoint.imgsz
    picture: dict[str, Any] = {"shape": _shape(graph), "colours": "RGB", "bytes_divided_by": 255}
    description = {"task": checkpoint.task, "names": list(checkpoint.names), "input": picture}
    if checkpoint.task == "detection":
        from spikedet.detection.letterbox import GREY

        picture["fit"] = (
            f"letterbox: scaled by min({side} / height, {side} / width), bilinear, to whole "
            f"pixels; centred on {GREY} of 255, left = round(({side} - new width) / 2 - 0.1), top "
            "alike"
        )
        return {**description, "head": {**checkpoint.head, "decode": BOXES}}
    from spikedet.classification import transforms

    cut = transforms.form(checkpoint.model)
    fits = {
        "cifar": f"resized to {side} x {side}, antialiased",
        "imagenet": (
            f"shorter side resized to {round(side * 256 / 224)}, antialiased; the centre "
            f"{side} x {side} cut out"
        ),
    }
    picture["fit"] = fits[cut]
    picture["mean"] = list(checkpoint.model.get("mean", transforms.MEAN))
    picture["std"] = list(checkpoint.model.get("std", transforms.STD))
    return {**description, "head": {"decode": "one logit a class; soft-max for probabilities"}}


def flat_outputs(output: Any) -> list[tuple[str, str]]:
    """List the outputs of a network: (name of the output, name of its node).

    The name is the path to the output, such as `boxes` or `feats.0`. It is `output` if the network
    returns one tensor.
    """
    outputs: list[tuple[str, str]] = []

    def walk(value: Any, way: str) -> None:
        if isinstance(value, Name):
            outputs.append((way or "output", value.name))
        elif isinstance(value, dict):
            for key, item in value.items():
                walk(item, f"{way}.{key}" if way else str(key))
        elif isinstance(value, list | tuple):
            keys = getattr(value, "_fields", range(len(value)))
            for key, item in zip(keys, value, strict=True):
                walk(item, f"{way}.{key}" if way else str(key))

    walk(output, "")
    return outputs
