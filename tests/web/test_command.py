"""The options of `spikedet web`, and what it refuses before it serves."""

import re
import shlex
import sys
from dataclasses import replace

import pytest

import spikedet
from spikedet import checkpoint
from spikedet.commands import web
from spikedet.commands.main import parsed
from spikedet.errors import WeightsError
from spikedet.released import released
from support.commands import command
from support.places import ROOT

pytest.importorskip("starlette", reason="the extra `web` is not installed")
pytest.importorskip("uvicorn", reason="the extra `web` is not installed")

T = 4
needs_weights = pytest.mark.skipif(
    released("snn", T) is None or released("float") is None, reason="no weights are released yet"
)


def test_usually_only_this_machine_is_served():
    options = parsed("web", [])
    assert (options.host, options.port) == ("127.0.0.1", 7860)


@needs_weights
@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--weights", "FLOAT"], 2, "no time steps to show; expected spiking weights"),
        (["--weights", "QC"], 2, "qc weights have no time steps to show; expected spiking weights"),
        (["--weights", "CLASSIFIER"], 2, "the page cannot show weights for classification"),
        (["--weights", "gone.safetensors"], 4, "gone.safetensors"),
        (["--engine", "nothing"], 2, "no engine 'nothing'"),
        (["--T", 9, "--most-steps", 8], 2, "T is 9; expected at most --most-steps, 8"),
        (["--key", "KEY"], 2, "--key: needs --certificate"),
        (["--certificate", "gone.pem"], 2, "gone.pem: no such file"),
        (["--certificate", "KEY"], 2, "key.pem: no certificate with its key in PEM ("),
        (["--host", "no.such.host.invalid"], 2, "of no.such.host.invalid cannot be opened"),
    ],
)
def test_what_is_refused(words, code, told, monkeypatch, capsys, tmp_path):
    (tmp_path / "key.pem").write_text("")
    from spikedet.web import connections

    def opened(*_):
        pytest.fail("a port was opened for what is refused")

    if "--weights" in words:
        monkeypatch.setattr(connections, "open_port", opened)
    places = {"FLOAT": released("float"), "QC": released("qc", T)}
    places |= {"CLASSIFIER": released("snn", 8, task="classification")}
    places |= {"KEY": tmp_path / "key.pem"}
    words = [places.get(word, word) for word in words]
    assert command(monkeypatch, "web", "--port", 0, *words) == code
    shown = capsys.readouterr()
    assert shown.out == "" and told in shown.err and shown.err.count("\n") == 1


def test_without_the_extra_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "spikedet.web.connections", raising=False)
    monkeypatch.delattr("spikedet.web.connections", raising=False)
    assert command(monkeypatch, "web") == 2
    assert "uvicorn is not installed; pip install spikedet[web]" in capsys.readouterr().err


def test_the_commands_of_the_page_on_it_can_be_given():
    text = (ROOT / "docs/web.md").read_text()
    commands = re.findall(r"(?:^|`)spikedet web([^`\n]*)", text, re.M)
    assert len(commands) >= 6
    for words in commands:
        parsed("web", shlex.split(words))
    for name in re.findall(r"^\| `--([a-z-]+)` .* (\d+) \|$", text, re.M):
        assert getattr(parsed("web", []), name[0].replace("-", "_")) == float(name[1]), name
    assert text.count("\n| `--") == 7


@needs_weights
def test_it_serves_what_the_options_say(monkeypatch, capsys):
    from spikedet.web import connections, guard, server

    served = []
    monkeypatch.setattr(connections, "serve", lambda *given: served.append(given))
    made, application = [], server.application
    monkeypatch.setattr(
        server, "application", lambda *given: made.append(given) or application(*given)
    )
    monkeypatch.setattr(guard.socket, "gethostname", lambda: "PC7.school.example")
    words = ["--T", T, "--port", 0, "--host", "0.0.0.0", "--frames", 7, "--names", "page.example"]
    assert command(monkeypatch, "web", *words) == 0
    ((_, listening),) = served
    ((_, _, hosts, _),) = made
    names = {"page.example", "pc7", "pc7.local", "pc7.school.example"}
    assert hosts == names | {"0.0.0.0", *connections.LOOPBACK}
    shown = capsys.readouterr()
    assert f"http://0.0.0.0:{listening.getsockname()[1]}/" in shown.out
    assert "it has no password" in shown.err
    listening.close()


@needs_weights
def test_the_float_network_beside(tmp_path):
    detector = spikedet.load(released("snn", T))
    assert web.reference_of(detector, parsed("web", [])).weights == released("float")
    other = tmp_path / "other.safetensors"
    weights = checkpoint.load(released("snn", T))
    checkpoint.save(replace(weights, names=tuple(name.upper() for name in weights.names)), other)
    detector = spikedet.load(other)
    assert web.reference_of(detector, parsed("web", [])) is None
    with pytest.raises(WeightsError, match="its list of classes differs"):
        web.reference_of(detector, parsed("web", ["--float", released("float")]))
