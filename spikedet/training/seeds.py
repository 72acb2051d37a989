"""Seeds of the random generators, so that runs can be repeated and resumed."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_of(*numbers: int) -> int:
    """A seed for a combination of numbers (0 or more), such as the seed of a run and an epoch.

    It has 32 bits. On a CPU, torch ignores higher bits, so seeds that differ only in these would
    give the same random numbers.
    """
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def seed_generators(*numbers: int) -> None:
    """Seed the random generators of Python, numpy and torch. Augmentation uses all of them.

    Args:
        numbers: Numbers for `seed_of`.
    """
    seed = seed_of(*numbers)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def seed_epoch(seed: int, epoch: int, rank: int = 0) -> None:
    """Seed these generators for an epoch, so that a resumed run draws the same random numbers.

    Augmentation with its own generators (albumentations) gets their seed from torch.
    """
    seed_generators(seed, epoch, rank)
