"""The `integers` engine: the integer program in torch, one operation after the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spikedet.engines.integer_engine import IntegerEngine
from spikedet.engines.reference import Reference


class ReferenceEngine(IntegerEngine):
    """Runs the integer program in torch. It is slow, and the reference for the kernels."""

    def describe(self) -> list[str]:
        """How it computes."""
        return ["integer arithmetic by torch"]

    def _start(self, currents: dict[str, Tensor], batch: int) -> Reference:
        return Reference(self.program, currents, batch)

    def _part(self, run, part, each_step, before, on_counts, on_spikes):
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
        if on_counts is not None:
            for op in self.program.neurons:
                spikes = values[op.name]
                number = spikes.abs().reshape(steps, -1).sum(1)
                on_counts(op.name, done, number, spikes.numel() // steps)
        if on_spikes is not None:
            for name in self._fire:
                on_spikes(name, done, values[name])
        return totals
