"""Plots of every kind from small tables: they can be read, and say what they are of."""

import csv
import io
import os
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from spikedet.plots import About, analysis, figure, measures, pictures, speed, write
from support.places import ROOT

ABOUT = About("w.safetensors", "60 pictures of val", 8)
CLASSES = [f"class {n}" for n in range(9)]
EVERY = {
    "precision-recall": (
        measures.precision_recall,
        [{"class": c, "recall": r, "precision": 1 - r} for c in [*CLASSES, measures.ALL]
         for r in (0.0, 0.5, 1.0)],
    ),
    "f1": (
        measures.f1,
        [{"class": c, "confidence": r, "f1": 0.6 - abs(r - 0.3)} for c in ("a", measures.ALL)
         for r in (0.0, 0.3, 1.0)],
    ),
    "confusion": (
        measures.confusion,
        [{"truth": "background", "predicted": "cat", "count": 3},
         {"truth": "cat", "predicted": "cat", "count": 9}],
    ),
    "many": (
        measures.confusion,
        [{"truth": f"{n}", "predicted": f"{n}", "count": n} for n in range(100)],
    ),
    "reliability": (
        measures.reliability,
        [{"low": 0.0, "high": 0.5, "count": 0, "score": None, "right": None},
         {"low": 0.5, "high": 1.0, "count": 4, "score": 0.8, "right": 0.75}],
    ),
    "classes": (
        measures.classes,
        [{"method": m, "T": t, "class": c, "AP": None if c == CLASSES[0] else 0.3}
         for m, t in (("float", None), ("stages I + II", 8)) for c in CLASSES],
    ),
    "sizes-of-one-T": (
        measures.sizes,
        [{"method": "float", "T": None, "size": s, "AP": v}
         for s, v in (("small", None), ("large", 0.4))],
    ),
    "sizes-over-T": (
        measures.sizes,
        [{"method": "snn", "T": t, "size": s, "AP": t / 9}
         for t in (1, 2, 8) for s in ("small", "large")],
    ),
    "over": (
        lambda rows, about: measures.value_curves(rows, "T", "AP", "AP over T", 0.5, about),
        [{"method": "snn", "T": t, "AP": t / 9} for t in (1, 2, 8)],
    ),
    "training": (
        measures.training,
        [{"epoch": n, "train/box_loss": 3 / n, "metrics/mAP50(B)": n / 9, "lr/pg0": "0.1",
          "note": "x"} for n in (1, 2, 3)],
    ),
    "rates": (
        analysis.rates,
        [{"network": "snn", "layer": f"l{n}", "rate": 0.1, "error": e}
         for n, e in enumerate((0.1, 0.2, None))],
    ),
    "rates-alone": (
        analysis.rates, [{"network": "snn", "layer": "l1", "rate": 0.1, "error": None}],
    ),
    "raster": (
        analysis.raster,
        [{"layer": f"l{c // 2}", "channel": c, "row": 0, "column": 0, "T": t, "spike": (t + c) % 2}
         for c in range(4) for t in range(1, 9)],
    ),
    "passes": (
        lambda rows, about: speed.passes(rows, about, ["float32"]),
        [{"name": name, "engine": "torch", "T": t, "batch": b, "threads": 1, "passes": 0.3 * t}
         for b in (1, 8) for name, t in (("float32", 1), ("spikedet", 2), ("spikedet", 8))],
    ),
}  # fmt: skip


@pytest.fixture
def texts(monkeypatch):
    """All texts of the figures that are drawn."""
    words = []
    draw = figure.png

    def spy(drawn: Figure):
        words.extend(text.get_text() for text in drawn.findobj(match=lambda x: hasattr(x, "_text")))
        return draw(drawn)

    for module in (measures, analysis, pictures):
        monkeypatch.setattr(module, "png", spy)
    monkeypatch.setattr(speed, "render", lambda drawn, form: spy(drawn))
    return words


def test_long_names_of_classes_leave_room_for_the_plot():
    """Of 255 letters they took all of it."""
    long, shown = "n" * 255, "n" * 27 + "..."
    for name in ("confusion", "classes"):
        drawn, rows = EVERY[name]
        texts = []
        for words in (long, shown):
            renamed = [{k: words if v in CLASSES[:1] + ["cat"] else v for k, v in row.items()}
                       for row in rows]  # fmt: skip
            texts.append(drawn(renamed, ABOUT))
        assert texts[0] == texts[1], name


@pytest.mark.parametrize("name", EVERY)
def test_a_plot_is_a_picture_that_says_what_it_is_of(name, texts, tmp_path):
    draw, rows = EVERY[name]
    path = write(tmp_path / "plots", f"{name}-T8", rows, draw, ABOUT)
    with Image.open(path) as picture:
        assert picture.format == "PNG" and min(picture.size) > 150 and max(picture.size) < 6000
        assert len(set(picture.convert("L").get_flattened_data())) > 2
    words = " ".join(texts).replace("\n", " ")
    for part in ("T=8", "60 pictures of val", "w.safetensors", "spikedet"):
        assert part in words
    with path.with_suffix(".csv").open() as file:
        table = list(csv.DictReader(file))
    expected = [{k: "" if v is None else str(v) for k, v in row.items()} for row in rows]
    assert [{k: v for k, v in row.items() if k in one} for row, one in
            zip(table, expected, strict=True)] == expected  # fmt: skip


def test_columns_of_a_training_share_panels(texts):
    measures.training(EVERY["training"][1], ABOUT)
    assert {"loss", "average precision", "learning rate", "train/box_loss"} <= set(texts)
    assert "note" not in texts  # is no number
    assert "mAP50" in texts  # "metrics/mAP50(B)"


def test_epochs_are_whole_numbers_and_shares_not_negative(monkeypatch):
    drawn = []
    monkeypatch.setattr(measures, "png", lambda figure: drawn.append(figure) or b"")
    rows = [{"epoch": n, "metrics/mAP50(B)": 0, "train/box_loss": 1} for n in (1, 2, 3)]
    measures.training(rows, ABOUT)
    for axes in drawn[0].axes:
        assert all(tick == round(tick) for tick in axes.get_xticks())
    precision = next(a for a in drawn[0].axes if a.get_title() == "average precision")
    assert precision.get_ylim()[0] == 0


def test_the_best_confidence_is_named(texts):
    measures.f1(EVERY["f1"][1], ABOUT)
    assert "best 0.60 at 0.30" in texts


def test_the_calibration_error_is_that_of_the_table(texts):
    measures.reliability(EVERY["reliability"][1], ABOUT)
    assert "Reliability of scores: calibration error 0.050" in texts


def test_a_strip_has_a_panel_a_step(texts):
    panel = np.full((2000, 1000, 3), 90, np.uint8)
    png = pictures.strip([(f"t={t}", panel) for t in range(1, 8)], ABOUT)
    assert [text for text in texts if text.startswith("t=")] == [f"t={t}" for t in range(1, 8)]
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.size[0] > 1000 and picture.size[1] > picture.size[0] / 2


def test_pictures_are_shrunk_and_say_by_how_much():
    small, scale = pictures.shrink(np.zeros((960, 240, 3), np.uint8))
    assert small.shape == (480, 120, 3) and scale == 0.5
    assert pictures.shrink(small)[1] == 1.0


def test_colours_are_told_apart_by_everybody():
    """Okabe and Ito's; lines beyond them differ in their dashes."""
    drawn, axes = figure.new_figure("", "", "", ABOUT)
    for n in range(10):
        axes.plot([0, 1], [n, n])
    looks = {(line.get_color(), line.get_linestyle()) for line in axes.lines}
    assert len(looks) == 10 and {colour for colour, _ in looks} == set(figure.COLOURS)


def test_no_display_is_needed():
    code = (
        "from spikedet.plots import figure, measures, analysis, pictures\n"
        "import sys; assert 'matplotlib.pyplot' not in sys.modules\n"
        "drawn, _ = figure.new_figure('', 'x', 'y', figure.About('w', 'd'))\n"
        "assert figure.png(drawn)[1:4] == b'PNG'"
    )
    environment = {k: v for k, v in os.environ.items() if k != "DISPLAY"}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=environment)


def test_passes_name_the_machine_and_every_panel(texts):
    rows = EVERY["passes"][1]
    about = About("w.safetensors", "pictures", [2, 8], "a machine of two processors")
    speed.passes(rows, about, ["float32"])
    words = " ".join(texts).replace("\n", " ")
    for part in ("T=2, 8", "a machine of two processors", "batch 1, 1 thread", "batch 8, 1 thread"):
        assert part in words
    assert {"spikedet, torch", "float32 float"} <= set(texts)


def test_passes_as_svg():
    drawing = speed.passes(EVERY["passes"][1], ABOUT, ["float32"], "svg").decode()
    assert drawing.startswith("<?xml") and "spikedet" in drawing


def test_bars_of_many_networks_are_told_apart(monkeypatch):
    """Nine kinds of bars all look different, and the legend covers none of them."""
    drawn = []
    monkeypatch.setattr(measures, "png", lambda figure: drawn.append(figure) or b"")
    networks = [("float", None), *((m, T) for m in ("a", "b", "c", "d") for T in (4, 8))]
    rows = [{"method": m, "T": T, "class": c, "AP": None if c == "cow" else 0.5}
            for m, T in networks for c in ("cat", "cow", "dog")]  # fmt: skip
    measures.classes(rows, ABOUT)
    (axes,) = drawn[0].axes
    legend = axes.get_legend()
    names = [text.get_text() for text in legend.get_texts()]
    bars = [(bar.get_facecolor(), bar.get_hatch()) for bar in legend.get_patches()]
    looks = dict(zip(names, bars, strict=True))
    assert len(looks) == len(set(looks.values())) == 9
    assert looks["a T=4"][0] == looks["a T=8"][0] != looks["b T=8"][0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["cat", "cow (none)", "dog"]
    figure.FigureCanvasAgg(drawn[0]).draw()
    assert legend.get_window_extent().x0 >= axes.get_window_extent().x1
