"""Object detection and classification with spiking neural networks.

import spikedet
snn = spikedet.convert(network, batches, T=8)      # a PyTorch network of supported operations
y = snn(x)                                         # same structure as network(x), mean over time
spikedet.save(snn, "own.safetensors")
snn = spikedet.load("own.safetensors")
detector = spikedet.load(T=8)                      # the released detector for T = 8
spikedet.export(snn, "own.onnx")                   # a file for other programs
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
# The module of each public name. torch is imported only when a name is first used.
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
        path: Checkpoint of any stage, or the name of released weights (`tiny-yolo-s-float`; all
            names are in `weights/README.md`). None: the released spiking network for T.
        T: Default number of time steps. None: the T that the weights were calibrated for.
        device: `cpu` or `cuda:N`.
        half: True: torch computes the spiking layers in bfloat16. False: in float32. With either
            value, `auto` chooses the torch engine. None: if torch runs a detector or classifier on
            a CPU, it uses bfloat16 where the CPU is fast at it.
        task: Task of the released network: `detection`, or `classification` (CIFAR-10). Used only
            if `path` is None.
        engine: Engine for a spiking network. `auto` is the fastest engine that works on this
            machine and for this network. `torch` is the reference and gives the numbers of the
            tables. The others are `events` and `integers` (see `docs/engines.md`). The attribute
            `engine` of the returned object names the engine. The reason is in `why_engine`, or in
            `engine_reason` of a `SpikingNetwork`.

    Returns:
        For weights of a detector: a `Predictor`. Call it with a picture to get `Detections`.
        For weights of a classifier: a `Classifier`. Call it with a picture to get `Classes`.
        For a file of `spikedet.save`: a `SpikingNetwork`.

    Raises:
        WeightsError: The file is missing, damaged, or not a checkpoint of spikedet.
        UsageError: T is not an integer from 1 to 10,000, the device or the engine does not exist,
            or the engine cannot run these weights.

    Examples:
        >>> detector = spikedet.load(T=20)
        >>> detections = detector("street.jpg")
        >>> list(zip(detections.classes, detections.scores, detections.boxes))
    """
    from spikedet import resources
    from spikedet.checkpoint import load as load_checkpoint
    from spikedet.counts import expect_steps
    from spikedet.released import default_weights

    expect_steps(T, optional=True)
    path = resources.weights(path) if path else default_weights(T, task)
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
    """Restore a network that `save` wrote; choose its device and its engine."""
    from spikedet.precision import present_device
    from spikedet.runtime.choose import choose_engine
    from spikedet.runtime.file import restore

    network = restore(checkpoint).to(present_device(device))
    network.T = network.T if T is None else T
    network.use_engine(engine) if half is None else choose_engine(network, engine, half)
    return network
