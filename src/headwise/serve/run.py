"""Serving until a signal says stop."""

from __future__ import annotations

import signal
import socket
from types import FrameType

import uvicorn

from headwise.heads.errors import HeadwiseError
from headwise.serve.app import make_app
from headwise.serve.limits import Settings
from headwise.serve.work import MakeRanker, Work

GRACE = 5  # seconds beyond the timeouts for answers to reach slow clients
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Server(uvicorn.Server):
    """Uvicorn that refuses new requests from the moment a signal arrives, and stops if the model cannot be model."""

    def __init__(self, config: uvicorn.Config, work: Work) -> None:
        super().__init__(config)
        self.work = work

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal; the second SIGINT ends without waiting for answers."""
        self.work.refuse()
        super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """True if it is time to stop."""
        return await super().on_tick(counter) or self.work.failure is not None


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises `HeadwiseError` if the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise HeadwiseError(f"cannot listen on {host}:{port}: {why}; give another --host or --port") from error


def make_server(make: MakeRanker, settings: Settings) -> Server:
    """A server that calls `make` once it runs, in the thread that will own the model."""
    app = make_app(make, settings)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        lifespan="on",
        server_header=False,
        timeout_graceful_shutdown=int(2 * settings.timeout) + GRACE,
    )
    return Server(config, app.state.work)


def serve(server: Server, listening: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT; what was accepted is answered first. Call it from the main thread. Raises what loading raised.

    If `server.work.thread` still lives afterwards (a load, or a pass that nobody waits for), the process should end without it.
    """
    # Uvicorn raises the signal once more when it is done; by then it has been obeyed.
    before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    try:
        server.run(sockets=[listening])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        listening.close()
    if server.work.failure is not None:
        raise server.work.failure
