"""A registry of neurons by name, for methods, files and `spikedet.convert`."""

from __future__ import annotations

from spikedet.errors import UsageError, list_choices
from spikedet.neurons.correcting import CorrectingNeuron
from spikedet.neurons.layers import IFNeuron

NEURONS: dict[str, type[IFNeuron]] = {"neuron": IFNeuron, "correcting": CorrectingNeuron}


def register(name: str, neuron: type[IFNeuron]) -> None:
    """Register a neuron for graphs, files and `spikedet.convert(..., neuron=name)`.

    Args:
        name: Name of the neuron, which is also stored in files.
        neuron: A subclass of `IFNeuron` with the same arguments and its own `fire`. Further
            arguments have defaults and are named in `LATER_SETTINGS`.

    Raises:
        ValueError: The name or the class is registered already, or the class is not a subclass of
            `IFNeuron`.
    """
    if name in NEURONS or neuron in NEURONS.values():
        raise ValueError(f"a neuron {name} ({neuron.__name__}) is registered already")
    if not issubclass(neuron, IFNeuron):
        raise ValueError(f"{neuron.__name__} is no IFNeuron")
    NEURONS[name] = neuron


def named(name: str) -> type[IFNeuron]:
    """Return the neuron class with this name.

    Raises:
        UsageError: There is no such neuron. The message lists the known names.
    """
    if name not in NEURONS:
        raise UsageError(f"neuron {name!r}; expected one of {list_choices(name, NEURONS)}")
    return NEURONS[name]
