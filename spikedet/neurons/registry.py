"""Neurons by name, so that methods, files and `spikedet.convert` find them."""

from __future__ import annotations

from spikedet.errors import UsageError, among
from spikedet.neurons.layers import IFNeuron

NEURONS: dict[str, type[IFNeuron]] = {"neuron": IFNeuron}


def register(name: str, neuron: type[IFNeuron]) -> None:
    """Let graphs, files and `spikedet.convert(..., neuron=name)` know one more neuron.

    Args:
        name: As files have it.
        neuron: A subclass of `IFNeuron` with the same arguments, whose `fire` is another one.

    Raises:
        ValueError: The name or the class is there already, or it is no such subclass.
    """
    if name in NEURONS or neuron in NEURONS.values():
        raise ValueError(f"a neuron {name} ({neuron.__name__}) is registered already")
    if not issubclass(neuron, IFNeuron):
        raise ValueError(f"{neuron.__name__} is no IFNeuron")
    NEURONS[name] = neuron


def named(name: str) -> type[IFNeuron]:
    """A neuron by its name.

    Raises:
        UsageError: There is none; names those that there are.
    """
    if name not in NEURONS:
        raise UsageError(f"neuron {name!r}; expected one of {among(name, NEURONS)}")
    return NEURONS[name]
