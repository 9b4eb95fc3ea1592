"""Scoring a corpus: files in, one row-aligned score file each out.

Files are scored one after another: a thread reads, a pool tokenises, and the calling thread scores and writes.

Between them stands a queue of bounded length: when it is full, because scoring is slower, reading waits. Chunks keep their
order, so what is written depends on the file alone.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

from headwise.corpus.claims import Claims
from headwise.corpus.documents import DocumentScorer, Encoded, Rows, schema_of, score_rows
from headwise.corpus.inputs import InputFile, Inputs, find_inputs, one_line, shard_of
from headwise.corpus.options import Config, ScoreOptions, ScorerFactory, Summary
from headwise.corpus.output import LostFileError, Output, Sidecar
from headwise.corpus.readers import Reader, UnreadableError, check_columns
from headwise.heads.errors import HeadwiseError
from headwise.heads.files import work_is_done, work_is_kept
from headwise.heads.progress import Report, silent

T = TypeVar("T")


def score_files(
    inputs: Sequence[str], output: str, make_scorer: ScorerFactory, options: ScoreOptions | None = None, report: Report = silent
) -> Summary:
    """Score all documents of `inputs` in this process; the same call continues where an earlier one was stopped.

    Args:
        inputs: Files, folders, globs or URLs (`inputs.find_inputs`).
        output: A folder or URL (`output.Output`).
        make_scorer: Makes the scorer, here.
        options: How files are read and shared out.
        report: Told the progress in bytes of input.

    Returns:
        What was done. Damaged files and rows are counted in it and never stop the job.

    Raises:
        HeadwiseError: For inputs that name nothing, columns that are nowhere, an output of another configuration, or one that cannot be
            written.
        MissingExtraError: Without pyarrow (when this module is imported).
    """
    options = options or ScoreOptions()
    found = find_inputs(inputs, output)
    files = shard_of(found.files, *options.shard)
    check_columns(found, files, options)
    scorer = make_scorer()
    place = Output(output, Config.of(scorer.description, options))
    work_is_kept(output)
    done = Job(found, place, scorer, options, report).run(files)
    work_is_done(output)
    return done


@dataclass(frozen=True)
class Piece:
    """What the reading thread hands over: a chunk, or the end of a file.

    Attributes:
        file: Where it comes from.
        rows: The chunk; None: the file ends here.
        encoded: Its tokens, which another thread may still be making.
        damaged: At the end of a file, why it could not be read any further; None: it was read whole.
        unreadable: At the end of a file, why its bytes could not be had at all; None: they could.
    """

    file: InputFile
    rows: Rows | None = None
    encoded: Future[list[Encoded]] | None = None
    damaged: str | None = None
    unreadable: str | None = None


@dataclass(frozen=True)
class Job:
    """Where files come from, where their scores go, and who scores them. All runners share it: what differs is who hands out the files.

    Attributes:
        inputs: The file system of the files.
        output: Their score files.
        scorer: Scores them.
        options: How files are read.
        report: Told the progress in bytes of input.
    """

    inputs: Inputs
    output: Output
    scorer: DocumentScorer
    options: ScoreOptions
    report: Report = silent

    def run(self, files: Sequence[InputFile]) -> Summary:
        """Score all files that are not done and that no running process has claimed. Results are on disk; the counts are returned.

        Raises:
            HeadwiseError: If a result cannot be written.
        """
        started, todo = time.perf_counter(), [file for file in files if not self.output.is_done(file)]
        with ExitStack() as stack:
            claims = None
            if self.options.claim and self.output.local is not None:
                claims = stack.enter_context(Claims(self.output.local / "claims", self.options.stale_seconds))
            pool = stack.enter_context(ThreadPoolExecutor(self.options.workers, thread_name_prefix="encode"))
            work = _Work(self, claims, sum(file.size for file in todo))
            pieces = read_ahead(self._pieces(todo, pool, work), 2 * self.options.workers)
            stack.callback(pieces.close)
            stack.callback(work.drop)
            waited = time.perf_counter()
            for piece in pieces:
                work.summary.waiting_seconds += time.perf_counter() - waited
                try:
                    work.take(piece)
                except OSError as error:
                    raise HeadwiseError(f"the scores of {piece.file.name} could not be written: {one_line(error)}") from error
                waited = time.perf_counter()
        work.summary.files_done_before = len(files) - len(todo)
        work.summary.files_elsewhere = work.elsewhere + work.lost
        work.summary.seconds = time.perf_counter() - started
        return work.summary

    def _pieces(self, files: Sequence[InputFile], pool: ThreadPoolExecutor, work: _Work) -> Generator[Piece]:
        """Runs in the reading thread."""
        for file in files:
            if not work.claim(file):
                continue
            reader = Reader(self.inputs.filesystem, file, self.options, self.inputs.domain_of(file, self.options.domain_from))
            try:
                for rows in reader.chunks():
                    yield Piece(file, rows, pool.submit(self.scorer.encode, rows.texts))
                yield Piece(file, damaged=reader.damaged)
            except UnreadableError as error:
                yield Piece(file, unreadable=str(error))


class _Work:
    """One call of `Job.run`: the score file being written, and the counts. `claim` runs in the reading thread, all else in the scoring one."""

    def __init__(self, job: Job, claims: Claims | None, total: int) -> None:
        self._job, self._claims = job, claims
        self._schema = schema_of(job.output.config, with_id=job.options.id_column is not None)
        self._total, self._past, self._skipped = total, 0, 0  # bytes of all files, of those behind us, of those left to others
        self._sidecar: Sidecar | None = None
        self._started, self._rows, self._tokens = time.perf_counter(), 0, 0
        self.summary, self.elsewhere, self.lost = Summary(), 0, 0

    def claim(self, file: InputFile) -> bool:
        """Whether the file is ours to score."""
        if self._claims is None:
            return True
        if self._claims.take(file.name):
            if not self._job.output.is_done(file, look_again=True):  # or another process has finished it since we looked
                return True
            self._claims.release(file.name)
        self.elsewhere += 1
        self._skipped += file.size
        return False

    def take(self, piece: Piece) -> None:
        """The next piece: score and write it, or finish its file."""
        if self._sidecar is None:
            self._sidecar = self._job.output.start(piece.file, self._schema)
        if piece.rows is not None and piece.encoded is not None:
            self._score(self._sidecar, piece.rows, piece.encoded)
            self._show(self._past + piece.rows.position * piece.file.size)
            return
        if piece.unreadable is not None:
            self.summary.unreadable[piece.file.name] = piece.unreadable
            self.drop()
        else:
            self._finish(self._sidecar, piece.damaged)
        self._sidecar = None
        self._past += piece.file.size
        if self._claims is not None:
            self._claims.release(piece.file.name)
        self._show(self._past)

    def drop(self) -> None:
        """Remove a score file that is not finished."""
        if self._sidecar is not None:
            self._sidecar.discard()
            self._sidecar = None

    def _score(self, sidecar: Sidecar, rows: Rows, tokens: Future[list[Encoded]]) -> None:
        started = time.perf_counter()
        encoded = tokens.result()
        ready = time.perf_counter()
        batch, rejected = score_rows(self._job.scorer, rows, encoded, self._schema)
        self.summary.waiting_seconds += ready - started
        self.summary.scoring_seconds += time.perf_counter() - ready
        sidecar.append(batch, rejected)
        self._rows += batch.num_rows
        self._tokens += sum(len(document.ids) for document in encoded)

    def _finish(self, sidecar: Sidecar, damaged: str | None) -> None:
        try:
            self.summary.add(sidecar.commit(damaged))
        except LostFileError:
            self.lost += 1

    def _show(self, done: float) -> None:
        seconds = max(time.perf_counter() - self._started, 1e-9)
        rejected = sum(self.summary.rejected.values())
        remark = f"{self._rows:,} documents, {self._tokens / seconds:,.0f} tokens/s"
        remark += f", {rejected:,} rejected" if rejected else ""
        self._job.report(done, max(self._total - self._skipped, done, 1), remark)


def read_ahead(items: Generator[T], depth: int) -> Generator[T]:
    """The same items, made in a thread of their own while earlier ones are used.

    Closing it closes `items`; errors come out at the place where they occur.

    Args:
        items: What to make; it runs in the thread.
        depth: How many items may wait, at least 1.

    Yields:
        The items in their order.
    """
    waiting: queue.Queue[Callable[[], T] | None] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: Callable[[], T] | None) -> bool:
        while not stopped.is_set():
            try:
                waiting.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def fill() -> None:
        try:
            for item in items:
                if not put(lambda item=item: item):  # type: ignore[misc]
                    return
            put(None)
        except BaseException as error:  # whatever it is, it belongs to the reader of the items
            put(_raiser(error))
        finally:
            items.close()

    thread = threading.Thread(target=fill, name="read", daemon=True)
    thread.start()
    try:
        while (item := waiting.get()) is not None:
            yield item()
    finally:
        stopped.set()
        thread.join()


def _raiser(error: BaseException) -> Callable[[], Any]:
    def fail() -> Any:
        raise error

    return fail
