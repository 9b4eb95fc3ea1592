"""The thread that owns the model, and the queue in front of it.

A torch model with headwise's attention attached is not for two threads at once, so one thread loads it, asks it and keeps the computed passages.
Requests wait in a bounded queue; those over the same passages are answered together.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import NamedTuple

import torch

from headwise.heads.errors import HeadwiseError, PromptError
from headwise.methods.query.ranker import Ranker
from headwise.runtime.passage_index import PassageIndex, Text
from headwise.serve.cache import IndexCache, passage_key
from headwise.serve.limits import RefusalError, Settings
from headwise.serve.metrics import Metrics

LOADING, READY, STOPPING, FAILED = "loading", "ready", "stopping", "failed"
WHY = {LOADING: "the model is still loading", STOPPING: "the service is stopping", FAILED: "the model could not be loaded"}
LONGEST_RETRY = 60  # seconds; further ahead nobody can tell
MakeRanker = Callable[[], Ranker]

logger = logging.getLogger("headwise.serve")


class Ranking(NamedTuple):
    """What one request gets.

    Attributes:
        scores: In the order of the passages.
        tokens: Of passages and query that stand behind them, kept ones included.
    """

    scores: list[float]
    tokens: int


class Job:
    """A query over passages that waits for the model, or that the model works on.

    Attributes:
        query: The query.
        passages: The passages.
        key: Same passages, same key (see `passage_key`).
        answer: A `Ranking`, or a `RefusalError` that says why there is none.
        dropped: Nobody waits for it any more.
    """

    def __init__(self, query: str, passages: Sequence[Text]) -> None:
        self.query, self.passages, self.key = query, passages, passage_key(passages)
        self.answer: Future[Ranking] = Future()
        self.dropped = False


class DroppedError(Exception):
    """Nobody waits for the answer any more."""


class WindowRanker(Ranker):
    """A ranker for one request that does not fit: stops between windows once nobody waits, and counts the tokens it reads."""

    def __init__(self, ranker: Ranker, job: Job) -> None:
        self.__dict__.update(ranker.__dict__)
        self._job, self.passage_tokens, self.windows = job, 0, 0

    def index(self, passages: Sequence[Text]) -> PassageIndex:
        """One window.

        Raises:
            DroppedError: Nobody waits for the answer any more.
            PromptError: As `Ranker.index`.
        """
        if self._job.dropped:
            raise DroppedError
        index = super().index(passages)
        self.passage_tokens += index.tokens
        self.windows += 1
        return index


class Work:
    """The queue and its thread. All methods may be called from any thread; `refuse` even from a signal handler.

    Attributes:
        ranker: What answers, None until it is loaded.
        failure: What loading raised, or None.
        thread: The thread that owns the model.
    """

    def __init__(self, make: MakeRanker, settings: Settings, metrics: Metrics) -> None:
        """A queue whose thread is not started yet.

        Args:
            make: Loads the ranker, in the thread; what it raises is kept in `failure`.
            settings: Limits of the service.
            metrics: Where things are counted.
        """
        self._make, self._settings, self._metrics = make, settings, metrics
        self._waiting: deque[Job] = deque()
        self._change = threading.Condition()
        self._stopping = self._closing = False
        self._cache = IndexCache(settings.cache_tokens)
        self._pace = 0.0  # seconds per request of late
        self.ranker: Ranker | None = None
        self.failure: BaseException | None = None
        # A daemon, so that a process that is told twice to stop need not wait for a pass of the model.
        self.thread = threading.Thread(target=self._run, name="headwise-work", daemon=True)

    @property
    def state(self) -> str:
        """loading, ready, stopping or failed."""
        if self.failure is not None:
            return FAILED
        if self._stopping:
            return STOPPING
        return LOADING if self.ranker is None else READY

    def start(self) -> None:
        """Start loading."""
        self.thread.start()

    def refuse(self) -> None:
        """Take nothing new from now on; what was accepted is finished. A plain assignment, because signal handlers must not wait for locks."""
        self._stopping = True

    def close(self) -> None:
        """Finish what was accepted and end the thread; a load that is still under way is not waited for."""
        self._stopping = True
        with self._change:
            self._closing = True
            self._change.notify_all()
        if self.ranker is not None:
            self.thread.join()

    def check(self) -> None:
        """Refuse what could not be taken on now.

        Raises:
            RefusalError: With 503 if the service is not ready, with 429 if the queue is full.
        """
        if self.state != READY:
            raise RefusalError(503, self.state, f"{WHY.get(self.state, WHY[LOADING])}; try again later", {"Retry-After": "5"})
        waiting = len(self._waiting)
        if waiting >= self._settings.queue:
            again = str(max(1, min(LONGEST_RETRY, math.ceil(waiting * self._pace))))
            raise RefusalError(
                429, "queue_full", f"{waiting} requests are waiting; try again in {again} s", {"Retry-After": again}
            )

    def submit(self, query: str, passages: Sequence[Text]) -> Job:
        """Queue a request.

        Args:
            query: The query.
            passages: At least one; they are not checked here.

        Returns:
            The job; its `answer` comes from the thread.

        Raises:
            RefusalError: As `check`.
        """
        job = Job(query, passages)
        with self._change:
            self.check()
            self._waiting.append(job)
            self._metrics.queue.set(len(self._waiting))
            self._change.notify_all()
        return job

    def drop(self, job: Job, reason: str) -> None:
        """Nobody waits for `job` any more: its place in the queue is free at once, and work in windows ends with the window.

        Args:
            job: A job of this queue.
            reason: A stable word, for the metrics.
        """
        with self._change:
            job.dropped = True
            if job in self._waiting:
                self._waiting.remove(job)
            self._metrics.queue.set(len(self._waiting))
        job.answer.cancel()
        self._metrics.dropped.labels(reason).inc()

    def _run(self) -> None:
        try:
            self.ranker = self._make()
        except BaseException as error:  # whoever started the service raises it again
            self.failure = error
            return
        while batch := self._next():
            started = time.perf_counter()
            self._metrics.running.set(len(batch))
            self._metrics.batch.observe(len(batch))
            self._answer(batch)
            self._metrics.running.set(0)
            pace = (time.perf_counter() - started) / len(batch)
            self._pace = 0.8 * self._pace + 0.2 * pace if self._pace else pace

    def _next(self) -> list[Job]:
        """The oldest job with others over the same passages, marked as running; empty when all is done and no more will come."""
        with self._change:
            while True:
                self._change.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return []
                key = self._waiting[0].key
                batch = [job for job in self._waiting if job.key == key][: self._settings.batch]
                for job in batch:
                    self._waiting.remove(job)
                self._metrics.queue.set(len(self._waiting))
                if batch := [job for job in batch if job.answer.set_running_or_notify_cancel()]:
                    return batch

    def _answer(self, batch: list[Job]) -> None:
        """Give every job of the batch its answer or a refusal; nothing that happens to one request may end the thread."""
        try:
            try:
                self._rank(batch)
                return
            except torch.OutOfMemoryError:
                pass  # outside this block nothing holds the tensors of the failed pass any more
            self._forget()  # what was kept for later may be what fills the memory
            self._rank(batch)
        except torch.OutOfMemoryError:
            _refuse_all(
                batch, RefusalError(503, "out_of_memory", "the passages need more memory than there is; send fewer at a time")
            )
        except Exception:
            logger.exception("a request failed")
            _refuse_all(batch, RefusalError(500, "internal_error", "the service failed at this request; its log says why"))

    def _forget(self) -> None:
        self._cache.clear()
        self._metrics.cached.set(0)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _rank(self, batch: list[Job]) -> None:
        jobs = [job for job in batch if not job.answer.done()]
        index = self._index(jobs)
        together = index is not None and self._rank_together(index, jobs)
        for job in [] if together else jobs:
            try:
                job.answer.set_result(self._rank_alone(index, job))
            except HeadwiseError as error:
                job.answer.set_exception(RefusalError(422, "cannot_rank", str(error)))
            except DroppedError:
                job.answer.set_exception(RefusalError(504, "dropped", "nobody waited for the answer"))

    def _index(self, jobs: list[Job]) -> PassageIndex | None:
        """The computed passages of the jobs, which all have the same; None if they do not fit, or cannot be read at all."""
        ranker, key = self._ready(), jobs[0].key
        index = self._cache.get(key)
        if index is None:
            try:
                index = ranker.index(jobs[0].passages)
            except PromptError:
                return None
            self._cache.put(key, index)
            self._metrics.cached.set(self._cache.tokens)
            self._metrics.tokens.labels("passages").inc(index.tokens)
            self._metrics.misses.inc()
            self._metrics.hits.inc(len(jobs) - 1)
        else:
            self._metrics.hits.inc(len(jobs))
        return index

    def _rank_together(self, index: PassageIndex, jobs: list[Job]) -> bool:
        """Answer all at once; False if one of the queries does not allow it."""
        try:
            found = index.scores([job.query for job in jobs])
        except HeadwiseError:
            return False
        for job, scores in zip(jobs, found, strict=True):
            job.answer.set_result(Ranking([float(score) for score in scores], index.tokens + self._query_tokens(job)))
        return True

    def _rank_alone(self, index: PassageIndex | None, job: Job) -> Ranking:
        """One query, in windows if passages and query do not fit together. Raises `HeadwiseError` if even that cannot be done."""
        if index is not None:
            try:
                scores = [float(score) for score in index.scores([job.query])[0]]
                return Ranking(scores, index.tokens + self._query_tokens(job))
            except PromptError:  # a query too long for these passages; windows leave room for it
                pass
        self._metrics.windowed.inc()
        windows = WindowRanker(self._ready(), job)
        found = next(windows.scores([job.query], job.passages))
        self._metrics.tokens.labels("passages").inc(windows.passage_tokens)
        return Ranking([float(score) for score in found], windows.passage_tokens + windows.windows * self._query_tokens(job))

    def _query_tokens(self, job: Job) -> int:
        tokens = len(self._ready().composer.query(job.query).ids)
        self._metrics.tokens.labels("query").inc(tokens)
        return tokens

    def _ready(self) -> Ranker:
        if self.ranker is None:
            raise RuntimeError("the work thread asked for a ranker before it was loaded")
        return self.ranker


def _refuse_all(jobs: Sequence[Job], refusal: RefusalError) -> None:
    for job in jobs:
        if not job.answer.done():
            job.answer.set_exception(refusal)
