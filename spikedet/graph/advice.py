"""Advice for operations that have no spiking counterpart."""

from __future__ import annotations

from typing import Any

from torch import fx

ACTIVATION = (
    "replace it with torch.nn.ReLU() or torch.nn.LeakyReLU(0.1), and fine-tune (in a network "
    "description: `activation: torch.nn.ReLU()`, which changes Conv blocks; replace a block that "
    "has its own activation, such as RepConv, with another block)"
)
LOGITS = "return its input (the logits), and apply it in the loss or after the network"
GATE = (
    "two signals that both depend on the picture are multiplied, as in squeeze-and-excitation and "
    "other gates; use a network without them"
)
ATTENTION = "attention multiplies two signals; use a convolutional network"
NORM = (
    "it computes statistics of each picture; use torch.nn.BatchNorm2d, which can be folded into "
    "the "
    "weights"
)
BETWEEN = "it interpolates between input values; use mode='nearest'"
LARGEST = "use torch.nn.MaxPool2d, or an average"
ADVICE = {
    **dict.fromkeys(
        [
            "silu",
            "gelu",
            "mish",
            "hardswish",
            "elu",
            "selu",
            "celu",
            "softplus",
            "softsign",
            "tanh",
            "hardsigmoid",
            "sigmoid",
            "glu",
            "hardtanh",
            "clamp",
            "rrelu",
            "hardshrink",
            "softshrink",
            "tanhshrink",
            "threshold",
            "log_sigmoid",
        ],
        ACTIVATION,
    ),
    **dict.fromkeys(["softmax", "log_softmax", "_softmax", "_log_softmax"], LOGITS),
    **dict.fromkeys(
        [
            "layer_norm",
            "native_layer_norm",
            "group_norm",
            "native_group_norm",
            "instance_norm",
            "rms_norm",
            "local_response_norm",
            "linalg_vector_norm",
            "norm",
        ],
        NORM,
    ),
    **dict.fromkeys(
        [
            "scaled_dot_product_attention",
            "matmul",
            "bmm",
            "baddbmm",
            "einsum",
            "_native_multi_head_attention",
            "_transformer_encoder_layer_fwd",
        ],
        ATTENTION,
    ),
    **dict.fromkeys(
        [
            "upsample_bilinear2d",
            "upsample_bicubic2d",
            "upsample_linear1d",
            "upsample_trilinear3d",
            "grid_sampler",
            "_upsample_bilinear2d_aa",
            "_upsample_bicubic2d_aa",
        ],
        BETWEEN,
    ),
    **dict.fromkeys(
        [
            "adaptive_max_pool2d",
            "adaptive_max_pool1d",
            "max",
            "amax",
            "topk",
            "fractional_max_pool2d",
            "lp_pool2d",
            "max_pool3d",
        ],
        LARGEST,
    ),
    **dict.fromkeys(["mul", "div", "pow"], GATE),
}
ENDS = {"sigmoid", "softmax", "log_softmax", "_softmax", "_log_softmax", "tanh"}
GATED = {"sigmoid", "hardsigmoid", "softmax", "_softmax", "tanh"}
# operations that only change the shape of a value
PASSED = {"view", "expand", "dropout", "clone", "getitem", "unsqueeze", "flatten", "transpose"}
PASSED |= {"permute", "contiguous", "reshape", "_to_copy"}
OTHERWISE = (
    "supported operations are convolutions, linear layers, ReLU, LeakyReLU, PReLU, ReLU6, "
    "pooling, nearest up-sampling, sums, concatenations and changes of shape"
)


def name_of(target: Any) -> str:
    """Short name of the function that a node of torch.export calls: `conv2d`, `relu_`."""
    packet = getattr(target, "overloadpacket", None)
    return packet.__name__ if packet is not None else getattr(target, "__name__", str(target))


def refusal(where: str, node: fx.Node) -> str:
    """The error message for an operation: its place, its name, and what to do instead."""
    name = name_of(node.target).removesuffix("_")
    advice = ADVICE.get(name, OTHERWISE)
    users = {name_of(user.target).removesuffix("_") for user in _readers(node)}
    if name in GATED and "mul" in users:
        advice = GATE
    elif name in GATED and users & {"matmul", "bmm", "scaled_dot_product_attention"}:
        advice = ATTENTION
    elif name in ENDS and users == {"output"}:
        advice = LOGITS
    elif name in ("softmax", "_softmax"):
        advice = f"it divides by the sum of its input; {LOGITS}"
    return f"{where}: {name} has no spiking counterpart; {advice}"


def _readers(node: fx.Node) -> list[fx.Node]:
    """The nodes that read a node, directly or through operations that only change its shape."""
    readers = []
    for user in node.users:
        if user.op == "output":
            readers.append(user)
        elif str(user.target).split(".")[0] == "aten" and any(
            part in str(user.target) for part in PASSED
        ):
            readers += _readers(user)
        else:
            readers.append(user)
    return readers
