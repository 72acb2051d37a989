"""Ways from a float network to a spiking one; light to import, so that commands can list them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """A way from a float network to a spiking one.

    Attributes:
        label: What tables call it.
        finetuned: Stage I: quantise-clip fine-tuning; else thresholds are only estimated.
        coarse, fine: Which parts of stage II's layer-wise calibration.
        end_to_end: The end-to-end pass after it.
    """

    label: str
    finetuned: bool
    coarse: bool = False
    fine: bool = False
    end_to_end: bool = False


METHODS = {
    "copy": Method("copied weights", finetuned=False),
    "stage1": Method("stage I alone", finetuned=True),
    "stage2": Method("stage II alone", finetuned=False, coarse=True, fine=True),
    "stage1-coarse": Method("stage I + coarse", finetuned=True, coarse=True),
    "stage1-fine": Method("stage I + fine", finetuned=True, fine=True),
    "two-stage": Method("stages I + II", finetuned=True, coarse=True, fine=True, end_to_end=True),
}
