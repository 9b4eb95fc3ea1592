"""Serving until a signal says stop."""

from __future__ import annotations

import logging
import signal
import socket
from types import FrameType

import uvicorn

from headwise.heads.errors import HeadwiseError
from headwise.serve.app import make_app
from headwise.serve.connections import AT_ONCE, QUEUE, Sparse, bounded, most_connections
from headwise.serve.limits import Settings
from headwise.serve.work import MakeRanker, Work

GRACE = 5  # seconds beyond the timeouts for answers to reach slow clients
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Server(uvicorn.Server):
    """Uvicorn that refuses new requests from the moment a signal arrives, and stops if the model cannot be loaded."""

    def __init__(self, config: uvicorn.Config, work: Work) -> None:
        super().__init__(config)
        self.work = work

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve; meanwhile, what strangers can cause over and over is logged once a minute."""
        sparse = Sparse()
        loggers = [logging.getLogger(name) for name in ("uvicorn.error", "asyncio")]
        for logger in loggers:
            logger.addFilter(sparse)
        try:
            await super().serve(sockets)
        finally:
            for logger in loggers:
                logger.removeFilter(sparse)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen. The event loop accepts as many at once as it asks the kernel to keep, so the kernel is asked again."""
        await super().startup(sockets)
        for listening in sockets or ():
            listening.listen(QUEUE)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal; the second SIGINT ends without waiting for answers."""
        self.work.refuse()
        super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """True if it is time to stop."""
        return await super().on_tick(counter) or self.work.failure is not None


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Args:
        host: Address of this machine.
        port: From 0 to 65535; 0 takes a free one.

    Raises:
        HeadwiseError: The address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if not 0 <= port <= 65_535:  # Python's sockets would be left open
        raise HeadwiseError(f"cannot listen on {host}:{port}: ports are 0 to 65535; give another --host or --port")
    try:
        return socket.create_server((host, port), family=family, backlog=QUEUE)
    except OSError as error:
        raise HeadwiseError(f"cannot listen on {host}:{port}: {error.strerror or error}; give another --host or --port") from error


def make_server(make: MakeRanker, settings: Settings) -> Server:
    """A server for `serve`.

    Args:
        make: Makes the ranker; called once the server runs, in the thread that will own the model.
        settings: Limits of the service.
    """
    app = make_app(make, settings)
    config = uvicorn.Config(
        app,
        http=bounded(most_connections(settings.max_connections)),
        ws="none",  # an upgraded connection would leave the bounds
        backlog=AT_ONCE,
        log_level="warning",
        access_log=False,
        lifespan="on",
        server_header=False,
        timeout_graceful_shutdown=int(2 * settings.timeout) + GRACE,
    )
    return Server(config, app.state.work)


def serve(server: Server, listening: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT; what was accepted is answered first. Call it from the main thread.

    If `server.work.thread` still lives afterwards (a load, or a pass that nobody waits for), the process should end without it.

    Raises:
        Exception: Whatever loading the model raised.
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
