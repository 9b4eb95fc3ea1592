"""What a service counts, for Prometheus. Every service has a registry of its own, so that two of them in one process stay apart."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
OTHER = "other"  # paths that do not exist: a label per guess of a stranger would never stop growing


class Metrics:
    """Counters and gauges of one service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("headwise_requests", "Answers by path and status.", ["path", "status"], registry=self.registry)
        self.seconds = Histogram(
            "headwise_request_seconds",
            "From the request to its answer, by path.",
            ["path"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.queue = Gauge("headwise_queue_length", "Requests that wait for the model.", registry=self.registry)
        self.running = Gauge("headwise_running", "Requests that the model works on.", registry=self.registry)
        self.batch = Histogram(
            "headwise_batch_requests", "Requests answered in one go.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=self.registry
        )
        self.hits = Counter("headwise_cache_hits", "Requests whose passages were computed before.", registry=self.registry)
        self.misses = Counter("headwise_cache_misses", "Requests whose passages had to be computed.", registry=self.registry)
        self.cached = Gauge("headwise_cache_tokens", "Tokens of passages kept computed.", registry=self.registry)
        self.tokens = Counter("headwise_tokens", "Tokens the model has computed.", ["part"], registry=self.registry)
        self.windowed = Counter("headwise_windowed", "Requests whose passages did not fit together.", registry=self.registry)
        self.dropped = Counter(
            "headwise_dropped", "Requests given up: client gone, or out of time.", ["reason"], registry=self.registry
        )

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self.registry)


class Measured:
    """ASGI layer that counts and times every request."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: frozenset[str]) -> None:
        """A layer around an app.

        Args:
            app: What answers.
            metrics: Where requests are counted.
            paths: Those that get a label of their own.
        """
        self._app, self._metrics, self._paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on, and look at the status on the way back."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self._paths else OTHER
        status, started = 500, time.perf_counter()

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            self._metrics.requests.labels(path, str(status)).inc()
            self._metrics.seconds.labels(path).observe(time.perf_counter() - started)
