"""The distillation loss of detectors: the distance to the raw outputs of a teacher."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def distillation_loss(outputs: dict[str, Tensor], wanted: dict[str, Tensor]) -> Tensor:
    """Compute the distance of raw head outputs to those of a teacher.

    The class scores use binary cross-entropy. The box edges use the Kullback-Leibler divergence of
    each edge's distribution; each anchor is weighted by the teacher's best score. The two terms
    have the weights of the detection loss.

    Args:
        outputs: `boxes` [B, 4 R, A] and `scores` [B, C, A], logits.
        wanted: The same outputs of the teacher.
    """
    score = wanted["scores"].sigmoid()
    weight = score.amax(1)  # [B, A]
    mass = weight.sum().clamp(min=1)
    classes = F.binary_cross_entropy_with_logits(outputs["scores"], score, reduction="sum")
    entropy = F.binary_cross_entropy_with_logits(wanted["scores"], score, reduction="sum")
    own, edges = (x["boxes"].unflatten(1, (4, -1)).log_softmax(2) for x in (outputs, wanted))
    apart = F.kl_div(own, edges, reduction="none", log_target=True).sum((1, 2))  # [B, A]
    return (classes - entropy) / mass + (apart * weight).sum() / mass
