"""The HTTP server of the page, with Starlette. The page loads nothing from other servers.

Answers are lines of JSON, sent as they are computed. A request is all that is known of a visitor:
uploads lie in a temporary folder until their answer ends, nothing is written down.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import json
import logging
import os
import socket
import tempfile
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spikedet.detection.boxes import Detections
from spikedet.errors import SpikedetError, UsageError, message_of, resource_error
from spikedet.web.viewer import Step, Viewer, encode, spike_maps

STATIC = Path(__file__).parent / "static"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
HEADERS = {
    # what the browser refuses to load, whatever the page says: all that is not from this server
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; connect-src 'self'; form-action 'none'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
_END = object()
log = logging.getLogger(__name__)


class Refusal(Exception):
    """What is answered in place of a result.

    Args:
        status: Of HTTP.
        sentence: For the visitor.
    """

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


class JobQueue:
    """Lets so many steps of all visitors be computed at once, in the order in which they ask.

    Each step of each answer is a job of its own, so that a long video does not hold up a picture.
    Every answer has a context of its own: what counts spikes of one sees none of another.

    Args:
        at_once: Jobs at once.
        waiting: Visitors that may wait besides.
    """

    def __init__(self, at_once: int, waiting: int):
        self.most, self.present = at_once + waiting, 0
        self._pool = ThreadPoolExecutor(at_once, "spikedet-web")

    @contextlib.contextmanager
    def visitor(self) -> Iterator[Callable[..., Any]]:
        """Count a visitor; gives what runs a function for it in its turn.

        Raises:
            Refusal: Too many are there already.
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
        """Wait for the jobs that run, and begin no other."""
        self._pool.shutdown(cancel_futures=True)


def application(viewer: Viewer, sample: Path, hosts: list[str] | None, at_once: int) -> Starlette:
    """The page and its answers.

    Args:
        viewer: Looks at pictures.
        sample: A picture to begin with.
        hosts: Names that the page may be called by in the browser; any if None.
        at_once: Steps that are computed at once.
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
    middleware = [Middleware(Guard)]
    if hosts is not None:
        middleware.append(Middleware(TrustedHostMiddleware, allowed_hosts=hosts))
    return Starlette(
        routes=routes,
        middleware=middleware,
        exception_handlers={Refusal: _refused},
        lifespan=lifespan,
    )


def _answering(work: Callable[..., Iterator[dict]], viewer: Viewer, turns: JobQueue) -> Callable:
    """The endpoint that answers uploads with the lines of `work`, each computed in its turn."""

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
    assert isinstance(error, Refusal)
    return JSONResponse({"error": error.sentence}, error.status)


class Answer(StreamingResponse):
    """Lines of JSON as they are computed.

    Args:
        lines: Of JSON.
        kept: What is left when they are sent, or the visitor has gone.
    """

    def __init__(self, lines: AsyncIterator[bytes], kept: contextlib.ExitStack):
        super().__init__(lines, media_type="application/x-ndjson")
        self._kept = kept

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._kept:
            await super().__call__(scope, receive, send)


class Guard:
    """Adds `HEADERS`, and refuses what other pages ask the browser to send here."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(k.encode(), v.encode()) for k, v in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        site = dict(scope["headers"]).get(b"sec-fetch-site", b"none")
        if site not in (b"same-origin", b"none") and scope["path"] != "/":
            answer = JSONResponse({"error": "another page asked for this"}, 403)
            await answer(scope, receive, with_headers)
            return
        await self.app(scope, receive, with_headers)


async def _receive(request: Request, path: Path, viewer: Viewer) -> None:
    """Write an upload to a file.

    Raises:
        Refusal: It is too large, empty, or comes too slowly.
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
) -> AsyncIterator[bytes]:
    """Lines of JSON as they are computed, each in its turn; an error is the last one."""
    try:
        while (line := await call(next, lines, _END)) is not _END:
            yield _json(line)
    except Exception as error:
        yield _json({"error": _sentence(error, path)})
    finally:
        # where the visitor has left it may still be at work; then it ends with that step
        with anyio.CancelScope(shield=True), contextlib.suppress(Exception):
            await call(lines.close)  # type: ignore[attr-defined]


def _json(line: dict) -> bytes:
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"


def _sentence(error: Exception, path: Path) -> str:
    """What a visitor is told of an error; a bug is written to the log."""
    known = error if isinstance(error, SpikedetError) else resource_error(error)
    if known is None:
        log.error("a request failed", exc_info=error)
        return "this failed by a mistake in the program; its log says more"
    return str(known).replace(str(path), path.name)


def _number(query: Any, name: str, kind: Callable[[str], Any], usual: Any) -> Any:
    """A number of a request.

    Raises:
        UsageError: It is none.
    """
    text = query.get(name)
    try:
        return usual if text is None else kind(text)
    except ValueError:
        raise UsageError(f"{name} is {text[:40]!r}; expected a number") from None


def _requested(viewer: Viewer, query: Any) -> tuple[int, float]:
    """T and the confidence threshold of a request."""
    return _number(query, "T", int, viewer.T), _number(query, "conf", float, 0.25)


def _look(viewer: Viewer, path: Path, query: Any) -> Iterator[dict]:
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
    T, conf = _requested(viewer, query)
    for time, seen in viewer.film(path, T, conf):
        assert seen.detections.picture is not None
        yield {"kind": "frame", "time": time, **_picture(seen.detections.picture, T), **_step(seen)}


def _spikes(viewer: Viewer, path: Path, query: Any) -> Iterator[dict]:
    T, _ = _requested(viewer, query)
    layer = query.get("layer", "")
    maps = spike_maps(viewer.spikes(viewer.read(path), T, layer))
    for each in (*maps["steps"], *maps["channels"]):
        each["png"] = "data:image/png;base64," + b64encode(each["png"]).decode()
    yield {"layer": layer, "T": T, **maps}


def _picture(picture: Any, T: int) -> dict:
    """A picture as the page shows it, and its size, in whose pixels boxes are."""
    height, width = picture.shape[:2]
    data = "data:image/jpeg;base64," + b64encode(encode(picture)).decode()
    return {"kind": "picture", "T": T, "width": width, "height": height, "picture": data}


def _objects(detections: Detections) -> list[dict]:
    labels = detections.labels.tolist()
    return [
        {**each, "label": label}
        for each, label in zip(detections.to_dict()["objects"], labels, strict=True)
    ]


def _step(seen: Step) -> dict:
    return {
        "t": seen.detections.T,
        "objects": _objects(seen.detections),
        "rate": seen.detections.spike_rate,
        "rates": list(seen.rates.values()),
        "seconds": seen.seconds,
        "energy": seen.energy,
    }


def _about(viewer: Viewer) -> dict:
    """What the page says of the networks, and what it may ask for."""
    detector, reference = viewer.detector, viewer.reference
    return {
        "weights": detector.weights.name,
        "engine": detector.why_engine,
        "made_for": detector.T,
        "T": viewer.T,
        "imgsz": detector.imgsz,
        "names": detector.names,
        "layers": viewer.layers,
        "float": reference.weights.name if reference is not None else None,
        "float_energy": viewer.float_energy,
        "limits": vars(viewer.limits),
    }


def open_port(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        UsageError: The port is taken, or the address is none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        own = isinstance(error, OSError) and not isinstance(error, socket.gaierror) and error.errno
        reason = os.strerror(own) if own else getattr(error, "strerror", None) or error
        raise UsageError(f"port {port} of {host} cannot be opened ({reason})") from None


def http_server(
    app: Starlette, certificate: Path | None = None, key: Path | None = None
) -> uvicorn.Server:
    """What serves a page.

    Args:
        app: From `application`.
        certificate: PEM file; with it the page is served by HTTPS.
        key: PEM file of its key, where that is not in the same file.

    Raises:
        UsageError: They are no certificate and its key.
    """
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=128,
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
