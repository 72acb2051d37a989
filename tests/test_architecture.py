"""The rooms of the package, and the direction of the arrows between them."""

import ast
import subprocess
import sys

import pytest

from support.places import ROOT

ORDER = ["errors", "resources", "terminal"]
ORDER += ["counts", "reliability", "options", "settings"]
ORDER += ["methods", "precision", "files", "plots", "page"]
ORDER += ["pictures", "picture_files", "sources", "data", "kernels"]
ORDER += ["neurons", "graph", "engines", "checkpoint", "importing", "runtime", "training"]
ORDER += ["synapses"]
ORDER += ["conversion", "analysis", "upgrade", "task", "networks", "stages", "predictor"]
ORDER += ["detection", "classification", "task_registry", "exporting", "outputs", "web"]
ORDER += ["commands", "reproduction"]
OUTSIDE = {"__init__", "__main__", "released"}
APART = [{"detection", "classification"}, {"conversion", "analysis"}]  # neither imports the other
ONLY = {  # what a room may import of the package beside itself
    "plots": {"errors", "files", "__version__"},
    "sources": {"errors", "files", "pictures", "picture_files"},
    "kernels": {"errors"},
    "neurons": {"errors", "precision", "kernels"},
    "graph": {"errors", "neurons"},
    "engines": {"errors", "precision", "kernels", "neurons", "graph"},
    "runtime": {"errors", "counts", "precision", "neurons", "graph", "engines", "checkpoint"},
}
FILES = sorted((ROOT / "spikedet").rglob("*.py"))


def imports(path):
    """Dotted names that a file imports, at any depth in it."""
    return imports_of(ast.parse(path.read_text()))


def imports_of(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def needed(path):
    """Files of the package that a file imports when it runs, at any depth in it."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):  # what only a type checker reads is no arrow
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    for name in imports_of(tree):
        parts = name.split(".")
        if parts[0] != "spikedet":
            continue
        for end in (len(parts), len(parts) - 1):
            folder = ROOT.joinpath(*parts[:end])
            for file in (folder.with_suffix(".py"), folder / "__init__.py"):
                if file.is_file():
                    yield file
                    break
            else:
                continue
            break


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
        if there is not None and there != here:
            assert not any({here, there} <= pair for pair in APART), f"{here} imports {name}"
            assert there in ONLY.get(here, {there}), f"{here} imports {name}"


def test_no_file_needs_itself_in_a_circle():
    left = {path: set(needed(path)) - {path} for path in FILES}
    assert len(left[ROOT / "spikedet/networks.py"]) > 5
    # without files that need none of the others, and without those that none of the others needs
    while free := [path for path, wanted in left.items() if not wanted & left.keys()]:
        left = {path: wanted for path, wanted in left.items() if path not in free}
    while free := [path for path in left if not any(path in wanted for wanted in left.values())]:
        left = {path: wanted for path, wanted in left.items() if path not in free}
    assert not left, sorted(str(path.relative_to(ROOT)) for path in left)


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
    if path.parent.name in ("commands", "reproduction") or path.name == "terminal.py":
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


@pytest.mark.parametrize("name", ["spikedet", "spikedet.sources", "spikedet.outputs"])
def test_importing_what_needs_no_torch_is_light(name):
    code = f"import {name}, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
