"""What is asked of a request before it is answered: its size, and that it is meant for this service."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["BodyLimit", "HostCheck"]


async def refuse(send: Send, status: int, reason: str) -> None:
    """Answer without reading the request's body."""
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"detail": reason}).encode()})


class HostCheck:
    """ASGI middleware that answers only to the service's own names, and to no page of another site.

    A site may let its own name point to this machine, so that a browser here sends it what the service answers; such a
    request names that site as its host. IP addresses cannot be turned that way, so all of them are taken, which
    Starlette's TrustedHostMiddleware does not do.

    Args:
        app: the wrapped application.
        hosts: names of the service beside "localhost" and IP addresses.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str] = ()) -> None:
        self.app, self.hosts = app, {"localhost", *(host.lower() for host in hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 400 (another host) or 403 (from another site)."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {key: value.decode("latin-1") for key, value in scope["headers"]}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        if not self._known(host):
            reason = f"this service is not called {host!r}; start it with --allowed_host NAME to have it answer there"
            await refuse(send, 400, reason)
        elif origin is not None and urlsplit(origin).netloc != host:
            await refuse(send, 403, f"requests of pages of another site ({origin!r}) are not answered")
        else:
            await self.app(scope, receive, send)

    def _known(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:  # brackets without an address
            return False
        return name in self.hosts or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class BodyLimit:
    """ASGI middleware that answers 413 to a body above a number of bytes, announced or not, without reading on.

    Args:
        app: the wrapped application.
        limit_bytes: of a request's body.
    """

    def __init__(self, app: ASGIApp, limit_bytes: int) -> None:
        self.app, self.limit_bytes = app, limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, counting."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"")
        if announced.isdigit() and int(announced) > self.limit_bytes:
            await self._refuse(send)
            return
        received, refused, started = 0, False, False

        async def counted() -> Message:
            nonlocal received, refused
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.limit_bytes:
                refused = True
                return {"type": "http.disconnect"}
            return message

        async def watched(message: Message) -> None:
            nonlocal started
            if refused and not started:
                return
            started = True
            await send(message)

        try:
            await self.app(scope, counted, watched)
        except Exception:
            if not refused:
                raise
        if refused and not started:
            await self._refuse(send)

    async def _refuse(self, send: Send) -> None:
        await refuse(send, 413, f"the request is larger than {self.limit_bytes >> 20} MiB")
