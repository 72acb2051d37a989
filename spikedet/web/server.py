"""The web application, with Starlette. The page loads nothing from other servers.

Responses are lines of JSON, which are sent as soon as they are computed. Nothing is stored about
visitors: an upload lies in a temporary folder until its response ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import json
import logging
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from spikedet.errors import SpikedetError, resource_error
from spikedet.web import answers
from spikedet.web.guard import Guard
from spikedet.web.viewer import Viewer

STATIC = Path(__file__).parent / "static"
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
        return JSONResponse(answers.about(viewer))

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
        Route("/look", _answering(answers.look, viewer, turns), methods=["POST"]),
        Route("/film", _answering(answers.film, viewer, turns), methods=["POST"]),
        Route("/spikes", _answering(answers.spikes, viewer, turns), methods=["POST"]),
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
