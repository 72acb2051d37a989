"""The `integers` engine: the integer program in torch, one operation after the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spikedet.engines.reference import Reference
from spikedet.engines.whole import WholeEngine


class ReferenceEngine(WholeEngine):
    """Runs the integer program in torch. It is slow, and the reference for the kernels."""

    def describe(self) -> list[str]:
        """How it computes."""
        return ["whole numbers, by torch"]

    def _start(self, currents: dict[str, Tensor], batch: int) -> Reference:
        return Reference(self.program, currents, batch)

    def _part(self, run, part, each_step, before, tell, show):
        steps, done = part.steps, part.first
        values, batch = run.advance(steps), run.batch
        totals: dict[Any, Any] = {}
        for node, masses in self._masses(done, steps).items():
            totals[node] = self._mass(node, masses, before, each_step)
            for base in self._reading[node]:
                total = before[base, node][-batch:] if (base, node) in before else None
                sums = []
                for value, mass in zip(values[base].float().split(batch), masses, strict=True):
                    added = value * torch.tensor(mass)
                    total = added if total is None else total + added
                    sums.append(total)
                totals[base, node] = torch.cat(sums) if each_step else sums[-1]
        if tell is not None:
            for op in self.program.neurons:
                spikes = values[op.name]
                number = spikes.abs().reshape(steps, -1).sum(1)
                tell(op.name, done, number, spikes.numel() // steps)
        if show is not None:
            for name in self._fire:
                show(name, done, values[name])
        return totals
