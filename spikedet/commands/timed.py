"""The networks and pictures that `spikedet benchmark` times."""

from __future__ import annotations

import copy
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import spikedet
from spikedet.analysis import int8_float, sides, timing
from spikedet.analysis.limit import Work, work_of
from spikedet.analysis.timing import BFLOAT16, FLOAT, IN_BFLOAT16, INT8, LOOP, OURS, PEER, Subject
from spikedet.commands.main import progress
from spikedet.errors import DataError, UsageError, WeightsError
from spikedet.networks import expect_stage
from spikedet.predictor import BasePredictor
from spikedet.released import default_weights, released
from spikedet.runtime.network import SpikingNetwork
from spikedet.terminal import note

if TYPE_CHECKING:
    from spikedet.commands.benchmark import Options

MOST = 100  # pictures that are kept in memory
COUNTED = 8  # of them whose spikes are counted, and that tell int8 the ranges of activations


class Timed:
    """The networks and pictures of a benchmark.

    Args:
        options: Options of the command.

    Attributes:
        runs: Function of pictures [B, ...] to time, for each row of the table. int8 is added later,
            because its number of threads is fixed when it is built.
        files: Weights file of each row.
        size: Input side in pixels.

    Raises:
        WeightsError: The weights have different tasks or a wrong stage.
        UsageError: An engine does not work here, or the network cannot take the size.
    """

    def __init__(self, options: Options):
        self.options = options
        self.runs: dict[Subject, Callable[[Tensor], Any]] = {}
        self.files: dict[Subject, Path] = {}
        self.networks: dict[Subject, SpikingNetwork] = {}  # whose spikes are counted
        first = self._load(options.weights, options.T[0])
        expect_stage(first.runner, "snn")
        self.task = first.task
        path = options.reference or released("float", task=self.task.name)
        assert path is not None  # the released one comes with the package
        self.reference = self._load(path)
        expect_stage(self.reference.runner, "float")
        if self.reference.task is not self.task:
            of_each = f"{self.reference.task.name} and {self.task.name}"
            raise WeightsError(f"weights for {of_each}; expected weights for one task")
        self.size = options.imgsz or first.imgsz
        if self.size % self.reference.stride:
            stride = self.reference.stride
            raise UsageError(f"imgsz is {self.size}; expected a multiple of {stride}")
        for name in (FLOAT, BFLOAT16):
            self._add(Subject(name, timing.TORCH), self.reference.runner.network, path)
        for T in options.T:
            self._add_spiking(T)

    def _load(self, weights: Path | None, T: int | None = None, **more: Any) -> BasePredictor:
        loaded = spikedet.load(weights, T, self.options.device, **more)
        if not isinstance(loaded, BasePredictor):
            raise UsageError(
                "the weights are of spikedet.save, which stores no task to compare a float "
                "network for"
            )
        return loaded

    def _add(self, subject: Subject, network: Any, path: Path) -> None:
        run = sides.side(subject, network)
        self.runs[subject] = lambda pictures: run(pictures, subject.T)
        self.files[subject] = path

    def _add_spiking(self, T: int) -> None:
        """Add the requested engines and other programs for T."""
        weights, name = self.options.weights, self.task.name
        path = weights or default_weights(T, name)
        for engine in self.options.engines:
            loaded = self._load(weights, T, task=name, **timing.options_of(engine))
            note(f"T={T}: {loaded.why_engine}")
            chosen = IN_BFLOAT16 if loaded.half else loaded.engine
            subject = Subject(OURS, chosen, T)
            self._add(subject, loaded.runner.network, path)
            self.networks[subject] = loaded.runner.network
        if not self.options.peers:
            return
        plain = self._load(weights, T, task=name, half=False).runner.network
        for subject in (Subject(PEER, "multi-step", T), Subject(LOOP, timing.TORCH, T)):
            try:
                self._add(subject, plain, path)
            except UsageError as error:
                note(f"{subject.name} is left out: {error}")
                continue
            self.networks[subject] = plain

    # ------------------------------------------------------------------ int8

    def int8(self, pictures: Tensor, folder: Path) -> Path | None:
        """Write the float network in int8 to a folder. None if this is not possible."""
        try:
            if self.options.device != "cpu":
                raise UsageError("onnxruntime runs only on the CPU here")
            int8_float.expect_onnxruntime()
            from spikedet.exporting import onnx
            from spikedet.exporting.source import Source

            graph = copy.deepcopy(self.reference.runner.network)
            graph.measure_shapes(pictures[:1])
            model, _ = onnx.build(Source.of(graph))
            data = int8_float.quantised(model, pictures[:COUNTED].split(1))
        except UsageError as error:
            note(f"{INT8} is left out: {error}")
            return None
        path = folder / "int8.onnx"
        path.write_bytes(data)
        self.files[Subject(INT8, "onnxruntime")] = path
        return path

    def all_runs(self, int8: Path | None, threads: int) -> dict[Subject, Callable[[Tensor], Any]]:
        """The functions to time with this number of threads. Float networks come first."""
        runs = dict(self.runs)
        if int8 is not None:
            runs[Subject(INT8, "onnxruntime")] = int8_float.Int8Float(int8.read_bytes(), threads)
        order = {name: number for number, name in enumerate(timing.FLOATS)}
        return dict(sorted(runs.items(), key=lambda item: order.get(item[0].name, len(order))))

    # ------------------------------------------------------------------ pictures, and their spikes

    def pictures(self) -> Tensor:
        """The pictures as input of the network, [N, 3, H, W]. A batch has at most N."""
        largest = max(self.options.batch)
        count = max(largest, min(MOST, self.options.rounds * largest))
        if self.options.data is None and self.task.name != "detection":
            generator = torch.Generator().manual_seed(0)
            inputs = torch.randn(count, 3, self.size, self.size, generator=generator)
        else:
            paths = picture_paths(self.options.data, count)
            fitted = [self._fitted(path) for path in paths]
            inputs = torch.stack([fitted[number % len(fitted)] for number in range(count)])
        return inputs.contiguous(memory_format=torch.channels_last)

    def _fitted(self, path: Path) -> Tensor:
        from spikedet.pictures import read_picture

        picture = read_picture(path)
        if self.task.name == "detection":
            from spikedet.detection.letterbox import letterbox

            return letterbox(picture, self.size)[0]
        from spikedet.classification.transforms import view

        rgb = torch.from_numpy(picture[..., ::-1].copy()).permute(2, 0, 1)
        return view(self.reference.runner.description, self.size)(rgb)

    def about_pictures(self) -> str:
        """A short description of the pictures."""
        if self.options.data is not None:
            return f"pictures of {self.options.data.resolve().name}"
        return "one street picture" if self.task.name == "detection" else "noise"

    def work(self, pictures: Tensor) -> dict[Subject, Work]:
        """Count the spikes and additions of each spiking network on the first pictures."""
        some = pictures[:COUNTED].to(self.options.device).split(1)
        known: dict[tuple[int, int], Work] = {}
        number = len(self.networks)
        with progress(desc="count spikes", total=number, unit="network", leave=False) as bar:
            for subject, network in self.networks.items():
                key = id(network), subject.T
                if key not in known:
                    known[key] = work_of(network, some, subject.T)
                bar.update()
        return {s: known[id(network), s.T] for s, network in self.networks.items()}


def picture_paths(data: Path | None, most: int) -> list[Path]:
    """Find the pictures of `--data`: VOC2007's train split, or a folder and its subfolders.

    Args:
        data: The folder. None: the example picture of ultralytics.
        most: Largest number of pictures.

    Raises:
        DataError: The folder does not exist, or has no pictures.
    """
    if data is None:
        from spikedet.detection.ultra import SAMPLE

        return [Path(SAMPLE)]
    from spikedet.pictures import is_picture

    if not data.is_dir():
        raise DataError(f"{data}: no such folder")
    listed = data / "VOC2007/ImageSets/Main/train.txt"
    if listed.is_file():
        names = listed.read_text().split()
        paths = [data / f"VOC2007/JPEGImages/{name}.jpg" for name in names[:most]]
    else:
        inside = (
            Path(folder) / name
            for folder, folders, names in os.walk(data)
            for name in _sorted(folders, names)
        )
        paths = list(itertools.islice(filter(is_picture, inside), most))
    if not paths:
        raise DataError(f"{data}: no pictures in this folder")
    return paths


def _sorted(folders: list[str], names: list[str]) -> list[str]:
    """Sort the file names of a folder in place, and its subfolders."""
    folders.sort()
    return sorted(names)
