"""Distillation: how far a classifier's outputs are from those of its teacher."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def divergence(found: Tensor, wanted: Tensor) -> Tensor:
    """Kullback-Leibler divergence of found soft-max outputs from a teacher's, logits [B, C]."""
    found, wanted = found.log_softmax(1), wanted.log_softmax(1)
    return F.kl_div(found, wanted, reduction="batchmean", log_target=True)
