"""Object detection and classification with spiking neural networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from spikedet.classification.predict import Classifier
    from spikedet.detection.predict import Predictor

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(
    path: str | Path | None = None,
    T: int | None = None,
    device: str = "cpu",
    half: bool | None = None,
    task: str = "detection",
) -> Predictor | Classifier:
    """Load a detector or a classifier.

    Args:
        path: Weights of any stage; the released spiking network for T when None.
        T: Time steps used by default; those the weights were calibrated for when None.
        device: `cpu` or `cuda:N`.
        half: Compute spiking layers in bfloat16, twice as fast where a CPU supports it;
            None: there.
        task: Of the released network: `detection`, or `classification` (CIFAR-10).

    Returns:
        A `Predictor`: call it with a picture, get its `Detections`; for weights of a classifier a
        `Classifier`, which answers with `Classes`.

    Raises:
        WeightsError: Missing, damaged or of another kind.
        UsageError: T is not a whole number of 1 or more, or no such device is here.

    Example:
        >>> detector = spikedet.load(T=20)
        >>> found = detector("street.jpg")
        >>> list(zip(found.classes, found.scores, found.boxes))
    """
    from pathlib import Path

    from spikedet import checkpoint
    from spikedet.predictor import expect_counts
    from spikedet.released import default_weights

    expect_counts(T=T)
    path = Path(path) if path else default_weights(T, task)
    if checkpoint.load(path).task == "classification":
        from spikedet.classification.predict import Classifier

        return Classifier(path, T, device, half)
    from spikedet.detection.predict import Predictor

    return Predictor(path, T, device, half)
