"""Which engine runs a network that was loaded."""

from __future__ import annotations

from torch import nn

from spikedet.engines.registry import AUTO, TORCH, expect_engine
from spikedet.errors import UsageError
from spikedet.precision import device_of, fast_bfloat16
from spikedet.runtime.network import SpikingNetwork


def choose_engine(network: nn.Module, engine: str = AUTO, half: bool | None = None) -> str:
    """Let an engine run a network of any stage, where it is now; call it once it is there.

    Args:
        network: A `SpikingNetwork`; a float or quantised network, which torch alone runs.
        engine: A name of `engines.registry.names()`. `auto` takes the fastest that the machine and
            the network allow. Tables of reference numbers are made with `torch`.
        half: True: torch computes the spiking layers in bfloat16. False: in float32. With either
            value, `auto` chooses torch. None: bfloat16 if torch runs the network on a CPU that is
            fast at it.

    Returns:
        One sentence: the name of the engine, and how it computes or why it was chosen.

    Raises:
        UsageError: The engine does not exist, it cannot run this network or on this machine, or
            `half` is set for an engine that computes with integers.
    """
    expect_engine(engine)
    if half is not None and engine == AUTO:
        engine = TORCH
    if half and engine != TORCH:
        raise UsageError(f"the {engine} engine computes with integers; leave half out")
    if not isinstance(network, SpikingNetwork):
        if engine not in (AUTO, TORCH):
            raise UsageError(
                f"the {engine} engine runs spiking weights only; these weights are not spiking"
            )
        return f"{TORCH}: the network is not spiking"
    sentence = network.use_engine(engine)
    if network.engine == TORCH:
        fast = device_of(network).type == "cpu" and fast_bfloat16()
        if fast if half is None else half:
            network.use_bfloat16()
            sentence += ", spiking layers in bfloat16"
    return sentence
