"""The rooms of the package, and the direction of the arrows between them."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ORDER = ["errors", "settings", "methods", "precision", "files", "pictures", "data", "checkpoint"]
ORDER += ["training", "neurons", "conversion", "analysis", "task", "stage_one", "stage_two"]
ORDER += ["predictor", "detection", "classification", "tasks", "cli"]
OUTSIDE = {"__init__", "released"}
FILES = sorted((ROOT / "spikedet").rglob("*.py"))


def imports(path):
    """Dotted names that a file imports, at any depth in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(name):
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "spikedet" else None


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_go_one_way(path):
    here = path.relative_to(ROOT / "spikedet").parts[0].removesuffix(".py")
    assert (here in ORDER) != (here in OUTSIDE)
    for name in imports(path):
        there = room(name)
        if there in ORDER and here in ORDER:
            assert ORDER.index(there) <= ORDER.index(here), f"{here} imports {name}"
        if here == "detection":
            assert there != "classification"
        if here == "classification":
            assert there != "detection"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_ultralytics_is_imported_in_one_file(path):
    if path.name != "ultra.py":
        assert not any(name.split(".")[0] == "ultralytics" for name in imports(path))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_one_file_decides_where_bfloat16_pays(path):
    if path.name != "precision.py":
        assert "autocast(" not in path.read_text()


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_the_command_line_prints_or_exits(path):
    if path.parent.name == "cli":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name not in {"print", "sys.exit", "exit", "quit"}, f"line {node.lineno}"


def test_ultralytics_leaves_the_threads_alone():
    code = (
        "import torch; torch.set_num_threads(2)\n"
        "import spikedet.detection.ultra\n"
        "assert torch.get_num_threads() == 2, torch.get_num_threads()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_importing_the_package_is_light():
    code = "import spikedet, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
