"""What a task is to conversion: what it must say itself, and what its samples can do.

`detection.task` and `classification.task` say how their networks are built and measured, and what
their loss is. The way from a float checkpoint to a spiking one is the same for all tasks; it is in
`stages`. Networks of checkpoints of any stage are restored by `networks`.
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
        """The samples of these numbers, in this order."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that tell annotated samples, just read, from others."""

    @abstractmethod
    def split_off_tuning(self, tuning: Path | None = None) -> tuple[Self, Self]:
        """Training samples without, and with nothing but, those kept aside for every choice.

        Args:
            tuning: List of those kept aside, where the task has such lists.

        Raises:
            DataError: Nothing is left on one of the sides.
            UsageError: A list for a task that has none.
        """

    @abstractmethod
    def pictures(self, checkpoint: Checkpoint, batch: int) -> Iterator[Tensor]:
        """Pictures [B, 3, H, W] as the network of a checkpoint takes them, in order."""

    @abstractmethod
    def augmented(
        self, checkpoint: Checkpoint, end: EndToEnd, seed: int, judging: bool = False
    ) -> Iterator[dict[str, Any]]:
        """Endless training batches of the end-to-end pass.

        Args:
            checkpoint: Whose network takes the pictures.
            end: How many make a batch, and how they are made.
            seed: Of order and augmentation.
            judging: The pictures judge networks: none is made worse than it is.

        Yields:
            `img` [B, 3, H, W]; the rest is for `Task.loss`.
        """

    def labelled(self) -> Self:
        """The samples whose annotations are known."""
        return self

    def with_unlabelled(self, folders: Sequence[Path]) -> Self:
        """The samples and, behind them, pictures that are only distilled.

        Raises:
            UsageError: The loss of the task wants annotations of every picture.
            DataError: No pictures there.
        """
        raise UsageError("--unlabelled: expected a classifier; detectors learn from boxes")

    def seen_by_released(self) -> int:
        """How many of them the released networks were trained on, as far as is known."""
        return 0

    def pick(self, count: int, seed: int = 0) -> Self:
        """`count` samples drawn without replacement (all of them when there are fewer).

        None of them is unlabelled: such pictures may be unlike those that a network is for.
        """
        known = self.labelled()
        count = min(count, len(known))
        return known.select(random.Random(seed).sample(range(len(known)), count))


@dataclass(frozen=True)
class Source:
    """Where annotated samples are read from.

    Attributes:
        folders: The data.
        split: Data sets and splits, joined by `+`.
        limit: Only so many pictures, always the same.
        names: Classes that they must have, or that data without names have.
        images: Folders of the pictures, where the annotations do not say (detection).
    """

    folders: Sequence[Path]
    split: str
    limit: int | None = None
    names: tuple[str, ...] | None = None
    images: Sequence[Path] = ()


@dataclass
class Run:
    """A training: of what, on what, and where its checkpoints go.

    Attributes:
        checkpoint: Description, class names and picture size of the network.
        train: Samples to fit.
        tune: Samples that choose the best epoch.
        folder: Of the run; gets best and last checkpoint, results and the state to resume from.
        settings: Of the task's `Settings`.
        write: Called with the network and the path of a checkpoint.
        resume: Go on with the run in `folder`.
        teacher: Network whose outputs are distilled beside the task's loss.
        distill: Weight of that.
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


class Task(ABC):
    """What a task says itself of its networks, its loss and its measure.

    Attributes:
        name: As checkpoints have it.
        columns: The measured values that tables show.
        protocol: How they are measured, with `{imgsz}` for the pixels.
        batch: Pictures that usually go through a network at once.
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
        """A network description as a dict.

        Args:
            path: YAML file.
            width: A variant of it, as the task names them.
            activation: In place of its own.

        Raises:
            UsageError: No such description, or no such variant.
        """

    @abstractmethod
    def network(self, description: dict[str, Any], classes: int) -> nn.Module:
        """A network with fresh weights in evaluation mode, its outputs as losses take them.

        Raises:
            UsageError: The description cannot be built.
        """

    @abstractmethod
    def expect_outputs(self, graph: Graph, checkpoint: Checkpoint) -> None:
        """Refuse a graph whose outputs are not what the rest of its checkpoint takes them for.

        Raises:
            WeightsError: Says what does not fit.
        """

    @abstractmethod
    def runner(self, network: nn.Module, checkpoint: Checkpoint) -> Any:
        """A network of any stage, ready to be measured."""

    def fresh(self, network: nn.Module, strides: Sequence[int]) -> tuple[str, ...]:
        """How the names of the layers begin that predict at these strides.

        Raises:
            UsageError: There are none.
        """
        raise UsageError(f"a network for {self.name} has no heads with output strides")

    def head_of(self, network: nn.Module) -> dict[str, Any]:
        """What the outputs of a network mean, for its checkpoints."""
        return {}

    def usual_side(self, description: dict[str, Any]) -> int | None:
        """Side of a network's pictures in pixels where none is given, None for that of settings."""
        return None

    def stride(self, head: dict[str, Any]) -> int:
        """Sides of a network's pictures in pixels are multiples of it; `head` as of `head_of`."""
        return 1

    # ------------------------------------------------------------------ samples, loss and measure

    @abstractmethod
    def read(self, source: Source) -> Any:
        """Annotated `Samples` of a data set.

        Raises:
            DataError: Missing, damaged, or of other classes than `source.names`.
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
        """Loss of the end-to-end pass.

        Args:
            checkpoint: Of the network.
            network: Its spiking graph.
            outputs: Of the network, and of its teacher.
            batch: As of `Samples.augmented`.
            end: What the annotations weigh beside the distance of the outputs.
        """

    @abstractmethod
    def fit(self, network: nn.Module, run: Run) -> None:
        """Train a network, float or with quantisers, in place."""

    @abstractmethod
    def measure(
        self,
        runner: Any,
        samples: Any,
        *,
        steps: Sequence[int] | None = None,
        **options: Any,
    ) -> list[tuple[dict[str, Any], float | None]]:
        """Values by name, `columns` among them, and spikes per neuron and step.

        Args:
            runner: The network.
            samples: To measure it on.
            steps: Time steps of a spiking network, ascending, all measured in one run; None for its
                own T, and for a network without time.
            options: `batch`, pictures at once; `on_batch`, called with how many are done; `details`
                for more about the last of `steps`.

        Returns:
            For each of `steps`; of one entry where they are None. Under `details` the rows of
            further tables by name, for plots; empty unless asked for.
        """
