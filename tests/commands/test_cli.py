"""Options from a file, commands of the pages, and how a command ends."""

import io
import os
import re
import shlex
import subprocess
import sys
import time
from argparse import ArgumentTypeError
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from spikedet import cli
from spikedet.errors import TrainingError, UsageError
from spikedet.files import write_atomic
from support.places import ROOT
from tools import calibrate, detect


@pytest.fixture
def parser():
    made = cli.parser("test")
    made.prog = "train.py"
    cli.add_data_arguments(made)
    cli.add_training_arguments(made)
    return made


def parse(parser, *words):
    words = ["--data", "devkit", *map(str, words)]
    return parser.parse_args(words)


def test_the_command_line_wins_over_the_file_and_the_file_over_the_default(parser, tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("train: {epochs: 7, imgsz: 96, cache: false, close-mosaic: 2}\nother: {a: 1}\n")
    args = parse(parser, "--config", path, "--imgsz", 64)
    assert (args.epochs, args.imgsz, args.cache, args.close_mosaic) == (7, 64, False, 2)
    assert args.batch == parse(parser).batch


@pytest.mark.parametrize("words", [["a.jpg", "--config", "FILE"], ["--config", "FILE", "a.jpg"]])
def test_false_null_and_lists_in_a_file(tmp_path, words):
    made = detect.arguments()
    made.prog, path = "detect.py", tmp_path / "x.yaml"
    path.write_text("detect: {each-step: false, T: null, half: false, classes: [cat, dog]}")
    words = [str(path) if word == "FILE" else word for word in words]
    args = made.parse_args(words)
    assert (args.each_step, args.T, args.half, args.classes) == (False, None, False, ["cat", "dog"])
    assert args.sources == ["a.jpg"]


@pytest.mark.parametrize("device", ["mps", "meta", "cuda:99", "gpu"])
def test_devices_that_are_not_here(device):
    with pytest.raises(ArgumentTypeError, match=f"'{device}'"):
        cli.device(device)


def test_an_option_that_would_be_ignored_is_refused(parser):
    with pytest.raises(UsageError, match="--close-mosaic: there is no mosaic"):
        cli.refuse(
            parse(parser, "--close-mosaic", 0), ["resume", "close_mosaic"], "there is no mosaic"
        )
    cli.refuse(parse(parser), ["resume", "close_mosaic"], "")
    with pytest.raises(UsageError, match="--cache: there is nothing"):
        cli.refuse(parse(parser, "--no-cache"), ["cache"], "there is nothing")


def test_an_option_of_a_file_that_would_be_ignored_is_not_refused_unless_it_is_given(
    parser, tmp_path
):
    path = tmp_path / "x.yaml"
    path.write_text("train: {epochs: 7}\n")
    cli.refuse(parse(parser, "--config", path), ["epochs"], "")
    with pytest.raises(UsageError, match="--epochs: nothing is trained"):
        cli.refuse(parse(parser, "--config", path, "--epochs=9"), ["epochs"], "nothing is trained")


def test_another_option_that_begins_alike_is_not_a_file():
    made = cli.parser("test")
    made.add_argument("--conf", type=cli.fraction)
    assert made.parse_args(["--conf", "0.5"]).conf == 0.5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "No such file"),
        ("finetune: {epochs: 3}", "a section 'train'"),
        ("train: 3", "a section 'train'"),
        ("a: [", "not readable as YAML"),
        ("- 3", "not readable as YAML"),
        ("train: \0", "not readable as YAML"),
        ("train: {epocs: 3}", "train has no option 'epocs'"),
        ("train: {help: true}", "train has no option 'help'"),
        ("train: {resume: 3}", "train has resume: 3; expected true or false"),
        ("train: {epochs: true}", "train has epochs: True; expected text"),
        ("train: {data: [a, {b: 1}]}", "train has data: .*; expected text"),
        ("train: {epochs: [1, 2]}", "train has epochs: .1, 2.; expected a single value"),
    ],
)
def test_bad_files(parser, tmp_path, text, words):
    path = tmp_path / "x.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=words):
        parse(parser, "--config", path)


@pytest.mark.parametrize("path", sorted((ROOT / "configs/experiments").glob("*.yaml")))
def test_released_configurations_hold_options_of_their_commands(path):
    sections = yaml.safe_load(path.read_text())
    assert {"train", "convert", "evaluate"} <= sections.keys()
    for command, options in sections.items():
        made = import_module(f"tools.{command}").arguments()
        made.prog = f"{command}.py"
        required = ["--weights", "w", "--out", "o"] if command == "convert" else ["--out", "o"]
        required = [] if command == "evaluate" else required
        required += ["--T", "8"] if command == "convert" else []
        args = vars(made.parse_args(["--config", str(path), "--data", "d", *required]))
        if "model" in options:
            options["model"] = Path(options["model"])
            assert (ROOT / options["model"]).is_file()
        assert {k: args[k.replace("-", "_")] for k in options} == options


@pytest.mark.parametrize("page", ["README.md", "demo/README.md"])
def test_commands_of_the_pages_have_options_that_there_are(page):
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    found = re.findall(r"python (tools|demo)/(\w+)\.py([^#\n]*)", "".join(blocks))
    assert found
    for folder, name, words in found:
        made = import_module(f"{folder}.{name}").arguments()
        made.prog = f"{name}.py"
        made.parse_args(shlex.split(words))


def test_an_output_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("in the way")
    target = tmp_path / "file" / "rows.json"
    monkeypatch.setattr("sys.argv", ["test"])
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda args: write_atomic(target, b"[]"), cli.parser("test"))
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: {tmp_path / 'file'}: File exists"


def test_who_stops_reading_is_not_told_off():
    code = "from spikedet import cli; cli.run(lambda _: print('x\\n' * 99999), cli.parser('t'))"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=pipe, stderr=pipe) as run:
        assert run.stdout.readline() == b"x\n"
        run.stdout.close()
        assert run.stderr.read() == b"" and run.wait() == 141


def test_names_that_are_no_text_are_printed():
    code = "from spikedet import cli; cli.run(lambda _: print('a\\udcdf.jpg'), cli.parser('t'))"
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True,
                          env=environment)  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, b"a\\udcdf.jpg\n", b"")


@pytest.mark.parametrize("rank", ["0", "1"])
def test_several_processes_are_refused_where_each_would_do_the_same(monkeypatch, capsys, rank):
    """By each of them, in the words of the first."""
    monkeypatch.setattr(sys, "argv", ["tool"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    with pytest.raises(SystemExit) as stopped:
        cli.run(lambda _: None, cli.parser("test"))
    assert stopped.value.code == 2
    assert ("runs in one process" in capsys.readouterr().err) == (rank == "0")
    with pytest.raises(SystemExit) as stopped:
        cli.run(lambda _: None, cli.parser("test"), several=True)
    assert stopped.value.code == 0


def test_stage_one_takes_the_picture_size_of_its_weights(parser, capsys):
    args = parse(parser, "--imgsz", 64)
    assert cli.training_settings(args, "detection").imgsz == 64
    own = cli.parser("test")
    cli.add_training_arguments(own, stage_one=True)
    assert cli.training_settings(own.parse_args([]), "detection", stage_one=True).epochs == 4
    with pytest.raises(SystemExit):
        own.parse_args(["--imgsz", "64"])
    assert "unrecognized arguments: --imgsz" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["detection", "classification"])
def test_the_usual_rate_of_stage_one_is_lower_without_batch_norm(task):
    own = cli.parser("test")
    cli.add_training_arguments(own, stage_one=True)

    def rate(*words, folded):
        args = own.parse_args(words)
        return cli.training_settings(args, task, stage_one=True, folded=folded).rate

    assert rate(folded=True) < rate(folded=False)
    assert rate("--rate", "0.3", folded=True) == rate("--rate", "0.3", folded=False) == 0.3


def test_json_is_written_to_names_in_json_only(capsys):
    assert cli.json_file("a/rows.json") == Path("a/rows.json")
    with pytest.raises(SystemExit):
        detect.arguments().parse_args(["--T", "20", "--json", "image.jpg"])
    assert "'image.jpg' is to be written; expected a name in .json" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--pictures", "0"], ["--held", "-1"], ["--end-to-end", "-3"]])
def test_numbers_that_stage_two_cannot_do(words, capsys):
    with pytest.raises(SystemExit):
        calibrate.arguments().parse_args(["--weights", "w", "--data", "d", "--out", "o", *words])
    assert "is not a whole number of 1 or more" in capsys.readouterr().err


def test_outputs_that_cannot_be_written_are_refused_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    for name, words in {
        "": "is a folder; expected",
        "file/a/b.json": "file is not a folder",
    }.items():
        with pytest.raises(UsageError, match=words):
            cli.expect_writable(tmp_path / name)
    with pytest.raises(TrainingError, match="is there already"):
        cli.expect_new(tmp_path / "file")
    cli.expect_new(tmp_path / "new/folder/file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "much"])
def test_rates_and_prices_are_above_zero(text):
    with pytest.raises(ArgumentTypeError, match="is not a number above 0"):
        cli.positive(text)


class Stream(io.StringIO):
    """Standard error that is a terminal, or not."""

    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


def test_a_progress_bar_fills_no_log(monkeypatch):
    shown = {}
    for terminal in (True, False):
        stream = Stream(terminal)
        monkeypatch.setattr(sys, "stderr", stream)
        for _ in cli.progress(range(4), desc="steps"):
            time.sleep(0.15)
        shown[terminal] = stream.getvalue().count("steps: ")
    assert shown[False] == 2 < shown[True]  # a log has the first and the last state
