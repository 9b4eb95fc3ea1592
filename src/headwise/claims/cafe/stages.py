"""Heads of both stages of CAFE, and which passages they choose, from tables of what every head pays to every passage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from headwise.claims.experiment import NotTestable
from headwise.heads import HeadScores, HeadSet
from headwise.methods.cafe.evidence import evidence_scores, second_stage
from headwise.methods.cafe.formula import ascending, passage_shares, relevance, votes
from headwise.prompts.passages import RankingExample
from headwise.runtime.passage_table import PassageTable

Values = np.ndarray


def shares_of(table: PassageTable) -> Iterator[Values]:
    """[L, H, P] of each question: shares of a head's attention to all passages."""
    for raw, present, lengths in zip(table.raw, table.present, table.lengths, strict=True):
        yield passage_shares(np.nan_to_num(raw[..., present]).astype(np.float64), lengths[present])


def pick(shares: Values, heads: HeadSet) -> Values:
    """[K, P]: shares of K heads, in the order of layer and head."""
    return np.stack([shares[head] for head in sorted(heads)])


def strongest(gamma: Values, count: int) -> list[int]:
    """The passages with the largest values, of equal ones the first, in ascending order."""
    return sorted(int(i) for i in np.argsort(-gamma, kind="stable")[:count])


def recalled(kept: Iterable[int], gold: Values) -> float:
    """Share of the gold passages among those that are kept; gold: [P] bool."""
    wanted = set(np.flatnonzero(gold).tolist())
    return len({int(i) for i in kept} & wanted) / len(wanted)


def part(table: PassageTable, start: int, stop: int) -> PassageTable:
    """Some of a table's questions."""
    rows = {key: getattr(table, key)[start:stop] for key in ("raw", "calibrated", "gold", "lengths")}
    return replace(table, **rows)


@dataclass(frozen=True)
class Counts:
    """How many heads vote, and how often.

    Attributes:
        coarse: Heads of the coarse stage (the paper's K1).
        fine: Heads of the fine stage (K2).
        m1: Votes of a coarse head.
        m2: Votes of a fine head.
    """

    coarse: int = 4
    fine: int = 2
    m1: int = 2
    m2: int = 1


@dataclass(frozen=True)
class Stages:
    """Heads of both stages.

    Attributes:
        counts: How many.
        scores: Evidence scores that the coarse heads were chosen by.
        coarse: Heads of the coarse stage.
        fine: Heads of the fine stage.
    """

    counts: Counts
    scores: HeadScores
    coarse: HeadSet
    fine: HeadSet

    def kept(self, shares: Values, heads: HeadSet | None = None) -> list[int]:
        """What the coarse heads (or others) keep of a question's passages, the most relevant last; shares: [L, H, P]."""
        return keep(shares, self.coarse if heads is None else heads, self.counts.m1)

    def candidates(self, beta: Values) -> tuple[int, ...]:
        """What the fine heads vote for; beta: [K, P], their shares."""
        return tuple(int(i) for i in votes(beta, self.counts.m2))


def keep(shares: Values, heads: HeadSet, most: int) -> list[int]:
    """Union of the votes of some heads, the most relevant last.

    Args:
        shares: [L, H, P].
        heads: That vote.
        most: Votes of each.
    """
    chosen = pick(shares, heads)
    return ascending(votes(chosen, most), relevance(chosen))


def coarse_heads(table: PassageTable, counts: Counts) -> tuple[HeadScores, HeadSet]:
    """Evidence scores and the best heads by them.

    Raises:
        NotTestable: The model has too few heads that look at passages to compare them with others.
    """
    scores = evidence_scores(table)
    if (scored := int((~np.isnan(scores.values)).sum())) < 2 * counts.coarse:
        raise NotTestable(f"needs at least {2 * counts.coarse} heads that look at passages; this model has {scored}")
    return scores, scores.top(counts.coarse)


def fine_examples(examples: list[RankingExample], table: PassageTable, coarse: HeadSet, counts: Counts) -> list[RankingExample]:
    """What the coarse heads keep of labelled questions, where it holds both gold and other passages.

    Raises:
        NotTestable: No question is left.
    """
    kept = [keep(shares, coarse, counts.m1) for shares in shares_of(table)]
    usable = [one for one in second_stage(examples, kept) if 0 < len(one.gold) < len(one.passages)]
    if not usable:
        raise NotTestable("the coarse heads keep gold passages beside others for none of the labelled questions, so no fine heads can be found")
    return usable
