"""Stage I and stage II of the detector: what `conversion` needs, from checkpoints and VOC."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from spikedet.checkpoint import Checkpoint, save
from spikedet.conversion.calibrate import LayerReport, Options, calibrate
from spikedet.conversion.distill import distill
from spikedet.conversion.network import SpikingNetwork
from spikedet.conversion.normalize import channel_maxima
from spikedet.conversion.quantize import QuantClip
from spikedet.conversion.replace import estimate_thresholds, quantize
from spikedet.conversion.trace import trace
from spikedet.detection.data import Sample
from spikedet.detection.distillation import distillation_loss
from spikedet.detection.loader import augmented, batches, pick
from spikedet.detection.model import Detector, as_float, bare, prepare, restore, spike
from spikedet.detection.settings import Settings
from spikedet.errors import WeightsError

THRESHOLD_PICTURES = 64


def expect_stage(made: Checkpoint, *stages: str) -> None:
    """Refuse a checkpoint of another stage.

    Raises:
        WeightsError: Says what it is and what was expected.
    """
    if made.stage not in stages:
        raise WeightsError(
            f"these are {made.stage} weights; expected {' or '.join(stages)} weights"
        )


def guide_for(made: Checkpoint, teacher: Checkpoint) -> torch.nn.Module:
    """The network of a float checkpoint whose outputs one made from `made` shall come near to.

    Raises:
        WeightsError: It is not a float network, or its outputs mean something else.
    """
    expect_stage(teacher, "float")
    if teacher.names != made.names:
        raise WeightsError(
            f"the teacher knows {len(teacher.names)} classes, {', '.join(teacher.names[:3])}, ...; "
            f"expected the {len(made.names)} of the network that learns from it"
        )
    return restore(teacher).network


def quantized(
    made: Checkpoint,
    samples: Sequence[Sample],
    T: int,
    noise: float = 0.1,
    per_channel: bool = False,
) -> Detector:
    """A float checkpoint with quantise-clip activations, thresholds estimated on `samples`.

    Stage-I weights of another T keep their thresholds and only change their number of levels.

    Args:
        made: Float or stage-I checkpoint.
        samples: Where thresholds of a float network are estimated.
        T: Time steps.
        noise: Probability that an element is not quantised while training.
        per_channel: One threshold a channel instead of one a layer.

    Raises:
        WeightsError: Thresholds of each channel from stage-I weights that have one a layer.
    """
    expect_stage(made, "float", "qc")
    network = bare(made)
    if made.stage == "qc":
        scalar = any(t.ndim == 0 for k, t in made.tensors.items() if k.endswith(".threshold"))
        if per_channel and scalar:
            raise WeightsError(
                "these stage-I weights have one threshold a layer; for thresholds of each channel "
                "start from float weights"
            )
        for module in network.modules():
            if isinstance(module, QuantClip):
                module.steps, module.noise = T, noise
        return network
    example = torch.zeros(1, 3, 64, 64)
    prepare(network, example)
    record = trace(network, example)
    pictures = (b for b, _ in batches(pick(samples, THRESHOLD_PICTURES), made.imgsz, 8))
    thresholds = estimate_thresholds(network, record, pictures, T, per_channel=per_channel)
    quantize(network, record, thresholds, T, noise)
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
    per_channel: bool = False,
    teacher: Checkpoint | None = None,
    distill: float = 1.0,
    resume: bool = False,
    origin: dict[str, Any] | None = None,
) -> None:
    """Stage I (eq 12-15): train the quantised detector; writes best and last checkpoint to `out`.

    Args:
        made: Float checkpoint, or a stage-I checkpoint of another T to go on from.
        train: Samples to fit.
        tune: Samples that choose the best epoch.
        T: Time steps of the quantiser.
        out: Folder of the run.
        settings: How to train.
        noise: Probability that an element is not quantised while training.
        per_channel: One threshold a channel instead of one a layer.
        teacher: Float checkpoint to distil from; `made` itself when it is a float one.
        distill: Weight of the distillation beside the detection loss, 0 for none.
        resume: Go on with the run in `out`.
        origin: Put into the checkpoints.
    """
    from spikedet.detection.train import Trainer

    network = quantized(made, train, T, noise, per_channel)
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

    if teacher is None and made.stage == "float":
        teacher = made
    guide = guide_for(made, teacher) if teacher is not None and distill else None
    names = made.names
    Trainer(network, train, tune, names, out, settings, write, resume, guide, distill).train()


@dataclass
class Plan:
    """How much stage II does to a detector.

    Attributes:
        layers: Layer-wise calibration.
        pictures, held: Training pictures to fit, and others to judge each layer by.
        batch: Pictures that go through a layer at once.
        end_to_end: Steps of the end-to-end pass, 0 for none.
        end_batch: Pictures a step of it.
        end_rate: Its relative learning rate.
        truth: Weight of the detection loss on the annotated boxes beside the distillation.
        seed: Which pictures are drawn.
    """

    layers: Options = field(default_factory=Options)
    pictures: int = 256
    held: int = 64
    batch: int = 8
    end_to_end: int = 400
    end_batch: int = 8
    end_rate: float = 4e-3
    truth: float = 1.0
    seed: int = 0


def copied(made: Checkpoint) -> Detector:
    """Spiking network with the weights and thresholds of stage I, nothing calibrated."""
    expect_stage(made, "qc")
    network = bare(made)
    spike(network, made)
    return network.to(memory_format=torch.channels_last)


def untuned(
    made: Checkpoint, samples: Sequence[Sample], T: int, per_channel: bool = False
) -> Checkpoint:
    """A stage-I checkpoint without stage I: float weights, thresholds from pictures.

    Its spiking copy is the simplest conversion ("copied weights").
    """
    state = quantized(made, samples, T, per_channel=per_channel).state_dict()
    return Checkpoint("qc", "detection", made.model, made.names, made.imgsz, state, T, {})


def spiking_yolo(
    made: Checkpoint, samples: Sequence[Sample], T: int, origin: dict[str, Any]
) -> Checkpoint:
    """The Spiking-YOLO baseline: channel-wise normalisation, potentials that start at zero.

    Args:
        made: Float checkpoint.
        samples: Training samples that the channels' maxima are taken from.
        T: Time steps.
        origin: Put into the checkpoint.
    """
    expect_stage(made, "float")
    network, example = bare(made), torch.zeros(1, 3, 64, 64)
    prepare(network, example)
    record = trace(network, example)
    pictures = (b for b, _ in batches(pick(samples, THRESHOLD_PICTURES), made.imgsz, 8))
    quantize(network, record, channel_maxima(network, record, pictures), T)
    spike(network, made, initial=0.0)
    return spiking_checkpoint(replace(made, T=T), network, origin)


def layer_wise(
    made: Checkpoint,
    network: Detector,
    samples: Sequence[Sample],
    plan: Plan,
    report: Callable[[LayerReport, int, int], None] | None = None,
) -> list[LayerReport]:
    """Stage II, layer by layer (eq 16-21), in place.

    Args:
        made: Stage-I checkpoint.
        network: The spiking network made from it.
        samples: Training samples.
        plan: How much is done.
        report: Called after each layer.
    """
    chosen = pick(samples, plan.pictures + plan.held, plan.seed)
    pictures = [
        batch.contiguous(memory_format=torch.channels_last)
        for batch, _ in batches(chosen, made.imgsz, plan.batch)
        if len(batch) == plan.batch
    ]
    held = max(1, round(len(pictures) * plan.held / (plan.pictures + plan.held)))
    quantised = bare(made).to(memory_format=torch.channels_last)
    return calibrate(
        quantised, network, pictures[:-held], pictures[-held:], made.T, plan.layers, report
    )


def end_to_end(
    made: Checkpoint,
    network: Detector,
    samples: Sequence[Sample],
    plan: Plan,
    teacher: Checkpoint | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> None:
    """Distil a teacher into the spiking network, whole, in place.

    Args:
        made: Stage-I checkpoint that the spiking network was made from.
        network: The calibrated spiking network.
        samples: Training samples, augmented by scale, shift and mirror.
        plan: How much is done.
        teacher: Float checkpoint; the stage-I network teaches when None.
        on_step: Called with the step and its loss.
    """
    guide = restore(made).network if teacher is None else guide_for(made, teacher)
    spiking = SpikingNetwork(network, made.T, chunk=plan.end_batch * made.T)
    network.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5)

    def loss(batch: dict[str, Any]) -> Tensor:
        pictures = batch["img"].contiguous(memory_format=torch.channels_last)
        with torch.autocast(pictures.device.type, torch.bfloat16):
            with torch.no_grad():
                wanted = guide(pictures)
            found = spiking(pictures)
        wanted, found = as_float(wanted), as_float(found)
        total = distillation_loss(found, wanted)
        if plan.truth:
            total = total + plan.truth * network.loss(batch, found)[0].sum() / len(pictures)
        return total

    distill(
        spiking,
        augmented(samples, made.imgsz, plan.end_batch, plan.seed),
        loss,
        steps=plan.end_to_end,
        rate=plan.end_rate,
        on_step=on_step,
    )


def spiking_checkpoint(made: Checkpoint, network: Detector, origin: dict[str, Any]) -> Checkpoint:
    """A checkpoint of the spiking network that was made from a stage-I checkpoint."""
    state = network.state_dict()
    return Checkpoint("snn", "detection", made.model, made.names, made.imgsz, state, made.T, origin)


def finished(folder: Path, resume: bool) -> bool:
    """Whether the stage-I run in `folder` has done all its epochs (only asked when resuming)."""
    from spikedet.detection.train import epochs_done

    if not resume:
        return False
    done, wanted = epochs_done(folder)
    return done == wanted > 0
