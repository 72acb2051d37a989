"""Train classifiers, float or quantised, on one or several devices."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from spikedet.classification.data import Samples, batches
from spikedet.classification.distillation import accuracy, cross_entropy, divergence
from spikedet.classification.transforms import augmentation
from spikedet.conversion.features import watched
from spikedet.errors import TrainingError, UsageError
from spikedet.files import write_csv
from spikedet.pictures import from_loader
from spikedet.precision import layout, mixed
from spikedet.settings import world_size
from spikedet.task import Run
from spikedet.training.board import log_epoch
from spikedet.training.devices import expect_possible
from spikedet.training.optimizer import make_optimizer, parameter_groups, restore_optimizer
from spikedet.training.run import (
    begin,
    expect_fresh,
    is_complete,
    load_state,
    own_run,
    resumable,
    save_state,
)
from spikedet.training.seeds import seed_epoch
from spikedet.training.sides import expect_growth, growing_side, resized

log = logging.getLogger(__name__)
STRIDE = 32  # largest stride of the networks; the input side grows in multiples of it


def train(network: nn.Module, run: Run) -> None:
    """Train a network in place, with cross-entropy.

    With torchrun, each process computes its share of each batch, and the first process writes the
    files. Every epoch has its own seed, so a resumed run gives the same result as a run without
    interruption.

    The best epoch is the epoch with the best tuning accuracy. With a teacher, it is the epoch with
    the smallest tuning loss. There the accuracy on a thousand pictures is less reliable: that of a
    quantised network can change by a point between epochs that hardly change the weights. With a
    penalty on operations the best epoch is the last one.

    Args:
        network: Float network, or network with quantisers.
        run: The run. Its folder gets `last.safetensors`, `best.safetensors`, `results.csv` and
            `state.pt`. If it has a teacher, the soft-max outputs of the teacher are distilled.

    Raises:
        TrainingError: The run cannot start, resume or continue.
    """
    settings, folder, description = run.settings, run.folder, run.checkpoint.model
    expect_possible(settings)
    _expect_labels(run)
    expect_growth("the training", settings.grow_from, settings.imgsz, STRIDE)
    expect_fresh(folder, run.resume)
    if run.resume and is_complete(folder, settings):
        return
    state = load_state(folder / "state.pt", settings) if run.resume else None
    with own_run(folder), processes(settings.device) as (rank, world, device):
        loop = _Loop(network, run, rank, world, device)
        rows: list[dict[str, Any]] = []
        best = -math.inf
        if state is not None:
            rows, best = _go_on(loop, run, state)
        elif not rank:
            begin(folder, settings)
        for epoch in range(len(rows), settings.epochs):
            with from_loader():
                row = {"epoch": epoch + 1, **loop.epoch(epoch)}
            if rank:
                continue
            row |= loop.judge(run.tune, description)
            rows.append(row)
            _log_row(row, settings.epochs)
            run.write(network, folder / "last.safetensors")
            if loop.score(row) >= best:
                best = loop.score(row)
                run.write(network, folder / "best.safetensors")
            _write_progress(loop, run, rows)


def _expect_labels(run: Run) -> None:
    """Check that the labels are numbers of the classes.

    Raises:
        TrainingError: One is not. The message names it.
    """
    classes = len(run.checkpoint.names)
    for label in run.train.classes() | run.tune.classes():
        if not hasattr(label, "__index__") or not 0 <= label < classes:
            raise TrainingError(
                f"a picture has the label {label!r}; expected the number of a class, an integer "
                f"from 0 to {classes - 1}"
            )


def _go_on(loop: _Loop, run: Run, state: dict[str, Any]) -> tuple[list[dict[str, Any]], float]:
    """Restore a loop from a saved state.

    Returns:
        The rows of the epochs so far, and the best score among them.

    Raises:
        TrainingError: The state belongs to another network or optimiser.
    """
    try:
        loop.load_state_dict(state["run"])
        best = max(loop.score(row) for row in state["rows"])
    except (KeyError, ValueError, RuntimeError):
        raise TrainingError(
            f"{run.folder} holds a run of another network or optimizer; choose another --out"
        ) from None
    rows = state["rows"]
    log.info("resuming after epoch %d of %d", len(rows), run.settings.epochs)
    return rows, best


def _log_row(row: dict[str, Any], epochs: int) -> None:
    """Print the results of an epoch."""
    log.info(
        "epoch %d of %d: loss %.4f, training accuracy %.4f; tuning loss %.4f, tuning "
        "accuracy %.4f; %.0f s",
        row["epoch"], epochs, row["loss"], row["training_top1"],
        row["tuning_loss"], row["tuning_top1"], row["seconds"],
    )  # fmt: skip


def _write_progress(loop: _Loop, run: Run, rows: list[dict[str, Any]]) -> None:
    """Write the rows so far, and the state for resuming."""
    settings, folder, epoch = run.settings, run.folder, len(rows)
    write_csv(folder / "results.csv", rows)
    log_epoch(folder, settings, epoch, rows[-1])
    state = {"epoch": epoch - 1, "epochs": settings.epochs, "rows": rows}
    state["settings"] = resumable(settings)
    save_state({**state, "run": loop.state_dict()}, folder / "state.pt")


@contextmanager
def processes(device: str) -> Iterator[tuple[int, int, torch.device]]:
    """Yield the number of this process, the number of processes of torchrun, and the device.

    Raises:
        TrainingError: Another process has stopped.
    """
    world = world_size()
    if world == 1:
        yield 0, 1, torch.device(device if device == "cpu" else f"cuda:{device}")
        return
    local = int(os.environ["LOCAL_RANK"])
    place = torch.device("cpu" if device == "cpu" else f"cuda:{device.split(',')[local]}")
    torch.distributed.init_process_group("gloo" if device == "cpu" else "nccl")
    try:
        yield torch.distributed.get_rank(), world, place
        torch.distributed.barrier()
    except RuntimeError as error:  # gloo has no type of its own, nccl has
        if "gloo" not in str(error) and not isinstance(error, torch.distributed.DistError):
            raise
        raise TrainingError(
            "another process of this training stopped; see its error message"
        ) from None
    finally:
        torch.distributed.destroy_process_group()


class _Loop:
    """The network, the optimiser and the schedule of a run."""

    def __init__(
        self,
        network: nn.Module,
        run: Run,
        rank: int,
        world: int,
        device: torch.device,
    ):
        settings, samples, description = run.settings, run.train, run.checkpoint.model
        teacher, distill, self.penalty = run.teacher, run.distill, run.penalty
        self.features = run.features
        if settings.batch % world:
            raise UsageError(
                f"a batch of {settings.batch} cannot be shared by {world} processes; expected a "
                f"multiple of {world}"
            )
        share = settings.batch // world
        self.settings, self.distill, self.device, self.rank = settings, distill, device, rank
        if settings.workers:
            samples.decode()
        kind, quality = settings.augment, settings.jpeg
        single, self.whole = augmentation(description, settings.imgsz, kind, quality)
        samples = samples.transformed(single)
        self.order: DistributedSampler[Any] = DistributedSampler(
            samples, world, rank, seed=settings.seed, drop_last=True
        )
        self.loader = DataLoader(
            samples,
            share,
            sampler=self.order,
            drop_last=True,
            num_workers=settings.workers,
            pin_memory=device.type == "cuda",
        )
        if not len(self.loader):
            raise TrainingError(
                f"{len(samples)} pictures do not fill a batch of {settings.batch}; use a smaller "
                "batch"
            )
        self.layout = layout(network)
        self.network = network.to(device).to(memory_format=self.layout)
        self.model: nn.Module = self.network
        if world > 1:
            ids = None if device.type == "cpu" else [device.index]
            self.model = nn.parallel.DistributedDataParallel(self.network, ids)
        self.teacher = None if teacher is None else teacher.to(device)
        groups = parameter_groups(network, settings.rate, settings.decay, settings.threshold_rate)
        self.optimizer = make_optimizer(settings.optimizer, groups)
        steps, warm = len(self.loader) * settings.epochs, len(self.loader) * settings.warmup
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: _rate(step, steps, warm, settings.final)
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            "n": self.network.state_dict(),
            "o": self.optimizer.state_dict(),
            "s": self.schedule.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["n"])
        restore_optimizer(self.optimizer, state["o"])
        self.schedule.load_state_dict(state["s"])
        now = self.schedule.lr_lambdas[0](self.schedule.last_epoch)
        self.schedule.base_lrs = [group["initial_lr"] for group in self.optimizer.param_groups]
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * now

    def score(self, row: dict[str, Any]) -> float:
        """The score of an epoch. Greater is better. With a penalty it is the epoch's number."""
        if self.penalty is not None:
            return row["epoch"]
        return row["tuning_top1"] if self.teacher is None else -row["tuning_loss"]

    @torch.no_grad()
    def judge(self, samples: Samples, description: dict[str, Any]) -> dict[str, float]:
        """The mean loss and the accuracy on tuning samples, in float32."""
        self.network.eval()
        sums, done = torch.zeros(2), 0
        for pictures in batches(samples, description, self.settings.imgsz, 250):
            labels = torch.tensor(samples.labels[done : done + len(pictures)], device=self.device)
            pictures = pictures.to(self.device).contiguous(memory_format=self.layout)
            wanted = None if self.teacher is None else self.teacher(pictures)
            logits = self.network(pictures).float()
            values = [self.loss(logits, wanted, labels), accuracy(logits, labels)]
            sums += len(labels) * torch.stack(values).cpu()
            done += len(labels)
        loss, right = (sums / done).tolist()
        return {"tuning_loss": loss, "tuning_top1": right}

    def loss(self, logits: Tensor, wanted: Tensor | None, labels: Tensor) -> Tensor:
        """Cross-entropy for pictures with labels, plus the distance to the teacher's logits."""
        loss = cross_entropy(logits, labels, self.settings.smoothing)
        if wanted is None:
            return loss
        return loss + self.distill * divergence(logits, wanted.float(), self.settings.temperature)

    @torch.no_grad()
    def _teach(self, pictures: Tensor) -> tuple[Tensor | None, dict[str, Tensor]]:
        """The logits and the activations of the teacher."""
        if self.features is not None:
            return self.features.teach(pictures)
        return None if self.teacher is None else self.teacher(pictures), {}

    def _penalty_counted(self) -> AbstractContextManager[list[Tensor]]:
        """Counts the operations of one run, if there is a penalty (see `StageOnePenalty`)."""
        return nullcontext([]) if self.penalty is None else self.penalty.counted()

    def epoch(self, number: int) -> dict[str, float]:
        """Train one epoch; returns mean loss, training accuracy, last learning rate, seconds."""
        start = time.time()
        sums = torch.zeros(2, device=self.device)  # read once: each time a GPU is waited for
        seed_epoch(self.settings.seed, number, self.rank)
        self.order.set_epoch(number)
        self.model.train()
        first, last = self.settings.grow_from, self.settings.imgsz
        side = growing_side(first, last, number / self.settings.epochs, STRIDE)
        for pictures, labels in self.loader:
            pictures = self.whole(pictures.to(self.device, non_blocking=True))
            pictures = resized(pictures, side).contiguous(memory_format=self.layout)
            labels = labels.to(self.device, non_blocking=True)
            with self._penalty_counted() as seen, mixed(self.device.type):
                with watched(self.features) as own:
                    logits = self.model(pictures)
                wanted, activations = self._teach(pictures)
            loss = self.loss(logits.float(), wanted, labels)
            if self.features is not None:
                loss = loss + self.features.loss(own, activations)
            self.optimizer.zero_grad()
            (loss if self.penalty is None else loss + self.penalty.of(seen)).backward()
            if self.settings.clip:
                nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip)
            self.optimizer.step()
            self.schedule.step()
            sums += torch.stack([loss.detach(), accuracy(logits, labels)])
        loss, right = (sums / len(self.loader)).tolist()
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss became {loss} in epoch {number + 1}; lower the learning rate, and "
                "continue from the epoch before with --resume"
            )
        rate = self.schedule.get_last_lr()[0]
        row = {"rate": rate, "loss": loss, "training_top1": right}
        if self.penalty is not None:
            row["operations"] = self.penalty.end_epoch()
        return row | {"seconds": time.time() - start}


def _rate(step: int, steps: int, warm: float, final: float) -> float:
    """The factor of the learning rate: linear warm-up, then a cosine down to `final`."""
    if step < warm:
        return (step + 1) / warm
    part = min(1.0, (step - warm) / max(1.0, steps - warm))
    return final + (1 - final) * 0.5 * (1 + float(torch.cos(torch.tensor(part * torch.pi))))
