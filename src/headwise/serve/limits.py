"""What the service refuses, and how it says so: limits, the key, bodies that are too large or no JSON."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import ClientDisconnect, Request

from headwise.heads.errors import HeadwiseError
from headwise.heads.text import shorten

KEY_VARIABLE = "HEADWISE_API_KEY"
MOST = {
    "max_body": 2**30,
    "max_passages": 10**6,
    "max_passage_chars": 10**9,
    "max_query_chars": 10**9,
    "queue": 10**5,
    "batch": 10**4,
    "cache_tokens": 10**9,
    "max_connections": 10**5,
}
DAY = 86_400
DRAIN_BYTES, DRAIN_SECONDS = 16 * 2**20, 2.0  # of a refused body, see `Body.discard`


@dataclass(frozen=True)
class Settings:
    """Limits of one service; `MOST` has the largest value of each, the smallest is 1.

    Attributes:
        api_key: What clients send as `Authorization: Bearer KEY`; None: open to all.
        max_body: Bytes of a request.
        max_passages: Passages of a request.
        max_passage_chars: Characters of one passage, with its title.
        max_query_chars: Characters of a query.
        queue: Requests that wait for the model; those beyond get 429.
        batch: At most so many waiting requests over the same passages run together.
        cache_tokens: Tokens of passages kept computed.
        max_connections: Open connections; less if the process may not open so many files. Idle ones give way to new ones.
        timeout: Seconds for a body to arrive, and again for its answer; above 0, at most a day.

    Raises:
        HeadwiseError: A value out of range.
    """

    api_key: str | None = field(default=None, repr=False)
    max_body: int = 4 * 2**20
    max_passages: int = 1000
    max_passage_chars: int = 200_000
    max_query_chars: int = 20_000
    queue: int = 128
    batch: int = 32
    cache_tokens: int = 32_768
    max_connections: int = 512
    timeout: float = 60.0

    def __post_init__(self) -> None:
        for name, most in MOST.items():
            given = getattr(self, name)
            if isinstance(given, bool) or not isinstance(given, int) or not 1 <= given <= most:
                raise HeadwiseError(f"{name.replace('_', '-')} must be at least 1 and at most {most}; got {shorten(repr(given))}")
        if isinstance(self.timeout, bool) or not isinstance(self.timeout, int | float) or not 0 < self.timeout <= DAY:
            raise HeadwiseError(
                f"timeout must be a number of seconds above 0 and at most {DAY}; got {shorten(repr(self.timeout))}"
            )


class RefusalError(Exception):
    """An answer other than 200.

    Attributes:
        status: HTTP status.
        kind: A stable word for programs.
        message: One line for people.
        headers: More headers of the answer, or None.
    """

    def __init__(self, status: int, kind: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.message, self.headers = status, kind, " ".join(message.split()), headers


def key_from(environment: Mapping[str, str], no_auth: bool = False) -> str | None:
    """The key that clients must send.

    Args:
        environment: Variables of the process; HEADWISE_API_KEY is read.
        no_auth: The service is meant to be open to all.

    Returns:
        The key; None if there is none.

    Raises:
        HeadwiseError: A key that no client could send, or one beside `no_auth`.
    """
    key = environment.get(KEY_VARIABLE)
    if key is None:
        return None
    if no_auth:
        raise HeadwiseError(f"{KEY_VARIABLE} is set, but --no-auth asks for a service without a key; drop one of them")
    # An empty variable is what a secret that failed to arrive looks like: serving openly then would be a surprise.
    if not key or not all("!" <= character <= "~" for character in key):
        raise HeadwiseError(f"{KEY_VARIABLE} must be printable ASCII without spaces and not empty; set another one or unset it")
    return key


def check_exposure(host: str, key: str | None, no_auth: bool) -> None:
    """Refuse a service without a key that would listen beyond this machine.

    Args:
        host: Where it would listen.
        key: See `key_from`.
        no_auth: That is what is wanted.

    Raises:
        HeadwiseError: It would, and that is not said to be wanted.
    """
    if key is None and not no_auth and not is_loopback(host):
        raise HeadwiseError(
            f"without a key anybody who reaches {host or 'this machine'!r} could use the service; set {KEY_VARIABLE}, stay on 127.0.0.1, or "
            "give --no-auth"
        )


def is_loopback(host: str) -> bool:
    """True for addresses that only this machine reaches. Names other than localhost are not looked up and do not count."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_key(request: Request, key: str | None) -> None:
    """Refuse a request without the key. The comparison takes the same time wherever the keys differ.

    Args:
        request: Its header `Authorization: Bearer KEY` is read.
        key: See `key_from`; None lets every request pass.

    Raises:
        RefusalError: With 401.
    """
    if key is None:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    # Header values arrive as latin-1; compare_digest takes text only if it is ASCII.
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode("latin-1"), key.encode()):
        raise RefusalError(
            401,
            "unauthorized",
            "the key is missing or wrong; send it as 'Authorization: Bearer KEY'",
            {"WWW-Authenticate": "Bearer"},
        )


class Body:
    """The body of one request, read piece by piece, so that one that is too large is never held."""

    def __init__(self, request: Request) -> None:
        self._receive, self._more = request.receive, True
        self._declared = request.headers.get("content-length", "")

    async def read(self, limit: int) -> bytes:
        """All of it.

        Raises:
            RefusalError: With 413, as soon as more than `limit` bytes are announced or have come.
            ClientDisconnect: The client is gone.
        """
        if self._declared.isdecimal() and int(self._declared) > limit:
            raise _too_large(limit)
        parts, size = [], 0
        while self._more:
            part = await self._next()
            size += len(part)
            if size > limit:
                raise _too_large(limit)
            parts.append(part)
        return b"".join(parts)

    async def discard(self) -> None:
        """Read on and forget, within bounds. A client that still sends may never see the answer if its connection is closed at once."""

        async def drain() -> None:
            left = DRAIN_BYTES
            while self._more and left > 0:
                left -= len(await self._next())

        try:
            await asyncio.wait_for(drain(), DRAIN_SECONDS)
        except (TimeoutError, ClientDisconnect):
            self._more = False

    async def _next(self) -> bytes:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        self._more = bool(message.get("more_body", False))
        part: bytes = message.get("body", b"")
        return part


def _too_large(limit: int) -> RefusalError:
    return RefusalError(413, "too_large", f"the body has more than {limit} bytes; send fewer or shorter passages at a time")


def parse_json(request: Request, raw: bytes) -> Any:
    """The JSON value in a body.

    The content type is insisted on because a browser sends plain text anywhere without asking first, but JSON only where it is
    allowed to.

    Args:
        request: Whose content type counts.
        raw: The whole body.

    Returns:
        Any JSON value; its shape is not checked here.

    Raises:
        RefusalError: With 415 for another content type, with 400 for anything else that cannot be read.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json":
        raise RefusalError(415, "wrong_content_type", "send JSON with 'Content-Type: application/json'")
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:  # ValueError: also text that is not UTF-8 and numbers of absurd length
        raise RefusalError(400, "malformed_json", f"the body is no JSON that can be read: {str(error)[:200]}") from error
