"""The detector as a task of both stages of conversion."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from spikedet.checkpoint import Checkpoint
from spikedet.data.formats import read_boxes
from spikedet.detection.data import Sample, fingerprint, split_off_tuning, trained_on
from spikedet.detection.distillation import distillation_loss
from spikedet.detection.loader import augmented, batches
from spikedet.detection.model import (
    Detector,
    GraphDetector,
    Runner,
    build,
    expect_outputs,
    head_of,
    raw_outputs,
    read_description,
)
from spikedet.detection.settings import PROTOCOL, TUNING, Settings
from spikedet.graph.graph import Graph
from spikedet.pictures import from_loader
from spikedet.task import Task


class Detection(Task):
    """Boxes of objects: PASCAL VOC samples, ultralytics' networks, average precision."""

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

    def fresh(self, network: Detector, strides: Sequence[int]) -> tuple[str, ...]:
        return network.model[-1].layers(strides)

    def example(self, imgsz: int) -> Tensor:
        return torch.zeros(1, 3, imgsz, imgsz)

    def head_of(self, network: Detector) -> dict[str, Any]:
        return head_of(network)

    def stride(self, head: dict[str, Any]) -> int:
        return max(32, int(max(head["strides"])))  # ultralytics trains at multiples of 32

    def expect_outputs(self, graph: Graph, made: Checkpoint) -> None:
        expect_outputs(graph, made.head, len(made.names), made.imgsz)

    def runner(self, network: nn.Module, made: Checkpoint) -> Runner:
        return Runner(network, made)

    def read(
        self,
        folders: Sequence[Path],
        split: str,
        limit: int | None = None,
        names: tuple[str, ...] | None = None,
        images: Sequence[Path] = (),
    ) -> list[Sample]:
        return read_boxes(folders, split, limit=limit, names=names, places=images)

    def fingerprint(self, samples: Sequence[Sample]) -> str:
        return fingerprint(samples)

    def trained_on(self, samples: Sequence[Sample]) -> int:
        return trained_on(samples)

    def names(self, samples: Sequence[Sample]) -> tuple[str, ...]:
        return samples[0].names

    def split_off_tuning(
        self, samples: Sequence[Sample], tuning: Path | None
    ) -> tuple[list[Sample], list[Sample]]:
        return split_off_tuning(samples, tuning or TUNING)

    def take(self, samples: Sequence[Sample], numbers: Sequence[int]) -> list[Sample]:
        return [samples[number] for number in numbers]

    def pictures(self, samples: Sequence[Sample], made: Checkpoint, batch: int) -> Iterator[Tensor]:
        return (pictures for pictures, _ in batches(samples, made.imgsz, batch))

    def augmented(
        self,
        samples: Sequence[Sample],
        made: Checkpoint,
        batch: int,
        seed: int,
        workers: int,
        jpeg: int,
    ) -> Iterator[dict[str, Any]]:
        return augmented(samples, made.imgsz, batch, seed, workers)

    def loss(
        self,
        made: Checkpoint,
        network: Graph,
        found: Any,
        wanted: Any,
        batch: dict[str, Any],
        truth: float,
        temperature: float,
    ) -> Tensor:
        total = distillation_loss(found, wanted)
        if truth:
            detector = GraphDetector(network, made.head, len(made.names)).eval()
            detector.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5)
            total = total + truth * detector.loss(batch, found)[0].sum() / len(batch["img"])
        return total

    def fit(
        self,
        network: Detector | Graph,
        train: Sequence[Sample],
        tune: Sequence[Sample],
        made: Checkpoint,
        folder: Path,
        settings: Settings,
        write: Callable[[nn.Module, Path], None],
        resume: bool,
        teacher: nn.Module | None = None,
        distill: float = 1.0,
    ) -> None:
        from spikedet.detection.train import Trainer

        settings.imgsz = made.imgsz
        if isinstance(network, Graph):
            network = GraphDetector(network, made.head, len(made.names)).train()
        with from_loader():
            Trainer(
                network, train, tune, made.names, folder, settings, write, resume, teacher, distill
            ).train()

    def measure(
        self,
        runner: Runner,
        samples: Sequence[Sample],
        *,
        steps: Sequence[int] | None = None,
        **options: Any,
    ) -> list[tuple[dict[str, Any], float | None]]:
        from spikedet.detection.measure import measure

        return [
            (
                {name: getattr(found, name) for name in self.columns}
                | {"per_class": found.per_class},
                rate,
            )
            for found, rate in measure(runner, samples, steps=steps, **options)
        ]


DETECTION = Detection()
