"""The interface of tasks and of their samples.

`detection.task` and `classification.task` implement it: how networks are built and measured, and
their loss. The conversion of a float checkpoint to a spiking one is the same for all tasks, and is
in `stages`. `networks` restores the networks of checkpoints.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikedet.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from typing_extensions import Self

    from spikedet.checkpoint import Checkpoint
    from spikedet.conversion.features import Features
    from spikedet.conversion.sparsity import StageOnePenalty
    from spikedet.graph.graph import Graph
    from spikedet.settings import EndToEnd


class Samples(ABC):
    """Annotated pictures of a task.

    Attributes:
        names: Class names.
    """

    names: tuple[str, ...]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def select(self, numbers: Sequence[int]) -> Self:
        """The samples with these numbers, in this order."""

    def classes(self) -> set[int]:
        """Numbers of the classes that these samples show. Empty if the task does not tell."""
        return set()

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash (12 hexadecimal digits) of the samples and their annotations."""

    @abstractmethod
    def split_off_tuning(self, tuning: Path | None = None) -> tuple[Self, Self]:
        """Split into training samples and tuning samples.

        Tuning samples are not trained on. They are used for every choice, such as the best epoch.

        Args:
            tuning: File that lists the tuning samples, if the task has such lists.

        Raises:
            DataError: There are no training samples or no tuning samples.
            UsageError: `tuning` is given, but the task has no such lists.
        """

    @abstractmethod
    def pictures(self, checkpoint: Checkpoint, batch: int) -> Iterator[Tensor]:
        """Yield batches of pictures [B, 3, H, W] for the network of a checkpoint, in order."""

    @abstractmethod
    def augmented(
        self, checkpoint: Checkpoint, end: EndToEnd, seed: int, for_evaluation: bool = False
    ) -> Iterator[dict[str, Any]]:
        """Yield training batches of the end-to-end pass without end.

        Args:
            checkpoint: Checkpoint of the network.
            end: Settings of the end-to-end pass, with the batch size.
            seed: Seed of the order and the augmentation.
            for_evaluation: True if the pictures are used for the tuning loss. Then they are not
                degraded (for example, by JPEG compression).

        Yields:
            Dicts with `img` [B, 3, H, W], and further keys for `Task.loss`.
        """

    def labelled(self) -> Self:
        """The samples that have annotations."""
        return self

    def with_unlabelled(self, folders: Sequence[Path]) -> Self:
        """Add pictures without annotations, which are only used for distillation.

        Raises:
            UsageError: The loss of the task needs annotations for every picture.
            DataError: A folder has no pictures.
        """
        raise UsageError("--unlabelled: expected a classifier; detectors learn from boxes")

    def seen_by_released(self) -> int:
        """The number of samples that the released networks were trained on, as far as known."""
        return 0

    def pick(self, count: int, seed: int = 0) -> Self:
        """Draw `count` samples without replacement (all samples if there are fewer).

        Samples without labels are never drawn, because they may be of another kind.
        """
        known = self.labelled()
        count = min(count, len(known))
        return known.select(random.Random(seed).sample(range(len(known)), count))


@dataclass(frozen=True)
class Source:
    """A description of the data to read.

    Attributes:
        folders: Folders or files of the data.
        split: Data sets and splits, joined by `+`.
        limit: Use only this number of pictures, always the same ones.
        names: Class names that the data must have, or the names for data without class names.
        images: Folders of the pictures, if the annotations do not name them (detection).
    """

    folders: Sequence[Path]
    split: str
    limit: int | None = None
    names: tuple[str, ...] | None = None
    images: Sequence[Path] = ()


@dataclass
class Run:
    """A training run.

    Attributes:
        checkpoint: Description, class names and picture size of the network.
        train: Training samples.
        tune: Tuning samples. They choose the best epoch.
        folder: Folder for the best and the last checkpoint, the results and the state.
        settings: Training settings, the task's `Settings`.
        write: `write(network, path)` writes a checkpoint.
        resume: Continue the run in `folder`.
        teacher: Network whose outputs are distilled, beside the task's loss.
        distill: Weight of the distillation loss.
        features: Distance of the activations to those of the teacher, beside the other losses.
        penalty: Penalty on the synaptic operations of a stage-I network, beside the other losses.
            With it the last epoch is the best one.
    """

    checkpoint: Checkpoint
    train: Any
    tune: Any
    folder: Path
    settings: Any
    write: Callable[[nn.Module, Path], None]
    resume: bool = False
    teacher: nn.Module | None = None
    distill: float = 1.0
    features: Features | None = None
    penalty: StageOnePenalty | None = None


class Task(ABC):
    """A task: its networks, its loss and its measures.

    Attributes:
        name: Name of the task, as in checkpoints.
        columns: Names of the measured values that tables show.
        protocol: Description of the measurement, with `{imgsz}` for the input side.
        batch: Usual batch size for measuring.
    """

    name: str
    columns: tuple[str, ...]
    protocol: str
    batch = 8

    # ------------------------------------------------------------------ networks

    @abstractmethod
    def describe(
        self, path: Path, width: str | None = None, activation: str | None = None
    ) -> dict[str, Any]:
        """Read a network description.

        Args:
            path: YAML file.
            width: Width of the network (for detectors a scale, for classifiers a factor).
            activation: Replaces the activation of the description.

        Raises:
            UsageError: The description or the width does not exist.
        """

    @abstractmethod
    def network(self, description: dict[str, Any], classes: int) -> nn.Module:
        """Build a network with new weights, in evaluation mode and with outputs for the loss.

        Raises:
            UsageError: The description cannot be built.
        """

    @abstractmethod
    def expect_outputs(self, graph: Graph, checkpoint: Checkpoint) -> None:
        """Check that the outputs of a graph fit its checkpoint (classes, head, input size).

        Raises:
            WeightsError: They do not fit. The message says what differs.
        """

    @abstractmethod
    def runner(self, network: nn.Module, checkpoint: Checkpoint) -> Any:
        """Make the runner of a network of any stage."""

    def fresh(self, network: nn.Module, strides: Sequence[int]) -> tuple[str, ...]:
        """The prefixes of the names of the layers that predict at these output strides.

        Raises:
            UsageError: There are no such layers.
        """
        raise UsageError(f"a network for {self.name} has no heads with output strides")

    def head_of(self, network: nn.Module) -> dict[str, Any]:
        """The description of a network's outputs, for its checkpoints."""
        return {}

    def usual_side(self, description: dict[str, Any]) -> int | None:
        """The usual input side of a network in pixels. None: use that of the settings."""
        return None

    def stride(self, head: dict[str, Any]) -> int:
        """The stride: the input side must be a multiple of it. `head` is from `head_of`."""
        return 1

    def expect_side(self, head: dict[str, Any], side: int) -> None:  # noqa: B027
        """Check that the loss on annotations can be computed for pictures of this side in pixels.

        Raises:
            TrainingError: The pictures are too small.
        """

    # ------------------------------------------------------------------ samples, loss and measure

    @abstractmethod
    def read(self, source: Source) -> Any:
        """Read the annotated `Samples` of a data set.

        Raises:
            DataError: The data is missing, damaged, or has other classes than `source.names`.
        """

    @abstractmethod
    def loss(
        self,
        checkpoint: Checkpoint,
        network: Graph,
        outputs: tuple[Any, Any],
        batch: dict[str, Any],
        end: EndToEnd,
    ) -> Tensor:
        """Compute the loss of the end-to-end pass.

        Args:
            checkpoint: Checkpoint of the network.
            network: Spiking graph of the network.
            outputs: Outputs of the network and of its teacher.
            batch: A batch of `Samples.augmented`.
            end: Settings of the pass, with the weight of the annotations.
        """

    @abstractmethod
    def fit(self, network: nn.Module, run: Run) -> None:
        """Train a float network, or a network with quantisers, in place."""

    @abstractmethod
    def measure(
        self,
        runner: Any,
        samples: Any,
        *,
        steps: Sequence[int] | None = None,
        **options: Any,
    ) -> list[tuple[dict[str, Any], float | None]]:
        """Measure a network: its values by name (with all `columns`), and its spike rate.

        Args:
            runner: The network.
            samples: Samples to measure it on.
            steps: Numbers of time steps of a spiking network, ascending, which are all measured in
                one run. None: the T of the network, or a network without time steps.
            options: `batch`, the batch size; `on_batch`, a function of the number of pictures so
                far; `details`, to also make tables for the last of `steps`.

        Returns:
            One entry for each of `steps`, or one entry if `steps` is None. The value `details` has
            the rows of further tables by name, for plots. It is empty without the option.
        """
