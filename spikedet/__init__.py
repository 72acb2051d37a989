"""Object detection and classification with spiking neural networks.

import spikedet
snn = spikedet.convert(network, batches, T=8)      # any network of the operations that convert
y = snn(x)                                         # as the network returns it, mean over time
spikedet.save(snn, "own.safetensors")
snn = spikedet.load("own.safetensors")
detector = spikedet.load(T=8)                      # the released detector
spikedet.export(snn, "own.onnx")                   # for other programs
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from spikedet.checkpoint import Checkpoint
    from spikedet.classification.predict import Classifier
    from spikedet.conversion.convert import convert
    from spikedet.detection.boxes import Detections
    from spikedet.detection.predict import Predictor
    from spikedet.exporting import export
    from spikedet.runtime.file import save
    from spikedet.runtime.network import SpikingNetwork

__version__ = "0.2.0"
__all__ = ["Detections", "SpikingNetwork", "__version__", "convert", "export", "load", "save"]
# Where the names of the face live; torch is imported when one of them is asked for.
_HOMES = {
    "convert": "spikedet.conversion.convert",
    "export": "spikedet.exporting",
    "save": "spikedet.runtime.file",
    "SpikingNetwork": "spikedet.runtime.network",
    "Detections": "spikedet.detection.boxes",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'spikedet' has no attribute {name!r}")


def load(
    path: str | Path | None = None,
    T: int | None = None,
    device: str = "cpu",
    half: bool | None = None,
    task: str = "detection",
    engine: str = "auto",
) -> Predictor | Classifier | SpikingNetwork:
    """Load a detector, a classifier, or a spiking network of your own.

    Args:
        path: Weights of any stage; the released spiking network for T when None.
        T: Time steps used by default; those the weights were calibrated for when None.
        device: `cpu` or `cuda:N`.
        half: Let torch compute spiking layers in bfloat16 (True) or float32 (False). Either makes
            `auto` take torch. None: bfloat16 where torch runs a detector or classifier on a CPU
            that is fast at it.
        task: Of the released network: `detection`, or `classification` (CIFAR-10).
        engine: What runs a spiking network: `auto`, the fastest that this machine and this network
            allow; `torch`, the reference, which gives the numbers of the tables; `events`;
            `integers` (see `docs/engines.md`). `engine` of what is returned says which it is, and
            `why_engine` (of a `SpikingNetwork` `engine_reason`) why.

    Returns:
        A `Predictor` for weights of a detector. Call it with a picture, and get its `Detections`.
        For weights of a classifier a `Classifier`, which answers with `Classes`. For what
        `spikedet.save` wrote a `SpikingNetwork`.

    Raises:
        WeightsError: Missing, damaged or of another kind.
        UsageError: T is not a whole number of 1 or more, no such device is here, or no such
            engine, or it cannot run these weights.

    Examples:
        >>> detector = spikedet.load(T=20)
        >>> detections = detector("street.jpg")
        >>> list(zip(detections.classes, detections.scores, detections.boxes))
    """
    from pathlib import Path

    from spikedet.checkpoint import load as load_checkpoint
    from spikedet.counts import expect_counts
    from spikedet.released import default_weights

    expect_counts(T=T)
    path = Path(path) if path else default_weights(T, task)
    checkpoint = load_checkpoint(path)
    if checkpoint.task == "none":
        return _restored(checkpoint, T, device, half, engine)
    if checkpoint.task == "classification":
        from spikedet.classification.predict import Classifier

        return Classifier(path, T, device, half, engine)
    from spikedet.detection.predict import Predictor

    return Predictor(path, T, device, half, engine)


def _restored(
    checkpoint: Checkpoint, T: int | None, device: str, half: bool | None, engine: str
) -> SpikingNetwork:
    """What `save` wrote, on a device, run by an engine."""
    from spikedet.precision import present_device
    from spikedet.runtime.choose import choose_engine
    from spikedet.runtime.file import restore

    network = restore(checkpoint).to(present_device(device))
    network.T = network.T if T is None else T
    network.use_engine(engine) if half is None else choose_engine(network, engine, half)
    return network
