"""The classification task for both stages of the conversion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from spikedet import resources
from spikedet.checkpoint import Checkpoint
from spikedet.classification import data, models, transforms
from spikedet.classification.defaults import PROTOCOL, SHORT
from spikedet.classification.defaults import EndToEnd as ClassifierPass
from spikedet.classification.distillation import cross_entropy, divergence
from spikedet.classification.measure import measure
from spikedet.errors import UsageError, WeightsError
from spikedet.files import read_yaml
from spikedet.graph.graph import INPUT, Graph
from spikedet.graph.structure import fill
from spikedet.precision import channels_last
from spikedet.runtime.network import SpikingNetwork
from spikedet.settings import EndToEnd
from spikedet.task import Run, Source, Task


class Runner:
    """A classifier of any stage.

    Attributes:
        network: The network. A `SpikingNetwork` for stage `snn`.
        stage: `float`, `qc` or `snn`.
        T: Time steps that the weights were made for. None for `float`.
        names: Class names.
        imgsz: Input side in pixels.
        description: Network description, with the normalisation of the pictures.
    """

    def __init__(self, network: nn.Module, checkpoint: Checkpoint):
        self.network, self.stage, self.T = network, checkpoint.stage, checkpoint.T
        self.names, self.imgsz, self.description = (
            checkpoint.names,
            checkpoint.imgsz,
            checkpoint.model,
        )

    def to(self, device: str) -> Runner:
        """Move to a device."""
        self.network.to(device)
        return self

    def __call__(self, pictures: Tensor, T: int | None = None) -> Tensor:
        """Compute logits [B, C] of normalised pictures [B, 3, H, W]. T is for spiking networks."""
        pictures = channels_last(pictures)
        if isinstance(self.network, SpikingNetwork):
            return self.network(pictures, T).float()
        return self.network(pictures).float()

    def after(self, pictures: Tensor, steps: Sequence[int]) -> list[Tensor]:
        """The results of `__call__` for each T of `steps` (ascending), from one run."""
        assert isinstance(self.network, SpikingNetwork)
        pictures = channels_last(pictures)
        return [logits.float() for logits in self.network.after(pictures, steps)]


class Classification(Task):
    """Classification: one label for each picture, our or torchvision's networks, accuracy."""

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

    def expect_outputs(self, graph: Graph, checkpoint: Checkpoint) -> None:
        try:
            models.expect_colours(checkpoint.model)
            transforms.form(checkpoint.model)
        except UsageError as error:
            raise WeightsError(
                f"the network description in the weights is damaged: {error}"
            ) from None
        shape, wanted = fill(graph.output, graph.shapes), (1, len(checkpoint.names))
        if shape != wanted or len(graph.shapes[INPUT]) != 4 or graph.shapes[INPUT][1] != 3:
            raise WeightsError(
                f"the network returns {str(shape)[:80]} for a picture "
                f"{list(graph.shapes[INPUT][1:])}; expected {wanted} for 3 colour channels"
            )

    def runner(self, network: nn.Module, checkpoint: Checkpoint) -> Runner:
        return Runner(network, checkpoint)

    def read(self, source: Source) -> data.Samples:
        where = (source.folders, source.split)
        return data.read(*where, source.limit, source.names)

    def loss(
        self,
        checkpoint: Checkpoint,
        network: nn.Module,
        outputs: tuple[Tensor, Tensor],
        batch: dict[str, Any],
        end: EndToEnd,
    ) -> Tensor:
        assert isinstance(end, ClassifierPass)
        logits, targets = outputs
        total = divergence(logits, targets, end.temperature)
        if end.truth:
            total = total + end.truth * cross_entropy(logits, batch["label"].to(logits.device))
        return total

    def fit(self, network: nn.Module, run: Run) -> None:
        from spikedet.classification.train import train

        train(network, replace(run, settings=replace(run.settings, imgsz=run.checkpoint.imgsz)))

    def measure(
        self,
        runner: Runner,
        samples: data.Samples,
        *,
        steps: Sequence[int] | None = None,
        **options: Any,
    ) -> list[tuple[dict[str, Any], float | None]]:
        return [
            (
                {name: getattr(accuracy, name) for name in self.columns}
                | {"details": accuracy.details},
                rate,
            )
            for accuracy, rate in measure(runner, samples, steps=steps, **options)
        ]


CLASSIFICATION = Classification()
