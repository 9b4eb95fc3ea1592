"""Several experiments at once, each in a process of its own with its share of the threads.

On a CPU two threads read a small model's tokens less than twice as fast as one, so two experiments with one thread each are done sooner than one
after the other with two. What experiments ask for together (scores of heads) is found once in every process.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from multiprocessing import connection
from typing import Any

from headwise.claims.results import Result
from headwise.claims.runner import SHARED, Runner, Step
from headwise.heads.errors import HeadwiseError
from headwise.heads.progress import Report

POLL = 0.5  # seconds between looks at what the processes report
Ended = Callable[[Step, Result | None, str], None]
Told = tuple[Runner | None, Any]  # in a process: its runner, and where its progress goes

_own: Told = (None, None)


class Progress:
    """Progress of all steps from that of each.

    Args:
        report: Takes rough minutes of all steps.
        minutes: Step -> its rough minutes.

    Attributes:
        total: Rough minutes of all steps.
    """

    def __init__(self, report: Report, minutes: Mapping[Step, float]) -> None:
        self._report, self._minutes = report, minutes
        self._done = dict.fromkeys(minutes, 0.0)
        self._ended: set[Step] = set()
        self.total = max(sum(minutes.values()), 1e-9)

    def of(self, step: Step) -> Report:
        """Takes the progress of a step, in any unit; the step has begun."""
        self.take(step, 0, 1, "")
        return partial(self.take, step)

    def take(self, step: Step, done: float, whole: float, remark: str) -> None:
        """Progress of a step; what comes late, from one that has ended, counts for nothing."""
        if step not in self._ended:
            self._done[step] = min(done / whole, 1.0) * self._minutes[step] if whole else 0.0
            name = f"{step[0]} {step[2].name}"
            self._report(sum(self._done.values()), self.total, f"{name}: {remark}" if remark else name)

    def end(self, step: Step) -> None:
        """The step is done, or has failed."""
        self._done[step] = self._minutes[step]
        self._ended.add(step)


def side_by_side(runner: Runner, steps: Sequence[Step], jobs: int, progress: Progress, ended: Ended) -> None:
    """Run steps in several processes, model by model; of a model the longest first, so that no process waits long for the last one.

    Args:
        runner: Its `load` must be a function that can be pickled.
        steps: What is run.
        jobs: How many processes.
        progress: Takes what they report.
        ended: Called after each step, in this process.

    Raises:
        HeadwiseError: As `Runner.run`, or a process died.
    """
    context, before = multiprocessing.get_context("spawn"), set(multiprocessing.active_children())
    models = list(dict.fromkeys(model for model, _, _ in steps))
    ordered = sorted(enumerate(steps), key=lambda pair: (models.index(pair[1][0]), -pair[0]))  # a plan has the cheapest first
    told, number = context.Queue(), context.Value("i", 0)
    given = (runner, _threads(jobs), told, number)
    with ProcessPoolExecutor(min(jobs, len(steps)), context, _begin, given) as pool:
        running: dict[Future[Any], Step] = {}
        try:
            for place, step in ordered:
                running[pool.submit(_run, place, step)] = step
            _follow(running, told, dict(ordered), progress, ended)
        except BaseException as error:
            for future in running:
                future.cancel()
            for process in set(multiprocessing.active_children()) - before:
                process.terminate()
            if isinstance(error, BrokenProcessPool):
                raise HeadwiseError(
                    "a process ended unexpectedly, perhaps for want of memory; the same command goes on, with fewer --jobs if it happens again"
                ) from error
            raise


def _follow(running: dict[Future[Any], Step], told: Any, steps: Mapping[int, Step], progress: Progress, ended: Ended) -> None:
    """Pass on what the processes report until all are done."""
    while running:
        done, _ = wait(running, POLL, FIRST_COMPLETED)
        with contextlib.suppress(queue.Empty):
            while True:
                place, *report = told.get_nowait()
                progress.take(steps[place], *report)
        for future in done:
            ended(running.pop(future), *future.result())


def _threads(jobs: int) -> int:
    """Threads of each process."""
    import torch

    return max(1, torch.get_num_threads() // jobs)


def _begin(runner: Runner, threads: int, told: Any, number: Any) -> None:
    """In a new process: its share of the threads, a folder of its own for what its experiments share."""
    global _own
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends the others
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    with number.get_lock():
        number.value += 1
        own = f"{SHARED}-{number.value}"
    _own = replace(runner, shared=own), told


def _end_with_parent() -> None:
    """A killed command leaves no process behind that holds its folders."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _run(place: int, step: Step) -> tuple[Result | None, str]:
    """One step, in a process."""
    runner, told = _own
    if runner is None:
        raise RuntimeError("the process was not begun")
    last = 0.0

    def report(done: float, whole: float, remark: str) -> None:
        nonlocal last
        if time.monotonic() - last >= POLL:
            last = time.monotonic()
            told.put((place, done, whole, remark))

    report(0, 1, "")
    return runner.run(step, report)
