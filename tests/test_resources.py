"""Files that come with the package, found by name; `.ci/wheel` looks for them in a wheel."""

import re
from pathlib import Path

import pytest
from setuptools import find_packages

import spikedet
from spikedet import resources, task_registry
from spikedet.commands import kinds
from spikedet.commands.main import COMMANDS, module_of, parsed
from spikedet.commands.option import options_of
from spikedet.errors import UsageError, WeightsError
from support.places import ROOT

MODELS = ROOT / "configs/models"


@pytest.mark.parametrize("word", ["tiny-yolo", "tiny-yolo.yaml", "configs/models/tiny-yolo.yaml"])
def test_a_description_is_found_by_name_wherever_one_is(word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resources.config(word, "models") == MODELS / "tiny-yolo.yaml"
    task = task_registry.of_description(word)
    assert task.name == "detection" and task.describe(word, "n")["scale"] == "n"


def test_a_classifier_is_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = task_registry.of_description("cifar-resnet20")
    assert task.name == "classification" and task.describe("cifar-resnet20")["arch"] == "resnet20"


def test_a_file_of_ones_own_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tiny-yolo").mkdir()  # a folder is no description
    assert resources.config("tiny-yolo", "models") == MODELS / "tiny-yolo.yaml"
    Path("tiny-yolo.yaml").write_text("task: classification\n")
    assert resources.config("tiny-yolo.yaml", "models") == Path("tiny-yolo.yaml")
    assert task_registry.of_description("tiny-yolo.yaml").name == "classification"


@pytest.mark.parametrize("word", ["gone", "elsewhere/tiny-yolo.yaml", "../models/tiny-yolo", "."])
def test_what_is_not_there_stays_as_it_was_named(word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resources.config(word, "models") == Path(word)
    with pytest.raises(UsageError, match=f"^{re.escape(str(Path(word)))}: "):
        task_registry.of_description(word).describe(Path(word))


def test_an_experiment_is_found_by_name():
    wanted = ROOT / "configs/experiments/half-width-cpu.yaml"
    assert resources.config("half-width-cpu", "experiments") == wanted
    assert resources.config("tiny-yolo", "experiments") == Path("tiny-yolo")


RELEASED = ROOT / "weights/tiny-yolo-s-float.safetensors"
NAMES = ["tiny-yolo-s-float", "tiny-yolo-s-float.safetensors", "weights/tiny-yolo-s-float"]


@pytest.mark.parametrize("name", NAMES)
def test_released_weights_are_found_by_name_wherever_one_is(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resources.weights(name) == RELEASED
    assert spikedet.load(name).weights == RELEASED
    assert parsed("detect", ["x.jpg", "--weights", name]).weights == RELEASED
    assert parsed("web", ["--float", name]).reference == RELEASED


def test_every_option_for_weights_takes_a_name():
    """Or one command would know a name that the next one does not."""
    of_weights = {"weights", "teacher", "float", "leaky", "pretrained", "stage1"}
    found = set()
    for name in COMMANDS:
        for each in options_of(module_of(name).Options):
            if each.type is Path and each.name in of_weights:
                assert each.more.get("kind") is kinds.weights, f"{name} {each.name}"
                found.add(each.name)
    assert found == of_weights


def test_weights_of_ones_own_win_and_a_wrong_name_has_a_hint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resources.weights("runs/tiny-yolo-s-float") == Path("runs/tiny-yolo-s-float")
    with pytest.raises(WeightsError, match="^tiny-yolo-s-flaot: .*mean tiny-yolo-s-float"):
        spikedet.load("tiny-yolo-s-flaot")
    with pytest.raises(WeightsError, match="^runs/tiny-yolo-s-flaot: no such weights file$"):
        spikedet.load("runs/tiny-yolo-s-flaot")
    Path("tiny-yolo-s-float").write_text("not weights")
    assert resources.weights("tiny-yolo-s-float") == Path("tiny-yolo-s-float")


def test_every_folder_of_code_is_a_package():
    """Or a wheel would be without it."""
    folders = {p.parent.relative_to(ROOT) for p in (ROOT / "spikedet").rglob("*.py")}
    packages = find_packages(str(ROOT), include=["spikedet*"])
    assert {str(folder).replace("/", ".") for folder in folders} == set(packages)
