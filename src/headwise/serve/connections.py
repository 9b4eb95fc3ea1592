"""Bounds on connections: how many are open, and how long one may take to send the head of a request.

Uvicorn limits neither: connections that send nothing would stay open for ever and use up the descriptors of the process, and each failed `accept`
would fill the log.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import Any, ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0  # for the head of a request to arrive, and for a client to take in some of a large answer
AT_ONCE = 16  # connections that are accepted in one turn of the event loop; some turns later they are counted, and old ones gone
QUEUE = 1024  # connections that the kernel keeps for us until they are accepted
RESERVED = 64 + 8 * AT_ONCE  # descriptors for files, and for connections that are accepted but not yet counted
FEWEST = 8  # connections, however few descriptors there are
LOG_SECONDS = 5.0  # what happens in so many seconds is one line of the log
SAME_SECONDS = 60.0  # the same message of uvicorn or asyncio is logged once in so many seconds

logger = logging.getLogger("headwise.serve")


def most_connections(wanted: int) -> int:
    """How many connections may be open: `wanted`, or as many as the process's limit of open files leaves room for."""
    try:
        import resource
    except ImportError:  # not on this system
        return wanted
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if soft == resource.RLIM_INFINITY else min(wanted, max(FEWEST, soft - RESERVED))


class Room:
    """All connections of one service. Those that have not yet sent a request give way to new ones.

    Attributes:
        limit: How many may be open.
        open: Those that are.
        waiting: Those that wait for the head of a request, the longest first.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.open: set[Bounded] = set()
        self.waiting: dict[Bounded, None] = {}
        self._counts = {"idle": 0, "refused": 0}
        self._told: asyncio.TimerHandle | None = None

    def enter(self, connection: Bounded) -> bool:
        """Count a new connection, in place of the one that has waited longest if there are too many; False if there is no room for it."""
        if len(self.open) >= self.limit:
            idle = next((other for other in self.waiting if not other.unsent), None)
            if idle is None:
                self.note("refused")
                return False
            idle.drop()
        self.open.add(connection)
        return True

    def leave(self, connection: Bounded) -> None:
        """A connection is gone, or as good as gone."""
        self.open.discard(connection)
        self.waiting.pop(connection, None)

    def note(self, what: str) -> None:
        """Count what happens to strangers; the log gets one line with the numbers of the last seconds."""
        self._counts[what] += 1
        if self._told is None:
            self._told = asyncio.get_running_loop().call_later(LOG_SECONDS, self._tell)

    def _tell(self) -> None:
        self._told = None
        logger.warning(
            "in %g s: %d connections were closed because they sent no request, %d were refused because %d are open",
            LOG_SECONDS,
            self._counts["idle"],
            self._counts["refused"],
            self.limit,
        )
        self._counts = dict.fromkeys(self._counts, 0)


class Bounded(H11Protocol):
    """One connection. `room` stands in a subclass for each service, see `bounded`."""

    room: ClassVar[Room]
    _timer: asyncio.TimerHandle | None = None
    _left = 0  # bytes of an answer that the client had not taken in when the timer was set

    @property
    def unsent(self) -> int:
        """Bytes of an answer that the client has not taken in yet."""
        return self.transport.get_write_buffer_size()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there."""
        super().connection_made(transport)
        if self.room.enter(self):
            self._wait()
        else:
            transport.write(_full())
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._stop()
        self.room.leave(self)
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Something has arrived; with the head of a request the waiting ends."""
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self._stop()

    def on_response_complete(self) -> None:
        """A request is answered; the next one is waited for."""
        answered = self.cycle
        super().on_response_complete()
        if self.cycle is answered and not self.transport.is_closing():
            self._wait()

    def drop(self) -> None:
        """End a connection that is idle."""
        self.room.note("idle")
        self._stop()
        self.room.leave(self)
        self.transport.abort()

    def _wait(self) -> None:
        self._stop()
        self.room.waiting[self] = None
        self._left = self.unsent
        self._timer = self.loop.call_later(HEAD_SECONDS, self._late)

    def _stop(self) -> None:
        self.room.waiting.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        if 0 < self.unsent < self._left:  # a slow client that still reads its answer
            self._wait()
        else:
            self.drop()


def bounded(limit: int) -> type[Bounded]:
    """The protocol class of one service, for uvicorn's `http`."""
    return type("Bounded", (Bounded,), {"room": Room(limit)})


class Sparse(logging.Filter):
    """Lets the same message through once in `SAME_SECONDS`, with the number of those that were left out."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[str, tuple[float, int]] = {}  # message -> (when it was logged, how many were left out since)

    def filter(self, record: logging.LogRecord) -> bool:
        """True for a record that is to be logged."""
        message, now = str(record.msg), time.monotonic()
        last, left_out = self._seen.get(message, (-SAME_SECONDS, 0))
        if now - last < SAME_SECONDS:
            self._seen[message] = (last, left_out + 1)
            return False
        self._seen[message] = (now, 0)
        if left_out:
            record.msg = f"{message} (and {left_out} more since)"
        return True


def _full() -> bytes:
    problem: dict[str, Any] = {"type": "too_many_connections", "message": "too many connections are open; try again in 1 s"}
    body = json.dumps({"error": problem}).encode()
    head = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
