"""Stage I and stage II of the detector: what `conversion` needs, fetched from checkpoints and VOC."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from spikedet.checkpoint import Checkpoint, save
from spikedet.conversion.replace import estimate_thresholds, quantize
from spikedet.conversion.trace import trace
from spikedet.detection.data import Sample
from spikedet.detection.loader import batches, pick
from spikedet.detection.model import Detector, bare, prepare
from spikedet.detection.settings import Settings
from spikedet.errors import WeightsError

THRESHOLD_PICTURES = 64


def expect_stage(made: Checkpoint, *stages: str) -> None:
    """Refuse a checkpoint of another stage.

    Raises:
        WeightsError: Says what it is and what was expected.
    """
    if made.stage not in stages:
        raise WeightsError(f"these are {made.stage} weights; expected {' or '.join(stages)} weights")


def quantized(
    made: Checkpoint, samples: Sequence[Sample], T: int, noise: float = 0.1
) -> Detector:
    """A float checkpoint with quantise-clip activations, thresholds estimated on `samples`."""
    expect_stage(made, "float")
    network = bare(made)
    example = torch.zeros(1, 3, 64, 64)
    prepare(network, example)
    record = trace(network, example)
    pictures = (b for b, _ in batches(pick(samples, THRESHOLD_PICTURES), made.imgsz, 8))
    quantize(network, record, estimate_thresholds(network, record, pictures, T), T, noise)
    return network


def finetune(
    made: Checkpoint,
    train: list[Sample],
    tune: list[Sample],
    T: int,
    out: Path,
    settings: Settings,
    *,
    noise: float = 0.1,
    resume: bool = False,
    origin: dict[str, Any] | None = None,
) -> None:
    """Stage I (eq 12-15): train the quantised detector; writes best and last checkpoint to `out`.

    Args:
        made: Float checkpoint.
        train, tune: Samples to fit, samples that choose the best epoch.
        T: Time steps of the quantiser.
        out: Folder of the run.
        settings: How to train.
        noise: Probability that an element is not quantised while training.
        resume: Go on with the run in `out`.
        origin: Put into the checkpoints.
    """
    from spikedet.detection.train import Trainer

    network = quantized(made, train, T, noise)
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    network.train()

    def write(averaged: torch.nn.Module, path: Path) -> None:
        tensors = averaged.state_dict()
        save(
            Checkpoint(
                "qc", "detection", made.model, made.names, made.imgsz, tensors, T, origin or {}
            ),
            path,
        )

    Trainer(network, train, tune, made.names, out, settings, write, resume).train()
