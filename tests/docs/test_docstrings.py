"""The examples in docstrings run."""

import ast
import doctest
import re

import pytest
import torch
from torch import nn

import spikedet
from spikedet.runtime.early_exit import EarlyExit
from spikedet.sources import open_sources
from support.places import ROOT


def examples():
    """(file, name, example) of every docstring with `>>>`."""
    parser = doctest.DocTestParser()
    for path in sorted((ROOT / "spikedet").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                if ">>>" in text:
                    name = f"{path.relative_to(ROOT)}:{getattr(node, 'name', '')}"
                    yield name, parser.get_examples(text)


FOUND = list(examples())


@pytest.fixture(scope="module")
def around():
    """What the examples take for granted: a network, batches, its spiking network, a picture."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    batches = [torch.rand(4, 3, 8, 8) for _ in range(2)]
    snn = spikedet.convert(network, batches, T=8, layer_steps=1, progress=False)
    names = {"spikedet": spikedet, "torch": torch, "EarlyExit": EarlyExit}
    names |= {"open_sources": open_sources, "network": network, "batches": batches, "snn": snn}
    return names | {"x": batches[0], "picture": batches[0][:1]}


def test_there_are_examples():
    assert len(FOUND) >= 7


@pytest.mark.parametrize(("name", "lines"), FOUND, ids=[name for name, _ in FOUND])
def test_an_example_runs(name, lines, around, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").symlink_to(ROOT / "weights")
    (tmp_path / "street.jpg").write_bytes((ROOT / "docs/pictures/cat.jpg").read_bytes())
    test = doctest.DocTest(lines, dict(around), name, name, 0, None)
    checked = any(line.want for line in lines)  # else what it prints is not told
    runner = doctest.DocTestRunner(verbose=False)
    if not checked:
        for line in lines:
            exec(compile(line.source, name, "single"), test.globs)
        return
    assert runner.run(test).failed == 0


def texts():
    """Every text of the package, what is put into it as `\\0`."""
    for path in (ROOT / "spikedet").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield "".join(str(getattr(part, "value", "")) if isinstance(part, ast.Constant)
                              else "\0" for part in node.values)  # fmt: skip
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def pattern(message):
    """What a message of the page stands for: capitals, 'X' and `...` are anything."""
    words = re.split(r"'X'|\.\.\.|\b[A-Z]+\b(?!-)", message)
    return ".*".join(re.escape(word.strip()) for word in words if word.strip())


def test_the_messages_of_the_page_are_those_of_the_package():
    page = (ROOT / "docs/troubleshooting.md").read_text()
    rows = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| `")]
    messages = [re.search(r"`([^`]+)`", row)[1] for row in rows]
    assert len(messages) > 45
    said = "\n".join(each.replace("\n", " ") for each in texts())
    missing = [each for each in messages if not re.search(pattern(each), said)]
    assert not missing, missing
