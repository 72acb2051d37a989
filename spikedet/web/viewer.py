"""Compute the content of the page for a picture or a video."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from spikedet.analysis.estimate import EnergyEstimate
from spikedet.detection.boxes import Detections
from spikedet.detection.letterbox import letterbox
from spikedet.detection.predict import Predictor
from spikedet.errors import PictureError, UsageError, list_choices
from spikedet.neurons.layers import IFNeuron
from spikedet.pictures import read_header, read_picture
from spikedet.precision import channels_last
from spikedet.runtime.watch import watching
from spikedet.sources.frame import Problems
from spikedet.sources.stills import Picture

IOU = 0.6  # overlap threshold of non-maximum suppression
CHUNK = 4  # steps computed at once; results come early, but all take up to a tenth longer
MOST_MAPS = 8  # most maps of steps, and of channels


@dataclass(frozen=True)
class Limits:
    """Limits for requests.

    Attributes:
        megabytes: Largest upload in MB.
        megapixels: Largest picture in millions of pixels.
        T: Largest number of time steps.
        frames: Largest number of frames of a video. Later frames are not processed.
        seconds: Longest time for an upload, and for its response.
        waiting: Largest number of visitors that may wait.
    """

    megabytes: float = 20
    megapixels: float = 50
    T: int = 64
    frames: int = 100
    seconds: float = 60
    waiting: int = 16


@dataclass(frozen=True)
class Step:
    """The result of a spiking network after t time steps of a picture.

    Attributes:
        detections: Detections after `detections.T` steps, with their spike rate.
        rates: Firing rate of each layer so far, in spikes per neuron and step.
        seconds: Computing time so far.
        energy: Estimated energy so far in mJ.
    """

    detections: Detections
    rates: dict[str, float]
    seconds: float
    energy: float


@dataclass(frozen=True)
class FloatResult:
    """The result of the float network.

    Attributes:
        detections: Its detections.
        seconds: Computing time.
    """

    detections: Detections
    seconds: float


@dataclass(frozen=True)
class Spikes:
    """The spikes of a layer for one picture.

    Attributes:
        steps: Share of the channels that fire, for each step and position, [T, H, W].
        channels: Firing rate of each neuron in spikes per step, [C, H, W].
    """

    steps: np.ndarray
    channels: np.ndarray


class Viewer:
    """Runs the networks for the page. Several visitors may use it at once. It stores nothing.

    Args:
        detector: Detector with spiking weights.
        reference: Float detector for comparison, or None.
        example: Picture [H, W, 3] uint8 BGR. Its operations are counted exactly, and the energy
            estimate for other pictures is based on them.
        limits: Limits for requests. None: the default limits.

    Attributes:
        layers: Names of the layers of neurons in the order of execution.
        float_energy: Estimated energy of the float network in mJ per picture.

    Raises:
        UsageError: The weights are not spiking weights.
    """

    def __init__(
        self,
        detector: Predictor,
        reference: Predictor | None,
        example: np.ndarray,
        limits: Limits | None = None,
    ):
        if detector.runner.stage != "snn":
            raise UsageError(
                f"{detector.weights.name}: these weights have no time steps; expected spiking "
                "weights"
            )
        self.detector, self.reference = detector, reference
        self.limits = limits or Limits()
        self._network = detector.runner.network
        self.layers = [node.name for node in self._network.graph.of((IFNeuron,))]
        steps = min(detector.T or 1, self.limits.T)
        self._energy = EnergyEstimate(self._network, self._input(example), steps)
        self.float_energy = self._energy.float_pj / 1e9

    @property
    def T(self) -> int:
        """Default number of time steps."""
        return min(self.detector.T or 1, self.limits.T)

    def read(self, path: Path) -> np.ndarray:
        """Read an uploaded picture, [H, W, 3] uint8 BGR.

        Raises:
            PictureError: The picture cannot be read, or is too large.
        """
        header = read_header(path)
        self._expect_small(header.width, header.height)
        return read_picture(path)

    def look(
        self, picture: np.ndarray, T: int, conf: float = 0.25, beside: bool = False
    ) -> Iterator[Step | FloatResult]:
        """Yield the result of the spiking network after each step, then that of the float network.

        Args:
            picture: [H, W, 3] uint8 BGR.
            T: Time steps.
            conf: Confidence threshold.
            beside: Whether to run the float network too.

        Raises:
            UsageError: T or `conf` is outside its limits, there is no float network, or the time
                limit is exceeded.
        """
        self._expect_steps(T)
        if beside and self.reference is None:
            raise UsageError("there is no float network to show beside the spiking one")
        return self._look(picture, T, conf, beside)

    def _look(
        self, picture: np.ndarray, T: int, conf: float, beside: bool
    ) -> Iterator[Step | FloatResult]:
        begin, spent = time.monotonic(), 0.0
        with self._network.spike_rates() as rates:
            steps = self.detector.steps(picture, T, conf=conf, iou=IOU, chunk=CHUNK)
            while True:
                start = time.perf_counter()
                detections = next(steps, None)
                spent += time.perf_counter() - start
                if detections is None:
                    break
                assert detections.T is not None
                layers = rates.by_layer(detections.T)
                energy = self._energy.picojoules(layers, detections.T) / 1e9
                yield Step(detections, layers, spent, energy)
                if detections.T < T:
                    self._expect_time(begin)
        if beside and self.reference is not None:
            self._expect_time(begin)
            start = time.perf_counter()
            other = self.reference(picture, conf=conf, iou=IOU)
            assert isinstance(other, Detections)
            yield FloatResult(other, time.perf_counter() - start)

    def film(self, path: Path, T: int, conf: float = 0.25) -> Iterator[tuple[float, Step]]:
        """Yield the result after T steps for each frame of a video.

        Args:
            path: A video or an animation.
            T: Time steps for each frame.
            conf: Confidence threshold.

        Yields:
            Seconds since the first frame, and the last step of the frame.

        Raises:
            PictureError: The video cannot be read, its frames are too large, or it is damaged.
                Damage is raised after the readable frames.
            UsageError: T or `conf` is outside its limits, or the time limit is exceeded. The time
                limit is raised after a processed frame.
        """
        self._expect_steps(T)
        begin, problems = time.monotonic(), Problems()
        for frame in Picture(path, sure=False).frames(problems):
            if frame.index >= self.limits.frames:
                break
            self._expect_small(frame.picture.shape[1], frame.picture.shape[0])
            *_, last = self.look(frame.picture, T, conf)
            assert isinstance(last, Step)
            yield frame.time, last
            self._expect_time(begin)
        if problems.errors:
            raise problems.errors[0]

    @torch.inference_mode()
    def spikes(self, picture: np.ndarray, T: int, layer: str) -> Spikes:
        """Record the spikes of a layer. The torch engine always runs the network for this.

        Args:
            picture: [H, W, 3] uint8 BGR.
            T: Time steps.
            layer: A name in `layers`.

        Raises:
            UsageError: T is outside its limits, the layer does not exist, or the time limit is
                exceeded.
        """
        self._expect_steps(T)
        if layer not in self.layers:
            known = list_choices(layer, self.layers)
            raise UsageError(f"no layer {layer[:80]!r}; expected one of {known}")
        steps: list[Tensor] = []
        total: list[Tensor] = []

        def on_node(now: Any, node: Any, inputs: Any, sent: Tensor) -> None:
            if node.name != layer:
                return
            fired = sent.float().sign().abs()
            fired = fired if fired.dim() == 4 else fired.reshape(*fired.shape[:2], 1, -1)
            steps.append(fired.mean(1))
            total.append(fired.sum(0))

        begin = time.monotonic()
        with watching(self._network.graph, on_node):
            for _ in self._network.anytime(self._input(picture), T, CHUNK):
                self._expect_time(begin)
        channels = torch.stack(total).sum(0) / T
        return Spikes(torch.cat(steps).cpu().numpy(), channels.cpu().numpy())

    def _input(self, picture: np.ndarray) -> Tensor:
        """Convert a picture to the input of the network, [1, 3, S, S]."""
        tensor, _ = letterbox(picture, self.detector.imgsz)
        tensor = channels_last(tensor[None])
        return tensor.to(self.detector.device)

    def _expect_steps(self, T: int) -> None:
        if not 1 <= T <= self.limits.T:
            raise UsageError(f"T is {T}; expected 1 to {self.limits.T} time steps here")

    def _expect_small(self, width: int, height: int) -> None:
        if width * height > self.limits.megapixels * 1e6:
            raise PictureError(
                f"{width} x {height} pixels are too many here; expected at most "
                f"{self.limits.megapixels:g} million"
            )

    def _expect_time(self, begin: float) -> None:
        if time.monotonic() - begin > self.limits.seconds:
            raise UsageError(
                f"stopped after {self.limits.seconds:g} seconds, the longest time for one visitor; "
                "choose a smaller T or a shorter video"
            )


def spike_maps(spikes: Spikes) -> dict[str, list[dict[str, Any]]]:
    """Make pictures of the spikes of a layer. Positions with many spikes are bright.

    Returns:
        A dict with two lists. `steps` has up to eight time steps, spread over the run: `t` and
            `png`. `channels` has up to eight channels with the highest firing rates: `channel`,
            `rate` (spikes per neuron and step) and `png`.
    """
    T = len(spikes.steps)
    chosen = sorted({round(t) for t in np.linspace(0, T - 1, min(T, MOST_MAPS))})
    brightest = float(spikes.steps.max(initial=0)) or 1.0
    steps = [{"t": t + 1, "png": heat_map(spikes.steps[t] / brightest)} for t in chosen]
    means = spikes.channels.reshape(len(spikes.channels), -1).mean(1)
    busiest = np.argsort(-means, kind="stable")[:MOST_MAPS]
    channels = [
        {"channel": int(c), "rate": float(means[c]), "png": heat_map(spikes.channels[c])}
        for c in busiest
    ]
    return {"steps": steps, "channels": channels}


def heat_map(values: np.ndarray, side: int = 160) -> bytes:
    """Convert numbers 0..1, [H, W], to a PNG from dark to bright, about `side` pixels wide."""
    scale = max(1, round(side / max(values.shape)))
    grey = (np.clip(values, 0, 1) * 255 + 0.5).astype(np.uint8)
    colours = cv2.applyColorMap(grey, cv2.COLORMAP_VIRIDIS)
    return encode(colours.repeat(scale, 0).repeat(scale, 1), ".png")


def encode(picture: np.ndarray, suffix: str = ".jpg", longest: int = 1280) -> bytes:
    """Encode a picture [H, W, 3] uint8 BGR. Larger pictures are shrunk to `longest` pixels.

    Args:
        picture: The picture.
        suffix: `.jpg` or `.png`.
        longest: Largest side in pixels.

    Returns:
        Data of the file.
    """
    scale = longest / max(picture.shape[:2])
    if scale < 1:
        size = [max(1, round(side * scale)) for side in picture.shape[1::-1]]
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    return cv2.imencode(suffix, picture)[1].tobytes()
