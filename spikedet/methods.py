"""The conversion methods. This module imports nothing large, so that commands can list them.

A method is an entry of `METHODS`. Commands and `spikedet.convert` read this table. `register` adds
another method; see `docs/extending.md`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from spikedet.errors import UsageError, list_choices


@dataclass(frozen=True)
class Method:
    """A conversion method, from a float network to a spiking one.

    Attributes:
        label: Name in tables.
        finetuned: Run stage I (quantise-clip fine-tuning). If False, thresholds are only estimated.
        coarse, fine: Run coarse and fine calibration, the parts of layer-wise stage II.
        end_to_end: Run the end-to-end pass after the layer-wise calibration.
        plain: Train stage I like QCFS: no quantisation noise, no distillation, and its gradient.
        thresholds: Rule for the thresholds of a float network: `least-error` (of the quantisation),
            `largest` (activation of a layer), `channels` (almost the largest activation of each
            channel), or a function (graph, batches, T) that returns thresholds by the name of the
            activation.
        initial: Initial potential in units of the threshold.
        shift: Add a constant current of theta / (2 T) in every step. Do not use it together with
            initial = 1/2, which has the same effect.
        bias: Run layer-wise bias correction instead of stage II.
    """

    label: str
    finetuned: bool
    coarse: bool = False
    fine: bool = False
    end_to_end: bool = False
    plain: bool = False
    thresholds: str | Callable[..., Any] = "least-error"
    initial: float = 0.5
    shift: bool = False
    bias: bool = False

    @property
    def calibrated(self) -> bool:
        """Whether any layers are calibrated on pictures."""
        return self.coarse or self.fine or self.bias


METHODS = {
    "copy": Method("copied weights", finetuned=False),
    "stage1": Method("stage I alone", finetuned=True),
    "stage2": Method("stage II alone", finetuned=False, coarse=True, fine=True),
    "stage1-coarse": Method("stage I + coarse", finetuned=True, coarse=True),
    "stage1-fine": Method("stage I + fine", finetuned=True, fine=True),
    "two-stage": Method("stages I + II", finetuned=True, coarse=True, fine=True, end_to_end=True),
    "rmp": Method("RMP", finetuned=False, thresholds="largest", initial=0.0),
    "opt": Method("OPT", finetuned=False, thresholds="largest", initial=0.0, shift=True),
    "opi": Method("OPI", finetuned=False, thresholds="largest"),
    "spiking-yolo": Method("Spiking-YOLO", finetuned=False, thresholds="channels", initial=0.0),
    "qcfs": Method("QCFS", finetuned=True, plain=True),
    "cap": Method("CAP", finetuned=False, initial=0.0, shift=True, bias=True),
}


def register(name: str, method: Method) -> None:
    """Register a method for commands and `spikedet.convert`.

    Raises:
        ValueError: The name is registered already.
    """
    if name in METHODS:
        raise ValueError(f"a method {name} is registered already")
    METHODS[name] = method


def named(name: str) -> Method:
    """Return the method with this name.

    Raises:
        UsageError: There is no such method. The message lists the names.
    """
    if name not in METHODS:
        raise UsageError(f"method {name!r}; expected one of {list_choices(name, METHODS)}")
    return METHODS[name]


def label(stage: str, origin: dict[str, Any]) -> str:
    """The name in tables for weights of a stage, from the record of how they were made."""
    if stage != "snn":
        return {"float": "float", "qc": "stage I, quantised"}[stage]
    name = origin.get("method", "two-stage")
    if name not in METHODS:
        return str(name)
    if name != "two-stage" or origin.get("end_to_end", True):
        return METHODS[name].label
    done = tuple(origin.get(part, True) for part in ("coarse", "fine"))
    return {
        (True, True): f"{METHODS[name].label}, layer by layer",
        (True, False): METHODS["stage1-coarse"].label,
        (False, True): METHODS["stage1-fine"].label,
        (False, False): METHODS["stage1"].label,
    }[done]
