"""What scoring a corpus will cost: tokens counted on a sample, speed measured on it, hours and GPUs computed from both.

Tokens of the whole = bytes of all files x tokens per byte, where tokens per byte come from rows of some files (the sample). The 95 % interval
is a bootstrap over the sampled files (unless all were) and, within each, over its rows; it cannot know of rows that differ from all sampled ones.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwise.corpus.documents import DocumentScorer, Encoded
from headwise.corpus.inputs import InputFile, Inputs, find_inputs
from headwise.corpus.options import SAMPLE_ROWS, ScoreOptions
from headwise.corpus.readers import Reader, UnreadableError, check_columns
from headwise.heads.errors import HeadwiseError

FILES = 16  # files in the sample, at most
LOOK, LOOK_BYTES = 2000, 64 << 20  # rows and bytes of text read of each of them, at most
PARTS = 4  # of the sample, timed one by one
DRAWS = 1000  # of the bootstrap


@dataclass(frozen=True)
class Machine:
    """A device to estimate for: its speed as measured there, or from arithmetic.

    Attributes:
        name: For the reader.
        tokens_per_second: Of text scored (both passes together).
        flop_per_second: What it really does (not its data sheet).
        flop_per_token: Of a scored token, both passes together (about 7.6e9 for 1.3B parameters and 4096 tokens: Hua et al. 2025 as worked
            out in docs/scale.md).
    """

    name: str
    tokens_per_second: float | None = None
    flop_per_second: float | None = None
    flop_per_token: float | None = None

    def __post_init__(self) -> None:
        numbers = (self.tokens_per_second, self.flop_per_second, self.flop_per_token)
        if (self.tokens_per_second is None) == (self.flop_per_second is None or self.flop_per_token is None):
            raise HeadwiseError(f"{self.name}: give tokens_per_second, or flop_per_second and flop_per_token")
        if any(number is not None and not 0 < number < float("inf") for number in numbers):
            raise HeadwiseError(f"{self.name}: speeds must be positive numbers")

    @property
    def speed(self) -> float:
        """Tokens per second."""
        if self.tokens_per_second is not None:
            return self.tokens_per_second
        return (self.flop_per_second or 0.0) / (self.flop_per_token or 1.0)


@dataclass(frozen=True)
class Estimate:
    """What a job will cost.

    Attributes:
        files: Of the whole input.
        bytes: Stored bytes of the whole input.
        sampled_files: Files that were looked at.
        sampled_rows: Rows that were tokenised and scored.
        sampled_tokens: Their tokens.
        documents: Of the whole input, estimated.
        tokens: Of the whole input, estimated.
        tokens_low: Lower end of the 95 % interval of the sample.
        tokens_high: Its upper end.
        speed: Tokens/s of the scorer here, alone on ready tokens.
        speed_low: Of the slowest part of the sample.
        speed_high: Of the fastest part.
        encode_speed: Tokens/s of one tokenising thread.
        hours: Here, at the slower of scoring and tokenising.
        hours_low: From the favourable ends of both intervals.
        hours_high: From the unfavourable ends.
        table: Name, tokens/s, hours on one, and how many finish within a day, for each `Machine`.
        assumed: What these numbers rest on, one sentence each.
    """

    files: int
    bytes: int
    sampled_files: int
    sampled_rows: int
    sampled_tokens: int
    documents: float
    tokens: float
    tokens_low: float
    tokens_high: float
    speed: float
    speed_low: float
    speed_high: float
    encode_speed: float
    hours: float
    hours_low: float
    hours_high: float
    table: tuple[dict[str, Any], ...]
    assumed: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For a reader."""
        lines = [
            f"{self.files:,} files, {self.bytes / 2**30:.3g} GiB stored; sample: {self.sampled_rows:,} rows of {self.sampled_files} files",
            f"about {self.documents:.3g} documents, {self.tokens:.3g} tokens ({self.tokens_low:.3g} to {self.tokens_high:.3g})",
            f"this machine: {self.speed:,.0f} tokens/s ({self.speed_low:,.0f} to {self.speed_high:,.0f}), "
            f"tokenising {self.encode_speed:,.0f} tokens/s per thread",
            f"hours here: {self.hours:.3g} ({self.hours_low:.3g} to {self.hours_high:.3g})",
        ]
        for row in self.table:
            speed = f"{row['tokens_per_second']:,.0f} tokens/s"
            lines.append(f"{row['name']}: {speed}, {row['hours']:.3g} hours on one, {row['for_one_day']:,} for one day")
        return lines + [f"assumed: {sentence}" for sentence in self.assumed]


@dataclass(frozen=True)
class _Sample:
    """Rows of one file. tokens: per sampled row, int64 [n]. rows_per_byte: rows of the file per stored byte."""

    tokens: NDArray[np.int64]
    rows_per_byte: float

    @property
    def tokens_per_byte(self) -> float:
        return float(self.tokens.mean()) * self.rows_per_byte


def estimate_cost(
    inputs: Sequence[str],
    scorer: DocumentScorer,
    options: ScoreOptions | None = None,
    rows: int = SAMPLE_ROWS,
    seed: int = 0,
    machines: Sequence[Machine] = (),
) -> Estimate:
    """What scoring a corpus will cost: count, measure, compute; nothing is written.

    Rows are drawn from the first `LOOK` rows of at most `FILES` files, which are drawn with chances in proportion to their size.

    Args:
        inputs: Files, folders, globs or URLs.
        scorer: Is measured.
        options: How files are read; None: `ScoreOptions()`.
        rows: About how many are in the sample, at least 2.
        seed: Which files and rows.
        machines: Other machines to estimate for.

    Raises:
        HeadwiseError: If there is no input, or if no sampled row can be scored.
    """
    if rows < 2:
        raise HeadwiseError(f"a sample needs at least 2 rows; got {rows}")
    options = options or ScoreOptions()
    found = find_inputs(inputs)
    check_columns(found, found.files, options)
    draw, size = np.random.default_rng(seed), sum(file.size for file in found.files)
    places, shares = _chosen(found.files, draw)
    samples, encoded, seconds = _look_at(found, options, scorer, places, rows, draw)
    if not (count := sum(len(document.ids) for document in encoded)):
        raise HeadwiseError(f"none of the {len(encoded)} sampled rows has a text that can be scored")
    drawn = [samples[place] for place in places]
    low, high = (size * float(q) for q in np.quantile(_bootstrap(drawn, shares, len(found.files) > FILES, draw), (0.025, 0.975)))
    tokens = size * sum(share * sample.tokens_per_byte for share, sample in zip(shares, drawn, strict=True))
    speed, speeds = _speeds(scorer, encoded)
    encode = count / max(seconds, 1e-9)
    slowest, usual, fastest = (min(value, encode * options.workers) for value in (min(speeds), speed, max(speeds)))
    return Estimate(
        files=len(found.files),
        bytes=size,
        sampled_files=len(samples),
        sampled_rows=len(encoded),
        sampled_tokens=count,
        documents=size * sum(share * sample.rows_per_byte for share, sample in zip(shares, drawn, strict=True)),
        tokens=tokens,
        tokens_low=low,
        tokens_high=high,
        speed=speed,
        speed_low=min(speeds),
        speed_high=max(speeds),
        encode_speed=encode,
        hours=tokens / usual / 3600,
        hours_low=low / fastest / 3600,
        hours_high=high / slowest / 3600,
        table=tuple(_row(machine, tokens) for machine in machines),
        assumed=_assumed(len(samples), len(found.files), options, machines),
    )


def _look_at(
    found: Inputs, options: ScoreOptions, scorer: DocumentScorer, places: Sequence[int], rows: int, draw: np.random.Generator
) -> tuple[dict[int, _Sample], list[Encoded], float]:
    """(number of a file -> its sample, all sampled documents, seconds of tokenising them)."""
    samples, encoded, seconds = dict[int, _Sample](), list[Encoded](), 0.0
    for place in sorted(set(places)):
        texts, rows_per_byte = _some_rows(found, found.files[place], options, -(-rows // len(set(places))), draw)
        started = time.perf_counter()
        documents = scorer.encode(texts)
        seconds += time.perf_counter() - started
        counts = [len(document.ids) for document in documents]
        samples[place] = _Sample(np.array(counts or [0], np.int64), rows_per_byte)
        encoded += documents
    return samples, encoded, seconds


def _chosen(files: Sequence[InputFile], draw: np.random.Generator) -> tuple[list[int], list[float]]:
    """(numbers of the files looked at, the share of all bytes that each stands for). A large file may be drawn twice; it counts twice then."""
    sizes = np.array([file.size for file in files], np.float64)
    shares = sizes / sizes.sum() if sizes.sum() else np.full(len(files), 1 / len(files))
    if len(files) <= FILES:
        return list(range(len(files))), shares.tolist()
    return draw.choice(len(files), FILES, p=shares).tolist(), [1 / FILES] * FILES


def _some_rows(
    inputs: Inputs, file: InputFile, options: ScoreOptions, count: int, draw: np.random.Generator
) -> tuple[list[str | None], float]:
    """(`count` texts from the first rows of a file, rows of the file per stored byte). Nothing of a file that cannot be read."""
    reader = Reader(inputs.filesystem, file, options)
    texts, size = list[str | None](), 0
    position, rows, share = (
        0.0,
        0,
        0.0,
    )  # `rows` rows were in the first `share` of the file: known exactly when a new block of it begins
    look = max(LOOK, count)
    with contextlib.suppress(UnreadableError), contextlib.closing(reader.rows()) as source:
        for row in source:
            if reader.position != position:
                rows, share, position = len(texts), position, reader.position
                if rows >= look or size > LOOK_BYTES:
                    break
            texts.append(row.text)
            size += row.size
        else:
            rows, share = len(texts), 1.0
    kept = draw.permutation(len(texts))[:count]
    return [texts[index] for index in sorted(kept.tolist())], rows / max(share * file.size, 1)


def _bootstrap(
    samples: Sequence[_Sample], shares: Sequence[float], draw_files: bool, draw: np.random.Generator
) -> NDArray[np.float64]:
    """Tokens per byte in `DRAWS` resamples, [draws]: rows within files, and the files themselves if they are a sample."""
    rows = np.empty((DRAWS, len(samples)))
    for column, sample in enumerate(samples):
        counts = len(sample.tokens)
        rows[:, column] = sample.tokens[draw.integers(0, counts, (DRAWS, counts))].mean(1) * sample.rows_per_byte
    if draw_files:
        rows = np.take_along_axis(rows, draw.integers(0, len(samples), rows.shape), axis=1)
    return np.asarray(rows @ np.asarray(shares))


def _speeds(scorer: DocumentScorer, documents: Sequence[Encoded]) -> tuple[float, list[float]]:
    """(tokens/s of all documents, of each part): `PARTS` calls of `score`, after one that is not counted."""
    usable = [document for document in documents if document.reason is None]
    usable = usable or list(documents)
    parts = [usable[start::PARTS] for start in range(min(PARTS, len(usable)))]
    scorer.score(parts[0])
    seconds = []
    for part in parts:
        started = time.perf_counter()
        scorer.score(part)
        seconds.append(max(time.perf_counter() - started, 1e-9))
    tokens = [sum(len(document.ids) for document in part) for part in parts]
    return max(sum(tokens), 1) / sum(seconds), [max(count, 1) / spent for count, spent in zip(tokens, seconds, strict=True)]


def _row(machine: Machine, tokens: float) -> dict[str, Any]:
    hours = tokens / machine.speed / 3600
    return {
        "name": machine.name,
        "tokens_per_second": machine.speed,
        "hours": hours,
        "for_one_day": max(1, math.ceil(hours / 24)),
    }


def _assumed(sampled: int, files: int, options: ScoreOptions, machines: Sequence[Machine]) -> tuple[str, ...]:
    which = "all files were looked at" if files == sampled else f"{sampled} of {files:,} files stand for all"
    sentences = [
        f"{which}, and the first {LOOK:,} rows of each for the rest of it",
        f"{options.workers} tokenising threads speed up in proportion and run beside the scorer; hours follow the slower of the two",
        "one process with nothing else on the machine, and input that arrives as fast as it is scored",
        "calls of the scorer as small as the sample's parts; larger chunks may be faster",
    ]
    if machines:
        sentences.append("speeds of other machines as given, all of it used, files spread evenly over them")
    return tuple(sentences)
