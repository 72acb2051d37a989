"""Optimisers of a training: groups of parameters, and states of interrupted runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def make_optimizer(
    name: str, groups: list[dict[str, Any]], momentum: float = 0.9
) -> torch.optim.Optimizer:
    """Make the optimiser of a training.

    Args:
        name: `SGD` (with Nesterov's momentum) or `AdamW`.
        groups: Parameters, see `parameter_groups`.
        momentum: Momentum of SGD.
    """
    if name == "SGD":
        return torch.optim.SGD(groups, momentum=momentum, nesterov=True)
    return torch.optim.AdamW(groups, betas=(0.9, 0.999))


def parameter_groups(
    network: nn.Module, rate: float, decay: float, threshold_rate: float
) -> list[dict[str, Any]]:
    """Parameter groups for an optimiser. Only weights decay, not biases, norms and thresholds.

    Args:
        network: The network. Parameters whose name ends in `threshold` are a separate group. No
            group is empty. Each parameter is listed with its name, for `restore_optimizer`.
        rate: Learning rate.
        decay: Weight decay.
        threshold_rate: Learning rate of the thresholds, as a fraction of `rate`.
    """
    weights: list[tuple[str, nn.Parameter]] = []
    plain: list[tuple[str, nn.Parameter]] = []
    thresholds: list[tuple[str, nn.Parameter]] = []
    for key, parameter in network.named_parameters():
        named = key.removeprefix("module."), parameter  # as without processes of torchrun
        if key.endswith("threshold"):
            thresholds.append(named)
        else:
            (weights if parameter.ndim > 1 else plain).append(named)
    own = rate * threshold_rate
    groups = [
        {"params": weights, "lr": rate, "weight_decay": decay, "param_group": "weight"},
        {"params": plain, "lr": rate, "weight_decay": 0.0, "param_group": "plain"},
        {"params": thresholds, "lr": own, "weight_decay": 0.0, "param_group": "threshold"},
    ]
    return [group for group in groups if group["params"]]


def restore_optimizer(
    optimizer: torch.optim.Optimizer, state: dict[str, Any], by_place: bool = True
) -> None:
    """Load the state of an optimiser of the same kind. Learning rates and decays do not change.

    Parameters that have names are found by their names. A network that was read from a file may
    list its layers in another order than the network that the state was saved with.

    Args:
        optimizer: The optimiser; its parameters are named.
        state: What `state_dict` of the other optimiser returned.
        by_place: Whether a state without names, from an older version, is loaded by place.

    Raises:
        KeyError, ValueError: The state is of another kind of optimiser or for other parameters.
    """
    kept = ("lr", "initial_lr", "weight_decay")
    own = [{key: group[key] for key in kept if key in group} for group in optimizer.param_groups]
    optimizer.load_state_dict(_in_order_of(optimizer, state, by_place))
    for group, values in zip(optimizer.param_groups, own, strict=True):
        group.update(values)
    missing = optimizer.defaults.keys() - optimizer.param_groups[0].keys()
    if missing:
        raise KeyError(*missing)


def _in_order_of(
    optimizer: torch.optim.Optimizer, state: dict[str, Any], by_place: bool
) -> dict[str, Any]:
    """The state with the groups and parameters in the order of the optimiser, by their names."""
    saved = {
        name: (number, group)
        for group in state["param_groups"]
        if "param_names" in group
        for name, number in zip(group["param_names"], group["params"], strict=True)
    }
    if not saved and by_place:
        return state
    groups = []
    for group in optimizer.param_groups:
        names = group["param_names"]
        numbers = [saved[name][0] for name in names]
        groups.append({**saved[names[0]][1], "params": numbers, "param_names": names})
    if len(saved) != sum(len(group["params"]) for group in groups):
        raise ValueError("the state has other parameters")
    return {"state": state["state"], "param_groups": groups}
