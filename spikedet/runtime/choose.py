"""Which engine runs a network that was loaded."""

from __future__ import annotations

from torch import nn

from spikedet.engines.registry import AUTO, TORCH, expect_engine
from spikedet.errors import UsageError
from spikedet.precision import device_of, has_bfloat16
from spikedet.runtime.network import SpikingNetwork


def choose_engine(network: nn.Module, engine: str = AUTO, half: bool | None = None) -> str:
    """Let an engine run a network of any stage, where it is now; call it once it is there.

    Args:
        network: A `SpikingNetwork`; a float or quantised network, which torch alone runs.
        engine: A name of `engines.registry.names()`. `auto` takes the fastest that the machine and
            the network allow. Tables of reference numbers are made with `torch`.
        half: What the torch engine computes spiking layers in: bfloat16 or float32. Asking for
            either makes `auto` take torch. None: bfloat16 where torch runs a network on a CPU that
            is fast at it.

    Returns:
        Which engine, and why, in one sentence.

    Raises:
        UsageError: No such engine, it cannot run this network or on this machine, or it computes
            in neither bfloat16 nor float32.
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
        fast = device_of(network).type == "cpu" and has_bfloat16()
        if fast if half is None else half:
            network.use_bfloat16()
            sentence += ", spiking layers in bfloat16"
    return sentence
