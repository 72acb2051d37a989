"""The answers of the page over HTTP, and several visitors at once."""

import http.client
import json
import re
import socket
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

import cv2
import numpy as np
import pytest

import spikedet
from spikedet.detection.ultra import SAMPLE
from spikedet.errors import UsageError
from spikedet.pictures import read_picture
from spikedet.released import released
from spikedet.web.viewer import Limits, Viewer
from support.media import write_video

pytest.importorskip("uvicorn", reason="the extra `web` is not installed")
server = pytest.importorskip("spikedet.web.server", reason="the extra `web` is not installed")
connections = pytest.importorskip("spikedet.web.connections")

T = 4
pytestmark = [
    pytest.mark.skipif(released("snn", T) is None, reason="no weights are released yet"),
    pytest.mark.filterwarnings("ignore:.* was calibrated for T="),
]
LIMITS = Limits(T=8, frames=2, megabytes=2, seconds=30, waiting=5)


class Served:
    """A server in a thread."""

    def __init__(self, viewer, at_once=3, hosts=connections.LOOPBACK):
        self.viewer = viewer
        app = server.application(viewer, SAMPLE, list(hosts), at_once)
        listening = connections.open_port("127.0.0.1", 0)
        self.port = listening.getsockname()[1]
        self._server = connections.http_server(app)
        self._thread = threading.Thread(target=self._server.run, args=([listening],))
        self._thread.start()

    def close(self):
        self._server.should_exit = True
        self._thread.join()

    def ask(self, method, path, body=None, headers=None):
        """Status, headers and body of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer.status, dict(answer.getheaders()), data

    def lines(self, path, body):
        status, _, data = self.ask("POST", path, body)
        return status, [json.loads(line) for line in data.splitlines()]


@pytest.fixture(scope="module")
def served():
    viewer = Viewer(spikedet.load(released("snn", T)), None, read_picture(SAMPLE), LIMITS)
    running = Served(viewer)
    yield running
    running.close()


def jpeg(seed):
    """A picture of its own: a part of the street, more or less bright."""
    street = read_picture(SAMPLE)
    part = street[40 * seed : 900, 30 * seed :]
    picture = np.clip(part * (0.6 + 0.1 * seed), 0, 255).astype(np.uint8)
    return cv2.imencode(".jpg", picture)[1].tobytes()


def without_times(lines):
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def test_the_page_and_its_headers(served):
    status, headers, data = served.ask("GET", "/")
    assert status == 200 and b"What a spiking network sees" in data
    for path in ("/", "/static/page.js", "/static/page.css", "/about", "/sample"):
        status, headers, data = served.ask("GET", path)
        assert status == 200 and headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert path == "/sample" or not re.search(rb"https?:|[\"'`(]//", data)  # no address
    about = json.loads(served.ask("GET", "/about")[2])
    assert about["T"] == T and about["float"] is None and about["limits"]["frames"] == 2
    assert about["layers"] == served.viewer.layers
    assert served.ask("GET", "/static/../server.py")[0] == 404
    assert served.ask("GET", "/look")[0] == 405


def test_other_pages_and_names_are_refused(served):
    other = {"Sec-Fetch-Site": "cross-site"}
    assert served.ask("GET", "/", headers=other)[0] == 200  # a link to it
    assert served.ask("POST", "/look", jpeg(0), other)[0] == 403
    assert served.ask("POST", "/look", jpeg(0), {"Sec-Fetch-Site": "same-origin"})[0] == 200
    assert served.ask("GET", "/about", headers={"Host": "example.org"})[0] == 400
    for name in ("localhost:1", "LOCALHOST", "127.0.0.1", "192.168.1.5:7860", "[::1]:80"):
        assert served.ask("GET", "/about", headers={"Host": name})[0] == 200
    for name in ("", "[x]", "example.org:80", "127.0.0.1.example.org", "localhost.example.org"):
        status, _, data = served.ask("GET", "/about", headers={"Host": name})
        assert status == 400 and b"cannot be opened as" in data


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://192.168.1.5:7860", 200),
        ("https://192.168.1.5:7860", 200),  # through a proxy
        ("http://192.168.1.5:80", 403),
        ("http://evil.example", 403),
        ("null", 403),
    ],
)
def test_other_pages_are_refused_where_browsers_do_not_name_the_site(served, origin, status):
    """They send Sec-Fetch-Site only to this machine and with HTTPS."""
    headers = {"Host": "192.168.1.5:7860", "Origin": origin, "Content-Type": "text/plain"}
    assert served.ask("POST", "/look?T=1", jpeg(0), headers)[0] == status
    headers["Sec-Fetch-Site"] = "same-origin"  # of a page behind a proxy that changes the name
    assert served.ask("POST", "/look?T=1", jpeg(0), headers)[0] == 200


def test_a_look(served):
    picture = read_picture(SAMPLE)
    status, lines = served.lines(f"/look?T={T}&conf=0.3", SAMPLE.read_bytes())
    assert status == 200 and [line["kind"] for line in lines] == ["picture"] + ["step"] * T
    assert (lines[0]["height"], lines[0]["width"]) == picture.shape[:2]
    assert lines[0]["picture"].startswith("data:image/jpeg;base64,")
    for line, detections in zip(
        lines[1:], served.viewer.detector.steps(picture, T, conf=0.3), strict=True
    ):
        assert line["t"] == detections.T and line["rate"] == detections.spike_rate
        objects = [{k: v for k, v in each.items() if k != "label"} for each in line["objects"]]
        assert objects == detections.to_dict()["objects"]
    assert len(lines[-1]["objects"]) > 1


def test_several_visitors_get_the_answers_of_lone_ones(served, tmp_path):
    film = write_video(tmp_path / "film.mp4", [0, 0.1], 0.2, size=(96, 128)).read_bytes()
    asked = [(f"/look?T={2 + n % 3}&conf=0.1", jpeg(n)) for n in range(4)]
    asked += [(f"/spikes?T=2&layer={served.viewer.layers[1]}", jpeg(1)), ("/film?T=3", film)]
    alone = [served.lines(*each) for each in asked]
    assert all(status == 200 and "error" not in lines[-1] for status, lines in alone)
    counts = [len(lines[-1].get("objects", ())) for _, lines in alone[:4]]
    assert len(set(map(str, (lines[-1].get("rates") for _, lines in alone[:4])))) == 4, counts
    order = [*range(6)] * 2
    with ThreadPoolExecutor(6) as visitors:
        together = list(visitors.map(lambda n: served.lines(*asked[n]), order))
    for n, (status, lines) in zip(order, together, strict=True):
        assert status == 200
        assert without_times(lines) == without_times(alone[n][1])


@pytest.mark.parametrize(
    ("path", "body", "status", "sentence"),
    [
        ("/look", b"words", 200, "this file: is not a picture that can be read; expected JPEG"),
        ("/look", b"", 400, "this file is empty; choose a picture or a video"),
        ("/look", bytes(2_000_001), 413, "this file is too large; expected at most 2 MB"),
        ("/look?T=9", None, 200, "T is 9; expected 1 to 8 time steps here"),
        ("/look?T=x", None, 200, "T is 'x'; expected a number"),
        ("/look?conf=nan", None, 200, "conf is nan; expected a number between 0 and 1"),
        ("/look?float=1", None, 200, "there is no float network"),
        ("/film", b"words", 200, "this file: is not a video that can be read"),
        ("/spikes?layer=x", None, 200, "no layer 'x'; expected one of model.0.act"),
    ],
)
def test_what_is_refused_in_a_sentence(served, path, body, status, sentence):
    got, lines = served.lines(path, jpeg(0) if body is None else body)
    assert got == status and lines[-1]["error"].startswith(sentence)
    assert "\n" not in lines[-1]["error"] and "spikedet-web-" not in lines[-1]["error"]


def test_a_large_upload_that_does_not_say_so(served):
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    connection.request("POST", "/look", (bytes(500_000) for _ in range(5)), encode_chunked=True,
                       headers={"Transfer-Encoding": "chunked"})  # fmt: skip
    assert connection.getresponse().status == 413
    connection.close()


def test_a_mistake_in_the_program_is_not_shown(served, monkeypatch, caplog):
    def broken(*_):
        raise KeyError("secret")

    monkeypatch.setattr(served.viewer, "read", broken)
    _, lines = served.lines("/look", jpeg(0))
    assert lines == [{"error": "this failed by a mistake in the program; its log says more"}]
    assert "secret" in caplog.text


class Slow:
    """A viewer whose looks last until they are let go."""

    limits = Limits(waiting=1, seconds=0.5)
    T = 1

    def __init__(self):
        self.go, self.begun, self.folders = threading.Event(), [], []

    def read(self, path):
        self.begun.append(path)
        assert self.go.wait(60)
        raise UsageError("let go")


def test_those_who_wait_are_limited_and_uploads_are_deleted():
    slow = Slow()
    served = Served(slow, at_once=1)
    try:
        with ThreadPoolExecutor(3) as visitors:
            asked = {visitors.submit(served.lines, "/look", b"picture") for _ in range(3)}
            (refused,), others = wait(asked, 50, FIRST_COMPLETED)
            status, lines = refused.result()
            assert status == 503
            assert lines == [{"error": "2 visitors are waiting already; try again soon"}]
            assert len(slow.begun) == 1 and slow.begun[0].is_file()
            slow.go.set()
            assert [each.result() for each in others] == [(200, [{"error": "let go"}])] * 2
        assert served.lines("/look", b"picture")[0] == 200  # there is room again
        deadline = time.monotonic() + 30
        while any(path.parent.exists() for path in slow.begun):
            assert time.monotonic() < deadline
    finally:
        slow.go.set()
        served.close()


def test_an_upload_that_does_not_arrive():
    served = Served(Slow(), at_once=1)
    try:
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
        connection.putrequest("POST", "/look")
        connection.putheader("Content-Length", "100")
        connection.endheaders(b"a part")
        answer = connection.getresponse()
        assert answer.status == 408
        assert "took longer than 0.5 seconds" in json.loads(answer.read())["error"]
        connection.close()
    finally:
        served.close()


def test_a_visitor_who_leaves_makes_room(served):
    for _ in range(2 * (3 + LIMITS.waiting)):
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
        connection.request("POST", f"/look?T={T}", jpeg(0))
        connection.close()
    deadline = time.monotonic() + 60
    while served.lines(f"/look?T={T}", jpeg(0))[0] != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_look_that_is_left_is_closed_behind_its_running_step(monkeypatch):
    """Its resources are given back as soon as its step has ended, and not when memory is tidied."""
    ended, step, go = [], threading.Event(), threading.Event()

    def look(*_):
        try:
            yield {"kind": "picture"}
            step.set()
            assert go.wait(60)
            yield {"kind": "step"}
        finally:
            ended.append(threading.current_thread().name)

    monkeypatch.setattr(server.answers, "look", look)
    served = Served(Slow(), at_once=2)
    try:
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
        connection.request("POST", "/look", b"picture")
        answer = connection.getresponse()
        assert json.loads(answer.readline()) == {"kind": "picture"} and step.wait(60)
        answer.close()
        connection.close()
        time.sleep(0.5)
        assert not ended
        go.set()
        deadline = time.monotonic() + 30
        while not ended:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert ended[0].startswith("spikedet-web")
    finally:
        go.set()
        served.close()


def test_connections_that_ask_nothing_are_closed(monkeypatch):
    monkeypatch.setattr(connections, "CONNECTIONS", 4)
    monkeypatch.setattr(connections, "WITHOUT_REQUEST", 0.5)
    served = Served(Slow(), at_once=1)
    slow = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    try:
        slow.putrequest("POST", "/look")  # whose answer takes longer
        slow.putheader("Content-Length", "1")
        slow.endheaders(b"x")
        deadline = time.monotonic() + 30
        while not served.viewer.begun:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        idle = [socket.create_connection(("127.0.0.1", served.port), 30) for _ in range(4)]
        idle[0].sendall(b"GET / HTT")  # or not all of it
        while served.ask("GET", "/favicon.ico")[0] != 204:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert [each.recv(1) for each in idle] == [b""] * 4
        time.sleep(1.5)
        served.viewer.go.set()
        assert json.loads(slow.getresponse().read()) == {"error": "let go"}
        for each in idle:
            each.close()
    finally:
        served.viewer.go.set()
        slow.close()
        served.close()


@pytest.mark.parametrize(
    ("address", "visitor"),
    [
        (("10.0.0.7", 1), "10.0.0.7"),
        (("2001:db8::1:2:3:4", 1), "2001:db8::/64"),
        (("fe80::1%eth0", 1), "fe80::/64"),
        (("127.0.0.1", 1), ""),
        (("::1", 1), ""),
        (None, ""),
    ],
)
def test_whom_a_connection_is_counted_for(address, visitor):
    assert connections.visitor_of(address) == visitor


def test_one_address_cannot_take_all_connections(monkeypatch):
    monkeypatch.setattr(connections, "CONNECTIONS", 8)
    monkeypatch.setattr(connections, "PER_ADDRESS", 4)
    monkeypatch.setattr(connections, "LOOPBACK", ("127.0.0.2",))  # of this machine, too
    served = Served(Slow(), at_once=1)
    try:
        many = [socket.create_connection(("127.0.0.1", served.port), 30) for _ in range(12)]
        assert [each.recv(1) for each in many[4:]] == [b""] * 8
        source = ("127.0.0.2", 0)
        other = http.client.HTTPConnection("127.0.0.1", served.port, 60, source_address=source)
        other.request("GET", "/favicon.ico")
        assert other.getresponse().status == 204
        other.close()
        many[0].sendall(b"GET /favicon.ico HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert many[0].recv(12) == b"HTTP/1.1 204"
        for each in many:
            each.close()
    finally:
        served.close()


def test_ports():
    listening = connections.open_port("127.0.0.1", 0)
    port = listening.getsockname()[1]
    with pytest.raises(UsageError, match=f"port {port} of 127.0.0.1 cannot be opened"):
        connections.open_port("127.0.0.1", port)
    with pytest.raises(UsageError, match="of no.such.host.invalid cannot be opened"):
        connections.open_port("no.such.host.invalid", 0)
    listening.close()
