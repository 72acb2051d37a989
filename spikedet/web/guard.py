"""Which requests are answered: those of the page itself, under a name of this machine."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spikedet.errors import shorten

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
        if name not in self.hosts and not is_address(name):
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


def is_address(name: str) -> bool:
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


def own_names() -> set[str]:
    """The names of this machine in its network."""
    name = socket.gethostname().lower().rstrip(".")
    short = name.partition(".")[0]
    return {name, short, f"{short}.local"} - {""}
