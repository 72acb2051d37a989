"""How far a classifier's outputs are from its teacher's, and from labels not all pictures have."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from spikedet.classification.data import UNLABELLED


def divergence(student: Tensor, wanted: Tensor, temperature: float = 1.0) -> Tensor:
    """Kullback-Leibler divergence of found soft-max outputs from a teacher's, logits [B, C].

    Args:
        student: Logits of the student.
        wanted: Logits of the teacher.
        temperature: Both are divided by it and the divergence multiplied by its square (Hinton,
            Vinyals & Dean 2015): a sure teacher's small probabilities count more when it is higher.
    """
    student, wanted = ((logits / temperature).log_softmax(1) for logits in (student, wanted))
    apart = F.kl_div(student, wanted, reduction="batchmean", log_target=True)
    return apart * temperature**2


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean over the pictures that have labels, logits [B, C] and labels [B]; 0 where none has.

    Args:
        logits: Logits.
        labels: Number of the class, or `UNLABELLED`.
        smoothing: Of the labels.
    """
    total = F.cross_entropy(
        logits, labels, ignore_index=UNLABELLED, reduction="sum", label_smoothing=smoothing
    )
    return total / labelled(labels)


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of the pictures with labels whose class is right; 0 where none has."""
    return (logits.argmax(1) == labels).sum() / labelled(labels)


def labelled(labels: Tensor) -> Tensor:
    """How many pictures have labels, 1 at least."""
    return (labels != UNLABELLED).sum().clamp(min=1)
