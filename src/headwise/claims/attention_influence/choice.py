"""What the choice of a fifth looks like on real documents: how long they are, and whether the lowest loss would choose the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headwise.claims.attention_influence.losses import Array
from headwise.claims.attention_influence.proxy_heads import Found, find_heads
from headwise.claims.attention_influence.real_texts import long_corpus
from headwise.claims.attention_influence.statistics import bootstrap, inside_strata, rounded
from headwise.claims.claim import Finding
from headwise.claims.experiment import Bench, Measured, NotTestable
from headwise.heads import HeadwiseError
from headwise.methods.influence.scorer import AttentionInfluence
from headwise.stats.ranks import spearman

SHARE = 0.2  # of the documents of a domain
STRATA = 5
PIECE = 8  # documents that are kept at once
LEAST = 5  # ranked documents of a domain: its fifth is one


class Domain(NamedTuple):
    """The documents of a domain that can be ranked.

    Attributes:
        scores: [document].
        losses: [document] nats per token.
        tokens: [document].
    """

    scores: Array
    losses: Array
    tokens: NDArray[np.int64]


def scored(bench: Bench, found: Found, texts: Mapping[str, list[str]]) -> dict[str, Domain]:
    """Scores of all documents; of real models' documents only the first window is read."""
    try:
        scorer = AttentionInfluence(bench.model, found.chosen, max_windows=1 if bench.real else None, max_len=_longest(bench))
    except HeadwiseError as error:
        raise NotTestable(f"no losses without heads: {error}") from error
    cells = bench.cells("scores", {"scorer": scorer.description, "seed": bench.seed})
    total, seen = sum(map(len, texts.values())), 0
    out = {}
    for name, documents in texts.items():
        columns = []
        for start in range(0, len(documents), PIECE):
            kept = cells.load(f"{name}-{start}")
            if kept is None:
                rows = scorer.score(scorer.encode(documents[start : start + PIECE]))
                table = np.array([[row.score, row.loss_base, row.n_scored, row.flagged] for row in rows])
                kept = {"table": table}, []
                cells.save(f"{name}-{start}", *kept)
            columns.append(kept[0]["table"])
            seen += len(columns[-1])
            bench.report(seen, total, name)
        table = np.concatenate(columns)
        scores, losses, tokens, _ = table[table[:, 3] == 0].T
        out[name] = Domain(scores, losses, tokens.astype(np.int64))
    return out


def _longest(bench: Bench) -> int:
    """Tokens of a window: at most 2,048, as in the first measurement of this table."""
    return min(2048, bench.model.positions or 2048)


def first_fifth(values: Array) -> NDArray[np.int64]:
    """Places of the fifth with the highest values, at least one."""
    return np.argsort(-values, kind="stable")[: max(1, round(SHARE * len(values)))]


def token_share(domain: Domain, by: str = "scores") -> float:
    """Share of the tokens in the fifth of the documents with the highest scores, or the lowest losses."""
    chosen = first_fifth(domain.scores if by == "scores" else -domain.losses)
    return float(domain.tokens[chosen].sum() / domain.tokens.sum())


def shared_with_loss(domain: Domain) -> float:
    """Share of the fifth with the highest scores that is also in the fifth of the lowest losses."""
    one, other = first_fifth(domain.scores), first_fifth(-domain.losses)
    return len(set(one.tolist()) & set(other.tolist())) / len(one)


def over_domains(domains: Mapping[str, Domain], statistic: Any) -> tuple[float, float, float]:
    """Mean of a statistic over domains, with its interval: documents are drawn again inside each."""

    def mean(at: Mapping[str, NDArray[np.int64]]) -> float:
        drawn = [Domain(one.scores[at[name]], one.losses[at[name]], one.tokens[at[name]]) for name, one in domains.items()]
        return float(np.mean([statistic(one) for one in drawn]))

    return bootstrap(mean, {name: len(domain.scores) for name, domain in domains.items()})


def table(domains: Mapping[str, Domain]) -> dict[str, Any]:
    """What readers see per domain."""
    out = {}
    for name, one in domains.items():
        longest = first_fifth(one.tokens.astype(np.float64))
        chosen = set(first_fifth(one.scores).tolist())
        out[name] = {
            "documents": len(one.scores), "median score": np.median(one.scores),
            "scores, 1 % to 99 %": np.quantile(one.scores, [0.01, 0.99]).tolist(),
            "spearman with length": spearman(one.scores, one.tokens),
            "inside strata of length": inside_strata(one.scores, one.tokens, STRATA),
            "share of tokens": token_share(one), "shared with the lowest losses": shared_with_loss(one),
            "shared with the longest": len(chosen & set(longest.tolist())) / len(chosen),
        }  # fmt: skip
    return out


def measure(bench: Bench) -> Measured:
    """Documents of four domains, whole ones for lab models."""
    found = find_heads(bench)
    whole = 25 if bench.real else 200
    domains = scored(bench, found, long_corpus(bench, bench.pick(whole, 12)))
    few = [name for name, one in domains.items() if len(one.scores) < LEAST]
    if few:
        raise NotTestable(f"fewer than {LEAST} documents of {few[0]} can be ranked by this model")
    longer = {
        "accuracy": found.accuracy, "token_share": over_domains(domains, token_share),
        "by_loss": over_domains(domains, lambda one: token_share(one, "losses")),
    }  # fmt: skip
    other = {"accuracy": found.accuracy, "shared": over_domains(domains, shared_with_loss), "by_chance": SHARE}
    findings = {"influence-choice.longer": Finding(rounded(longer)), "influence-choice.not_the_loss": Finding(rounded(other))}
    return Measured(findings, rounded({"heads": found.told(), "domains": table(domains)}))
