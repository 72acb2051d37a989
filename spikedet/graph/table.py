"""What converts: for each operation of torch.export the operations of the graph that it becomes.

A handler is called with the recorder, the exported node, and its arguments: `Signal`s for tensors
that depend on the picture, tensors for those that do not, numbers. It emits nodes and returns the
signal of the last one. To let another operation convert, add a handler here, and a kind in
`operations` where none does what it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from spikedet.graph import operations as ops
from spikedet.graph.advice import ADVICE, ATTENTION, GATE

if TYPE_CHECKING:
    from spikedet.graph.record import Signal, _Recorder

HANDLERS: dict[str, Callable[..., Any]] = {}


def handles(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a handler for operations, and for their in-place forms."""

    def put(handler: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            HANDLERS[name] = HANDLERS[f"{name}_"] = handler
        return handler

    return put


def is_signal(value: Any) -> bool:
    """Whether an argument depends on the picture."""
    return type(value).__name__ == "Signal"


# ------------------------------------------------------------------ weights


@handles("conv1d", "conv2d")
def convolution(
    rec: _Recorder,
    node: fx.Node,
    x: Signal,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Signal:
    if is_signal(weight) or is_signal(bias):
        raise rec.refuse(node, f"a weight depends on the picture; {GATE}")
    dims = weight.ndim - 2
    _expect_dims(rec, node, x, dims + 2)
    stride, dilation = _each(stride, dims), _each(dilation, dims)
    if isinstance(padding, str):
        total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        total = [0] * dims if padding == "valid" else total
        if any(t % 2 for t in total):
            around = [n for t in reversed(total) for n in (t // 2, t - t // 2)]
            shape = (*x.shape[:2], *(s + t for s, t in zip(x.shape[2:], total, strict=True)))
            name = f"{rec.name(node, weight)}_pad"
            x = rec.emit(node, ops.Pad(around), x, name=name, shape=shape)
            total = [0] * dims
        padding = [t // 2 for t in total]
    kind = nn.Conv2d if dims == 2 else nn.Conv1d
    layer = nn.utils.skip_init(
        kind,
        weight.shape[1] * groups,
        weight.shape[0],
        tuple(weight.shape[2:]),
        stride,
        _each(padding, dims),
        dilation,
        groups,
        bias is not None,
    )
    return _weighted(rec, node, layer, x, weight, bias)


@handles("conv_transpose1d", "conv_transpose2d")
def transposed_convolution(
    rec: _Recorder,
    node: fx.Node,
    x: Signal,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Signal:
    if is_signal(weight) or is_signal(bias):
        raise rec.refuse(node, f"a weight depends on the picture; {GATE}")
    dims = weight.ndim - 2
    _expect_dims(rec, node, x, dims + 2)
    kind = nn.ConvTranspose2d if dims == 2 else nn.ConvTranspose1d
    layer = nn.utils.skip_init(
        kind,
        weight.shape[0],
        weight.shape[1] * groups,
        tuple(weight.shape[2:]),
        _each(stride, dims),
        _each(padding, dims),
        _each(output_padding, dims),
        groups,
        bias is not None,
        _each(dilation, dims),
    )
    return _weighted(rec, node, layer, x, weight, bias)


@handles("linear")
def linear(
    rec: _Recorder, node: fx.Node, x: Signal, weight: Tensor, bias: Tensor | None = None
) -> Signal:
    if is_signal(weight) or is_signal(bias):
        raise rec.refuse(node, f"a weight depends on the picture; {GATE}")
    if weight.ndim != 2:
        raise rec.refuse(
            node, f"a linear layer with weights {list(weight.shape)}; expected two dimensions"
        )
    if x.ndim == 2:
        layer = nn.utils.skip_init(nn.Linear, *reversed(weight.shape), bias is not None)
        return _weighted(rec, node, layer, x, weight, bias)
    if x.ndim not in (3, 4):
        raise rec.refuse(node, f"a linear layer on {x.ndim} dimensions; expected 2, 3 or 4")
    # features in the last place: a 1x1 convolution with features in the second
    name = rec.name(node, weight)
    last = x.ndim - 1
    first, back = (0, last, *range(1, last)), (0, *range(2, x.ndim), 1)
    x = rec.emit(
        node, ops.Permute(first), x, name=f"{name}_in", shape=tuple(x.shape[d] for d in first)
    )
    kind = nn.Conv1d if last == 2 else nn.Conv2d
    layer = nn.utils.skip_init(kind, weight.shape[1], weight.shape[0], 1, bias=bias is not None)
    weight_there = weight.view(*weight.shape, *[1] * (last - 1))
    made = _weighted(
        rec,
        node,
        layer,
        x,
        weight_there,
        bias,
        name=name,
        shape=(x.shape[0], weight.shape[0], *x.shape[2:]),
    )
    return rec.emit(node, ops.Permute(back), made, name=f"{name}_out")


@handles("matmul", "mm")
def product(rec: _Recorder, node: fx.Node, x: Any, weight: Any) -> Signal:
    if not is_signal(x) or is_signal(weight) or weight.ndim != 2:
        raise rec.refuse(node, f"this product has no spiking counterpart; {ATTENTION}")
    return linear(rec, node, x, weight.t())


@handles("addmm")
def biased_product(rec: _Recorder, node: fx.Node, bias: Any, x: Any, weight: Any, **k) -> Signal:
    if is_signal(bias) or not is_signal(x) or is_signal(weight) or k:
        raise rec.refuse(node, f"this product has no spiking counterpart; {ATTENTION}")
    return linear(rec, node, x, weight.t(), bias.expand(weight.shape[1]))


def _weighted(
    rec: _Recorder,
    node: fx.Node,
    layer: nn.Module,
    x: Signal,
    weight: Tensor,
    bias: Tensor | None,
    name: str | None = None,
    shape: tuple[Any, ...] | None = None,
) -> Signal:
    """Emit a layer with copies of its tensors."""
    layer.to(weight.device)
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return rec.emit(node, layer, x, name=name or rec.name(node, weight), shape=shape)


def _each(value: Any, dims: int) -> tuple[int, ...]:
    """A size for each dimension."""
    if isinstance(value, int):
        return (value,) * dims
    return tuple(value) if len(value) == dims else tuple(value) * dims


def _expect_dims(rec: _Recorder, node: fx.Node, x: Signal, dims: int) -> None:
    """Refuse an input without a batch."""
    if x.ndim != dims:
        raise rec.refuse(
            node,
            f"its input has {x.ndim} dimensions; expected {dims}, the pictures "
            "of a batch in the first",
        )


# ------------------------------------------------------------------ batch norm


@handles("batch_norm")
def batch_norm(
    rec: _Recorder,
    node: fx.Node,
    x: Signal,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn: bool = False,
) -> Signal:
    if training or mean is None or var is None:
        raise rec.refuse(
            node,
            "a batch norm that computes its statistics from each batch has no spiking counterpart; "
            "train it with track_running_stats=True",
        )
    if x.ndim not in (2, 3, 4):
        raise rec.refuse(node, f"a batch norm on {x.ndim} dimensions; expected 2, 3 or 4")
    return rec.emit(
        node, _norm(x, weight, bias, mean, var, momentum, eps), x, name=rec.name(node, mean)
    )


@handles("_native_batch_norm_legit_no_training")
def batch_norm_without_training(rec, node, x, weight, bias, mean, var, momentum, eps) -> list:
    norm = _norm(x, weight, bias, mean, var, momentum, eps)
    return [lambda: rec.emit(node, norm, x, name=rec.name(node, mean), shape=x.shape)]


def _norm(
    x: Signal,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    momentum: float,
    eps: float,
) -> nn.Module:
    """A batch norm with copies of these tensors."""
    affine = weight is not None or bias is not None
    kind = nn.BatchNorm2d if x.ndim == 4 else nn.BatchNorm1d
    norm = kind(len(mean), eps, momentum, affine).to(mean.device)
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(var)
    if affine:
        norm.weight.data.copy_(torch.ones_like(mean) if weight is None else weight)
        norm.bias.data.copy_(torch.zeros_like(mean) if bias is None else bias)
    return norm


@handles("_native_batch_norm_legit", "native_batch_norm", "_native_batch_norm_legit_functional")
def batch_norm_of_batch(rec: _Recorder, node: fx.Node, *_: Any, **__: Any) -> Signal:
    raise rec.refuse(
        node,
        "a batch norm that computes its statistics from each batch has no spiking counterpart; "
        "train it with track_running_stats=True",
    )


# ------------------------------------------------------------------ activations


@handles("relu")
def relu(rec: _Recorder, node: fx.Node, x: Signal) -> Signal:
    return rec.emit(node, nn.ReLU(), x)


@handles("relu6")
def relu6(rec: _Recorder, node: fx.Node, x: Signal) -> Signal:
    return rec.emit(node, ops.ClippedReLU(6.0), x)


@handles("hardtanh")
def hardtanh(
    rec: _Recorder, node: fx.Node, x: Signal, low: float = -1.0, high: float = 1.0
) -> Signal:
    return _between(rec, node, x, low, high)


@handles("clamp", "clip")
def clamp(rec: _Recorder, node: fx.Node, x: Signal, min: Any = None, max: Any = None) -> Signal:
    return _between(rec, node, x, min, max)


@handles("clamp_min")
def clamp_min(rec: _Recorder, node: fx.Node, x: Signal, min: Any) -> Signal:
    return _between(rec, node, x, min, None)


@handles("threshold")
def threshold(rec: _Recorder, node: fx.Node, x: Signal, at: float, value: float) -> Signal:
    if at != 0 or value != 0:
        raise rec.refuse(
            node, f"threshold({at}, {value}) has no spiking counterpart; {ADVICE['threshold']}"
        )
    return rec.emit(node, nn.ReLU(), x)


@handles("maximum")
def maximum(rec: _Recorder, node: fx.Node, x: Any, y: Any) -> Signal:
    x, y = (x, y) if is_signal(x) else (y, x)
    if is_signal(y):
        raise rec.refuse(
            node,
            "the larger of two signals has no spiking counterpart; use "
            "torch.nn.MaxPool2d, or a sum",
        )
    return _between(rec, node, x, y, None)


def _between(rec: _Recorder, node: fx.Node, x: Signal, low: Any, high: Any) -> Signal:
    """clip(x, low, high): a ReLU, or one that is clipped."""
    low, high = (v.item() if isinstance(v, Tensor) and v.numel() == 1 else v for v in (low, high))
    if is_signal(low) or is_signal(high) or low != 0 or not (high is None or high > 0):
        raise rec.refuse(
            node,
            f"an activation clipped to {low} .. {high} has no spiking counterpart; "
            f"{ADVICE['clamp']}",
        )
    if high is None or high == float("inf"):
        return rec.emit(node, nn.ReLU(), x)
    return rec.emit(node, ops.ClippedReLU(float(high)), x)


@handles("leaky_relu")
def leaky_relu(rec: _Recorder, node: fx.Node, x: Signal, slope: float = 0.01) -> Signal:
    return _leaky(rec, node, x, slope)


@handles("prelu")
def prelu(rec: _Recorder, node: fx.Node, x: Signal, weight: Tensor) -> Signal:
    if is_signal(weight):
        raise rec.refuse(node, f"a slope depends on the picture; {GATE}")
    return _leaky(rec, node, x, [float(v) for v in weight.flatten()], rec.name(node, weight))


def _leaky(rec: _Recorder, node: fx.Node, x: Signal, slope: Any, name: str | None = None) -> Signal:
    each = slope if isinstance(slope, list) else [slope]
    wrong = next((value for value in each if not 0 <= value <= 1), None)
    if wrong is not None:
        raise rec.refuse(
            node, f"a leaky ReLU of slope {wrong:.4g} has no spiking counterpart; expected 0 to 1"
        )
    slope = each[0] if len(set(each)) == 1 else tuple(each)
    return rec.emit(node, nn.ReLU() if slope == 0 else ops.Leaky(slope), x, name=name)


# ------------------------------------------------------------------ pooling


@handles("max_pool1d", "max_pool2d")
def max_pool(
    rec: _Recorder,
    node: fx.Node,
    x: Signal,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Signal:
    dims = x.ndim - 2
    kernel = _each(kernel, dims)
    stride = kernel if not stride else _each(stride, dims)
    kind = nn.MaxPool2d if dims == 2 else nn.MaxPool1d
    pool = kind(kernel, stride, _each(padding, dims), _each(dilation, dims), ceil_mode=ceil_mode)
    return rec.emit(node, pool, x, shape=_shape(node))


@handles("max_pool2d_with_indices", "max_pool1d_with_indices")
def max_pool_with_indices(rec: _Recorder, node: fx.Node, x: Signal, *args: Any, **kwargs: Any):
    def indices() -> Signal:
        raise rec.refuse(
            node,
            "where the largest value stands (return_indices=True) has no spiking "
            "counterpart; up-sample by torch.nn.Upsample instead of unpooling",
        )

    return [lambda: max_pool(rec, node, x, *args, **kwargs), indices]


@handles("avg_pool1d", "avg_pool2d")
def avg_pool(
    rec: _Recorder,
    node: fx.Node,
    x: Signal,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Signal:
    dims = x.ndim - 2
    kernel = _each(kernel, dims)
    stride = kernel if not stride else _each(stride, dims)
    args = (kernel, stride, _each(padding, dims), ceil_mode, count_include_pad)
    pool = nn.AvgPool2d(*args, divisor_override) if dims == 2 else nn.AvgPool1d(*args)
    return rec.emit(node, pool, x)


@handles("adaptive_avg_pool1d", "adaptive_avg_pool2d")
def adaptive_avg_pool(rec: _Recorder, node: fx.Node, x: Signal, size: Any) -> Signal:
    dims = x.ndim - 2
    kind = nn.AdaptiveAvgPool2d if dims == 2 else nn.AdaptiveAvgPool1d
    size = _each(size, dims)
    return rec.emit(node, kind(size if dims == 2 else size[0]), x)


@handles("mean")
def mean(rec: _Recorder, node: fx.Node, x: Signal, dims: Any = None, keepdim=False, **k) -> Signal:
    return rec.emit(node, ops.Mean(_dims(rec, node, x, dims), keepdim), x)


@handles("sum")
def total(rec: _Recorder, node: fx.Node, x: Signal, dims: Any = None, keepdim=False, **k) -> Signal:
    return rec.emit(node, ops.Sum(_dims(rec, node, x, dims), keepdim), x)


def _dims(rec: _Recorder, node: fx.Node, x: Signal, dims: Any) -> list[int]:
    """Dimensions from the front; all of them when there are none."""
    if dims is None or dims == []:
        dims = list(range(x.ndim))
    dims = [dims] if isinstance(dims, int) else dims
    found = [d % x.ndim for d in dims]
    if 0 in found:
        raise rec.refuse(
            node,
            "a sum or mean over the pictures of a batch has no spiking "
            "counterpart; leave out dimension 0",
        )
    return found


@handles("upsample_nearest1d", "upsample_nearest2d")
def upsample(rec: _Recorder, node: fx.Node, x: Signal, size: Any, *scales: Any) -> Signal:
    return _upsample(rec, node, x, size, scales, "nearest")


@handles("_upsample_nearest_exact1d", "_upsample_nearest_exact2d")
def upsample_exact(rec: _Recorder, node: fx.Node, x: Signal, size: Any, *scales: Any) -> Signal:
    return _upsample(rec, node, x, size, scales, "nearest-exact")


def _upsample(rec, node: fx.Node, x: Signal, size: Any, scales: Any, mode: str) -> Signal:
    scales = [s for s in _flat(scales) if s is not None]
    if scales:
        return rec.emit(node, nn.Upsample(scale_factor=tuple(scales), mode=mode), x)
    return rec.emit(node, nn.Upsample(size=tuple(int(s) for s in size), mode=mode), x)


def _flat(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return [item for part in value for item in _flat(part)]
    return [value]


# ------------------------------------------------------------------ sums and products


@handles("add")
def add(rec: _Recorder, node: fx.Node, x: Any, y: Any, alpha: float = 1) -> Signal:
    if is_signal(x) and is_signal(y):
        return rec.emit(node, ops.Add(), x, _scaled(rec, node, y, alpha))
    if is_signal(x):
        return _shifted(rec, node, x, _tensor(rec, node, y) * alpha)
    return _shifted(rec, node, _scaled(rec, node, y, alpha), _tensor(rec, node, x))


@handles("sub", "subtract")
def subtract(rec: _Recorder, node: fx.Node, x: Any, y: Any, alpha: float = 1) -> Signal:
    if is_signal(x) and is_signal(y):
        return rec.emit(node, ops.Subtract(), x, _scaled(rec, node, y, alpha))
    if is_signal(x):
        return _shifted(rec, node, x, _tensor(rec, node, y) * -alpha)
    return _shifted(rec, node, _scaled(rec, node, y, -alpha), _tensor(rec, node, x))


@handles("rsub")
def reversed_subtract(rec: _Recorder, node: fx.Node, x: Any, y: Any, alpha: float = 1) -> Signal:
    return subtract(rec, node, y, x, alpha)


@handles("neg")
def negative(rec: _Recorder, node: fx.Node, x: Signal) -> Signal:
    return _scaled(rec, node, x, -1)


@handles("mul", "multiply")
def multiply(rec: _Recorder, node: fx.Node, x: Any, y: Any) -> Signal:
    if is_signal(x) and is_signal(y):
        raise rec.refuse(node, f"mul has no spiking counterpart here: {GATE}")
    x, y = (x, y) if is_signal(x) else (y, x)
    return _scaled(rec, node, x, y)


@handles("div", "divide", "true_divide")
def divide(rec: _Recorder, node: fx.Node, x: Any, y: Any, rounding_mode: Any = None) -> Signal:
    if not is_signal(x) or is_signal(y):
        raise rec.refuse(node, f"a division by a signal has no spiking counterpart: {GATE}")
    if rounding_mode is not None:
        raise rec.refuse(node, "a division that rounds has no spiking counterpart; leave it out")
    return _scaled(rec, node, x, 1 / _tensor(rec, node, y))


def _tensor(rec: _Recorder, node: fx.Node, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().float()
    if isinstance(value, int | float):
        return torch.tensor(float(value))
    raise rec.refuse(node, f"a constant that is a {type(value).__name__}; expected a number")


def _scaled(rec: _Recorder, node: fx.Node, x: Signal, factor: Any) -> Signal:
    factor = _tensor(rec, node, factor)
    if bool((factor == 1).all()) and factor.ndim == 0:
        return x
    return _with_constant(rec, node, x, ops.Scale(factor), factor, "scale")


def _shifted(rec: _Recorder, node: fx.Node, x: Signal, offset: Tensor) -> Signal:
    if bool((offset == 0).all()) and offset.ndim == 0:
        return x
    return _with_constant(rec, node, x, ops.Shift(offset), offset, "shift")


def _with_constant(rec, node, x: Signal, module: nn.Module, constant: Tensor, name: str) -> Signal:
    if constant.ndim > x.ndim or (constant.ndim == x.ndim and constant.shape[0] != 1):
        raise rec.refuse(
            node,
            f"a constant {list(constant.shape)} that differs between the "
            "pictures of a batch; let its first dimension be 1",
        )
    own = tuple(x.shape[1:])
    wanted = constant.shape[1:] if constant.ndim == x.ndim else constant.shape
    shape = (x.shape[0], *torch.broadcast_shapes(tuple(int(s) for s in own), tuple(wanted)))
    path, _ = rec.place(node)
    return rec.emit(node, module, x, name=f"{path}.{name}" if path else name, shape=shape)


# ------------------------------------------------------------------ joining and taking apart


@handles("cat", "concat", "concatenate")
def concatenate(rec: _Recorder, node: fx.Node, tensors: Sequence[Any], dim: int = 0) -> Signal:
    signals = _signals(rec, node, tensors)
    return rec.emit(node, ops.Concatenate(dim % signals[0].ndim), *signals)


@handles("stack")
def stack(rec: _Recorder, node: fx.Node, tensors: Sequence[Any], dim: int = 0) -> Signal:
    signals = _signals(rec, node, tensors)
    return rec.emit(node, ops.Stack(dim % (signals[0].ndim + 1)), *signals)


def _signals(rec: _Recorder, node: fx.Node, tensors: Sequence[Any]) -> Sequence[Signal]:
    if not all(is_signal(tensor) for tensor in tensors):
        raise rec.refuse(node, "a constant is put beside a signal; let a layer with a bias make it")
    return tensors


@handles("chunk")
def chunk(rec: _Recorder, node: fx.Node, x: Signal, chunks: int, dim: int = 0) -> list[Any]:
    size = _size(rec, node, x, dim)
    return split(rec, node, x, -(-size // chunks), dim)


@handles("split", "split_with_sizes", "unsafe_split", "unsafe_chunk")
def split(rec: _Recorder, node: fx.Node, x: Signal, sizes: Any, dim: int = 0) -> list[Any]:
    total = _size(rec, node, x, dim)
    if isinstance(sizes, int):
        sizes = [min(sizes, total - start) for start in range(0, total, sizes)]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    d = dim % x.ndim
    path, _ = rec.place(node)

    def part(start: int, size: int) -> Callable[[], Signal]:
        shape = (*x.shape[:d], size, *x.shape[d + 1 :])
        name = f"{path}.slice" if path else "slice"
        module = ops.Slice(d, start, start + size)
        return lambda: rec.emit(node, module, x, name=name, shape=shape)

    return [part(start, size) for start, size in zip(starts, sizes, strict=True)]


@handles("unbind")
def unbind(rec: _Recorder, node: fx.Node, x: Signal, dim: int = 0) -> list[Any]:
    size, d = _size(rec, node, x, dim), dim % x.ndim
    shape = (*x.shape[:d], *x.shape[d + 1 :])
    return [lambda i=i: rec.emit(node, ops.Select(d, i), x, shape=shape) for i in range(size)]


def _size(rec: _Recorder, node: fx.Node, x: Signal, dim: int) -> int:
    if dim % x.ndim == 0:
        raise rec.refuse(
            node,
            "the pictures of a batch are taken apart, which has no spiking "
            "counterpart; take apart another dimension",
        )
    return int(x.shape[dim])


@handles("slice")
def slice_(rec, node: fx.Node, x: Signal, dim=0, start=None, end=None, step=1) -> Signal:
    d = dim % x.ndim
    start = start or 0
    whole = start == 0 and step == 1 and (end is None or not isinstance(end, int) or end >= 2**62)
    if whole:
        return x
    size = _size(rec, node, x, dim)
    start, end, step = slice(start, end, step).indices(size)
    if (start, end, step) == (0, size, 1):
        return x
    return rec.emit(node, ops.Slice(d, start, end, step), x)


@handles("narrow")
def narrow(rec: _Recorder, node: fx.Node, x: Signal, dim: int, start: int, length: int) -> Signal:
    return slice_(rec, node, x, dim, start, start + length)


@handles("select")
def select(rec: _Recorder, node: fx.Node, x: Signal, dim: int, index: int) -> Signal:
    size = _size(rec, node, x, dim)
    return rec.emit(node, ops.Select(dim % x.ndim, index % size), x)


# ------------------------------------------------------------------ shapes


def _shape(node: fx.Node) -> tuple[Any, ...]:
    value = node.meta["val"]
    return tuple((value[0] if isinstance(value, list | tuple) else value).shape)


@handles("view", "reshape", "_unsafe_view", "unflatten", "view_as", "reshape_as")
def reshape(rec: _Recorder, node: fx.Node, x: Signal, *sizes: Any) -> Signal:
    shape = _shape(node)
    tail: list[int] = []
    for size in shape[1:]:
        if not isinstance(size, int):
            break
        tail.append(size)
    if len(tail) < len(shape) - 1:
        raise rec.refuse(
            node,
            f"a shape {[str(s) for s in shape]} that mixes the number of pictures "
            "with other sizes; let each picture stay apart, as by x.flatten(1)",
        )
    asked = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], list | tuple) else ()
    if len(asked) == len(shape) and -1 in asked[1:]:  # fits pictures of other sizes, too
        tail = [-1 if size == -1 else t for size, t in zip(asked[1:], tail, strict=True)]
    return rec.emit(node, ops.Reshape(tail), x)


@handles("flatten")
def flatten(rec: _Recorder, node: fx.Node, x: Signal, start: int = 0, end: int = -1) -> Signal:
    start, end = start % x.ndim, end % x.ndim
    if start == 0 and end > 0:
        raise rec.refuse(
            node,
            "the pictures of a batch are flattened into each other; flatten from "
            "dimension 1 on, x.flatten(1)",
        )
    return rec.emit(node, nn.Flatten(start, end), x)


@handles("squeeze")
def squeeze(rec: _Recorder, node: fx.Node, x: Signal, dims: Any = None) -> Signal:
    if isinstance(dims, int):
        dims = [dims]
    shape = _shape(node)
    if len(shape) == x.ndim:
        return x
    if dims is not None and len(dims) == 1:
        return rec.emit(node, ops.Squeeze(dims[0] % x.ndim), x)
    return rec.emit(node, ops.Reshape([int(s) for s in shape[1:]]), x)


@handles("unsqueeze")
def unsqueeze(rec: _Recorder, node: fx.Node, x: Signal, dim: int) -> Signal:
    return rec.emit(node, ops.Unsqueeze(dim % (x.ndim + 1)), x)


def _permutes(name: str, call: Callable[..., Tensor]) -> None:
    """A handler for an operation that only changes the order of dimensions."""

    def handler(rec: _Recorder, node: fx.Node, x: Signal, *args: Any) -> Signal:
        marks = torch.empty([d + 2 for d in range(x.ndim)], device="meta")
        order = [size - 2 for size in call(marks, *args).shape]
        return x if order == sorted(order) else rec.emit(node, ops.Permute(order), x)

    handles(name)(handler)


for _name in (
    "permute",
    "transpose",
    "swapaxes",
    "swapdims",
    "movedim",
    "moveaxis",
    "t",
    "adjoint",
):
    _permutes(_name, getattr(torch, _name))
_permutes("numpy_T", lambda x: x.permute(*range(x.ndim - 1, -1, -1)))
_permutes("mT", lambda x: x.mT)


@handles("contiguous", "clone", "detach", "alias", "lift_fresh", "lift_fresh_copy", "identity")
def unchanged(rec: _Recorder, node: fx.Node, x: Signal, *_: Any, **__: Any) -> Signal:
    return x


@handles("to", "_to_copy", "type_as", "float")
def cast(rec: _Recorder, node: fx.Node, x: Signal, *_: Any, **__: Any) -> Signal:
    source = next(n for n in node.all_input_nodes if is_signal(rec.values.get(n)))
    if node.meta["val"].dtype != source.meta["val"].dtype:
        raise rec.refuse(
            node,
            f"values become {node.meta['val'].dtype}, which has no spiking "
            "counterpart; leave the number format to the runtime",
        )
    return x


@handles("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
def dropout(rec: _Recorder, node: fx.Node, x: Signal, p: float, train: bool) -> Signal:
    if train:
        raise rec.refuse(node, "dropout that is active in evaluation; pass training=self.training")
    return x


@handles("expand", "expand_as")
def expand(rec: _Recorder, node: fx.Node, x: Signal, *_: Any, **__: Any) -> Signal:
    shape = _shape(node)
    if len(shape) != x.ndim or shape[1:] != x.shape[1:]:
        raise rec.refuse(
            node,
            "values are repeated by expand, which has no counterpart in a graph; "
            "use torch.nn.Upsample, or add tensors of unlike sizes directly",
        )
    return x


@handles("pad", "constant_pad_nd")
def pad(rec, node: fx.Node, x: Signal, around: Sequence[int], mode: Any = None, value: Any = None):
    if not isinstance(mode, str):
        mode, value = "constant", mode if mode is not None else value
    padded = _pad(rec, node, x, around, mode)
    if mode == "constant" and value:
        inside = torch.zeros([1, *map(int, x.shape[1:])])
        offset = F.pad(inside, list(around), value=float(value))
        padded = _shifted(rec, node, padded, offset)
    return padded


def _pad(rec: _Recorder, node: fx.Node, x: Signal, around: Sequence[int], mode: str) -> Signal:
    """Padding, of its own or inside of a convolution, whose name the weights keep."""
    path, kind = rec.place(node)
    name = f"{path}_pad" if ".conv." in kind else None
    return rec.emit(node, ops.Pad(list(around), mode), x, name=name)


def _padded(name: str, mode: str) -> None:
    """A handler for padding that copies values."""

    def handler(rec: _Recorder, node: fx.Node, x: Signal, around: Sequence[int]) -> Signal:
        return _pad(rec, node, x, around, mode)

    handles(name)(handler)


for _mode, _short in (("reflect", "reflection"), ("replicate", "replication")):
    for _places in (1, 2):
        _padded(f"{_short}_pad{_places}d", _mode)


@handles("pixel_shuffle")
def pixel_shuffle(rec: _Recorder, node: fx.Node, x: Signal, factor: int) -> Signal:
    return rec.emit(node, nn.PixelShuffle(factor), x)


@handles("pixel_unshuffle")
def pixel_unshuffle(rec: _Recorder, node: fx.Node, x: Signal, factor: int) -> Signal:
    return rec.emit(node, nn.PixelUnshuffle(factor), x)


@handles("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(rec: _Recorder, node: fx.Node, x: Signal, groups: int) -> Signal:
    return rec.emit(node, nn.ChannelShuffle(groups), x)
