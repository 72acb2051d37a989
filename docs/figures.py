"""Makes the pictures of the README and of these pages: python docs/figures.py --kodak FOLDER

cat-steps.jpg     what the released detector sees after some steps of one run on cat.jpg
examples.jpg      what it sees on six pictures of scikit-image (pip install scikit-image), and on
                  six of Kodak's test pictures: FOLDER with kodim01.png to kodim24.png
ap-over-T.svg     average precision over the time steps T, from weights/results/table10.csv
passes.svg        time over T, in passes of the float network, from weights/results/speed.csv
neuron.svg        potential and spikes of one integrate-and-fire neuron
quantise.svg      ReLU beside the quantise-clip activations of stage I
residual.svg      the same mean current in two orders, and what the neuron makes of them
correcting.svg    an ordinary neuron, and one that takes back a spike, with the same currents
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs" / "pictures"
TABLE = ROOT / "weights" / "results" / "table10.csv"
SPEED = ROOT / "weights" / "results" / "speed.csv"
STEPS = (1, 2, 4, 8)
EXAMPLES = ("astronaut", "camera", "horse", "cat", "coffee", "rocket")  # in skimage.data
KODAK = ("kodim20", "kodim12", "kodim09", "kodim23", "kodim18", "kodim05")
EXAMPLE = (300, 236)  # pixels of each, width and height
DATA = "1,000 pictures of VOC2007:val; released detector, and others of its size; spikedet"
CURVES = {  # method in the table: label, colour
    "two-stage-correcting": ("spiking, stages I + II, take back spikes", "#d62728"),
    "stage1-correcting": ("spiking, stage I alone, take back spikes", "#ff7f0e"),
    "stage1": ("spiking, stage I alone, ordinary neurons", "#1f77b4"),
    "copy": ("spiking, copied weights", "#7f7f7f"),
    "spiking-yolo": ("spiking, Spiking-YOLO", "#2ca02c"),
}


def steps(detector, picture: Path) -> np.ndarray:
    """The picture after each of STEPS, side by side, with T written on it; [H, W, 3] uint8 BGR."""
    panels = []
    for step in detector.steps(picture):
        if step.T in STEPS:
            panel = step.plot()
            place = (16, panel.shape[0] - 20)  # inside a box that fills the picture
            for colour, width in (((0, 0, 0), 5), ((255, 255, 255), 2)):
                cv2.putText(panel, f"T = {step.T}", place, cv2.FONT_HERSHEY_SIMPLEX, 0.9, colour,
                            width, cv2.LINE_AA)  # fmt: skip
            panels.append(panel)
    rows = [np.hstack(panels[:2]), np.hstack(panels[2:])]
    return np.vstack(rows)


def example_pictures(kodak: Path) -> list[np.ndarray]:
    """The pictures of EXAMPLES and of KODAK; each [H, W, 3] uint8 BGR."""
    from skimage import data, img_as_ubyte

    pictures = []
    for name in EXAMPLES:
        picture = img_as_ubyte(getattr(data, name)())
        from_grey = picture.ndim == 2
        pictures.append(
            cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR if from_grey else cv2.COLOR_RGB2BGR)
        )
    return pictures + [cv2.imread(str(kodak / f"{name}.png")) for name in KODAK]


def examples(detector, pictures: list[np.ndarray]) -> np.ndarray:
    """The detections on pictures, three in a row; [H, W, 3] uint8 BGR."""
    width, height = EXAMPLE
    panels = []
    for picture in pictures:
        scale = min(width / picture.shape[1], height / picture.shape[0])
        size = [round(side * scale) for side in picture.shape[1::-1]]
        small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        found = detector(picture)
        drawn = replace(found, picture=small, boxes=found.boxes * scale).plot()
        panel = np.full((height, width, 3), 255, np.uint8)
        top, left = (height - size[1]) // 2, (width - size[0]) // 2
        panel[top : top + size[1], left : left + size[0]] = drawn
        panels.append(panel)
    return np.vstack([np.hstack(panels[i : i + 3]) for i in range(0, len(panels), 3)])


def ap_over_T() -> tuple[float, dict[str, list[tuple[int, float]]]]:
    """AP of the float network and (T, AP) of each method, in percent, over all 1,000 pictures."""
    with TABLE.open() as file:
        rows = [row for row in csv.DictReader(file) if row["images"] == "1000"]
    (base,) = (100 * float(row["AP"]) for row in rows if row["method"] == "float")
    points = {
        name: sorted(
            (int(row["T"]), 100 * float(row["AP"])) for row in rows if row["method"] == name
        )
        for name in CURVES
    }
    return base, points


def told(base: float, points: dict[str, list[tuple[int, float]]]) -> str:
    """The numbers of the plot in one line; it stands in the file, so that a test can compare."""
    curves = (f"{name}: " + ", ".join(f"{T} {ap:.1f}" for T, ap in points[name]) for name in points)
    return f"AP in percent; float: {base:.1f}; " + "; ".join(curves)


def neuron(currents: list[float], kind: str = "neuron") -> tuple[np.ndarray, np.ndarray]:
    """Potentials before the reset [T] and spikes [T] of one neuron with the threshold 1.

    Its potential starts at 0.5. `kind` is a name in `neurons.registry`.
    """
    import torch

    from spikedet.neurons.registry import named

    layer = named(kind)(torch.tensor(1.0), torch.tensor([0.5])).requires_grad_(False)
    first = torch.full((1, 1), currents[0])
    state, before, spikes = layer.start(first, 1), [], []
    for current in currents:
        potential = state[0] if isinstance(state, tuple) else state
        before.append(float(potential) + current)
        fired, state = layer.fire(torch.full((1, 1), current), state, 1)
        spikes.append(float(fired))
    return np.array(before), np.array(spikes)


def _bars(axes, before: np.ndarray, spikes: np.ndarray, title: str) -> None:
    """Potentials as bars under the threshold: red for a spike, violet for one of -1."""
    steps_ = np.arange(1, len(before) + 1)
    colours = [{1: "#d62728", 0: "#9ecae1", -1: "#9467bd"}[fired] for fired in spikes]
    axes.bar(steps_, before, color=colours, width=0.6)
    axes.axhline(1, color="black", linestyle="--", linewidth=1)
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set(xlabel="time step t", title=title, xticks=steps_, ylim=(-0.7, 2.1))
    axes.title.set_size(9)


def drawings(folder: Path) -> None:
    """The drawings of docs/method.md."""
    import torch

    from spikedet.neurons.quantize import levels

    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(6.4, 2.6))
    before, spikes = neuron([0.3] * 10)
    _bars(axes, before, spikes, "current 0.3 in every step: red bars reach the threshold and fire")
    axes.set(ylabel="potential u", ylim=(0, 1.4))
    _save(figure, folder / "neuron.svg", f"{spikes.sum():.0f} spikes in 10 steps")

    figure, axes = pyplot.subplots(figsize=(6.4, 3))
    z = torch.linspace(-0.4, 1.6, 1001)
    axes.plot(z, z.clamp(min=0), color="black", linestyle="--", label="ReLU")
    for T, colour in ((4, "#1f77b4"), (20, "#d62728")):
        axes.plot(z, levels(z, T), color=colour, label=f"stage I, T = {T}")
    axes.set(xlabel="input z / threshold", ylabel="output / threshold", ylim=(-0.1, 1.6))
    axes.legend(fontsize=8)
    _save(figure, folder / "quantise.svg", "ReLU and quantise-clip for T = 4 and T = 20")

    figure, pair = pyplot.subplots(1, 2, figsize=(6.4, 2.8), sharey=True)
    for axes, currents in zip(pair, ([0.5] * 4, [-1.2, -0.4, 1.8, 1.8]), strict=True):
        before, spikes = neuron(currents)
        listed = ", ".join(f"{each:g}" for each in currents)
        _bars(axes, before, spikes, f"currents {listed}\n{spikes.sum():.0f} spikes in 4 steps")
        axes.set(ylim=(-1.3, 2.7))
    pair[0].set(ylabel="potential u")
    _save(figure, folder / "residual.svg", "the mean current is 0.5 in both")

    figure, pair = pyplot.subplots(1, 2, figsize=(6.4, 2.8), sharey=True)
    currents = [0.9, 0.9, -0.8, -0.6]
    for axes, kind in zip(pair, ("neuron", "correcting"), strict=True):
        before, spikes = neuron(currents, kind)
        name = {"neuron": "ordinary", "correcting": "takes back spikes"}[kind]
        _bars(axes, before, spikes, f"{name}\nsum of the spikes: {spikes.sum():.0f}")
    pair[0].set(ylabel="potential u", ylim=(-1.3, 1.7))
    _save(figure, folder / "correcting.svg", f"currents {currents}")


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams["svg.hashsalt"] = "spikedet"  # the same file every time
    return pyplot


def _save(figure, path: Path, description: str) -> None:
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None, "Description": description})
    _pyplot().close(figure)


def plot(path: Path) -> None:
    """AP over T of the methods of CURVES, as SVG."""
    pyplot = _pyplot()
    base, points = ap_over_T()
    figure, axes = pyplot.subplots(figsize=(8, 3.8))
    axes.axhline(base, color="black", linestyle="--", label=f"float network, {base:.1f}")
    for name, (label, colour) in CURVES.items():
        axes.plot(*zip(*points[name], strict=True), "o-", color=colour, label=label)
    axes.set(xlabel="time steps T", ylabel="AP, percent", ylim=(0, base + 3), xlim=(0, 62))
    axes.set_xticks([4, 8, 16, 20, 32, 40, 60])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))  # beside the curves
    figure.supxlabel(DATA, fontsize="x-small")
    _save(figure, path, told(base, points))


def speed_rows() -> list[dict[str, object]]:
    """Rows of the first run of the benchmark: one picture at once, two threads, all engines."""
    with SPEED.open() as file:
        rows = list(csv.DictReader(file))
    return [
        {**row, "T": int(row["T"]), "batch": 1, "threads": 2, "passes": float(row["passes"])}
        for row in rows
        if row["machine"] == rows[0]["machine"]  # the others had other threads or kernels
    ]


def passes(path: Path) -> None:
    """Time over T, as SVG."""
    from spikedet.analysis.timing import FLOATS
    from spikedet.plots.figure import About
    from spikedet.plots.speed import passes as draw

    rows = speed_rows()
    about = About("released detectors", f"416 x 416 pixels; {rows[0]['machine']}")
    _pyplot()
    path.write_bytes(draw(rows, about, FLOATS, "svg"))


if __name__ == "__main__":
    import spikedet

    parser = argparse.ArgumentParser(description="Make the pictures of the README.")
    parser.add_argument("--kodak", type=Path, required=True, help="folder of kodim01.png and so on")
    kodak = parser.parse_args().kodak
    plot(PICTURES / "ap-over-T.svg")
    passes(PICTURES / "passes.svg")
    drawings(PICTURES)
    # as `spikedet detect` on the events engine, which these are equal to on every machine
    detector = spikedet.load(T=8, engine="integers")
    for name, picture in {
        "cat-steps.jpg": steps(detector, PICTURES / "cat.jpg"),
        "examples.jpg": examples(detector, example_pictures(kodak)),
    }.items():
        cv2.imwrite(str(PICTURES / name), picture, [cv2.IMWRITE_JPEG_QUALITY, 85])
