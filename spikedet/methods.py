"""Ways from a float network to a spiking one; light to import, so that commands can list them.

A method is one entry of `METHODS`, which commands and `spikedet.convert` look it up in. Another one
is added by `register`; `docs/extending.md` shows how.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from spikedet.errors import UsageError, among


@dataclass(frozen=True)
class Method:
    """A way from a float network to a spiking one.

    Attributes:
        label: What tables call it.
        finetuned: Stage I: quantise-clip fine-tuning; else thresholds are only estimated.
        coarse, fine: Which parts of stage II's layer-wise calibration.
        end_to_end: The end-to-end pass after it.
        plain: Stage I as QCFS trains: no quantisation noise, no distillation, its gradient.
        thresholds: How those of a float network are taken from pictures: `least-error` of the
            quantisation, `largest` activation of a layer, `channels` (nearly the largest of each
            channel), or a function (graph, batches, T) -> thresholds by name of the activation.
        initial: Potential before the first step in units of the threshold.
        shift: A constant current of theta / (2 T) in every step; never beside initial = 1/2, which
            adds up to the same.
        bias: Layer-wise bias correction, in place of stage II.
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
        """Whether layers are fitted to pictures."""
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
    """Let commands and `spikedet.convert` know one more method.

    Raises:
        ValueError: There is one of that name.
    """
    if name in METHODS:
        raise ValueError(f"a method {name} is registered already")
    METHODS[name] = method


def named(name: str) -> Method:
    """A method by its name.

    Raises:
        UsageError: There is none; names those that there are.
    """
    if name not in METHODS:
        raise UsageError(f"method {name!r}; expected one of {among(name, METHODS)}")
    return METHODS[name]


def label(stage: str, origin: dict[str, Any]) -> str:
    """What tables call the weights of a stage, by what their record says was done to them."""
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
