"""The HTTP server of the page, with Starlette. The page loads nothing from other servers.

Responses are lines of JSON, which are sent as soon as they are computed. Nothing is stored about
visitors: an upload lies in a temporary folder until its response ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import ipaddress
import json
import logging
import os
import socket
import tempfile
from base64 import b64encode
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from spikedet.detection.boxes import Detections
from spikedet.errors import SpikedetError, UsageError, message_of, resource_error, shorten
from spikedet.web.viewer import Step, Viewer, encode, spike_maps

STATIC = Path(__file__).parent / "static"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
HEADERS = {
    # the browser loads nothing from other servers
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; connect-src 'self'; form-action 'none'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
    "referrer-policy": "same-origin",  # with no-referrer some browsers send no Origin either
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
CONNECTIONS = 128  # at once; those above are told to come back
PER_ADDRESS = 16  # of them from one address, so that one visitor cannot take all
WITHOUT_REQUEST = 10.0  # seconds after which a connection that asks nothing is closed
_END = object()
log = logging.getLogger(__name__)


class Refusal(Exception):
    """An error response.

    Args:
        status: HTTP status code.
        sentence: Message for the visitor.
    """

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


class JobQueue:
    """Runs the jobs of all visitors in the order in which they arrive, a limited number at once.

    Each time step of a response is a job of its own, so that a long video does not block a picture.
    Each response has its own context, so that its spike counts are separate from those of others.

    Args:
        at_once: Number of jobs that run at once.
        waiting: Largest number of visitors that may wait.
    """

    def __init__(self, at_once: int, waiting: int):
        self.most, self.present = at_once + waiting, 0
        self._pool = ThreadPoolExecutor(at_once, "spikedet-web")

    @contextlib.contextmanager
    def visitor(self) -> Iterator[Callable[..., Any]]:
        """Register a visitor inside the `with` block.

        Yields:
            A coroutine function that runs a function as a job of this visitor.

        Raises:
            Refusal: Too many visitors are waiting.
        """
        if self.present >= self.most:
            raise Refusal(503, f"{self.present} visitors are waiting already; try again soon")
        context, loop = contextvars.copy_context(), asyncio.get_running_loop()

        async def call(function: Callable, *args: Any) -> Any:
            return await loop.run_in_executor(self._pool, context.run, function, *args)

        self.present += 1
        try:
            yield call
        finally:
            self.present -= 1

    def close(self) -> None:
        """Wait for the running jobs. Cancel the others."""
        self._pool.shutdown(cancel_futures=True)


def own_names() -> set[str]:
    """The names of this machine in its network."""
    name = socket.gethostname().lower().rstrip(".")
    short = name.partition(".")[0]
    return {name, short, f"{short}.local"} - {""}


def application(viewer: Viewer, sample: Path, hosts: Collection[str], at_once: int) -> Starlette:
    """Make the web application.

    Args:
        viewer: Computes the content of the page.
        sample: File of an example picture.
        hosts: Host names under which the page may be opened. It may always be opened by the IP
            address of the machine.
        at_once: Number of time steps that are computed at once.
    """
    turns = JobQueue(at_once, viewer.limits.waiting)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        turns.close()

    async def about(_: Request) -> Response:
        return JSONResponse(_about(viewer))

    async def page(_: Request) -> Response:
        return FileResponse(STATIC / "index.html")

    async def example(_: Request) -> Response:
        return FileResponse(sample)

    async def icon(_: Request) -> Response:
        return Response(status_code=204)

    routes = [
        Route("/", page),
        Route("/about", about),
        Route("/sample", example),
        Route("/favicon.ico", icon),
        Route("/look", _answering(_look, viewer, turns), methods=["POST"]),
        Route("/film", _answering(_film, viewer, turns), methods=["POST"]),
        Route("/spikes", _answering(_spikes, viewer, turns), methods=["POST"]),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(Guard, hosts=frozenset(name.lower() for name in hosts))],
        exception_handlers={Refusal: _refused},
        lifespan=lifespan,
    )


def _answering(work: Callable[..., Iterator[dict]], viewer: Viewer, turns: JobQueue) -> Callable:
    """Make the endpoint that answers an upload with the lines of `work`. Each line is one job."""

    @functools.wraps(work)
    async def endpoint(request: Request) -> Response:
        stack = contextlib.ExitStack()
        with stack:
            call = stack.enter_context(turns.visitor())
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="spikedet-web-"))
            path = Path(folder) / "this file"
            await _receive(request, path, viewer)
            lines = work(viewer, path, request.query_params)
            kept = stack.pop_all()
        return Answer(_lines(lines, call, path), kept)

    return endpoint


def _refused(_: Request, error: Exception) -> Response:
    """Make the response for a `Refusal`."""
    assert isinstance(error, Refusal)
    return JSONResponse({"error": error.sentence}, error.status)


class Answer(StreamingResponse):
    """A response with lines of JSON, sent as soon as they are computed.

    Args:
        lines: Lines of JSON.
        kept: Resources to close after the response, or after the visitor has disconnected.
    """

    def __init__(self, lines: AsyncGenerator[bytes, None], kept: contextlib.ExitStack):
        super().__init__(lines, media_type="application/x-ndjson")
        self._lines, self._kept = lines, kept

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._kept:
            try:
                await super().__call__(scope, receive, send)
            finally:
                with anyio.CancelScope(shield=True):  # the visitor may have gone between two lines
                    await self._lines.aclose()


class Guard:
    """Middleware that adds `HEADERS`, and refuses other host names and requests of other pages.

    A page elsewhere could let its own name lead to this machine (DNS rebinding). Then the browser
    would let it read the answers.

    Args:
        app: The application behind it.
        hosts: Host names that are allowed, in lower case, besides IP addresses.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str]):
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(k.encode(), v.encode()) for k, v in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        app, headers = self.app, Headers(scope=scope)
        name = host_of(headers.get("host", ""))
        if name not in self.hosts and not _is_address(name):
            sentence = f"the page cannot be opened as {shorten(name)!r}; see --names"
            app = JSONResponse({"error": sentence}, 400)
        elif scope["path"] != "/" and _of_another_page(headers):
            app = JSONResponse({"error": "another page asked for this"}, 403)
        await app(scope, receive, with_headers)


def host_of(place: str) -> str:
    """The host name in `name:port`, in lower case. Empty if there is none."""
    try:
        return (urlsplit(f"//{place}").hostname or "").rstrip(".")
    except ValueError:  # of brackets that hold no address
        return ""


def _is_address(name: str) -> bool:
    """Whether a host name is an IP address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _of_another_page(headers: Headers) -> bool:
    """Whether another web page made this request.

    Browsers send Sec-Fetch-Site only with HTTPS and to this machine, but Origin with every POST.
    """
    site, origin = headers.get("sec-fetch-site", "none"), headers.get("origin")
    if site not in ("same-origin", "none"):
        return True
    if origin is None or site == "same-origin":
        return False
    return origin.lower().partition("://")[2] != headers.get("host", "").lower()


async def _receive(request: Request, path: Path, viewer: Viewer) -> None:
    """Write an upload to a file.

    Raises:
        Refusal: The upload is too large, is empty, or takes too long.
    """
    limits = viewer.limits
    most = int(limits.megabytes * 1e6)
    told = request.headers.get("content-length", "")
    large = Refusal(413, f"this file is too large; expected at most {limits.megabytes:g} MB")
    if told.isdecimal() and int(told) > most:
        raise large
    size = 0
    try:
        with path.open("wb") as file, anyio.fail_after(limits.seconds):
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise large
                file.write(part)
    except TimeoutError:
        took = f"longer than {limits.seconds:g} seconds"
        raise Refusal(408, f"this file took {took} to arrive; choose a smaller one") from None
    except ClientDisconnect:
        raise Refusal(400, "the file broke off") from None
    if not size:
        raise Refusal(400, "this file is empty; choose a picture or a video")


async def _lines(
    lines: Iterator[dict], call: Callable[..., Any], path: Path
) -> AsyncGenerator[bytes, None]:
    """Yield lines of JSON as they are computed, each as one job. An error becomes the last line."""
    job: asyncio.Future[Any] | None = None
    try:
        while True:
            job = asyncio.ensure_future(call(next, lines, _END))
            # a job that runs cannot be stopped, so it is not cancelled if the visitor leaves
            if (line := await asyncio.shield(job)) is _END:
                break
            yield _json(line)
    except Exception as error:
        yield _json({"error": _sentence(error, path)})
    finally:
        with anyio.CancelScope(shield=True), contextlib.suppress(Exception):
            if job is not None:
                await asyncio.wait([job])
            await call(lines.close)  # type: ignore[attr-defined]


def _json(line: dict) -> bytes:
    """Convert a dict to one line of JSON."""
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"


def _sentence(error: Exception, path: Path) -> str:
    """The error message for a visitor. Unexpected errors are written to the log."""
    known = error if isinstance(error, SpikedetError) else resource_error(error)
    if known is None:
        log.error("a request failed", exc_info=error)
        return "this failed by a mistake in the program; its log says more"
    return str(known).replace(str(path), path.name)


def _number(query: Any, name: str, kind: Callable[[str], Any], usual: Any) -> Any:
    """Read a number from the query of a request.

    Raises:
        UsageError: The text is not a number.
    """
    text = query.get(name)
    try:
        return usual if text is None else kind(text)
    except ValueError:
        raise UsageError(f"{name} is {text[:40]!r}; expected a number") from None


def _requested(viewer: Viewer, query: Any) -> tuple[int, float]:
    """Read T and the confidence threshold from the query of a request."""
    return _number(query, "T", int, viewer.T), _number(query, "conf", float, 0.25)


def _look(viewer: Viewer, path: Path, query: Any) -> Iterator[dict]:
    """Yield the response to `/look`: the picture, then the detections after each step."""
    T, conf = _requested(viewer, query)
    picture = viewer.read(path)
    looks = viewer.look(picture, T, conf, query.get("float") == "1")
    yield _picture(picture, T)
    for seen in looks:
        if isinstance(seen, Step):
            yield {"kind": "step", **_step(seen)}
        else:
            yield {"kind": "float", "objects": _objects(seen.detections), "seconds": seen.seconds}


def _film(viewer: Viewer, path: Path, query: Any) -> Iterator[dict]:
    """Yield the response to `/film`: the detections in each frame of a video."""
    T, conf = _requested(viewer, query)
    for time, seen in viewer.film(path, T, conf):
        assert seen.detections.picture is not None
        yield {"kind": "frame", "time": time, **_picture(seen.detections.picture, T), **_step(seen)}


def _spikes(viewer: Viewer, path: Path, query: Any) -> Iterator[dict]:
    """Yield the response to `/spikes`: maps of the spikes of one layer."""
    T, _ = _requested(viewer, query)
    layer = query.get("layer", "")
    maps = spike_maps(viewer.spikes(viewer.read(path), T, layer))
    for each in (*maps["steps"], *maps["channels"]):
        each["png"] = "data:image/png;base64," + b64encode(each["png"]).decode()
    yield {"layer": layer, "T": T, **maps}


def _picture(picture: Any, T: int) -> dict:
    """Encode a picture for the page. Boxes are in pixels of `width` x `height`."""
    height, width = picture.shape[:2]
    data = "data:image/jpeg;base64," + b64encode(encode(picture)).decode()
    return {"kind": "picture", "T": T, "width": width, "height": height, "picture": data}


def _objects(detections: Detections) -> list[dict]:
    """Convert detections to the objects of the JSON response."""
    labels = detections.labels.tolist()
    return [
        {**each, "label": label}
        for each, label in zip(detections.to_dict()["objects"], labels, strict=True)
    ]


def _step(seen: Step) -> dict:
    """Convert a step to its entry in the JSON response."""
    return {
        "t": seen.detections.T,
        "objects": _objects(seen.detections),
        "rate": seen.detections.spike_rate,
        "rates": list(seen.rates.values()),
        "seconds": seen.seconds,
        "energy": seen.energy,
    }


def _about(viewer: Viewer) -> dict:
    """The properties of the networks and the limits, for the page."""
    detector, reference = viewer.detector, viewer.reference
    return {
        "weights": detector.weights.name,
        "engine": detector.why_engine,
        "made_for": detector.runner.T,
        "can_run_longer": detector.can_run_longer,
        "T": viewer.T,
        "imgsz": detector.imgsz,
        "names": detector.names,
        "layers": viewer.layers,
        "float": reference.weights.name if reference is not None else None,
        "float_energy": viewer.float_energy,
        "limits": vars(viewer.limits),
    }


def open_port(host: str, port: int) -> socket.socket:
    """Open a socket that listens on a port.

    Raises:
        UsageError: The port is in use, or this machine does not have the address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        own = isinstance(error, OSError) and not isinstance(error, socket.gaierror) and error.errno
        reason = os.strerror(own) if own else getattr(error, "strerror", None) or error
        raise UsageError(f"port {port} of {host} cannot be opened ({reason})") from None


def visitor_of(client: tuple[str, int] | None) -> str:
    """Whom a connection is counted for: its IP address, or the first 64 bits of one of IPv6.

    It is empty for this machine itself. A reverse proxy here has the connections of all visitors.
    """
    if client is None or client[0] in LOOPBACK or not _is_address(client[0]):
        return ""
    address = ipaddress.ip_address(client[0])
    if address.version == 4:
        return str(address)
    return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))


class Impatient(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """Uvicorn's protocol, but connections without a request are closed after `WITHOUT_REQUEST`.

    Uvicorn waits without limit for the first request, and for the rest of its header. Connections
    above `PER_ADDRESS` from one address are closed at once.
    """

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        own = visitor_of(self.client)
        if own and sum(visitor_of(each.client) == own for each in self.connections) > PER_ADDRESS:
            transport.close()
        self._before = self._state()
        self._timer = self.loop.call_later(WITHOUT_REQUEST, self._look)

    def connection_lost(self, error: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(error)

    def _state(self) -> tuple[bool, Any]:
        """Whether no request is being answered, and the latest request."""
        return self.cycle is None or self.cycle.response_complete, self.cycle

    def _look(self) -> None:
        """Close the connection if nothing was asked since the last look."""
        state = self._state()
        if state[0] and state == self._before:
            self.transport.close()
        else:
            self._before = state
            self._timer = self.loop.call_later(WITHOUT_REQUEST, self._look)


def http_server(
    app: Starlette, certificate: Path | None = None, key: Path | None = None
) -> uvicorn.Server:
    """Make the HTTP server.

    Args:
        app: Application from `application`.
        certificate: PEM file with the certificate. With it, the page is served by HTTPS.
        key: PEM file with the private key. None: the key is in the file of the certificate.

    Raises:
        UsageError: The files have no certificate with its key.
    """
    config = uvicorn.Config(
        app,
        http=Impatient,
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=2,
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )
    try:
        config.load()
    except OSError as error:
        raise UsageError(
            f"{certificate}: no certificate with its key in PEM ({message_of(error)})"
        ) from None
    return uvicorn.Server(config)


def serve(server: uvicorn.Server, listening: socket.socket) -> None:
    """Serve on a socket from `open_port` until Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listening])
