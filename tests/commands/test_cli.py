"""Options from a file, commands of the pages, and how a command ends."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from spikedet.commands import kinds, parse
from spikedet.commands.checks import expect_new, refuse
from spikedet.commands.main import COMMANDS, main, module_of, parsed
from spikedet.commands.option import options_of
from spikedet.commands.training import training, training_settings
from spikedet.errors import TrainingError, UsageError
from spikedet.files import expect_folder, expect_writable, write_atomic
from spikedet.options import option
from spikedet.task_registry import SETTINGS
from support.commands import command, run_as_command
from support.places import ROOT

EVERY = [name for name in COMMANDS]


def words_of(name):
    """Options of a command, as they are called."""
    return {each.word for each in options_of(module_of(name).Options)}


def required(name):
    """Words of a command that is complete; no file that they name is there."""
    words = []
    for each in options_of(module_of(name).Options):
        if each.default is parse.MISSING:
            value = each.choices[0] if each.choices else "8" if each.field == "T" else "nowhere"
            value += ".json" if each.more["kind"] is kinds.json_file else ""
            words += [value] if each.more.get("positional") else [each.word, value]
    return words


def train(*words):
    return parsed("train", ["--data", "devkit", "--out", "run", *words])


def test_the_command_line_wins_over_the_file_and_the_file_over_the_default(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("train: {epochs: 7, imgsz: 96, cache: false, close-mosaic: 2}\nother: {a: 1}\n")
    options = train("--config", path, "--imgsz", 64)
    assert options.training == {"epochs": 7, "imgsz": 64, "cache": False, "close_mosaic": 2}
    assert train().training == {}


def test_the_last_of_a_repeated_option_counts():
    assert train("--epochs", 3, "--epochs=4", "--data", "a", "b").training == {"epochs": 4}
    assert train("--data", "a", "b").data == [Path("a"), Path("b")]


@pytest.mark.parametrize("words", [["a.jpg", "--config", "FILE"], ["--config", "FILE", "a.jpg"]])
def test_false_null_and_lists_in_a_file(tmp_path, words):
    path = tmp_path / "x.yaml"
    path.write_text("detect: {each-step: false, T: null, half: false, classes: [cat, dog]}")
    options = parsed("detect", [str(path) if word == "FILE" else word for word in words])
    shown = (options.each_step, options.T, options.half, options.classes)
    assert shown == (False, None, False, ["cat", "dog"])
    assert options.sources == ["a.jpg"]


@pytest.mark.parametrize(
    ("words", "half"), [([], None), (["--half"], True), (["--no-half"], False),
                        (["--half", "--no-half"], False)],
)  # fmt: skip
def test_a_switch_that_may_be_left_to_the_machine(words, half):
    assert parsed("detect", words).half is half


@pytest.mark.parametrize("device", ["mps", "meta", "cuda:99", "gpu"])
def test_devices_that_are_not_here(device):
    with pytest.raises(UsageError, match=f"--device: .*'{device}'"):
        parsed("detect", ["--device", device])


@pytest.mark.parametrize("name", [n for n in EVERY if "--device" in words_of(n)])
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "0"])
def test_devices_are_looked_for_before_anything_is_read(name, device, monkeypatch, capsys):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert command(monkeypatch, name, *required(name), "--device", device) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: --device: {device!r}: this machine has 0 CUDA devices; expected cpu"


INPUTS = {  # paths that are read
    "weights", "reference", "source", "float", "data", "images", "stage1", "teacher", "tuning",
    "unlabelled", "config", "model", "pretrained", "names", "state", "folder", "run", "boxes",
    "xml", "pictures", "skip", "certificate", "key", "leaky", "picture", "coco_annotations",
}  # fmt: skip
FOLDERS = {"detect", "train", "finetune", "pretrain", "analyze", "import-boxes", "reproduce"}


@pytest.mark.parametrize("name", EVERY)
def test_outputs_that_cannot_be_are_refused_before_anything_is_read(
    name, monkeypatch, capsys, tmp_path
):
    """No file that these commands would read is there, and none is missed."""
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.json").mkdir()
    for each in options_of(module_of(name).Options):
        reads = each.field in INPUTS or (name, each.field) == ("import-boxes", "coco")
        if each.type is not Path or reads:
            continue
        folder = each.field == "plots" or (each.field == "out" and name in FOLDERS)
        kind = each.more["kind"]
        end = {kinds.csv_file: ".csv", kinds.plot_file: ".png"}.get(kind, ".json")
        end = ".html" if (name, each.field) == ("report", "out") else end
        places = [Path(f"/proc/x{end}"), tmp_path / f"file/x{end}", tmp_path / ("x" * 300 + end)]
        places.append(tmp_path / "file" if folder else tmp_path / "folder.json")
        for place in places[: None if end == ".json" else -1]:
            words = required(name)
            if each.more.get("positional"):
                words = ["nowhere", str(place)]
            else:
                words += [each.word, str(place)]
            assert command(monkeypatch, name, *words) == 2, (each.word, place)
            (line,) = capsys.readouterr().err.splitlines()
            assert place.name[:20] in line and len(line) < 400, line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.json"]


def test_downloads_that_have_no_room_are_not_begun(monkeypatch, capsys):
    assert command(monkeypatch, "prepare", "voc", "/proc/x") == 2
    assert "/proc is not a folder that can be written to (" in capsys.readouterr().err


NAMES = {  # an option of names in each command that has it: what is wrong, what is right
    "engine": ("evnts", "events"), "engines": ("torch-bflot16", "torch-bfloat16"),
    "save": ("picturs", "pictures"), "method": ("two-stge", "two-stage"),
    "format": ("onx", "onnx"), "form": ("stepp", "step"), "device": ("cuda1", "cuda:1"),
    "optimizer": ("adam", "AdamW"), "augment": ("crops", "crop"), "loss": ("msee", "mse"),
    "pooling": ("counts", "count"), "years": ("2021", "2012"),
    "neuron": ("corecting", "correcting"),
}  # fmt: skip
FREE = {  # texts that are no names out of a few, or of what a file holds, and tested with that
    "sources", "classes", "split", "threshold_split", "train_split", "names", "rename", "server",
    "host", "width", "activation", "layers", "kernels", "methods", "name",
}  # fmt: skip


@pytest.mark.parametrize("name", EVERY)
def test_a_wrong_name_names_the_nearest(name, monkeypatch, capsys):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for each in options_of(module_of(name).Options):
        if each.type is not str or each.field in FREE:
            continue
        wrong, right = NAMES[each.field]  # a new option of names has its line here
        assert command(monkeypatch, name, *required(name), each.word, wrong) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {each.word}: ")
        assert line.endswith(f"(did you mean {right}?)"), line


def test_an_option_that_would_be_ignored_is_refused():
    names = ["resume", "close_mosaic"]
    with pytest.raises(UsageError, match="--close-mosaic: there is no mosaic"):
        refuse(train("--close-mosaic", 0), names, "there is no mosaic")
    refuse(train(), names, "")
    with pytest.raises(UsageError, match="--cache: there is nothing"):
        refuse(train("--no-cache"), ["cache"], "there is nothing")
    with pytest.raises(UsageError, match="--weights: there are none"):  # by its other name
        words = ["--model", "f", "--T", 4, "--data", "d", "--out", "o"]
        refuse(parsed("convert", words), ["weights"], "there are none")


def test_an_option_of_a_file_that_would_be_ignored_is_not_refused_unless_it_is_given(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("train: {epochs: 7}\n")
    refuse(train("--config", path), ["epochs"], "")
    with pytest.raises(UsageError, match="--epochs: nothing is trained"):
        refuse(train("--config", path, "--epochs=9"), ["epochs"], "nothing is trained")


def test_the_device_of_a_file_gives_way_to_that_of_the_command_line(tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    path = tmp_path / "x.yaml"
    path.write_text("train: {device: 0}\n")
    with pytest.raises(UsageError, match="--device: '0': this machine has 0 CUDA devices"):
        train("--config", path)
    assert train("--config", path, "--device", "cpu").training == {"device": "cpu"}


def test_another_option_that_begins_alike_is_not_a_file():
    assert parsed("detect", ["--conf", "0.5"]).conf == 0.5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "No such file"),
        ("finetune: {epochs: 3}", "a section 'train'"),
        ("train: 3", "a section 'train'"),
        ("a: [", "not readable as YAML"),
        ("- 3", "not readable as YAML"),
        ("train: \0", "not readable as YAML"),
        ("train: {epocs: 3}", "train has no option 'epocs' .did you mean --epochs"),
        ("train: {help: true}", "train has no option 'help'"),
        ("train: {resume: 3}", "train has resume: 3; expected true or false"),
        ("train: {epochs: true}", "train has epochs: True; expected text"),
        ("train: {epochs: 0}", "train has epochs: '0' is not an integer of 1 or more"),
        ("train: {data: [a, {b: 1}]}", "train has data: .*; expected text"),
        ("train: {epochs: [1, 2]}", "train has epochs: .1, 2.; expected a single value"),
    ],
)
def test_bad_files(tmp_path, text, words):
    path = tmp_path / "x.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=words) as told:
        train("--config", path)
    assert str(path) in str(told.value)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["detect", "--T", 0], "--T: T is '0'; expected an integer from 1 to 10000"),
        (["detect", "--T", 10001], "--T: T is '10001'; expected an integer from 1 to 10000"),
        (["detect", "--T"], "--T: expected a value"),
        (["detect", "--conf", 3], "--conf: '3' is not a number between 0 and 1"),
        (["detect", "--conf", "nan"], "--conf: 'nan' is not a number between 0 and 1"),
        (["detect", "--classes"], "--classes: expected at least one value"),
        (["detect", "--clases", "cat"],
         "unrecognized arguments: --clases cat (did you mean --classes?)"),
        (["detect", "--half=1"], "--half: takes no value"),
        (["detect", "--json", "a.jpg"],
         "--json: cannot write to 'a.jpg'; expected a name that ends in .json"),
        (["halve", "--weights", "a"], "expected --out PATH"),
        (["halve"], "expected --weights PATH and --out PATH"),
        (["halve", "--weights", "a", "--out", "b", "c"], "unrecognized arguments: c"),
        (["prepare", "voc"], "expected FOLDER"),
        (["prepare", "vocc", "x"],
         "DATASET: 'vocc'; expected voc, cifar10 or cifar100 (did you mean voc?)"),
        (["train", "--data", "d", "--out", "o", "--rate", "-1"],
         "--rate: '-1' is not a number above 0"),
        (["train", "--data", "d", "--out", "o", "--optimizer", "sgd"],
         "--optimizer: 'sgd'; expected SGD or AdamW (did you mean SGD?)"),
        (["train", "--data", "d", "--out", "o", "--jpeg", 101],
         "--jpeg: '101' is not an integer between 0 and 100"),
        (["energy", "--data", "d", "--pj-ac", 0], "--pj-ac: '0' is not a number above 0"),
        (["evaluate", "--data", "d", "--areas", 1], "--areas: expected a value"),
        (["detec"], "no command 'detec' (did you mean detect?)"),
    ],
)  # fmt: skip
def test_wrong_words_are_one_sentence(words, told, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words=[*map(str, words)])
    assert ended.value.code == 2
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", f"error: {told}\n")


@pytest.mark.parametrize("name", EVERY)
def test_the_help_of_a_command_is_light_and_says_what_it_does(name):
    code = (
        "import sys\nfrom spikedet.commands.main import main\n"
        f"try: main(words=[{name!r}, '--help'])\nexcept SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'cv2', 'ultralytics', 'torchvision', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    first = " ".join(done.stdout.partition("\n\n")[0].split())  # in lines as wide as the terminal
    assert first == module_of(name).__doc__.splitlines()[0]
    assert f"usage: spikedet {name} " in done.stdout


def test_the_help_names_all_commands_and_shows_rare_options_in_groups(capsys):
    with pytest.raises(SystemExit) as ended:
        main(words=["--help"])
    assert ended.value.code == 0
    overview = capsys.readouterr().out
    assert all(f"  {name} " in overview for name in EVERY)
    for word, there in {"--help": False, "--help-all": True}.items():
        with pytest.raises(SystemExit):
            main(words=["convert", word])
        shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert "--epochs N passes over the training pictures (4 for detection; 6 for" in shown
        assert ("stage I options" in shown and "--noise X" in shown) == there
        assert ("rmp float weights; the threshold of a layer" in shown) == there
        assert ("--augment {none" in shown and "(crop for classification)" in shown) == there


@pytest.mark.parametrize("name", EVERY)
def test_the_help_fits_on_a_screen(name, monkeypatch, capsys):
    """40 lines of 80 letters; what is left out stands in `--help-all`, which is no wider."""
    monkeypatch.setenv("COLUMNS", "80")
    shown = {}
    for word in ("--help", "--help-all"):
        with pytest.raises(SystemExit):
            main(words=[name, word])
        shown[word] = capsys.readouterr().out
        assert max(map(len, shown[word].splitlines())) <= 80
    assert shown["--help"].count("\n") <= 40
    assert f"Run spikedet {name} --help-all for more" in " ".join(shown["--help"].split())
    rest = " ".join(shown["--help-all"].split())
    assert " ".join(getattr(module_of(name), "MORE", "").split()) in rest
    for each in options_of(module_of(name).Options):
        assert each.more.get("positional") or each.word in shown["--help-all"], each.word


@pytest.mark.parametrize("name", EVERY)
def test_every_option_has_a_help_and_a_default_that_it_can_have(name):
    for each in options_of(module_of(name).Options):
        assert each.more["help"], each.name
        if each.type in (int, float) and isinstance(each.default, int | float):
            assert each.parse(str(each.default)) == each.default


def test_an_option_is_one_field(monkeypatch):
    """Added to the settings of a task it is parsed, checked, shown, and reaches its run."""

    @dataclass
    class More(SETTINGS["classification"].Settings):
        blur: float = option(0.0, "how much", least=0, most=1, group="classifiers")

    monkeypatch.setattr(SETTINGS["classification"], "Settings", More)

    @dataclass(kw_only=True)
    class Options(parse.Options):
        training: dict[str, Any] = training()

    options = parse.parse(Options, ["--blur", "0.5"], "spikedet x")
    assert training_settings(options.training, "classification").blur == 0.5
    with pytest.raises(UsageError, match="--blur is no option of detection"):
        training_settings(options.training, "detection")
    with pytest.raises(UsageError, match="--blur: '2' is not a number between 0 and 1"):
        parse.parse(Options, ["--blur", "2"], "spikedet x")
    from spikedet.training.devices import expect_possible

    with pytest.raises(TrainingError, match="blur is 2; expected a number between 0 and 1"):
        expect_possible(More(blur=2))


def _stages(options):
    """Options of both stages, as they are called."""
    parts = ("stage_one", "layer_wise", "end")
    there = {each.part: {} for each in options_of(type(options)) if each.part in parts}
    for each in options_of(type(options)):
        if each.part in parts and each.field in getattr(options, each.part):
            there[each.part][each.name] = getattr(options, each.part)[each.field]
    return {name: value for part in there.values() for name, value in part.items()}


@pytest.mark.parametrize("path", sorted((ROOT / "configs/experiments").glob("*.yaml")))
def test_released_configurations_hold_options_of_their_commands(path, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setenv("LOCAL_RANK", "0")
    sections = yaml.safe_load(path.read_text())
    assert {"train", "convert", "evaluate"} <= sections.keys()
    for name, options in sections.items():
        words = ["--weights", "w", "--out", "o"] if name == "convert" else ["--out", "o"]
        words = [] if name == "evaluate" else words
        words += ["--T", "8"] if name == "convert" else []
        given = parsed(name, ["--config", path, "--data", "d", *words])
        args = vars(given) | getattr(given, "training", {}) | _stages(given)
        if "model" in options:
            options["model"] = Path(options["model"])
            assert (ROOT / options["model"]).is_file()
        assert {k: args[k.replace("-", "_")] for k in options} == options


PRINTING = "from support.commands import run_as_command; run_as_command(lambda _: print({}))"


def test_an_output_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("in the way")
    target = tmp_path / "file" / "rows.json"
    with pytest.raises(SystemExit) as ended:
        run_as_command(lambda _: write_atomic(target, b"[]"))
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / 'file'}") and line.endswith(": File exists")


def test_who_stops_reading_is_not_told_off():
    code = PRINTING.format("'x\\n' * 99999")
    pipe = subprocess.PIPE
    words = [sys.executable, "-c", code]
    with subprocess.Popen(words, cwd=ROOT / "tests", stdout=pipe, stderr=pipe) as run:
        assert run.stdout.readline() == b"x\n"
        run.stdout.close()
        assert run.stderr.read() == b"" and run.wait() == 141


def test_names_that_are_no_text_are_printed():
    code = PRINTING.format("'a\\udcdf.jpg'")
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "tests", capture_output=True,
                          env=environment)  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, b"a\\udcdf.jpg\n", b"")


@pytest.mark.parametrize("rank", ["0", "1"])
def test_several_processes_are_refused_where_each_would_do_the_same(monkeypatch, capsys, rank):
    """By each of them, in the words of the first."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    with pytest.raises(SystemExit) as stopped:
        run_as_command(lambda _: None)
    assert stopped.value.code == 2
    assert ("runs in one process" in capsys.readouterr().err) == (rank == "0")
    with pytest.raises(SystemExit) as stopped:
        run_as_command(lambda _: None, several=True)
    assert stopped.value.code == 0


def finetune(*words):
    return parsed("finetune", ["--weights", "w", "--T", 4, "--data", "d", "--out", "o", *words])


def test_stage_one_takes_the_picture_size_of_its_weights():
    assert training_settings(train("--imgsz", 64).training, "detection").imgsz == 64
    assert training_settings(finetune().training, "detection", stage_one=True).epochs == 4
    with pytest.raises(UsageError, match="unrecognized arguments: --imgsz"):
        finetune("--imgsz", "64")


@pytest.mark.parametrize("task", ["detection", "classification"])
def test_the_usual_rate_of_stage_one_is_lower_without_batch_norm(task):
    def rate(*words, folded):
        given = finetune(*words).training
        return training_settings(given, task, stage_one=True, folded=folded).rate

    assert rate(folded=True) < rate(folded=False)
    assert rate("--rate", "0.3", folded=True) == rate("--rate", "0.3", folded=False) == 0.3


def test_json_is_written_to_names_in_json_only():
    assert kinds.json_file("a/rows.json") == Path("a/rows.json")


@pytest.mark.parametrize("words", [["--pictures", "0"], ["--held", "-1"], ["--end-to-end", "-3"]])
def test_numbers_that_stage_two_cannot_do(words):
    least = 0 if words[0] == "--end-to-end" else 1
    with pytest.raises(UsageError, match=f"is not an integer of {least} or more"):
        parsed("calibrate", ["--weights", "w", "--data", "d", "--out", "o", *words])


def test_outputs_that_cannot_be_written_are_refused_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    for name, words in {
        "": "is a folder; expected",
        "file/a/b.json": "file is not a folder",
        "x" * 256: "the name has more than 255 bytes",
    }.items():
        with pytest.raises(UsageError, match=words):
            expect_writable(tmp_path / name)
    with pytest.raises(UsageError, match="file is not a folder that can be written to$"):
        expect_folder(tmp_path / "file")
    assert expect_folder(tmp_path / "new/folder") == tmp_path / "new/folder"
    with pytest.raises(UsageError, match="exists already"):
        expect_new(tmp_path / "file")
    expect_new(tmp_path / "new/folder/file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "much"])
def test_rates_and_prices_are_above_zero(text):
    with pytest.raises(UsageError, match="is not a number above 0"):
        parsed("energy", ["--data", "d", f"--pj-ac={text}"])
