"""Where each domain is cut: an exact share of its documents or tokens, found by streaming over the score files a few times.

Nothing is sorted and nothing grows with the corpus: a reading adds to one histogram per domain and length stratum (`maths/quantiles.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwise.corpus.arrow import pc
from headwise.corpus.options import MOST_GROUPS, ChoiceOptions
from headwise.corpus.quantiles import BINS, TopCuts, images_of, tie_numbers, value_of
from headwise.corpus.tables import ScoreFiles
from headwise.heads.errors import HeadwiseError
from headwise.heads.progress import Report, silent

COLUMNS = ["row", "domain", "loss_base", "score", "n_tokens", "flagged"]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Keys:
    """A piece of a score file, ready to be counted; all arrays are [n].

    Attributes:
        domains: Numbers of the domains.
        ranked: Whether the document takes part.
        images: First part of its key; the largest comes first.
        ties: Second part of its key.
        tokens: Of the document.
    """

    domains: Ints
    ranked: NDArray[np.bool_]
    images: NDArray[np.uint32]
    ties: NDArray[np.uint64]
    tokens: Ints


class Domains:
    """Numbers of domain names, given in the order of their first appearance; a document without a domain has the name "".

    Attributes:
        names: Name -> number, from 0.
    """

    def __init__(self) -> None:
        self.names: dict[str, int] = {}

    def numbers(self, column: Any, new: bool) -> Ints:
        """Numbers of an arrow column of names.

        Args:
            column: Of n names.
            new: Unknown names get a number (else they are a `KeyError`).

        Returns:
            [n] int64.

        Raises:
            HeadwiseError: For more than `MOST_GROUPS` domains.
        """
        coded = pc.dictionary_encode(pc.fill_null(column.cast("string"), ""))
        found = [self._number(name, new) for name in coded.dictionary.to_pylist()]
        codes: Ints = np.asarray(found, dtype=np.int64)[coded.indices.to_numpy(zero_copy_only=False)]
        return codes

    def _number(self, name: str, new: bool) -> int:
        if new and name not in self.names:
            if len(self.names) >= MOST_GROUPS:
                raise HeadwiseError(
                    f"more than {MOST_GROUPS} domains; name a column with a few kinds of text (--domain), or none"
                )
            self.names[name] = len(self.names)
        return self.names[name]


def keys_of(batch: Any, name: str, domains: Domains, options: ChoiceOptions, new: bool = False) -> Keys:
    """Keys of the documents of one batch. Documents without a score are never ranked, whatever the ranking.

    Args:
        batch: Of `ScoreFiles.read`.
        name: Of the score file; ties depend on it.
        domains: Grows if `new`.
        options: What is ranked, and how.
        new: Whether unknown domains get a number.

    Raises:
        HeadwiseError: For more than `MOST_GROUPS` domains.
    """
    loss, score = floats(batch, "loss_base"), floats(batch, "score")
    tokens, rows = whole_numbers(batch, "n_tokens"), whole_numbers(batch, "row")
    ranked = np.isfinite(score) & np.isfinite(loss) & (loss >= options.min_loss)
    if not options.flagged:
        ranked &= ~batch.column("flagged").fill_null(True).to_numpy(zero_copy_only=False).astype(bool)
    if options.rank == "longest":
        images = tokens.astype(np.uint32)
    elif options.rank == "random":
        images = np.zeros(len(rows), dtype=np.uint32)  # the ties decide
    else:
        value = score if options.rank == "score" else -loss
        images = images_of(np.where(ranked, value, 0))
    return Keys(domains.numbers(batch.column("domain"), new), ranked, images, tie_numbers(name, rows, options.seed), tokens)


def floats(batch: Any, column: str) -> NDArray[np.float32]:
    """A column as float32, null as NaN."""
    values: NDArray[np.float32] = batch.column(column).to_numpy(zero_copy_only=False).astype(np.float32)
    return values


def whole_numbers(batch: Any, column: str) -> Ints:
    """A column as int64, null as 0."""
    values: Ints = batch.column(column).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    return values


COUNTS = ("documents", "ranked", "chosen", "tokens", "ranked_tokens", "chosen_tokens")


class Counts:
    """Documents and tokens per group.

    Args:
        groups: How many.

    Attributes:
        values: `COUNTS` -> [group] int64: of all documents, of those that are ranked, of the chosen ones.
    """

    def __init__(self, groups: int) -> None:
        self.values = {name: np.zeros(groups, dtype=np.int64) for name in COUNTS}

    def add(self, keys: Keys, groups: NDArray[np.int64], chosen: NDArray[np.bool_]) -> None:
        """Count one piece of n documents.

        Args:
            keys: Of the documents.
            groups: [n] group of each.
            chosen: [n] whether it is chosen.
        """
        everything = np.ones(len(groups), dtype=bool)
        for kind, where in (("", everything), ("ranked", keys.ranked), ("chosen", chosen)):
            np.add.at(self.values[kind or "documents"], groups[where], 1)
            np.add.at(self.values[f"{kind}_tokens" if kind else "tokens"], groups[where], keys.tokens[where])


@dataclass(frozen=True)
class Thresholds:
    """The cuts of a choice.

    Attributes:
        options: What is chosen.
        domains: Names and numbers of the domains.
        edges: [domain, strata - 1] length codes, ascending: the largest of each stratum but the last.
        cuts: The lowest key that is taken, per group.
        readings: How often the score files were read.
    """

    options: ChoiceOptions
    domains: Domains
    edges: Ints
    cuts: TopCuts
    readings: int

    def groups(self, keys: Keys) -> Ints:
        """[n] number of the domain's stratum."""
        return _groups(keys, self.edges)

    def takes(self, keys: Keys) -> NDArray[np.bool_]:
        """[n] whether a document is chosen."""
        return keys.ranked & self.cuts.takes(self.groups(keys), keys.images, keys.ties)

    def value(self, group: int) -> float | None:
        """The lowest value that is chosen, in the unit of the ranking; None for a random one, or if nothing is chosen."""
        image = self.cuts.image(group)
        if image is None or self.options.rank == "random":
            return None
        if self.options.rank == "longest":
            return float(image)
        return -value_of(image) if self.options.rank == "perplexity" else value_of(image)

    def longest(self, domain: int, stratum: int) -> int | None:
        """Tokens of the longest document that belongs to a length stratum.

        Args:
            domain: Number of the domain.
            stratum: From 0, the shortest.

        Returns:
            None for the last stratum, which has no end.
        """
        if stratum >= self.edges.shape[1]:
            return None
        return int(value_of((int(self.edges[domain, stratum]) << 16) | 0xFFFF))


def find_thresholds(files: ScoreFiles, options: ChoiceOptions, report: Report = silent) -> Thresholds:
    """Read the score files three times (domains and lengths, then two digits of the scores), more often only to break ties.

    Args:
        files: The scores.
        options: What is chosen.
        report: Told the rows of each reading.

    Returns:
        The exact cut of every domain and length stratum.

    Raises:
        HeadwiseError: If no document can be ranked, or for too many domains.
    """
    domains, lengths, ranked = Domains(), dict[int, Ints](), 0
    for keys in _pieces(files, domains, options, "domains", report, new=True):
        ranked += int(keys.ranked.sum())
        for domain in np.unique(keys.domains[keys.ranked]) if options.strata > 1 else ():
            codes = length_codes(keys.tokens[keys.ranked & (keys.domains == domain)])
            lengths[domain] = lengths.get(domain, np.zeros(BINS, dtype=np.int64)) + np.bincount(codes, minlength=BINS)
    if not ranked:
        raise HeadwiseError(
            f"no document of {files.out.location} can be ranked: all are flagged, have no score, or lie below --min-loss"
        )
    if len(domains.names) * options.strata > MOST_GROUPS:
        raise HeadwiseError(
            f"{len(domains.names)} domains x {options.strata} strata are more than {MOST_GROUPS}; use fewer strata"
        )
    edges = np.stack([_edges(lengths.get(i), options.strata) for i in range(len(domains.names))])
    cuts, readings = TopCuts(len(domains.names) * options.strata), 1
    while not cuts.done:
        histogram = cuts.histogram()
        for keys in _pieces(files, domains, options, "scores" if readings < 3 else "ties", report):
            where = keys.ranked
            weights = keys.tokens[where] if options.by == "tokens" else np.ones(int(where.sum()), dtype=np.int64)
            cuts.count(histogram, _groups(keys, edges)[where], keys.images[where], keys.ties[where], weights)
        cuts.narrow(histogram, np.rint(options.share * histogram[0].sum(axis=1)).astype(np.int64) if readings == 1 else None)
        readings += 1
    return Thresholds(options, domains, edges, cuts, readings)


def length_codes(tokens: Ints) -> Ints:
    """[n] 16-bit codes in the order of the lengths: exact up to 256 tokens, in steps of less than 1 % beyond."""
    codes: Ints = (images_of(tokens.astype(np.float32)) >> np.uint32(16)).astype(np.int64)
    return codes


def _edges(counts: Ints | None, strata: int) -> Ints:
    """[strata - 1] the largest length code of each stratum but the last."""
    if counts is None:
        return np.zeros(strata - 1, dtype=np.int64)
    below = np.cumsum(counts)
    goals = below[-1] * np.arange(1, strata) / strata
    edges: Ints = np.searchsorted(below, goals).astype(np.int64)
    return edges


def _groups(keys: Keys, edges: Ints) -> Ints:
    if not edges.shape[1]:
        return keys.domains
    codes = length_codes(keys.tokens)
    strata = (codes[:, None] > edges[keys.domains]).sum(axis=1)
    groups: Ints = keys.domains * (edges.shape[1] + 1) + strata
    return groups


def _pieces(
    files: ScoreFiles, domains: Domains, options: ChoiceOptions, reading: str, report: Report, new: bool = False
) -> Iterator[Keys]:
    done = 0
    for name, batch in files.batches(COLUMNS):
        yield keys_of(batch, name, domains, options, new)
        done += batch.num_rows
        report(done, files.total, reading)
