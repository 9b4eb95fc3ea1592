"""Which unfaithful answers are kept: readable ones that are unfaithful, and as long and as likely as the references.

A model that could tell the two kinds apart by length or fluency would learn those, and not faithfulness.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from headwise.heads.errors import HeadwiseError
from headwise.methods.rhio.options import MATCHED, UnfaithfulOptions
from headwise.prompts.grounded import GroundedRecord
from headwise.stats.metrics import units

EMPTY, TRUNCATED, REPETITIVE, FAITHFUL = "empty", "truncated", "repetitive", "faithful all the same"
UNREADABLE = "no text that can follow the prompt"
ADVICE = {
    EMPTY: "take away fewer heads",
    TRUNCATED: "allow more new tokens",
    REPETITIVE: "take away fewer heads",
    FAITHFUL: "take away more heads",
    UNREADABLE: "take away fewer heads",
}
UNLIKE = {"tokens": "another length than the references", "loss": "another loss than the references"}


class Said(NamedTuple):
    """One answer.

    Attributes:
        text: Without outer white space.
        support: Mean support of its sentences by the documents, in [0, 1]; 0 without sentences.
        tokens: Its length; 0 where it cannot be encoded behind the prompt.
        loss: Mean negative log-probability per token under the model with all its heads, in nats.
        ended: Whether it ended by itself.
    """

    text: str
    support: float
    tokens: int
    loss: float
    ended: bool = True


@dataclass(frozen=True)
class Pair:
    """A question with a faithful and an unfaithful answer.

    Attributes:
        record: The question and its documents; its first reference is the faithful answer.
        faithful: The reference.
        unfaithful: Of the model without heads, or of another record.
    """

    record: GroundedRecord
    faithful: Said
    unfaithful: Said


@dataclass(frozen=True)
class Kept:
    """What the filters left.

    Attributes:
        pairs: In the order of the data.
        counts: Reason -> pairs that were dropped for it.
        table: `references`, `before` (unfaithful answers that are read as text), `after` (those that are kept) -> `answers`, and means of `tokens`,
            `loss` (nats per token) and `support`.
        ranges: `tokens` and `loss` -> lowest and highest value that was kept.
    """

    pairs: tuple[Pair, ...]
    counts: Mapping[str, int]
    table: Mapping[str, Mapping[str, float]]
    ranges: Mapping[str, tuple[float, float]]


def distinct_share(text: str, n: int = 3) -> float:
    """Share of distinct ones among the n-grams of words of a text, in (0, 1]; 1 for a text of fewer than n words."""
    words = units(text)
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


def unreadable(said: Said, options: UnfaithfulOptions) -> str:
    """Why an unfaithful answer is no text to learn from; empty if it is one.

    Args:
        said: The answer.
        options: `least_distinct`.
    """
    if not said.text:
        return EMPTY
    if not said.ended:
        return TRUNCATED
    if distinct_share(said.text) < options.least_distinct:
        return REPETITIVE
    return "" if said.tokens else UNREADABLE


def kept_pairs(pairs: Sequence[Pair], options: UnfaithfulOptions) -> Kept:
    """The pairs to learn from.

    First answers that are no text are dropped, then those that are faithful all the same, then those whose length in tokens or loss per token lies
    outside of the central part of the references' (between the quantiles (1 - c) / 2 and (1 + c) / 2, both included).

    Args:
        pairs: At least one.
        options: Bounds.

    Raises:
        HeadwiseError: Nothing is left, or the references' mean support is not `least_gap` above that of the unfaithful answers: of all that are
            texts, because a model that hardly changes without its heads has no unfaithful self, and of those that are kept.
    """
    why = [unreadable(pair.unfaithful, options) for pair in pairs]
    texts = [pair for pair, reason in zip(pairs, why, strict=True) if not reason]
    counts = Counter(reason for reason in why if reason)
    if texts:
        check_gap(texts, options.least_gap, "all unfaithful answers")
    wrong = [pair for pair in texts if pair.unfaithful.support < options.most_support]
    counts[FAITHFUL] = len(texts) - len(wrong)
    ranges = {name: _central([getattr(pair.faithful, name) for pair in pairs], options.central) for name in UNLIKE}
    kept = []
    for pair in wrong:
        unlike = [name for name in MATCHED[options.match] if not ranges[name][0] <= getattr(pair.unfaithful, name) <= ranges[name][1]]
        counts[UNLIKE[unlike[0]] if unlike else ""] += 1
        kept += [] if unlike else [pair]
    told = {reason: count for reason, count in counts.items() if reason and count}
    if not kept:
        why_none = ", ".join(f"{reason}: {count}" for reason, count in told.items())
        advice = ADVICE.get(max(told, key=lambda reason: told[reason]), "match less closely")
        raise HeadwiseError(f"none of {len(pairs)} unfaithful answers is left ({why_none}); {advice}")
    check_gap(kept, options.least_gap, "the unfaithful answers that are kept")
    sides = {
        "references": [pair.faithful for pair in pairs],
        "before": [pair.unfaithful for pair in texts],
        "after": [pair.unfaithful for pair in kept],
    }
    return Kept(tuple(kept), told, {name: _means(said) for name, said in sides.items()}, ranges)


def check_gap(pairs: Sequence[Pair], least: float, which: str) -> None:
    """Refuse pairs whose sides are about equally faithful.

    Args:
        pairs: At least one.
        least: Smallest difference of mean supports.
        which: What a message calls the unfaithful side.

    Raises:
        HeadwiseError: The difference is smaller.
    """
    faithful, unfaithful = (float(np.mean([getattr(pair, side).support for pair in pairs])) for side in ("faithful", "unfaithful"))
    if round(faithful - unfaithful, 9) < least:  # 0.5 - 0.4 is a little less than 0.1 in binary
        raise HeadwiseError(
            f"the mean support of the references is {faithful:.1%} and that of {which} {unfaithful:.1%}: a gap under {100 * least:g} points teaches "
            "nothing; take away more or other heads, or use a better checker"
        )


def _central(values: Sequence[float], share: float) -> tuple[float, float]:
    low, high = np.quantile(np.asarray(values, dtype=np.float64), [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def _means(said: Sequence[Said]) -> dict[str, float]:
    means = {name: float(np.mean([getattr(one, name) for one in said])) for name in ("tokens", "loss", "support")}
    return {"answers": len(said), **means}
