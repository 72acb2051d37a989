"""Classifiers as a task of both stages of conversion."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spikedet import resources
from spikedet.checkpoint import Checkpoint
from spikedet.classification import data, models, transforms
from spikedet.classification.distillation import cross_entropy, divergence
from spikedet.classification.settings import PROTOCOL, SHORT, Settings
from spikedet.errors import UsageError, WeightsError
from spikedet.files import read_yaml
from spikedet.graph.graph import INPUT, Graph
from spikedet.graph.structure import fill
from spikedet.runtime.network import SpikingNetwork
from spikedet.task import Task


class Runner:
    """A classifier of any stage, ready to run.

    Attributes:
        network: A `SpikingNetwork` for `snn`.
        stage: `float`, `qc` or `snn`.
        T: Time steps the weights were made for, None for `float`.
        names: Class names.
        imgsz: Input side in pixels.
        description: Of the network, with what its pictures are normalised by.
    """

    def __init__(self, network: nn.Module, made: Checkpoint):
        self.network, self.stage, self.T = network, made.stage, made.T
        self.names, self.imgsz, self.description = made.names, made.imgsz, made.model

    def to(self, device: str) -> Runner:
        """Move to a device."""
        self.network.to(device)
        return self

    def __call__(self, pictures: Tensor, T: int | None = None) -> Tensor:
        """Logits [B, C] of normalised pictures [B, 3, H, W]; T only for a spiking network."""
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        spiking = isinstance(self.network, SpikingNetwork)
        return (self.network(pictures, T) if spiking else self.network(pictures)).float()

    def after(self, pictures: Tensor, steps: Sequence[int]) -> list[Tensor]:
        """What `__call__` gives for each T of `steps`, ascending, but all from one run."""
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        return [logits.float() for logits in self.network.after(pictures, steps)]


class Classification(Task):
    """One label a picture: folders of pictures, our and torchvision's networks, accuracy."""

    name = "classification"
    columns = ("top1", "top5")
    protocol = PROTOCOL
    batch = 64

    def describe(
        self, path: Path, width: str | None = None, activation: str | None = None
    ) -> dict[str, Any]:
        if str(path).startswith(SHORT):
            description = models.foreign(str(path).removeprefix(SHORT))
        else:
            description = read_yaml(resources.config(path, "models"))
        if width is not None:
            try:
                description["width"] = float(width)
            except ValueError:
                raise UsageError(f"width: {width}; expected a number such as 0.5") from None
        if activation is not None:
            description["activation"] = activation
        return description

    def usual_side(self, description: dict[str, Any]) -> int | None:
        cut = transforms.form(description) == "imagenet"
        return models.usual_side(description) if cut else None

    def network(self, description: dict[str, Any], classes: int) -> nn.Module:
        return models.build(description, classes).eval()

    def example(self, imgsz: int) -> Tensor:
        return torch.zeros(1, 3, imgsz, imgsz)

    def expect_outputs(self, graph: Graph, made: Checkpoint) -> None:
        try:
            models.expect_colours(made.model)
            transforms.form(made.model)
        except UsageError as error:
            raise WeightsError(
                f"the network description in the weights is damaged: {error}"
            ) from None
        shape, wanted = fill(graph.output, graph.shapes), (1, len(made.names))
        if shape != wanted or len(graph.shapes[INPUT]) != 4 or graph.shapes[INPUT][1] != 3:
            raise WeightsError(
                f"the network returns {str(shape)[:80]} for a picture "
                f"{list(graph.shapes[INPUT][1:])}; its classes want {wanted} for three colours"
            )

    def runner(self, network: nn.Module, made: Checkpoint) -> Runner:
        return Runner(network, made)

    def read(
        self,
        folders: Sequence[Path],
        split: str,
        limit: int | None = None,
        names: tuple[str, ...] | None = None,
    ) -> data.Samples:
        return data.read(folders, split, limit, names)

    def fingerprint(self, samples: data.Samples) -> str:
        return data.fingerprint(samples)

    def names(self, samples: data.Samples) -> tuple[str, ...]:
        return samples.names

    def split_off_tuning(
        self, samples: data.Samples, tuning: Path | None
    ) -> tuple[data.Samples, data.Samples]:
        if tuning is not None:
            raise UsageError(
                f"--tuning is no option of {self.name}: every {data.TUNING_EVERY}th training "
                "picture of a class is kept aside"
            )
        return data.split_off_tuning(samples)

    def with_unlabelled(self, samples: data.Samples, folders: Sequence[Path]) -> data.Samples:
        return data.with_unlabelled(samples, folders)

    def pick(self, samples: data.Samples, count: int, seed: int = 0) -> data.Samples:
        known = [n for n, label in enumerate(samples.labels) if label != data.UNLABELLED]
        return super().pick(samples.select(known), count, seed)

    def take(self, samples: data.Samples, numbers: Sequence[int]) -> data.Samples:
        return samples.select(numbers)

    def pictures(self, samples: data.Samples, made: Checkpoint, batch: int) -> Iterator[Tensor]:
        return data.batches(samples, made.model, made.imgsz, batch)

    def augmented(
        self,
        samples: data.Samples,
        made: Checkpoint,
        batch: int,
        seed: int,
        workers: int,
        jpeg: int,
    ) -> Iterator[dict[str, Any]]:
        return data.augmented(samples, made.model, made.imgsz, batch, seed, workers, jpeg)

    def loss(
        self,
        made: Checkpoint,
        network: nn.Module,
        found: Tensor,
        wanted: Tensor,
        batch: dict[str, Any],
        truth: float,
        temperature: float,
    ) -> Tensor:
        total = divergence(found, wanted, temperature)
        if truth:
            total = total + truth * cross_entropy(found, batch["label"].to(found.device))
        return total

    def fit(
        self,
        network: nn.Module,
        train: data.Samples,
        tune: data.Samples,
        made: Checkpoint,
        folder: Path,
        settings: Settings,
        write: Callable[[nn.Module, Path], None],
        resume: bool,
        teacher: nn.Module | None = None,
        distill: float = 1.0,
    ) -> None:
        from spikedet.classification.train import train as run

        settings.imgsz = made.imgsz
        run(
            network,
            train,
            tune,
            made.model,
            folder,
            settings,
            write,
            resume=resume,
            teacher=teacher,
            distill=distill,
        )

    def measure(
        self,
        runner: Runner,
        samples: data.Samples,
        *,
        steps: Sequence[int] | None = None,
        **options: Any,
    ) -> list[tuple[dict[str, Any], float | None]]:
        from spikedet.classification.measure import measure

        return [
            ({name: getattr(found, name) for name in self.columns}, rate)
            for found, rate in measure(runner, samples, steps=steps, **options)
        ]


CLASSIFICATION = Classification()
