"""Connections to the server, with uvicorn: the port, HTTPS, and limits for visitors."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from spikedet.errors import UsageError, message_of
from spikedet.web.guard import is_address

LOOPBACK = ("127.0.0.1", "localhost", "::1")
CONNECTIONS = 128  # at once; those above are told to come back
PER_ADDRESS = 16  # of them from one address, so that one visitor cannot take all
WITHOUT_REQUEST = 10.0  # seconds after which a connection that asks nothing is closed


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
    if client is None or client[0] in LOOPBACK or not is_address(client[0]):
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
