"""Rejects web requests that name a foreign host."""

import ipaddress
import re
import socket


def is_own_host(header: str, host: str) -> bool:
    """Whether a request's Host header names this machine: an IP address, localhost, --host, or its host name.

    This prevents DNS rebinding: a foreign page whose domain resolves to this address would otherwise be served in the
    visitor's browser.
    """
    name = re.sub(r":\d+$", "", header.strip().lower()).strip("[]")
    try:
        ipaddress.ip_address(name)
        return True
    except ValueError:
        own = socket.gethostname().lower()
        return name in ("localhost", host.lower(), own, f"{own}.local", socket.getfqdn().lower())


class OwnHost:
    """ASGI middleware that answers requests for other host names than this machine's with status 421."""

    def __init__(self, app, host: str):
        self.app, self.host = app, host

    async def __call__(self, scope, receive, send) -> None:
        headers = dict(scope.get("headers") or ())
        if scope["type"] != "http" or is_own_host(headers.get(b"host", b"").decode("latin-1"), self.host):
            await self.app(scope, receive, send)
            return
        kind = [(b"content-type", b"text/plain; charset=utf-8")]
        await send({"type": "http.response.start", "status": 421, "headers": kind})
        await send({"type": "http.response.body", "body": b"this page is not served under this name; see --host\n"})
