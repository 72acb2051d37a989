"""The released classifier: it runs from the package alone, and is as good as its card says."""

import json
import os
import re

import numpy as np
import pytest

import spikedet
from spikedet.checkpoint import identity, sha256
from spikedet.released import default_weights, released
from support.commands import command
from support.places import ROOT

ROWS = "weights/results/classifiers/cifar10-resnet20"
PICTURES = os.environ.get("SPIKEDET_CIFAR10")  # folder of CIFAR-10, as spikedet evaluate takes it
here = pytest.mark.skipif(not released("snn", 8, "classification"), reason="no released classifier")


def test_the_card_names_the_files_that_are_released():
    card = (ROOT / "weights/README.md").read_text()
    told = dict(re.findall(r"^\| `([\w-]+\.safetensors)` \| [\d.]+ \| `(\w{64})` \|$", card, re.M))
    assert told == {path.name: sha256(path) for path in (ROOT / "weights").glob("*.safetensors")}


@here
def test_it_answers_alike_one_by_one_and_together():
    classifier = spikedet.load(default_weights(8, "classification"), half=False)
    noise = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), np.uint8)
    together, alone = classifier(list(noise)), [classifier(picture) for picture in noise]
    assert classifier.T == 8 and classifier.names[0] == "airplane" and len(classifier.names) == 10
    for one, other in zip(together, alone, strict=True):
        assert one.names == other.names and one.T == 8 and len(one.names) == 5
        assert np.allclose(one.probabilities, other.probabilities, atol=1e-4)


@here
@pytest.mark.skipif(not PICTURES, reason="SPIKEDET_CIFAR10 names no pictures")
def test_it_reaches_what_its_card_says(tmp_path, monkeypatch):
    """On the first 2,000 pictures of the fixed shuffle, whose rows are beside those of the card."""
    said = json.loads((ROOT / f"{ROWS}-first-2000.json").read_text())
    weights = [released("float", task="classification")]
    weights += [default_weights(T, "classification") for T in (4, 8)]
    words = ["--weights", *weights, "--data", PICTURES, "--limit", 2000]
    assert command(monkeypatch, "evaluate", *words, "--json", tmp_path / "rows.json") == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["T"] for row in rows] == [None, 4, 8]
    for row, stored in zip(rows, said, strict=True):
        for key in ("method", "T", "images", "weights_sha256", "data"):
            assert row[key] == stored[key]
        assert row["top1"] == pytest.approx(stored["top1"], abs=0.003)  # other rounding: 6 pictures


@here
def test_the_card_shows_the_rows_of_the_files_that_are_released():
    card = (ROOT / "weights/README.md").read_text().split("## The classifier")[1]
    card = card.split("| step |")[0]
    shown = re.findall(r"^\| \**([\w ,+]+?)\** \| (-|\d+) \| ([0-9.]+) \| [0-9.]+ \| ", card, re.M)
    rows = {}
    for T in (4, 8):
        for row in json.loads((ROOT / f"{ROWS}-T{T}.json").read_text()):
            rows[row["method"], str(row["T"] or "-")] = row
    assert {(method, T): float(top1) for method, T, top1 in shown} == {
        key: round(100 * row["top1"], 1) for key, row in rows.items()
    }
    files = {identity(path) for path in (ROOT / "weights").glob("cifar10-*.safetensors")}
    assert {row["weights_sha256"] for row in rows.values()} == files
