"""Makes the pictures of the README and of these pages: python docs/figures.py

cat-steps.jpg     what the released detector sees after 4, 8, 12 and 20 steps of one run on cat.jpg
ap-over-T.svg     average precision over the time steps T, from weights/results/table10.csv
"""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs" / "pictures"
TABLE = ROOT / "weights" / "results" / "table10.csv"
STEPS = (4, 8, 12, 20)
CURVES = {  # method in the table: label, colour
    "two-stage": ("spiking, stages I + II", "#d62728"),
    "stage1": ("spiking, stage I alone", "#1f77b4"),
    "copy": ("spiking, copied weights", "#7f7f7f"),
    "spiking-yolo": ("spiking, Spiking-YOLO", "#2ca02c"),
}


def steps(detector, picture: Path) -> np.ndarray:
    """The picture after each of STEPS, side by side, with T written on it; [H, W, 3] uint8 BGR."""
    panels = []
    for found in detector.steps(picture):
        if found.T in STEPS:
            panel = found.plot()
            place = (8, panel.shape[0] - 12)
            for colour, width in (((0, 0, 0), 5), ((255, 255, 255), 2)):
                cv2.putText(panel, f"T = {found.T}", place, cv2.FONT_HERSHEY_SIMPLEX, 0.9, colour,
                            width, cv2.LINE_AA)  # fmt: skip
            panels.append(panel)
    rows = [np.hstack(panels[:2]), np.hstack(panels[2:])]
    return np.vstack(rows)


def ap_over_T() -> tuple[float, dict[str, list[tuple[int, float]]]]:
    """AP of the float network and (T, AP) of each method, in percent, over all 1,000 pictures."""
    with TABLE.open() as file:
        rows = [row for row in csv.DictReader(file) if row["images"] == "1000"]
    (base,) = (100 * float(row["AP"]) for row in rows if row["method"] == "float")
    points = {
        name: sorted((int(row["T"]), 100 * float(row["AP"])) for row in rows if row["method"] == name)
        for name in CURVES
    }
    return base, points


def told(base: float, points: dict[str, list[tuple[int, float]]]) -> str:
    """The numbers of the plot in one line; it stands in the file, so that a test can compare."""
    curves = (f"{name}: " + ", ".join(f"{T} {ap:.1f}" for T, ap in points[name]) for name in points)
    return f"AP in percent; float: {base:.1f}; " + "; ".join(curves)


def plot(path: Path) -> None:
    """AP over T of the methods of CURVES, as SVG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    base, points = ap_over_T()
    pyplot.rcParams["svg.hashsalt"] = "spikedet"  # the same file every time
    figure, axes = pyplot.subplots(figsize=(6.4, 3.6))
    axes.axhline(base, color="black", linestyle="--", label=f"float network, {base:.1f}")
    for name, (label, colour) in CURVES.items():
        axes.plot(*zip(*points[name], strict=True), "o-", color=colour, label=label)
    axes.set(xlabel="time steps T", ylabel="AP, percent", ylim=(0, 32), xlim=(0, 62))
    axes.set_xticks([4, 8, 16, 20, 32, 40, 60])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    metadata = {"Date": None, "Description": told(base, points)}
    figure.savefig(path, metadata=metadata)
    pyplot.close(figure)


if __name__ == "__main__":
    import spikedet

    plot(PICTURES / "ap-over-T.svg")
    strip = steps(spikedet.load(T=20, half=False, engine="torch"), PICTURES / "cat.jpg")
    cv2.imwrite(str(PICTURES / "cat-steps.jpg"), strip, [cv2.IMWRITE_JPEG_QUALITY, 85])
