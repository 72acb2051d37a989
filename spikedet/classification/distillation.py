"""Losses of classifiers: distance to a teacher, and to labels that some pictures do not have."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from spikedet.classification.data import UNLABELLED


def divergence(student: Tensor, wanted: Tensor, temperature: float = 1.0) -> Tensor:
    """The Kullback-Leibler divergence between the soft-max outputs of a student and of a teacher.

    Args:
        student: Logits of the student, [B, C].
        wanted: Logits of the teacher, [B, C].
        temperature: The logits are divided by it, and the divergence is multiplied by its square
            (Hinton, Vinyals & Dean 2015). With a higher temperature, the small probabilities of the
            teacher count more.
    """
    student, wanted = ((logits / temperature).log_softmax(1) for logits in (student, wanted))
    apart = F.kl_div(student, wanted, reduction="batchmean", log_target=True)
    return apart * temperature**2


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """The mean cross-entropy over the pictures with labels; 0 if no picture has a label.

    Args:
        logits: [B, C].
        labels: [B], class numbers or `UNLABELLED`.
        smoothing: Label smoothing.
    """
    total = F.cross_entropy(
        logits, labels, ignore_index=UNLABELLED, reduction="sum", label_smoothing=smoothing
    )
    return total / labelled(labels)


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """The share of correct pictures among those with labels; 0 if no picture has a label."""
    return (logits.argmax(1) == labels).sum() / labelled(labels)


def labelled(labels: Tensor) -> Tensor:
    """The number of pictures with labels, but at least 1."""
    return (labels != UNLABELLED).sum().clamp(min=1)
