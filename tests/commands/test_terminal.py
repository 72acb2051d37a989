"""Bars and tables on a terminal and elsewhere; --quiet and --json of every command."""

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from spikedet import terminal
from spikedet.commands import kinds, parse
from spikedet.commands import main as commands
from spikedet.commands.main import COMMANDS, module_of, progress
from spikedet.commands.option import options_of
from spikedet.commands.result import headed, write_json, writes_own
from spikedet.commands.training import Shown
from spikedet.options import option
from spikedet.terminal import Table, fitted
from support.places import ROOT
from support.streams import Stream


def on(monkeypatch, terminal):
    """A stream for both of the process; as pytest changes them before a test, not a fixture."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    stream = Stream(terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "stdout", stream)
    return stream


def test_a_log_has_a_line_a_minute_and_the_last_state(monkeypatch):
    stream = on(monkeypatch, False)
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    with progress(total=300, desc="T=8", unit="picture") as bar:
        for _ in range(300):
            now[0] += 0.5
            bar.update()
    assert stream.getvalue().splitlines() == [
        "T=8: 120 of 300 pictures, 2 a second, 1:30 left",
        "T=8: 240 of 300 pictures, 2 a second, 0:30 left",
        "T=8: 300 of 300 pictures, 2 a second, 0:00 left",
    ]


def test_what_was_done_before_does_not_count_towards_the_rate(monkeypatch):
    stream = on(monkeypatch, False)
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    with progress(range(100), "pictures", total=300, initial=200, unit="picture") as bar:
        for _ in bar:
            now[0] += 0.5
    assert stream.getvalue().splitlines() == [
        "pictures: 300 of 300 pictures, 2 a second, 0:00 left",
    ]


def test_a_resumed_pass_counts_its_own_steps(monkeypatch):
    stream = on(monkeypatch, False)
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    shown = Shown(8)
    for step in range(501, 511):
        now[0] += 10
        shown.step(step, 1000, 0.5)
    shown.close()
    last = stream.getvalue().splitlines()[-1]
    assert last == "end to end T=8: 510 of 1000 steps, 0.1 a second, 1:21:40 left, loss 0.500"


def test_a_short_bar_that_shall_not_stay_fills_no_log(monkeypatch):
    stream = on(monkeypatch, False)
    assert list(progress([1, 2, 3], desc="x", leave=False)) == [1, 2, 3]
    assert stream.getvalue() == ""


def test_a_terminal_has_a_bar_with_rate_and_time(monkeypatch):
    stream = on(monkeypatch, True)
    for _ in progress(range(3), "pictures", unit="picture"):
        pass
    shown = stream.getvalue()
    assert "pictures" in shown and "3 of 3 pictures" in shown and "a second" in shown


def test_slow_work_is_counted_in_minutes_and_bytes_are_bytes(monkeypatch):
    stream = on(monkeypatch, False)
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    bar = progress(desc="epochs", total=4, unit="epoch")
    now[0] = 1800.0
    bar.update()
    bar.close()
    bar.close()  # twice is once
    assert stream.getvalue().splitlines()[-1] == (
        "epochs: 1 of 4 epochs, 0.0333 a minute, 1:30:00 left"
    )
    now[0] = 0.0
    with progress(desc="x.tar", unit="B", unit_scale=True) as bar:
        now[0] = 2.0
        bar.update(5_000_000)
    assert stream.getvalue().splitlines()[-1] == "x.tar: 5.0 MB, 2.5 MB a second"


def test_an_error_gives_the_cursor_back(monkeypatch):
    stream = on(monkeypatch, True)
    progress(total=3)
    assert "\x1b[?25l" in stream.getvalue() and "\x1b[?25h" not in stream.getvalue()
    terminal.close_bars()
    assert "\x1b[?25h" in stream.getvalue() and not terminal._bars


COLUMNS = [("", 20), ("T", 5), *((f"AP_{n}", 11) for n in range(7)), ("spike rate", 12)]
CELLS = ("stages I + II", "8", *["0.2834"] * 7, "0.1214")


def test_a_table_in_a_file_has_fixed_columns_and_no_colours(monkeypatch):
    stream = on(monkeypatch, False)
    table = Table(COLUMNS)
    table.head()
    table.row(*CELLS)
    head, row = stream.getvalue().splitlines()
    assert len(row) == len(head) == 114 and row.split()[-1] == "0.1214" and "\x1b" not in head
    assert row.startswith("stages I + II           8     0.2834")


@pytest.mark.parametrize("colours", [True, False])
def test_a_table_fits_its_terminal(monkeypatch, colours):
    stream = on(monkeypatch, True)
    if not colours:
        monkeypatch.setenv("NO_COLOR", "1")
    table = Table(COLUMNS)
    table.head()
    table.row(*CELLS)
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line) for line in stream.getvalue().splitlines()]
    assert max(map(len, lines)) <= 80 and " ".join(lines).count("0.2834") == 7
    assert "\x1b[3" not in stream.getvalue()  # bold at most


def test_a_table_without_room_has_a_line_a_value(monkeypatch):
    """At 40 letters numbers were folded in the middle."""
    stream = on(monkeypatch, True)
    monkeypatch.setenv("COLUMNS", "40")
    table = Table(COLUMNS)
    table.head()
    table.row(*CELLS)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "stages I + II" and lines[1].split() == ["T", "8"]
    assert lines[-1].split() == ["spike", "rate", "0.1214"] and len(lines) == len(CELLS)


@pytest.mark.parametrize(("columns", "most"), [("40", 40), ("24", 28), ("200", 100)])
def test_a_text_beside_its_head_fits_the_terminal(monkeypatch, columns, most):
    """`spikedet info` ran over the edge; nothing is lost by the folding."""
    text = "20: aeroplane, bicycle, bird, boat\n    and a second line of words, twenty letters long"
    stream = on(monkeypatch, True)
    monkeypatch.setenv("COLUMNS", columns)
    print(terminal.beside("classes       ", text))
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= most
    assert " ".join(stream.getvalue().split()) == " ".join(f"classes {text}".split())
    assert (lines[0].rstrip() == "classes") == (columns == "24")
    stream = on(monkeypatch, False)
    print(terminal.beside("classes       ", text))
    first, second = stream.getvalue().splitlines()
    assert first == "classes       20: aeroplane, bicycle, bird, boat"
    assert second == " " * 14 + "and a second line of words, twenty letters long"


def test_the_widest_columns_give_way_first():
    assert fitted([20, 5, 5], 25) == [15, 5, 5] and fitted([20, 20], 4) == [7, 7]
    assert fitted([3, 4], 80) == [3, 4]


# ---------------------------------------------------------------------- --quiet and --json


@dataclass(kw_only=True)
class Options(parse.Options):
    T: int | None = option(None, "steps")
    out: str = option("here", "place")


@dataclass(kw_only=True)
class WithResults(Options):
    json: Path | None = option(None, "rows", kind=kinds.json_file)


def ran(run, *words, options=Options):
    command = SimpleNamespace(Options=options, run=run, __doc__="")
    with pytest.raises(SystemExit) as ended:
        commands.run(lambda: command, list(map(str, words)), "spikedet try")
    return ended.value.code


def test_a_command_without_results_says_what_was_done(tmp_path):
    path = tmp_path / "done.json"
    assert ran(lambda _: None, "--T", 4, "--json", path) == 0
    result = json.loads(path.read_text())
    assert list(result)[:3] == ["spikedet", "command", "T"]
    assert (result["command"], result["T"], result["out"], result["exit_code"]) == (
        "try",
        4,
        "here",
        0,
    )
    assert result["command_line"].startswith("spikedet try --T 4") and result["seconds"] >= 0


def test_a_command_with_results_writes_them_itself(tmp_path):
    path = tmp_path / "rows.json"
    rows = [{"T": 1, "AP": 0.5}, {"AP": 1}]
    ran(lambda given: write_json(given, rows), "--json", path, options=WithResults)
    first, second = json.loads(path.read_text())
    assert first == {"spikedet": first["spikedet"], "command": "try", "T": 1, "AP": 0.5}
    assert second["T"] is None


def test_json_that_cannot_be_written_is_refused_before_the_work(tmp_path, capsys):
    (tmp_path / "x.json").mkdir()
    assert ran(lambda _: pytest.fail("it ran"), "--json", tmp_path / "x.json") == 2
    assert "is a folder" in capsys.readouterr().err


def test_no_json_of_what_failed(tmp_path):
    from spikedet.errors import DataError

    def fail(_):
        raise DataError("no")

    assert ran(fail, "--json", tmp_path / "x.json") == 3
    assert list(tmp_path.iterdir()) == []


def test_quiet_leaves_errors_and_warnings(capsys):
    import warnings

    def work(_):
        print("a table")
        terminal.note("what is read")
        for _ in progress(range(2)):
            pass
        warnings.warn("odd", stacklevel=1)

    assert ran(work, "--quiet") == 0
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "warning: odd\n")
    assert ran(work) == 0
    shown = capsys.readouterr()
    assert shown.out == "a table\n" and "what is read" in shown.err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_quiet_and_json(name):
    words = {each.word for each in options_of(module_of(name).Options)}
    assert {"--quiet", "--json", "--config"} <= words


def test_a_head_gives_way_to_the_result():
    assert headed("x", {"T": 3})["T"] == 3 and list(headed("x", {"T": 3}))[2] == "T"


def test_the_page_of_json_names_the_fields_that_there_are():
    """What every result has, and the columns of each task."""
    from spikedet.task_registry import SETTINGS, named

    page = (ROOT / "docs/json.md").read_text()
    fields = set(re.findall(r"`(\w+)`", page))
    wanted = {*headed("x", {}), "command_line", "exit_code", "seconds", "out"}
    wanted |= {column for task in SETTINGS for column in named(task).columns}
    assert wanted <= fields
    sections = set(re.findall(r"^## (\w+)$", page, re.M))
    own = {"evaluate", "energy", "info", "doctor", "classify", "benchmark"}
    assert sections == own and own <= set(COMMANDS)
    writes = {path.stem for path in (ROOT / "spikedet/commands").glob("*.py")
              if "write_json(options" in path.read_text()} - {"main", "result"}  # fmt: skip
    assert writes == own - {"classify"}  # whose file grows with every picture
    assert {n for n in COMMANDS if writes_own(module_of(n).Options)} == own | {"detect"}


@pytest.mark.parametrize("page", ["plots.md"])
def test_commands_of_the_page_of_plots(page):
    import shlex

    text = (ROOT / "docs" / page).read_text()
    lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.S)
             for line in block.splitlines()]  # fmt: skip
    assert len(lines) == 4
    for line in lines:
        _, name, *words = shlex.split(line)
        commands.parsed(name, words)
