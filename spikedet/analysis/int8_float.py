"""Run a float network in int8 with onnxruntime, the fastest way on many processors.

Weights and activations are quantised after training (`quantize_static`). The weights have one scale
for each output channel. The ranges of the activations are measured on some pictures.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from spikedet.errors import UsageError, message_of

REST = 0.02  # seconds until torch's threads leave their busy loop
NEEDED = "needs onnx and onnxruntime; pip install 'spikedet[export]'"


def expect_onnxruntime() -> None:
    """Check that onnx and onnxruntime are installed.

    Raises:
        UsageError: One of them is not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime.quantization  # noqa: F401
    except ImportError:
        raise UsageError(f"int8 {NEEDED}") from None


def quantised(model: bytes, pictures: Sequence[Tensor]) -> bytes:
    """Quantise an ONNX model of a float network to int8.

    Args:
        model: ONNX model with one input, in float32.
        pictures: Batches [B, ...] to measure the ranges of activations on.

    Raises:
        UsageError: onnxruntime is not installed, or cannot quantise the network.
    """
    expect_onnxruntime()
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder, _silent():
        plain, prepared, done = (Path(folder) / f"{name}.onnx" for name in ("a", "b", "c"))
        plain.write_bytes(model)
        try:
            quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
            quantization.quantize_static(
                str(prepared), str(done), _reader(prepared, pictures), per_channel=True,
                quant_format=quantization.QuantFormat.QDQ,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
            )  # fmt: skip
        except Exception as error:  # theirs are of many kinds
            raise UsageError(
                f"onnxruntime does not quantise this network: {message_of(error)}"
            ) from None
        return done.read_bytes()


def _reader(model: Path, pictures: Sequence[Tensor]) -> Any:
    """A data reader that gives the pictures to onnxruntime's calibration."""
    from onnxruntime.quantization import CalibrationDataReader

    name = _session(model.read_bytes(), 1).get_inputs()[0].name

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(pictures)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.left, None)
            return None if batch is None else {name: _array(batch)}

    return Reader()


class Int8Float:
    """Runs a quantised model.

    After each run, the threads of onnxruntime and of torch wait for work in a busy loop for a
    while. On the same processors they would slow each other down. So the threads of onnxruntime
    stop at the end of a run, and `prepare` waits until the threads of torch are idle.

    Args:
        model: ONNX model.
        threads: Number of onnxruntime's threads.
    """

    def __init__(self, model: bytes, threads: int):
        expect_onnxruntime()
        self.session = _session(model, threads)
        self.input = self.session.get_inputs()[0].name
        self._prepared: tuple[Tensor, np.ndarray] | None = None

    def prepare(self, pictures: Tensor) -> None:
        """Convert the pictures of the next call, [B, ...], to the layout of the model."""
        self._prepared = pictures, _array(pictures)
        time.sleep(REST)

    def __call__(self, pictures: Tensor) -> list[np.ndarray]:
        """Compute the outputs for pictures [B, ...] in float32."""
        known = self._prepared
        array = known[1] if known and known[0] is pictures else _array(pictures)
        return self.session.run(None, {self.input: array})


def _array(pictures: Tensor) -> np.ndarray:
    return np.ascontiguousarray(pictures.cpu().numpy())


def _session(model: bytes, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # errors
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@contextmanager
def _silent() -> Iterator[None]:
    """Suppress the messages that the quantisation writes to the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
