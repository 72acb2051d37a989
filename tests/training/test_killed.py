"""Runs that are killed at any moment, and what is left behind."""

import csv
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from spikedet import files
from spikedet.checkpoint import Checkpoint, save, sha256
from spikedet.errors import TrainingError, UsageError
from spikedet.files import ENDING, STALE, write_atomic
from spikedet.stages import run_files
from spikedet.training.run import epochs_done, own_run
from support import squares as detectors
from support import training as classifiers
from support.commands import run_as_command
from support.places import ROOT


class Killed(BaseException):
    """As a signal that no cleaning up can answer."""


def bits(value):
    """Every tensor of nested values, as bytes, and all else as it is; times are left out."""
    if isinstance(value, torch.Tensor):
        return (
            value.dtype,
            tuple(value.shape),
            value.contiguous().view(-1).view(torch.uint8).tolist(),
        )
    if isinstance(value, dict):
        return {key: bits(part) for key, part in value.items() if key != "seconds"}
    return [bits(part) for part in value] if isinstance(value, list | tuple) else value


def rows(folder):
    """The log of a run without its times."""
    with (folder / "results.csv").open() as file:
        entries = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k not in ("time", "seconds")} for row in entries]


def same_run(one, other):
    """Whether two runs hold the same bits in their weights, side-cars and logs."""
    for name in ("last.safetensors", "best.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    first, second = (torch.load(folder / "state.pt", weights_only=True) for folder in (one, other))
    for state in (first, second):
        state.pop("results", None)  # the log, with times
    assert bits(first) == bits(second)
    assert rows(one) == rows(other)


# ---------------------------------------------------------------------- detectors


SETTINGS = {"epochs": 3, "close_mosaic": 1, "ema_tau": 20, "batch": 8, "mixup": 0.3}


@pytest.fixture(scope="module")
def uninterrupted():
    """Folders of detectors' runs that were not killed, by their settings."""
    return {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "cache", "epoch"),
    [(0, False, 0), (0, False, 1), (0, False, 2), (0, True, 1), (1, False, 1), (1, True, 2)],
)
def test_a_resumed_detector_is_the_uninterrupted_one(
    sides,
    tmp_path,
    tmp_path_factory,
    drawing,
    uninterrupted,
    workers,
    cache,
    epoch,
):
    settings = {**SETTINGS, "workers": workers, "cache": cache}
    if (workers, cache) not in uninterrupted:
        folder = tmp_path_factory.mktemp("whole") / "run"
        detectors.trainer(sides, folder, **settings).train()
        uninterrupted[workers, cache] = folder
    seen = []

    def kill(running):
        if running.epoch == epoch:
            seen.append(running)
            if len(seen) == 2:  # in the midst of it
                raise Killed

    killed = detectors.trainer(sides, tmp_path / "run", **settings)
    killed.add_callback("on_train_batch_start", kill)
    with pytest.raises(Killed):
        killed.train()
    assert epochs_done(tmp_path / "run") == (epoch, 3)
    torch.manual_seed(99)
    detectors.trainer(sides, tmp_path / "run", resume=True, **settings).train()
    same_run(uninterrupted[workers, cache], tmp_path / "run")


def test_a_run_begun_on_a_cpu_goes_on_where_losses_are_scaled(sides, tmp_path, monkeypatch):
    """As on a GPU, whose scaler finds no state in that of a CPU."""
    detectors.trainer(sides, tmp_path / "run", epochs=1).train()
    scaler = torch.amp.GradScaler
    monkeypatch.setattr("torch.amp.GradScaler", lambda *_, **__: scaler("cpu", enabled=True))
    detectors.trainer(sides, tmp_path / "run", resume=True, epochs=2).train()
    assert epochs_done(tmp_path / "run") == (2, 2)


@pytest.mark.parametrize("file", ["last.safetensors", "best.safetensors", "state.pt"])
@pytest.mark.parametrize("epoch", [0, 1])
def test_a_detector_killed_while_it_writes(
    sides,
    tmp_path,
    tmp_path_factory,
    monkeypatch,
    uninterrupted,
    file,
    epoch,
):
    settings = {"epochs": 2, "workers": 0}
    if "short" not in uninterrupted:
        uninterrupted["short"] = tmp_path_factory.mktemp("whole") / "run"
        detectors.trainer(sides, uninterrupted["short"], **settings).train()
    folder = tmp_path / "run"
    kill_at(monkeypatch, folder / file, epoch + (file == "state.pt"))  # written at the start, too
    with pytest.raises(Killed):
        detectors.trainer(sides, folder, **settings).train()
    monkeypatch.undo()
    monkeypatch.setenv("SPIKEDET_CACHE", str(tmp_path / "cache"))
    detectors.trainer(sides, folder, resume=True, **settings).train()
    same_run(uninterrupted["short"], folder)


def kill_at(monkeypatch, path, times):
    """Be killed before `path` gets its name, after it did so often."""
    replace, done = os.replace, []

    def kill(source, target):
        if str(target) == str(path):
            if len(done) == times:
                raise Killed
            done.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", kill)


# ---------------------------------------------------------------------- classifiers


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("epoch", [0, 1, 2])
@pytest.mark.parametrize("where", ["before", "after"])
def test_a_resumed_classifier_is_the_uninterrupted_one(
    tmp_path, tmp_path_factory, monkeypatch, uninterrupted, workers, epoch, where
):
    settings = {"workers": workers, "augment": "autoaugment", "optimizer": "AdamW", "rate": 0.01}
    if ("c", workers) not in uninterrupted:
        uninterrupted["c", workers] = tmp_path_factory.mktemp("whole")
        classifiers.run(uninterrupted["c", workers], **settings)
    original = classifiers.training._Loop.epoch

    def kill(self, number):
        if number == epoch:
            if where == "after":
                original(self, number)
            raise Killed
        return original(self, number)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(classifiers.training._Loop, "epoch", kill)
        classifiers.run(tmp_path, **settings)
    assert epochs_done(tmp_path) == (epoch, 3)
    torch.manual_seed(99)
    fresh = classifiers.toy(seed=5 if epoch else 0)  # of no matter once there is a side-car
    classifiers.run(tmp_path, fresh, resume=True, **settings)
    same_run(uninterrupted["c", workers], tmp_path)


@pytest.mark.parametrize(
    "file", ["last.safetensors", "best.safetensors", "results.csv", "state.pt"]
)
def test_a_classifier_killed_between_its_first_files(tmp_path, monkeypatch, uninterrupted, file):
    """It goes on, and is not begun again by mistake where weights are there."""
    monkeypatch.setattr(classifiers, "save", lambda network, path: written(network, path))

    def written(network, path):
        write_atomic(path, b"".join(v.numpy().tobytes() for v in network.state_dict().values()))

    classifiers.run(tmp_path / "whole")
    folder = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, folder / file, file == "state.pt")
        classifiers.run(folder)
    if (folder / "last.safetensors").exists():
        with pytest.raises(TrainingError, match="holds a run; add --resume"):
            classifiers.run(folder)
    classifiers.run(folder, resume=True)
    same_run(tmp_path / "whole", folder)


def test_a_run_that_has_no_epoch_is_begun_again(tmp_path, monkeypatch):
    """With other settings as well, as there is nothing to lose."""

    def kill(self, number):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(classifiers.training._Loop, "epoch", kill)
        classifiers.run(tmp_path)
    assert epochs_done(tmp_path) == (0, 3)
    classifiers.run(tmp_path, batch=8)
    assert epochs_done(tmp_path) == (3, 3)


@pytest.mark.parametrize("resume", [False, True])
def test_weights_without_their_side_car_are_not_written_over(tmp_path, resume):
    (tmp_path / "last.safetensors").write_bytes(b"weights")
    with pytest.raises(TrainingError, match="choose another --out"):
        classifiers.run(tmp_path, resume=resume)
    assert (tmp_path / "last.safetensors").read_bytes() == b"weights"


@pytest.mark.parametrize("damaged", [False, True])
def test_an_error_deletes_no_state_of_finished_epochs(tmp_path, damaged):
    """Not even if `last.safetensors` was moved away."""
    classifiers.run(tmp_path, epochs=2)
    (tmp_path / "last.safetensors").unlink()
    if damaged:
        (tmp_path / "state.pt").write_bytes(b"half")
    with pytest.raises(OSError, match="full"), own_run(tmp_path):
        raise OSError("the disk is full")
    assert (tmp_path / "state.pt").exists()


# ---------------------------------------------------------------------- conversions


def test_a_complete_conversion_is_no_error_to_resume(tmp_path):
    """Whenever it was killed: what is left beside its result is deleted, or taken up."""
    out, told = tmp_path / "snn.safetensors", "tools/convert.py --T 4 --out snn.safetensors"
    weights, other = tmp_path / "one/float.safetensors", tmp_path / "two/float.safetensors"
    for path in (weights, other):
        path.parent.mkdir()
        path.write_bytes(path.parent.name.encode())

    def write(path):
        tensors = {"a.weight": torch.zeros(1)}
        origin = {"command": told, "parent": sha256(weights)}
        about = ("float", "classification", {}, ("a", "b"), 32, tensors)
        save(Checkpoint(*about, origin=origin), path)

    assert not run_files.is_finished(out, True, told, weights)
    write(run_files.layers_file(out))
    write(run_files.last_file(out))  # killed before what is kept was written
    assert not run_files.is_finished(out, True, f"{told} --resume", weights)
    with pytest.raises(UsageError, match="exists already"):
        run_files.is_finished(out, False, told, weights)
    write(out)
    others = (False, told, weights), (True, told.replace("4", "8"), weights), (True, told, other)
    for arguments in others:
        with pytest.raises(UsageError, match="snn.safetensors exists already"):
            run_files.is_finished(out, *arguments)
    assert run_files.layers_file(out).exists()
    assert run_files.is_finished(out, True, told.replace("--T", "--resume --T"), weights)
    assert not run_files.layers_file(out).exists() and out.exists()


# ---------------------------------------------------------------------- other processes


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    code = "import sys, time; from spikedet.training.run import own_run\n"
    code += "with own_run(sys.argv[1]): print('in', flush=True); time.sleep(60)"
    words = [sys.executable, "-c", code, str(tmp_path / "run")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, cwd=ROOT) as other:
        other.stdout.readline()
        with pytest.raises(TrainingError, match="another process is training here"):
            classifiers.run(tmp_path / "run")
        other.send_signal(signal.SIGKILL)
        other.wait()
    with own_run(tmp_path / "run"):  # the lock ends with the process
        pass


def test_temporaries_of_killed_writes_are_deleted(tmp_path):
    """And no others: not those that are new, that somebody writes, or that have other names."""
    old = time.time() - 2 * STALE
    files = {
        "left": f".a.json.abcd1234{ENDING}",
        "new": f".b.json.abcd1234{ENDING}",
        "locked": f".c.json.abcd1234{ENDING}",
        "other": ".d.json.abcd1234",
        "shown": f"e.json.abcd1234{ENDING}",
    }
    for name in files.values():
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, None if name == files["new"] else (old, old))
    os.mkfifo(tmp_path / f".f.abcd1234{ENDING}")
    os.utime(tmp_path / f".f.abcd1234{ENDING}", (old, old))
    os.symlink(files["other"], tmp_path / f".g.abcd1234{ENDING}")
    code = "import fcntl, sys, time; file = open(sys.argv[1]); fcntl.flock(file, fcntl.LOCK_EX)\n"
    code += "print('locked', flush=True); time.sleep(60)"
    words = [sys.executable, "-c", code, str(tmp_path / files["locked"])]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        write_atomic(tmp_path / "z.json", b"whole")
        other.kill()
    left = set(os.listdir(tmp_path))
    assert files["left"] not in left
    assert left >= {files[name] for name in ("new", "locked", "other", "shown")}
    assert f".g.abcd1234{ENDING}" in left and (tmp_path / "z.json").read_bytes() == b"whole"


def test_a_killed_write_leaves_a_temporary_that_the_next_process_deletes(tmp_path):
    code = "import os, signal, sys; from spikedet import files\n"
    code += "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
    code += "files.write_atomic(sys.argv[1], b'x')"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], cwd=ROOT)
    (left,) = os.listdir(tmp_path)
    assert left.startswith(".a.") and left.endswith(ENDING)
    write_atomic(tmp_path / "b", b"")
    assert set(os.listdir(tmp_path)) == {left, "b"}  # it may be written just now
    os.utime(tmp_path / left, (0, 0))
    files._cleaned.clear()
    write_atomic(tmp_path / "b", b"")
    assert os.listdir(tmp_path) == ["b"]


def test_a_temporary_that_was_taken_away_is_made_again(tmp_path, monkeypatch):
    """Whoever deletes what is left over may have been quicker than the lock."""
    lock, taken = files._lock, []

    def slow(handle, *, wait=False):
        if wait and not taken:
            (name,) = os.listdir(tmp_path)
            os.unlink(tmp_path / name)
            taken.append(name)
        return lock(handle, wait=wait)

    monkeypatch.setattr(files, "_lock", slow)
    write_atomic(tmp_path / "a", b"whole")
    assert taken and os.listdir(tmp_path) == ["a"] and (tmp_path / "a").read_bytes() == b"whole"


# ---------------------------------------------------------------------- a machine that is too small


def kill_a_child():
    """End the first loader process of this one as a system without memory does."""
    place = Path(f"/proc/self/task/{os.getpid()}/children")
    for _ in range(3000):
        for child in place.read_text().split():
            os.kill(int(child), signal.SIGKILL)
            return
        time.sleep(0.02)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="children are looked up in /proc")
def test_a_loader_process_that_is_killed_is_one_sentence(tmp_path, monkeypatch, capsys):
    def main(_):
        threading.Thread(target=kill_a_child, daemon=True).start()
        classifiers.run(tmp_path, workers=1, epochs=500)

    with pytest.raises(SystemExit) as ended:
        run_as_command(main)
    last = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 1
    assert last.startswith("error: the system ended a loader process") and "fewer --workers" in last


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "memory is too small for this (no reason given)"),
        (RuntimeError("CUDA out of memory. Tried\nmore"), "(CUDA out of memory. Tried); use a"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you"), "use a smaller --batch"),
        (
            RuntimeError("unable to write to file </torch_1_2>: No space"),
            "the shared memory is too small",
        ),
        (RuntimeError("size mismatch"), None),
    ],
)
def test_memory_that_is_too_small_is_one_sentence(monkeypatch, capsys, error, words):
    def main(_):
        raise error

    with pytest.raises(SystemExit if words else RuntimeError) as ended:
        run_as_command(main)
    if words:
        assert ended.value.code == 1 and words in capsys.readouterr().err


def test_sigterm_ends_a_command_in_order(tmp_path):
    """Temporaries are deleted, `finally` is heard."""
    code = "import os, signal, sys; from spikedet import files\n"
    code += "from support.commands import run_as_command\n"
    code += "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGTERM)\n"
    code += "run_as_command(lambda _: files.write_atomic('a', b'x'))"
    told = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=told).returncode == 143
    assert os.listdir(tmp_path) == []


# ---------------------------------------------------------------------- settings of ultralytics


def test_settings_of_ultralytics_lie_in_a_folder_of_the_process_alone(tmp_path):
    """One that somebody made before, of a name to be guessed, is neither used nor followed."""
    trap = tmp_path / f"spikedet-{os.getuid()}"
    (tmp_path / "elsewhere").mkdir()
    trap.symlink_to(tmp_path / "elsewhere")
    code = "import os, stat\nfrom spikedet.detection import ultra\n"
    code += "from ultralytics.utils import SETTINGS_FILE\n"
    code += "folder = os.environ['YOLO_CONFIG_DIR']\n"
    code += "assert str(SETTINGS_FILE).startswith(folder) and SETTINGS_FILE.is_file()\n"
    code += "assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700\nprint(folder)"
    told = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    shown = subprocess.run([sys.executable, "-c", code], env=told, text=True, capture_output=True)
    assert shown.returncode == 0, shown.stderr
    folder = Path(shown.stdout.split()[-1])
    assert folder.parent == tmp_path and folder != trap and not folder.exists()
    assert os.listdir(tmp_path / "elsewhere") == []
