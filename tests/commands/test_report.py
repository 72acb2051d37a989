"""`spikedet report`: one page that holds everything and needs nothing."""

import json
import re
from html.parser import HTMLParser

import pytest
import torch

from spikedet.files import write_csv
from spikedet.plots import About, measures, write
from spikedet.released import released
from support.commands import command
from support.media import shade

WEIGHTS = released("float", task="classification")


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.open = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def page(monkeypatch, folder, out):
    assert command(monkeypatch, "report", folder, "--out", out) == 0
    text = out.read_text()
    tags = Tags()
    tags.feed(text)
    assert not tags.open and "script" not in tags.tags and "link" not in tags.tags
    addresses = [v for k, v in tags.attributes if k in ("src", "href")]
    assert all(v.startswith("data:image/") for v in addresses)
    assert not re.search(r"https?://|@import|url\(", text)
    return text, addresses


@pytest.fixture
def run(tmp_path):
    """A training folder."""
    folder = tmp_path / "my run"
    rows = [{"epoch": n, "loss": 1 / n, "tuning_top1": n / 10} for n in (1, 2, 3)]
    write_csv(folder / "results.csv", rows)
    state = {"epoch": 2, "epochs": 3, "settings": {"rate": 0.125, "workers": 4}}
    torch.save(state, folder / "state.pt")
    return folder


@pytest.mark.skipif(WEIGHTS is None, reason="no released weights")
def test_a_training(run, tmp_path, monkeypatch, capsys):
    (run / "best.safetensors").write_bytes(WEIGHTS.read_bytes())
    text, pictures = page(monkeypatch, run, tmp_path / "report.html")
    assert len(pictures) == 1 and "my run: a run of spikedet" in text
    for words in ("rate", "0.125", "epochs done", "resnet20", "3 epochs", "torch", "sha256"):
        assert words in text, words
    assert "airplane" in text and "tuning_top1" in text
    assert "one file with all its pictures" in capsys.readouterr().out


def test_a_folder_of_results(tmp_path, monkeypatch):
    folder = tmp_path / "results"
    rows = [{"method": "<b>snn</b>", "T": t, "AP": t / 9} for t in (1, 8)]
    about = About("w", "val", 8)

    def draw(rows, about):
        return measures.value_curves(rows, "T", "AP", "AP over T", None, about)

    write(folder / "in", "AP-over-T", rows, draw, about)
    (folder / "rows.json").write_text(json.dumps([{**row, "per_class": {}} for row in rows]))
    (folder / "other.json").write_text('{"no": "rows"}')
    (folder / "bad.json").write_text("{")
    write_csv(folder / "alone.csv", [{"a": n} for n in range(300)])
    text, pictures = page(monkeypatch, folder, tmp_path / "r.html")
    assert len(pictures) == 1 and "in/AP-over-T.png" in text and "Numbers: alone.csv" in text
    assert "100 more rows" in text and "0.8889" in text
    assert "<b>snn" not in text and "&lt;b&gt;snn" in text  # what it shows is text
    assert "2 files" in text and "bad.json, other.json" in text


def test_damaged_parts_are_said_and_cost_nothing_else(run, tmp_path, monkeypatch):
    (run / "best.safetensors").write_text("no weights")
    (run / "state.pt").write_text("no state")
    (run / "curves.csv").write_bytes(b"\xff\xfe\x00a,b\n")
    text, pictures = page(monkeypatch, run, tmp_path / "r.html")
    assert "Cannot be read:" in text and len(pictures) == 1 and "curves.csv" in text
    (run / "results.csv").write_text("epoch\n")
    assert "holds no epoch" in page(monkeypatch, run, tmp_path / "r.html")[0]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["gone"], 3, "gone: no such folder"),
        (["empty"], 3, "holds no weights, tables or plots"),
        (["empty", "--out", "report.txt"], 2, "expected a name that ends in .html"),
        ([], 2, "expected RUN"),
    ],
)
def test_refusals(tmp_path, monkeypatch, capsys, words, code, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert command(monkeypatch, "report", *words) == code
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_large_pictures_are_named_only(tmp_path, monkeypatch):
    import cv2

    from spikedet.commands import report

    cv2.imwrite(str(tmp_path / "a.png"), shade(9, (60, 80)))
    cv2.imwrite(str(tmp_path / "b.jpg"), shade(9, (60, 80)))
    monkeypatch.setattr(report, "MOST", 1)
    text, pictures = page(monkeypatch, tmp_path, tmp_path / "out" / "r.html")
    assert len(pictures) == 1 and "1 files" in text and "b.jpg" in text
