"""What the pages and docstrings show runs, has options that there are, and leads somewhere."""

import ast
import csv
import importlib.util
import json
import re
import shlex
import shutil
from html import unescape
from importlib import import_module
from pathlib import Path
from urllib.parse import urlparse

import pytest

from spikedet.commands import parse
from spikedet.commands.main import COMMANDS, module_of, parsed
from support.commands import command
from support.docs import Block, anchors, blocks, commands, links, pages
from support.places import ROOT

# Pages whose code has a test of its own, by the language.
TESTED = {
    ("docs/detect.md", "sh"): "tests/commands/test_detect.py::test_the_commands_of_the_page",
    ("docs/detect.md", "python"): "tests/commands/test_detect.py::test_the_code_of_the_page",
    ("docs/own-data.md", "sh"): "tests/commands/test_own_data.py::test_detection",
    ("docs/plots.md", "sh"): "tests/commands/test_evaluate_plots.py::test_a_detector",
    (
        "docs/web.md",
        "sh",
    ): "tests/web/test_command.py::test_the_commands_of_the_page_on_it_can_be_given",
}
for page in ("convert", "export", "extending"):
    TESTED[f"docs/{page}.md", "python"] = "tests/docs/test_docs.py::test_the_code_of_a_page_runs"
BLOCKS = [block for page in pages() for block in blocks(page, "sh", "python")]
OURS = [b for b in BLOCKS if (b.page, b.language) not in TESTED and b.mark is None]
SHELL = [block for block in OURS if block.language == "sh"]
PYTHON = sorted({block.page for block in OURS if block.language == "python"})


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with what the pages look at."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPIKEDET_CACHE", str(tmp_path / "cache"))
    cat = ROOT / "docs/pictures/cat.jpg"
    for name in ("image.jpg", "docs/pictures/cat.jpg", "holiday/cat.jpg"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(cat, name)
    Path("weights").symlink_to(ROOT / "weights")
    return tmp_path


def names_a_test(words):
    path, _, name = words.partition("::")
    text = (ROOT / path).read_text() if (ROOT / path).is_file() else ""
    return bool(re.search(rf"^def {re.escape(name)}\(", text, re.M))


def test_marks_give_a_reason_or_a_test():
    assert len(BLOCKS) > 40
    for block in BLOCKS:
        if block.mark == "not run":
            assert len(block.words.split()) > 2, block
        if block.mark == "run by":
            assert names_a_test(block.words), block
    for (page, _), test in TESTED.items():
        assert (ROOT / page).is_file() and names_a_test(test), page


def test_code_says_its_language():
    """A block without a language is not run, and nobody sees that."""
    for page in pages():
        for block in blocks(page, ""):
            if page != "CHANGELOG.md" and not page.startswith("weights/"):
                assert "spikedet " not in block.code and "spikedet." not in block.code, block


def test_the_collector_finds_marks_and_blocks(tmp_path, monkeypatch):
    text = "<!-- not run: takes an hour -->\n```sh\na b\n```\n\n```python\nx = 1\n```\n"
    text += "<!-- another comment -->\n```python\ny = 2\n```\n```json\n{}\n```\n"
    (tmp_path / "a.md").write_text(text)
    monkeypatch.setattr("support.docs.ROOT", tmp_path)
    assert list(blocks("a.md", "sh", "python")) == [
        Block("a.md", 2, "sh", "a b\n", "not run", "takes an hour"),
        Block("a.md", 6, "python", "x = 1\n"),
        Block("a.md", 10, "python", "y = 2\n"),
    ]


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_commands_run(block, here, monkeypatch):
    calls = commands(block.code)
    lines = [line for line in block.code.replace("\\\n", " ").splitlines() if line.strip()]
    assert calls and len(calls) == len(lines), "other programs than ours: mark the block"
    for name, words in calls:
        assert command(monkeypatch, name, *shlex.split(words)) == 0, (name, words)


@pytest.mark.parametrize("page", PYTHON)
def test_python_runs(page, here):
    names: dict = {}
    for block in blocks(page, "python"):
        if block.mark is None:
            exec(compile(block.code, str(block), "exec"), names)


def shown():
    """(where, command, words) of all commands of pages and docstrings, however they are marked."""
    for page in pages():
        for block in blocks(page):
            yield from ((str(block), *each) for each in commands(block.code))
    for path in sorted((ROOT / "spikedet").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                text = re.sub(r"^ {0,3}\S.*$", "", text, flags=re.M)  # prose
                yield from ((path.name, *each) for each in commands(text))


def test_every_command_has_options_that_there_are(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "0")  # as torchrun sets it
    lines = [each for each in shown() if each[0].split(":")[0] not in HISTORY]
    assert len(lines) > 60 and {name for _, name, _ in lines} >= {"detect", "train", "convert"}
    for where, name, words in lines:
        try:
            parsed(name, shlex.split(words))
        except SystemExit as ended:  # --help
            assert ended.code == 0, (where, name, words)
        except Exception as error:
            raise AssertionError(f"{where}: spikedet {name}{words}: {error}") from error


HISTORY = {
    "CHANGELOG.md",
    "weights/README.md",
    "weights/results/README.md",
    "weights/results/detector-3b547fa9/README.md",
}


def test_the_demos_have_options_that_there_are():
    lines = [
        each
        for page in pages()
        for block in blocks(page, "sh")
        for each in re.findall(r"python demo/(\w+)\.py([^#\n]*)", block.code)
    ]
    assert lines
    for name, words in lines:
        parse.parse(import_module(f"demo.{name}").Options, shlex.split(words), name)


def test_every_command_is_on_a_page():
    text = "".join((ROOT / page).read_text() for page in pages() if page not in HISTORY)
    for name in COMMANDS:
        assert f"spikedet {name}" in text, name
        assert module_of(name).__doc__


@pytest.mark.parametrize("page", pages())
def test_links_lead_somewhere(page):
    for link in links(page):
        parts = urlparse(link)
        if parts.scheme:
            assert parts.scheme in ("http", "https", "mailto") and (parts.netloc or parts.path), (
                link
            )
            continue
        target = (ROOT / page).parent / parts.path if parts.path else ROOT / page
        assert target.exists(), link
        if parts.fragment and target.suffix == ".md":
            assert parts.fragment in anchors(target), link


def test_the_readme_has_the_test_command_and_few_words():
    text = (ROOT / "README.md").read_text()
    command = "\npython -m pytest -n 2"
    assert f"{command}\n" in text and f"{command} --cov" in (ROOT / ".ci/run").read_text()
    prose = re.sub(r"```.*?```|<!--.*?-->|^\|.*$", "", text, flags=re.S | re.M)
    assert len(prose.split()) < 700
    assert max(len(each.split()) for each in prose.split("\n\n")) < 90


def figures():
    spec = importlib.util.spec_from_file_location("figures", ROOT / "docs/figures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_plot_shows_the_numbers_of_the_table():
    drawn = figures()
    numbers = drawn.told(*drawn.ap_over_T())
    assert "float: 32.4" in numbers
    assert "two-stage-correcting: 4 29.2, 8 31.1, 16 31.3, 20 31.3" in numbers
    text = unescape((ROOT / "docs/pictures/ap-over-T.svg").read_text())
    assert numbers in re.sub(r"\s+", " ", text)


def test_times_of_the_pages_are_those_of_the_results():
    rows = figures().speed_rows()
    passes = {(row["engine"], row["T"]): row["passes"] for row in rows}
    passes |= {(row["name"], row["T"]): row["passes"] for row in rows if row["engine"] == "torch"}
    text = " ".join((ROOT / "README.md").read_text().split())
    for key, words in {
        ("events", 4): "take {:.2f} of the time",
        ("events", 8): "and eight take {:.2f}.",
        ("step-loop", 8): "code takes {:.1f} passes",
        ("onnxruntime", 1): "in int8 takes {:.2f}",
    }.items():
        assert words.format(passes[key]) in text
    page = (ROOT / "docs/engines.md").read_text()
    (line,) = re.findall(r"^\| events, AVX-512, two threads \| (.*) \|$", page, re.M)
    assert [float(cell.split()[0]) for cell in line.split(" | ")] == [
        round(passes["events", T], 2) for T in (4, 8, 20)
    ]


def test_every_picture_names_its_source():
    text = (ROOT / "docs/pictures/README.md").read_text()
    for path in (ROOT / "docs/pictures").iterdir():
        assert path.suffix in (".md", ".svg") or path.name in text, path
        assert path.stat().st_size < 200_000


def test_the_numbers_of_the_readme_are_those_of_the_results():
    with (ROOT / "weights/results/table10.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["images"] == "1000"]
    ap = {(row["method"], row["T"]): f"{100 * float(row['AP']):.1f}" for row in rows}
    for row in json.loads((ROOT / "weights/results/detector-3d8df55b/sparse.json").read_text()):
        ap["sparse", str(row["T"])] = f"{100 * row['AP']:.1f}"
    path = ROOT / "weights/results/detector-3d8df55b/copy-correcting.json"
    for row in json.loads(path.read_text()):
        ap["copy-correcting", str(row["T"])] = f"{100 * row['AP']:.1f}"
    for file in ("float", "any-T", "T4"):  # that for T = 4 in place of a shorter run of T = 8
        path = ROOT / f"weights/results/detector-cbbb2633/{file}.json"
        for row in json.loads(path.read_text()):
            name = "float, wider" if file == "float" else "wider"
            ap[name, str(row["T"] or "")] = f"{100 * row['AP']:.1f}"
    table = re.findall(
        r"^\| ([^|]+) \| ([^|]+) \| ([\d.]+) \|", (ROOT / "README.md").read_text(), re.M
    )
    assert len(table) >= 4
    names = {"float": "float", "**spiking**": "two-stage-correcting", "copied weights": "copy"}
    names |= {"**spiking, sparse**": "sparse", "**spiking, wider**": "wider"}
    names |= {"float, wider": "float, wider", "copied weights, correcting": "copy-correcting"}
    for name, T, value in table:
        assert ap[names[name], "" if T == "-" else T] == value, name


@pytest.mark.parametrize("page", [p for p in pages() if p != "CHANGELOG.md"])  # it is history
def test_files_of_the_repository_that_a_page_names_are_there(page):
    text = (ROOT / page).read_text()
    folders = "tests|spikedet|docs|demo|tools|examples|configs"
    named = re.findall(rf"\b((?:{folders})/[\w./-]+\.\w+)", text)
    for name in named:
        there = (ROOT / name).exists() or (ROOT / page).parent.joinpath(name).exists()
        assert there or page.startswith("weights/"), name  # which say what was run then
    moved = re.findall(r"`(train|finetune|convert|calibrate|evaluate|energy|detect)\.py\b", text)
    assert not moved or page.startswith("weights/"), f"{moved}: the commands are `spikedet NAME`"
