"""Train detectors with the training loop, augmentation and loss of ultralytics.

Our own parts are: the samples, the choice of the best epoch on tuning pictures, safe checkpoints, a
float32 state file with everything that a resumed run needs, and the speed on a CPU (bfloat16,
channels-last, a loader process beside the network).
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from spikedet.conversion.features import taught
from spikedet.detection.assign import expect_places, multiple_of
from spikedet.detection.data import Sample
from spikedet.detection.dataset import SampleDataset
from spikedet.detection.defaults import MOST
from spikedet.detection.model import Detector, GraphDetector
from spikedet.detection.parts import Parts
from spikedet.detection.ultra import DetectionTrainer, show_progress
from spikedet.errors import DataError, TrainingError, UsageError
from spikedet.files import naming, write_atomic
from spikedet.precision import as_float, layout, mixed
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
from spikedet.training.seeds import seed_epoch, seed_of
from spikedet.training.sides import expect_growth, growing_side, resized

log = logging.getLogger(__name__)


def expect_objects(run: Run) -> None:
    """Check that there is something to learn. A warning says if there is nothing to choose by.

    Raises:
        DataError: The training pictures have no objects.
    """
    if not any(len(sample.labels) for sample in run.train):
        raise DataError(
            f"no objects in {len(run.train)} training pictures; expected annotations of some"
        )
    if not any(len(sample.labels) for sample in run.tune):
        log.warning(
            "no objects in %d tuning pictures, so the best epoch cannot be chosen by them",
            len(run.tune),
        )


class Trainer(DetectionTrainer):
    """Train a network in place.

    Args:
        network: The network. Its activations may be quantisers.
        run: The run. Its folder gets `results.csv`, curves, `state.pt`, `last.safetensors` after
            every epoch, and `best.safetensors` if the tuning AP is the best so far. If it has a
            teacher, the raw outputs of the teacher are distilled.

    Raises:
        DataError: The training pictures have no objects.
        TrainingError, UsageError: The run cannot start, or its settings do not fit.
    """

    def __init__(self, network: Detector | GraphDetector, run: Run):
        settings, folder, resume = run.settings, run.folder, run.resume
        self.teacher, self.distill, self.penalty = run.teacher, run.distill, run.penalty
        self.features = run.features
        self.network, self.names = network, run.checkpoint.names
        self.samples = {"train": list(run.train), "val": list(run.tune)}
        self.settings, self.save_weights = settings, run.write
        expect_objects(run)
        expect_possible(settings)
        if settings.device == "cpu" and world_size() > 1:
            raise UsageError("a detector is trained on CPUs in one process; leave torchrun out")
        if settings.device != "cpu" and settings.parts > 1:
            raise UsageError("parts of a batch are for CPUs only; leave parts out")
        multiple = multiple_of(network.stride.tolist())
        expect_growth("the training", settings.grow_from, settings.imgsz, multiple)
        expect_places(network.stride.tolist(), settings.grow_from or settings.imgsz)
        show_progress()
        self.state_path = Path(folder) / "state.pt"
        expect_fresh(folder, resume)
        self.take_up = resume
        threads = torch.get_num_threads()
        super().__init__(overrides=self._overrides(Path(folder)))
        torch.set_num_threads(threads)  # it leaves one core idle, all but one of two
        self.args.workers = settings.workers  # it sets 0 on CPUs
        self.args.resume = False

    def train(self) -> None:
        """Run the training. The threads of torch are divided among the parts of a batch.

        Raises:
            TrainingError: The run cannot be resumed or continued, or another process trains in the
                folder.
        """
        folder = self.state_path.parent
        if self.take_up and is_complete(folder, self.settings):
            return
        threads = torch.get_num_threads()
        head: Any = self.network.model[-1]
        raw = getattr(head, "raw", False)
        torch.set_num_threads(max(1, threads // self.settings.parts))
        head.raw = False  # ultralytics measures decoded outputs
        try:
            with own_run(folder):
                super().train()
        finally:
            torch.set_num_threads(threads)
            head.raw = raw

    def check_resume(self, overrides: dict[str, Any]) -> None:
        """Keep the existing log. `_setup_train` decides what to do with it."""
        self.args.resume, self.resume = True, False

    def _overrides(self, folder: Path) -> dict[str, Any]:
        s = self.settings
        return {
            "task": "detect",
            "mode": "train",
            "model": "unused.yaml",
            "data": "unused.yaml",
            "project": str(folder.resolve().parent),
            "name": folder.name,
            "exist_ok": True,
            "epochs": s.epochs,
            "imgsz": s.imgsz,
            "batch": s.batch,
            "nbs": s.batch,
            "optimizer": s.optimizer,
            "lr0": s.rate,
            "lrf": s.final,
            "cos_lr": True,
            "weight_decay": s.decay,
            "warmup_epochs": s.warmup,
            "warmup_bias_lr": 0.0,
            "close_mosaic": s.close_mosaic,
            "mosaic": s.mosaic,
            "mixup": s.mixup,
            "scale": s.scale,
            "translate": s.translate,
            "cache": "ram" if s.cache else False,
            "seed": s.seed,
            "deterministic": False,
            "device": s.device,
            "amp": s.device != "cpu",
            "plots": False,
            "patience": 0,
            "workers": s.workers,
            "max_det": MOST,
        }

    # ------------------------------------------------------------------ what ultralytics asks for

    def get_dataset(self) -> dict[str, Any]:
        return {
            "train": self.samples["train"],
            "val": self.samples["val"],
            "nc": len(self.names),
            "names": dict(enumerate(self.names)),
            "channels": 3,
        }

    def build_dataset(self, img_path: list[Sample], mode: str = "train", batch: int | None = None):
        return SampleDataset(
            img_path,
            imgsz=self.args.imgsz,
            cache=self.args.cache or None,
            augment=mode == "train",
            hyp=self.args,
            rect=False,
            batch_size=batch,
            stride=int(self.stride),
            pad=0.0 if mode == "train" else 0.5,
            data=self.data,
        )

    def setup_model(self) -> None:
        self.model = self.network
        self.network.by_size = self.settings.by_size
        if self.teacher is not None:
            self.teacher.to(self.device)
        if self.device.type == "cpu":
            self.model.to(memory_format=layout(self.model))

    def build_optimizer(self, model, name="SGD", lr=0.01, momentum=0.9, decay=0.0, iterations=0):
        """Make the optimiser. Only convolution weights decay; thresholds have their own rate."""
        groups = parameter_groups(model, lr, decay, self.settings.threshold_rate)
        return make_optimizer(name, groups, momentum)

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        batch["img"] = resized(batch["img"], self.side(self.epoch))  # while they are bytes
        batch = super().preprocess_batch(batch)
        if self.teacher is not None:
            batch["teacher"] = self._teach, self.distill
        return batch

    @torch.no_grad()
    def _teach(self, pictures: torch.Tensor) -> tuple[dict[str, torch.Tensor], dict]:
        """Raw outputs and activations of the teacher, on CPUs in the precision of the network."""
        assert self.teacher is not None
        on_cpu = pictures.device.type == "cpu"
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        with mixed("cpu", on_cpu):
            outputs, activations = taught(self.features, self.teacher, pictures)
        return as_float(outputs), activations

    def side(self, epoch: int) -> int:
        """The input side in pixels in an epoch (see `multiple_of`)."""
        first, multiple = self.settings.grow_from, multiple_of(self.network.stride.tolist())
        return growing_side(first, self.args.imgsz, epoch / self.epochs, multiple)

    def _setup_train(self) -> None:
        super()._setup_train()
        self.ema.decay = _ramp(self.settings.ema_tau)
        if self.settings.parts > 1:  # not before the average was copied: threads cannot be
            self.network.parts = Parts(self.settings.parts)
        self.network.penalty, self.network.features = self.penalty, self.features
        rank = int(os.environ.get("RANK", 0))
        if not self.start_epoch and not rank:
            self.csv.unlink(missing_ok=True)
            begin(self.state_path.parent, self.settings)

        def draw_anew(running: Trainer) -> None:
            """Seed the loader, so that a resumed run sees the same pictures as without a stop."""
            seed = seed_of(running.settings.seed, running.epoch, rank)
            running.train_loader.generator.manual_seed(seed)
            running.train_loader.reset()
            running.train_loader.dataset.forget_recent()
            seed_epoch(running.settings.seed, running.epoch, rank)

        self.add_callback("on_train_epoch_start", draw_anew)

    def _build_train_pipeline(self) -> None:
        """Like ultralytics, but never reduce the batch size if the memory is too small."""
        if self.batch_size != self.settings.batch:
            raise TrainingError(
                f"the memory of {self.args.device} is too small for a batch of "
                f"{self.settings.batch}; use a smaller batch"
            )
        try:
            super()._build_train_pipeline()
        except ValueError as error:  # a last batch of one picture, of which no norm has a variance
            raise TrainingError(f"{error}") from None

    # ------------------------------------------------------------------ checkpoints

    def save_metrics(self, metrics: dict[str, Any]) -> None:
        """Write a row of the log. An error, such as a full disk, names the file."""
        if self.penalty is not None:
            metrics = {**metrics, "operations": self.penalty.end_epoch()}
        with naming(self.csv):
            super().save_metrics(metrics)
        log_epoch(self.save_dir, self.settings, self.epoch + 1, metrics)

    def save_model(self) -> bool:
        """Write the averaged weights and the state file for resuming, after each epoch."""
        network = self.ema.ema
        self.save_weights(network, self.save_dir / "last.safetensors")
        if self.best_fitness == self.fitness or self.penalty is not None:
            self.save_weights(network, self.save_dir / "best.safetensors")
        state = {
            "epoch": self.epoch,
            "epochs": self.epochs,
            "settings": resumable(self.settings),
            "best_fitness": float(self.best_fitness),
            "model": _plain(self.model).state_dict(),
            "ema": network.state_dict(),
            "updates": self.ema.updates,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "results": self.csv.read_text(),
        }
        save_state(state, self.state_path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.plot_metrics()
        return True

    def resume_training(self, ckpt: Any) -> None:
        if not self.take_up:
            return
        state = load_state(self.state_path, self.settings)
        if state is None:  # it begins
            return
        try:
            _plain(self.model).load_state_dict(state["model"])
            self.ema.ema.load_state_dict(state["ema"])
            self.ema.updates = state["updates"]
            restore_optimizer(self.optimizer, state["optimizer"])
            if state["scaler"]:  # that of a run on a CPU is empty
                self.scaler.load_state_dict(state["scaler"])
            self.best_fitness = state["best_fitness"]
        except (KeyError, ValueError, RuntimeError):
            raise TrainingError(
                f"{self.state_path.parent} holds a run of another network or optimizer; choose "
                "another --out"
            ) from None
        self.start_epoch = state["epoch"] + 1
        if "results" in state:  # without the row of an epoch whose end it did not see
            write_atomic(self.csv, state["results"].encode())
        log.info("resuming after epoch %d of %d", self.start_epoch, self.epochs)

    def _handle_nan_recovery(self, epoch: int) -> bool:
        if self.loss is not None and not self.loss.isfinite():
            raise TrainingError(
                f"the loss became {self.loss.item()} in epoch {epoch + 1}; lower the learning "
                "rate, and continue from the epoch before with --resume"
            )
        return False

    def final_eval(self) -> None:
        """Do nothing: each epoch was already measured on the tuning pictures."""


def _plain(network: nn.Module) -> nn.Module:
    """The network inside a DistributedDataParallel wrapper."""
    return network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network


def _ramp(tau: float) -> Callable[[int], float]:
    """The decay of the moving average: small at first, 0.9999 in the end, like in ultralytics.

    With tau = 0 there is no average.
    """
    return lambda updates: 0.9999 * (1 - np.exp(-updates / tau)) if tau else 0.0
