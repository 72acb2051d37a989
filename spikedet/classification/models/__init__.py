"""Networks that classify, built from a description."""

from __future__ import annotations

from torch import nn

from spikedet.classification.models import resnet
from spikedet.errors import UsageError

NETWORKS = {"resnet20": resnet.resnet20}
NAMES = tuple(NETWORKS)


def build(description: dict, classes: int) -> nn.Module:
    """A network with fresh weights.

    Args:
        description: See `configs/models`.
        classes: Outputs.

    Raises:
        UsageError: The description names something that there is not.
    """
    arch = description.get("arch")
    if arch not in NETWORKS:
        raise UsageError(f"arch: {arch}; there are {', '.join(NAMES)}")
    return NETWORKS[arch](description.get("form", "cifar"), description.get("width", 1.0), classes)
