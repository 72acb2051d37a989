"""Reproduction of the classification tables: what is run, what is not, what stands in the files."""

import csv
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from spikedet.checkpoint import Checkpoint
from spikedet.checkpoint import save as save_checkpoint
from spikedet.classification import published
from spikedet.classification.models import build
from spikedet.commands.main import module_of
from spikedet.commands.main import parsed as parsed_words
from spikedet.errors import DataError, UsageError
from spikedet.reproduction import classification, tables
from spikedet.reproduction import command as reproduce
from spikedet.reproduction.experiment import Cell, Experiment
from spikedet.stages.run_files import layers_file

NAMES = published.CLASSES["CIFAR-10"]


def description(**more):
    return {"task": "classification", "arch": "resnet20", "form": "cifar", **more}


def save(path, names=NAMES, **more):
    """An untrained float network."""
    torch.manual_seed(0)
    model = description(**more)
    tensors = build(model, len(names)).state_dict()
    save_checkpoint(Checkpoint("float", "classification", model, names, 8, tensors), path)
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Ten classes of 8 pictures; the first has enough to fill a batch, one of them kept aside."""
    folder = tmp_path_factory.mktemp("place")
    random = np.random.default_rng(0)
    for split, extra in (("train", 60), ("test", 2)):
        for number, name in enumerate(NAMES):
            target = folder / "data" / split / name
            target.mkdir(parents=True)
            for picture in range(extra if number == 0 else min(extra, 8)):
                pixels = random.integers(0, 255, (8, 8, 3), np.uint8)
                Image.fromarray(pixels).save(target / f"{picture}.png")
    save(folder / "float.safetensors", width=0.25)
    return folder


def parsed(place, out, name, *words):
    given = [name, "--data", place / "data", "--model", place / "float.safetensors", "--out", out]
    return parsed_words("reproduce", [*map(str, [*given, *words])])


def lines_of(path):
    return list(csv.DictReader(path.open()))


def test_a_row_is_run_once_and_the_others_are_not_run(place, tmp_path, monkeypatch, capsys):
    args = parsed(place, tmp_path, "table2", "--methods", "layer-wise", "--T", 2)
    runs = []

    def run(self, tool, *words):
        """As a command, but in this process, which has torch already."""
        runs.append(tool)
        module_of(tool).run(parsed_words(tool, words))

    monkeypatch.setattr(Experiment, "run", run)
    args.epochs, args.pictures, args.layer_steps, args.end_to_end = 1, 2, 1, 0
    reproduce.run(args)
    assert runs == ["evaluate", "finetune", "convert", "evaluate"]
    lines = lines_of(tmp_path / "table2.csv")
    run = [line for line in lines if line["value"] != "not run"]
    assert {(line["network"], line["dataset"]) for line in run} == {("resnet20-x0.25", "CIFAR-10")}
    spiking = [line for line in run if line["method"] != "float"]
    assert [(line["method"], line["T"], line["images"]) for line in spiking] == [
        ("layer-wise", "2", "20")
    ]
    (line,) = spiking
    assert float(line["value"]) == pytest.approx(100 * float(line["top1"]))
    assert float(line["top1"]) <= float(line["top5"]) <= 1
    assert line["paper"] == ""  # the paper has no network of that width
    (row,) = [x for x in lines if x["paper_method"] == "Ours" and x["paper"] == "89.97"]
    assert row["value"] == row["top1"] == "not run" and row["paper_value"] == "89.97"
    assert (tmp_path / "table2.png").stat().st_size > 1000
    text = capsys.readouterr().out
    assert "not run (89.97)" in text and "T=128" in text

    before = (tmp_path / "table2.csv").read_text()
    reproduce.run(args)
    assert len(runs) == 4  # nothing is run again
    assert (tmp_path / "table2.csv").read_text() == before


def network(name, dataset="CIFAR-10", leaky=False, released=None):
    experiment = SimpleNamespace(released=lambda stage, T: released)
    return tables.Network(name, dataset, leaky, experiment)


def cells_of(name, networks):
    """All that a table would measure."""
    args = parsed_words("reproduce", [name, "--data", "d"])
    lines = tables.planned(tables.TABLES[name], networks)
    cells = [tables.cell_of(args, line, T) for line in lines for T in line.steps]
    return [cell for cell in cells if cell]


def asked(name, networks, *words):
    """(method, network, T, pictures) of what a table would measure, without the float network."""
    args = parsed_words("reproduce", [name, "--data", "d", *map(str, words)])
    names = set()
    for line in tables.planned(tables.TABLES[name], networks):
        for T in line.steps:
            cell = tables.cell_of(args, line, T)
            if cell and tables.wanted(args, line, T):
                names.add((cell.method, line.network.name, T, cell.pictures))
    return names


def test_published_rows_are_run_with_the_network_and_data_set_they_are_of():
    wide = [network("resnet20-wide")]
    methods = {(method, T) for method, _, T, _ in asked("table2", wide)}
    assert {("two-stage", T) for T in published.STEPS_2} <= methods
    assert {c.end_to_end for c in cells_of("table2", wide) if c.method == "two-stage"} == {
        True, False,
    }  # fmt: skip
    assert {("quantised", T) for T in published.STEPS_2} <= methods
    for released, ends in ((None, {False}), ("snn.safetensors", {True, False})):
        args = parsed_words("reproduce", ["table2", "--data", "d", "--end-to-end", "0"])
        without = [network("resnet20-wide", released=released)]
        lines = tables.planned(tables.TABLES["table2"], without)
        cells = [tables.cell_of(args, line, 4) for line in lines if 4 in line.steps]
        assert {c.end_to_end for c in cells if c and c.method == "two-stage"} == ends
    assert asked("table2", []) == set()
    assert asked("table4", wide) == set()  # no ImageNet
    assert asked("table9", wide) == set()  # not leaky
    assert asked("table2", [network("resnet18", leaky=True)]) == set()
    table = tables.planned(tables.TABLES["table2"], wide)
    hundred = [line for line in table if line.row.dataset == "CIFAR-100"]
    assert hundred and all(line.network is None for line in hundred)


def test_a_table_has_its_own_steps_for_each_network():
    steps = {
        name: {T for _, _, T, _ in asked("table8", [network(name)])}
        for name in ("resnext29-2x64d", "mobilenetv2", "resnet18")
    }
    assert steps == {"resnext29-2x64d": {8, 16}, "mobilenetv2": {16, 32}, "resnet18": set()}
    assert {T for _, _, T, _ in asked("table5", [network("vgg16")])} == {4}
    cap = {T for m, _, T, _ in asked("table3", [network("vgg16", "ImageNet")]) if m == "two-stage"}
    assert cap == {32, 64, 128}  # also where the paper prints nothing


def test_calibration_pictures_and_the_ablation():
    counts = {pictures for *_, pictures in asked("table6", [network("resnet18")])}
    assert counts == {0, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024}
    assert asked("table6", [network("resnet20")], "--T", 4) == {
        ("two-stage", "resnet20", 4, pictures) for pictures in counts
    }
    line = tables.planned(tables.TABLES["table6"], [network("resnet18")])[0]
    args = parsed_words("reproduce", ["table6", "--data", "d"])
    assert tables.cell_of(args, line, 2).end_to_end is False
    ablation = {method for method, *_ in asked("figure7", [network("resnet20")])}
    assert ablation == {"copy", "stage1", "stage2", "stage1-coarse", "stage1-fine", "two-stage"}
    leaky = asked("table9", [network("vgg16", leaky=True)], "--methods", "copy")
    assert leaky == {("copy", "vgg16", 4, 256), ("copy", "vgg16", 8, 256)}


def test_a_method_that_the_tools_have_not_is_not_run(monkeypatch):
    monkeypatch.delitem(tables.METHODS, "stage2")
    methods = {method for method, *_ in asked("table9", [network("vgg16", leaky=True)])}
    assert methods == {"copy", "stage1", "two-stage"}


class FakeExperiment:
    """Rows that are there already."""

    def row(self, cell, make=True):
        if not make:
            return None
        top1 = {"float": 0.8, "two-stage": 0.6}[cell.method]
        return {"top1": top1, "top5": 0.9, "images": 50}

    def energy(self, cell, make=True):
        if not make:
            return None
        self.limit = cell.limit
        each = {"mean": 30e6, "std": 2e6}, {"mean": 5e6, "std": 0.0}
        totals = {"accumulates": each[0], "multiply_accumulates": each[1]}
        totals["float"] = {"multiply_accumulates": 100_000_000, "pJ": 460e6}
        totals["paper"] = {"pJ": {"mean": 31.5e6, "std": 1e6}, "ratio": {"mean": 0.0685}}
        totals["paper"]["ratio"]["std"] = None
        totals["ours"] = {"pJ": {"mean": 50e6, "std": 1e6}, "ratio": {"mean": 0.1087, "std": 0.01}}
        return {"totals": totals, "images": 50}


def measured(tmp_path, name, *words):
    args = parsed_words("reproduce", [name, "--data", "d", "--out", str(tmp_path), *words])
    rows = replace(network("resnet20", "CIFAR-100"), experiment=FakeExperiment())
    classification.measure(args, [rows])
    lines = [x for x in lines_of(tmp_path / f"{name}.csv") if x["network"] == "resnet20"]
    return rows.experiment, {
        (x["measure"], x["T"]): x["value"] for x in lines if x["paper_method"] == "Ours"
    }


def test_relative_loss(tmp_path):
    _, values = measured(tmp_path, "table3", "--T", "32", "--methods", "layer-wise")
    assert float(values["relative_loss", "32"]) == pytest.approx(25)
    assert values["relative_loss", "64"] == "not run"


def test_energy_by_both_accountings_beside_the_float_network(tmp_path, capsys):
    experiment, values = measured(tmp_path, "table7", "--T", "2", "--methods", "layer-wise")
    assert experiment.limit == 1024
    numbers = {key: float(value) for key, value in values.items() if value != "not run"}
    wanted = {("top1", ""): 80, ("top1", "2"): 60, ("gsop", ""): 100, ("gsop", "2"): 35}
    wanted |= {("energy", ""): 460, ("energy", "2"): 31.5, ("ratio", "2"): 6.85}
    wanted |= {("energy_ours", ""): 460, ("energy_ours", "2"): 50, ("ratio_ours", "2"): 10.87}
    wanted |= {("ratio", ""): 100, ("ratio_ours", ""): 100}
    assert numbers == pytest.approx(wanted)
    text = capsys.readouterr().out
    assert "not run (433.7±17.2)" in text and "35.00±2.00" in text and "31.50±1.00" in text


@pytest.mark.parametrize(
    ("classes", "more", "wanted"),
    [
        (published.CLASSES["CIFAR-10"], {}, ("resnet20", "CIFAR-10")),
        (published.CLASSES["CIFAR-100"], {"width": 0.5}, ("resnet20-x0.5", "CIFAR-100")),
        (10, {}, ("resnet20", "10 classes")),
        (published.CLASSES["CIFAR-10"][::-1], {}, ("resnet20", "10 classes")),
        (1000, {"arch": "torchvision/vgg16_bn"}, ("vgg16", "ImageNet")),
        (10, {"arch": "torchvision/mobilenet_v2"}, ("mobilenetv2", "ImageNet-10")),
        (10, {"arch": "resnet34", "form": "imagenet"}, ("resnet34", "ImageNet-10")),
    ],
)
def test_names_of_networks(classes, more, wanted):
    names = tuple(map(str, range(classes))) if isinstance(classes, int) else classes
    checkpoint = Checkpoint("float", "classification", description(**more), names, 8, {})
    assert classification.describe(checkpoint) == wanted


def test_a_table_without_a_network_of_its_own_is_the_published_one(place, tmp_path, capsys):
    args = parsed(place, tmp_path, "table4")
    args.model = None  # the released network, of which table IV has no row
    reproduce.run(args)
    assert "not run (73.18)" in capsys.readouterr().out
    assert {line["value"] for line in lines_of(tmp_path / "table4.csv")} == {"not run"}


def test_bad_input(place, tmp_path):
    twice = place / "float.safetensors"
    args = parsed(place, tmp_path, "table2", "--model", twice, twice)
    with pytest.raises(UsageError, match="a second resnet20-x0.25 for CIFAR-10"):
        reproduce.run(args)
    other = save(tmp_path / "other.safetensors", names=("x", "y"), width=0.25)
    with pytest.raises(DataError, match=r"none of the data folders holds its 2 classes \(x, y"):
        reproduce.run(parsed(place, tmp_path, "table2", "--model", other))
    with pytest.raises(UsageError, match="for classification, but table10 is for detection"):
        reproduce.run(parsed(place, tmp_path, "table10"))
    for method in ("magic", "stage2"):  # the second is of figure7
        with pytest.raises(UsageError, match=f"--methods {method}: expected some of cap, float, l"):
            reproduce.run(parsed(place, tmp_path, "table2", "--methods", method))
    with pytest.raises(UsageError, match="--T 3 99: table2 has no such column; it has 2, 4, 8"):
        reproduce.run(parsed(place, tmp_path, "table2", "--T", 2, 3, 99))
    with pytest.raises(UsageError, match="--made-for: has no effect on table2 of classifiers"):
        reproduce.run(parsed(place, tmp_path, "table2", "--made-for", 4))
    leaky = save(tmp_path / "leaky.safetensors", width=0.25, activation="leaky")
    with pytest.raises(UsageError, match="figure7 has no row for leaky resnet20-x0.25 of CIFAR-10"):
        reproduce.run(parsed(place, tmp_path, "figure7", "--model", leaky))
    assert not list(tmp_path.glob("*.csv"))


def test_figures_of_the_analysis(place, tmp_path, monkeypatch):
    """Each figure's files are those of spikedet analyze."""
    commands = []

    def run(self, tool, *words):
        commands.append((tool, [*map(str, words)]))
        folder = words[-1]
        for name in ("residual", "periodic", "similarity", "gap"):
            for ending in (".csv", ".png"):
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{name}{ending}").write_text(name)

    monkeypatch.setattr(Experiment, "run", run)
    monkeypatch.setattr(Experiment, "weights", lambda self, cell: f"{cell.method}-T{cell.T}")
    monkeypatch.setattr(Experiment, "stage_one", lambda self, T, make=True: f"stage1-T{T}")
    reproduce.run(parsed(place, tmp_path, "figure5", "--T", 4))
    ((tool, words),) = commands
    assert tool == "analyze" and words[:4] == ["--weights", "two-stage-T4", "--stage1", "stage1-T4"]
    files = sorted(path.name for path in tmp_path.glob("figure5-*.csv"))
    assert [name.split("-")[1] for name in files] == ["gap", "periodic", "similarity"]
    assert all(name.endswith("-T4.csv") for name in files)
    assert (tmp_path / files[0]).read_text() == "gap"


def test_weights_of_qcfs_are_trained_as_its_authors_do(place, tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(Experiment, "run", lambda self, *words: commands.append(words))
    args = parsed(place, tmp_path, "table2")
    experiment = Experiment(args, tmp_path, args.model[0], "classification", args.data, levels=4)
    experiment.weights(Cell("qcfs", 8, None, 256))
    (first, *finetune), (second, *convert) = commands
    assert (first, second) == ("finetune", "convert")
    text = " ".join(map(str, finetune))
    assert "--T 4 --qcfs" in text
    assert convert[convert.index("--stage1") + 1].parent.name == "qcfs-L4"
    assert convert[convert.index("--T") + 1] == 8


def test_an_end_to_end_pass_that_was_killed_goes_on(place, tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(Experiment, "run", lambda self, *words: commands.append(words))
    monkeypatch.setattr(Experiment, "stage_one", lambda self, T, make=True: f"stage1-T{T}")
    args = parsed(place, tmp_path, "table2")
    experiment = Experiment(args, tmp_path, args.model[0], "classification", args.data)
    path = experiment.weights(Cell("two-stage", 8, None, 256))
    layers_file(path).touch()
    experiment.weights(Cell("two-stage", 8, None, 256))
    assert ["--resume" in words for words in commands] == [False, True]


@pytest.mark.parametrize(
    ("table", "count", "key", "T", "cell"),
    [
        (published.TABLE_2, 30, ("CIFAR-10", "resnet18", "Ours"), 4, "93.27"),
        (published.TABLE_2, 30, ("CIFAR-10", "vgg16", "CAP"), 64, "95.35/95.14"),
        (published.TABLE_2, 30, ("CIFAR-100", "resnet20", "TSC"), 128, "58.42"),
        (published.TABLE_3, 15, ("ImageNet", "vgg16", "Ours"), 64, "0.27%"),
        (published.TABLE_4, 17, ("ImageNet", "vgg16", "Ours"), 4, "59.95"),
        (published.TABLE_4, 17, ("ImageNet", "resnet34", "OPT"), 256, "72.37/47.11"),
        (published.TABLE_5, 13, ("CIFAR-100", "vgg16", "Ours"), 4, "70.08"),
        (published.TABLE_8, 8, ("CIFAR-10", "mobilenetv2", "Stage-II"), 32, "88.63"),
        (published.TABLE_9, 8, ("CIFAR-10", "resnet18", "Stage-I + Stage-II"), 8, "93.93"),
    ],
)
def test_published_numbers(table, count, key, T, cell):
    assert len(table) == count
    (row,) = [row for row in table if (row.dataset, row.network, row.method) == key]
    assert row.cells[T] == cell


def test_published_numbers_of_tables_6_and_7():
    (row,) = [r for r in published.TABLE_6 if (r.network, r.pictures) == ("vgg16", 1024)]
    assert row.cells == {2: "90.98", 4: "93.60", 8: "95.04"} and row.source == "95.73"
    (row,) = [r for r in published.TABLE_6 if (r.network, r.pictures) == ("resnet18", 2)]
    assert row.cells == {2: "75.55", 4: "32.20", 8: "74.47"}
    assert len(published.TABLE_6) == 22 and len(published.TABLE_7) == 16
    ours = {row.measure: row.cells[8] for row in published.TABLE_7 if row.method == "Ours"}
    assert ours == {
        "top1": "78.84(0.48)", "gsop": "433.7±17.2", "energy": "356.0±21.7", "ratio": "16.11±0.98"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("cell", "wanted"),
    [("96.60/91.47", 96.6), ("83.4±4.0", 83.4), ("33.07(73.49)", 33.07), ("6.66%", 6.66),
     ("10.00/-", 10), ("-", None)],
)  # fmt: skip
def test_first_number_of_a_cell(cell, wanted):
    assert published.number(cell) == wanted
