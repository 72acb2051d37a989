"""The detection task for both stages of the conversion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from spikedet.checkpoint import Checkpoint
from spikedet.data.formats import read_boxes
from spikedet.detection.assign import expect_places, multiple_of
from spikedet.detection.decode import expect_outputs
from spikedet.detection.defaults import PROTOCOL
from spikedet.detection.description import build, read_description
from spikedet.detection.distillation import distillation_loss
from spikedet.detection.measure import measure
from spikedet.detection.model import Detector, GraphDetector, head_of, raw_outputs
from spikedet.detection.runner import Runner
from spikedet.detection.samples import BoxSamples
from spikedet.graph.graph import Graph
from spikedet.pictures import from_loader
from spikedet.settings import EndToEnd
from spikedet.task import Run, Source, Task


class Detection(Task):
    """Detection: boxes of objects, networks of ultralytics, average precision."""

    name = "detection"
    columns = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "VOC07_AP50")
    protocol = PROTOCOL

    def describe(
        self, path: Path, width: str | None = None, activation: str | None = None
    ) -> dict[str, Any]:
        return read_description(path, width, activation)

    def network(self, description: dict[str, Any], classes: int) -> Detector:
        network = build(description, classes).eval()
        raw_outputs(network)
        return network

    def expect_outputs(self, graph: Graph, checkpoint: Checkpoint) -> None:
        expect_outputs(graph, checkpoint.head, len(checkpoint.names), checkpoint.imgsz)

    def runner(self, network: nn.Module, checkpoint: Checkpoint) -> Runner:
        return Runner(network, checkpoint)

    def fresh(self, network: nn.Module, strides: Sequence[int]) -> tuple[str, ...]:
        assert isinstance(network, Detector)
        return network.head.layers(strides)

    def head_of(self, network: nn.Module) -> dict[str, Any]:
        assert isinstance(network, Detector)
        return head_of(network)

    def stride(self, head: dict[str, Any]) -> int:
        return multiple_of(head["strides"])

    def expect_side(self, head: dict[str, Any], side: int) -> None:
        expect_places(head["strides"], side)

    def read(self, source: Source) -> BoxSamples:
        return BoxSamples(
            read_boxes(
                source.folders,
                source.split,
                limit=source.limit,
                names=source.names,
                places=source.images,
            )
        )

    def loss(
        self,
        checkpoint: Checkpoint,
        network: Graph,
        outputs: tuple[Any, Any],
        batch: dict[str, Any],
        end: EndToEnd,
    ) -> Tensor:
        raw, targets = outputs
        total = distillation_loss(raw, targets)
        if end.truth:
            detector = GraphDetector(network, checkpoint.head, len(checkpoint.names))
            detector.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5)
            total = total + end.truth * detector.loss(batch, raw)[0].sum() / len(batch["img"])
        return total

    def fit(self, network: nn.Module, run: Run) -> None:
        from spikedet.detection.train import Trainer

        checkpoint = run.checkpoint
        run = replace(run, settings=replace(run.settings, imgsz=checkpoint.imgsz))
        if isinstance(network, Graph):
            network = GraphDetector(network, checkpoint.head, len(checkpoint.names)).train()
        assert isinstance(network, Detector | GraphDetector)
        with from_loader():
            Trainer(network, run).train()

    def measure(
        self,
        runner: Runner,
        samples: Sequence,
        *,
        steps: Sequence[int] | None = None,
        **options: Any,
    ) -> list[tuple[dict[str, Any], float | None]]:
        return [
            (
                {name: getattr(precision, name) for name in self.columns}
                | {f"{name}_interval": ends for name, ends in precision.intervals.items()}
                | {"per_class": precision.per_class, "details": precision.details},
                rate,
            )
            for precision, rate in measure(runner, samples, steps=steps, **options)
        ]


DETECTION = Detection()
