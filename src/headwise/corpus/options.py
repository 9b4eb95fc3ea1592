"""How a corpus is read, scored and chosen from, and what came out."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeAlias

from headwise.heads.errors import HeadwiseError

if TYPE_CHECKING:
    from headwise.corpus.documents import DocumentScorer

ScorerFactory: TypeAlias = "Callable[[], DocumentScorer]"
SCHEMA = 1  # version of the score table's columns and of how a file is cut into chunks
DOMAINS = ("none", "folder", "file")
RANKS = ("score", "random", "longest", "perplexity")
UNITS = ("docs", "tokens")
SAMPLE_ROWS = 256  # of an estimate
NAMED = 5  # documents that a report shows per domain and kind
MOST_GROUPS = 256  # domains times strata: a group's histogram takes 1 MiB


@dataclass(frozen=True)
class ScoreOptions:
    """How files are read and shared out. All but the last four fields could change a result and are part of the config hash.

    Attributes:
        text_column: Field of a row with its text; `a.b` is the field b inside the field a.
        domain_column: Field with its domain, a text or an integer.
        domain_from: Without a domain column, the domain is the `folder` a file lies in (relative to the input), the name of its `file`, or
            `none`.
        id_column: Field with its id, a text or an integer.
        chunk_rows: The most rows that one call of `score` gets. A file is always cut the same way, whoever scores it.
        chunk_bytes: The most bytes of text that one call gets (one longer text is a chunk of its own).
        workers: Threads that tokenise; about twice as many chunks are held in memory.
        shard: (i, n), i from 0: this process takes the i-th of n parts of the files.
        stale_seconds: After so long without a sign of life a claim is taken over.
        claim: Mark the files being scored, so that processes sharing an output folder do not score one twice; only in local folders (or
            mounted ones).
    """

    text_column: str = "text"
    domain_column: str | None = None
    domain_from: str = "none"
    id_column: str | None = None
    chunk_rows: int = 1024
    chunk_bytes: int = 16 << 20
    workers: int = field(default_factory=lambda: min(4, os.cpu_count() or 1))
    shard: tuple[int, int] = (0, 1)
    stale_seconds: float = 120.0
    claim: bool = True

    def __post_init__(self) -> None:
        if self.domain_from not in DOMAINS:
            raise HeadwiseError(f"unknown source of domains {self.domain_from!r}; choose one of {', '.join(DOMAINS)}")
        if self.domain_column is not None and self.domain_from != "none":
            raise HeadwiseError(
                f"the domain comes from column {self.domain_column!r} or from the {self.domain_from}, not from both"
            )
        for name in ("chunk_rows", "chunk_bytes", "workers"):
            if getattr(self, name) < 1:
                raise HeadwiseError(f"{name} must be at least 1; got {getattr(self, name)}")
        index, count = self.shard
        if not 0 <= index < count:
            raise HeadwiseError(f"a shard is i/n with i from 0 to n - 1; got {index}/{count}")
        if not self.stale_seconds >= 1:
            raise HeadwiseError(f"stale_seconds must be at least 1; got {self.stale_seconds:g}")


@dataclass(frozen=True)
class RayOptions:
    """What each actor gets.

    Attributes:
        actors: (least, most) at a time.
        cpus: Cores per actor, for its model and `ScoreOptions.workers` threads.
        gpus: GPUs per actor, may be a fraction.
        retries: How often a file is tried again after its worker died (killed, preempted, out of memory).
    """

    actors: tuple[int, int] = (1, 1)
    cpus: float = 1.0
    gpus: float = 0.0
    retries: int = 3

    def __post_init__(self) -> None:
        least, most = self.actors
        if not 1 <= least <= most:
            raise HeadwiseError(f"the numbers of actors must be at least 1 and in order; got {least} to {most}")
        if self.cpus < 0 or self.gpus < 0 or self.retries < 0:
            raise HeadwiseError(f"cpus, gpus and retries must be 0 or more; got {self.cpus:g}, {self.gpus:g} and {self.retries}")


def parse_shard(text: str) -> tuple[int, int]:
    """`"3/64"` -> (3, 64).

    Raises:
        HeadwiseError: For anything else, or if not 0 <= i < n.
    """
    index, slash, count = text.partition("/")
    digits = index.isdecimal() and count.isdecimal() and len(text) <= 40
    if not (slash and digits and int(index) < int(count)):
        raise HeadwiseError(f"a shard is i/n with i from 0 to n - 1; got {text!r}")
    return int(index), int(count)


@dataclass(frozen=True)
class ChoiceOptions:
    """What is chosen.

    Attributes:
        share: Of each domain, in (0, 1].
        by: The share is one of `docs` (Hua et al. 2025, sec. 3) or of `tokens`: documents from the top until their tokens reach it.
        rank: What is taken first: `score` (the highest), and three controls: `random`, `longest`, `perplexity` (the lowest loss_base).
        strata: Within each domain so many strata of n_tokens with a cut of their own, about equally many documents in each.
        min_loss: Documents with a lower loss_base (nats) are not ranked.
        flagged: Whether flagged documents with a score are ranked.
        seed: Of the random order and of ties, in [0, 2^63).
    """

    share: float = 0.2
    by: str = "docs"
    rank: str = "score"
    strata: int = 1
    min_loss: float = 0.0
    flagged: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise HeadwiseError(f"the share must lie in (0, 1]; got {self.share:g}")
        if self.by not in UNITS:
            raise HeadwiseError(f"unknown unit {self.by!r}; a share is of {' or '.join(UNITS)}")
        if self.rank not in RANKS:
            raise HeadwiseError(f"unknown ranking {self.rank!r}; choose one of {', '.join(RANKS)}")
        if not 1 <= self.strata <= MOST_GROUPS:
            raise HeadwiseError(f"the number of length strata must lie in 1 to {MOST_GROUPS}; got {self.strata}")
        if not 0 <= self.min_loss < float("inf"):
            raise HeadwiseError(f"--min-loss must be 0 or more nats; got {self.min_loss:g}")
        if not 0 <= self.seed < 2**63:
            raise HeadwiseError(f"the seed must lie in 0 to 2^63 - 1; got {self.seed}")

    @classmethod
    def from_json(cls, data: object, where: str) -> ChoiceOptions:
        """Options as a manifest holds them, checked.

        Args:
            data: All options by name, none missing.
            where: The file that they come from, for the message.

        Raises:
            HeadwiseError: For missing, unknown or wrong ones, naming `where`.
        """
        known = {one.name: type(one.default) for one in fields(cls) if one.default is not MISSING}
        if not isinstance(data, dict) or set(data) != set(known):
            raise HeadwiseError(f"{where} does not hold the options of a choice; choose again")
        for name, kind in known.items():
            allowed = (int, float) if kind is float else (kind,)
            if not isinstance(data[name], allowed) or (isinstance(data[name], bool) and kind is not bool):
                raise HeadwiseError(f"{where} holds a wrong option ({name} must be of type {kind.__name__}); choose again")
        try:
            return cls(**data)
        except (HeadwiseError, OverflowError) as error:
            raise HeadwiseError(f"{where} holds a wrong option ({error}); choose again") from error

    def to_json(self) -> dict[str, Any]:
        """All options as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Config:
    """Everything that could change a score.

    Attributes:
        data: It, as JSON data.
        hash: Of the data; results with another hash never mix.
    """

    data: dict[str, Any]
    hash: str

    @classmethod
    def of(cls, scorer: Mapping[str, Any], options: ScoreOptions) -> Config:
        """From a scorer's description and the options that matter for the result.

        Args:
            scorer: `DocumentScorer.description`.
            options: Those that only share out the work (workers, shard, claims) are left out: they do not change a score.

        Raises:
            HeadwiseError: If the description is no JSON data.
        """
        kept = asdict(options)
        for name in ("workers", "shard", "stale_seconds", "claim"):
            del kept[name]
        try:
            text = json.dumps({"schema": SCHEMA, "reading": kept, "scorer": dict(scorer)}, sort_keys=True)
        except TypeError as error:
            raise HeadwiseError(f"the scorer's description must be JSON data: {error}") from error
        return cls(json.loads(text), hashlib.sha256(text.encode()).hexdigest()[:16])


@dataclass
class Summary:
    """What one call of `score_files` did. All counts but `files_done_before` and `files_elsewhere` are of this call alone.

    Attributes:
        files_scored: Finished ones, damaged ones included.
        files_done_before: Had a matching done record.
        files_elsewhere: Claimed, or finished meanwhile, by other processes.
        rows: `scored` and all `rejected` ones.
        scored: Rows with a score.
        flagged: Rows with a score that are not to be ranked.
        tokens: Of scored rows.
        rejected: Reason -> rows without a score.
        damaged: Name -> reason, of finished files that could be read in part or not at all; they are tried again when they change.
        unreadable: Name -> reason, of files whose bytes could not be had (network, rights); without a done record, so the next run tries
            them again.
        seconds: Wall time.
        scoring_seconds: In the scoring step; with Ray, summed over workers.
        waiting_seconds: The scoring step stood still because tokens were not ready; with Ray, summed over workers.
    """

    files_scored: int = 0
    files_done_before: int = 0
    files_elsewhere: int = 0
    rows: int = 0
    scored: int = 0
    flagged: int = 0
    tokens: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    damaged: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    scoring_seconds: float = 0.0
    waiting_seconds: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether every file of this shard is finished."""
        return not self.unreadable and not self.files_elsewhere

    def add(self, record: Mapping[str, Any]) -> None:
        """Count a file that was just finished, from its done record."""
        self.files_scored += 1
        for name in ("rows", "scored", "flagged", "tokens"):
            setattr(self, name, getattr(self, name) + record[name])
        for reason, count in record["rejected"].items():
            self.rejected[reason] = self.rejected.get(reason, 0) + count
        if record["damaged"]:
            self.damaged[record["name"]] = record["damaged"]

    def merge(self, other: Mapping[str, Any]) -> None:
        """Count what another process did, from its `to_json`; wall time is not added."""
        counts = ("files_scored", "files_done_before", "files_elsewhere", "rows", "scored", "flagged", "tokens")
        for name in (*counts, "scoring_seconds", "waiting_seconds"):
            setattr(self, name, getattr(self, name) + other[name])
        for reason, count in other["rejected"].items():
            self.rejected[reason] = self.rejected.get(reason, 0) + count
        self.damaged.update(other["damaged"])
        self.unreadable.update(other["unreadable"])

    def to_json(self) -> dict[str, Any]:
        """Plain data, reasons in order of their names."""
        return {**asdict(self), "rejected": dict(sorted(self.rejected.items())), "complete": self.complete}

    def lines(self) -> list[str]:
        """The exit summary for a reader, one fact per line."""
        lines = [f"{self.files_scored} files scored, {self.rows:,} rows: {self.scored:,} with a score ({self.flagged:,} flagged)"]
        lines += [f"{count:,} rows without a score: {reason}" for reason, count in sorted(self.rejected.items())]
        if self.files_done_before:
            lines.append(f"{self.files_done_before} files were done before")
        if self.files_elsewhere:
            lines.append(f"{self.files_elsewhere} files were left to other processes")
        lines += [f"damaged: {name}: {reason}" for name, reason in sorted(self.damaged.items())]
        lines += [f"not read, run again: {name}: {reason}" for name, reason in sorted(self.unreadable.items())]
        return lines
