"""Distillation: how far a classifier's outputs are from those of its teacher."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def divergence(found: Tensor, wanted: Tensor, temperature: float = 1.0) -> Tensor:
    """Kullback-Leibler divergence of found soft-max outputs from a teacher's, logits [B, C].

    Args:
        found: Logits of the student.
        wanted: Logits of the teacher.
        temperature: Both are divided by it and the divergence multiplied by its square (Hinton,
            Vinyals & Dean 2015): a sure teacher's small probabilities count more when it is higher.
    """
    found, wanted = ((logits / temperature).log_softmax(1) for logits in (found, wanted))
    apart = F.kl_div(found, wanted, reduction="batchmean", log_target=True)
    return apart * temperature**2
