"""The surrogate gradient once more, for autograd."""

import torch


def step_function(alpha):
    """A step at 1 with eq 20 as its derivative, for autograd."""

    class Step(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return (x >= 1).float()

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            return grad * ((x - 1).abs() < alpha / 2).float() / alpha

    return Step.apply
