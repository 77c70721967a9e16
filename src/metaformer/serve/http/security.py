"""Who may ask: the bearer token, and only pages of this very server.

A server on loopback is out of reach of other machines but not of the web pages open in the same
browser: they may post to it, and by pointing a name of their own at 127.0.0.1 even read its
answers. So the host a request names and the page it comes from are checked.
"""

from __future__ import annotations

import hmac
from urllib.parse import urlsplit

from fastapi import HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.datastructures import Headers

LOOPBACK = ("127.0.0.1", "localhost", "::1")

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
DOCS_POLICY = PAGE_POLICY.replace("style-src 'self'", "style-src 'self' 'unsafe-inline'")
"""Swagger UI sets styles in its markup."""
REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'"
)
"""A report opened at its address instead of saved: it can run its script and ask for nothing."""
ANSWER_POLICY = "default-src 'none'; frame-ancestors 'none'"

bearer = HTTPBearer(
    auto_error=False, description="The token the server was started with, if there is one."
)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there."""
    return host in LOOPBACK or host.startswith("127.")


def check_token(expected: str | None, credentials: HTTPAuthorizationCredentials | None) -> None:
    """Raises: HTTPException: 401, the server has a token and the request another or none."""
    if expected is None:
        return
    given = credentials.credentials if credentials else ""
    # In constant time: how long a comparison takes must not tell how much of a guess is right.
    if not hmac.compare_digest(given.encode(), expected.encode()):
        raise HTTPException(
            401,
            "this server asks for a token: send it as `Authorization: Bearer TOKEN`.",
            {"WWW-Authenticate": "Bearer"},
        )


def refusal(headers: Headers, allowed_hosts: frozenset[str] | None) -> str | None:
    """Why a request is not answered whatever it asks; None if it is.

    Args:
        allowed_hosts: names this server goes by; None for any.
    """
    host = headers.get("host", "")
    if allowed_hosts is not None and hostname(f"//{host}") not in allowed_hosts:
        return "this server does not go by the name in the Host header."
    origin = headers.get("origin")
    if origin is not None and network_location(origin) != host.lower():
        return "requests from pages of other sites are not answered."
    if (
        headers.get("sec-fetch-site") == "cross-site"
        and headers.get("sec-fetch-mode") != "navigate"
    ):
        return "requests from pages of other sites are not answered."
    return None


def hostname(address: str) -> str:
    """Name in ``//name:port``, in lower case; empty if there is none."""
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""


def network_location(origin: str) -> str:
    """``name:port`` of an origin, in lower case; empty if it has none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
