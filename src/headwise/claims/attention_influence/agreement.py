"""Do two models score the same real documents alike? Rank correlations of their scores beside those of their plain losses.

Both models find their heads on the same kind of proxy prompts. Random heads are the control.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headwise.claims.attention_influence.declared import PARTNER
from headwise.claims.attention_influence.losses import Array, KeptLosses, Losses
from headwise.claims.attention_influence.proxy_heads import Found, find_heads
from headwise.claims.attention_influence.real_texts import short_corpus
from headwise.claims.attention_influence.statistics import (
    Interval,
    bootstrap,
    inside_strata,
    removed,
    rounded,
    standard_ranks,
    without_influence_of,
)
from headwise.claims.claim import Finding, Number
from headwise.claims.experiment import Bench, Measured, NotTestable
from headwise.heads import HeadwiseError
from headwise.models.load import load
from headwise.models.model import Model
from headwise.models.names import label
from headwise.stats.controls import layer_matched_random
from headwise.stats.paired import sign_flip_test
from headwise.stats.ranks import spearman

STRATA = 3  # of length, of eight documents each
GROWS = 0.2  # correlation of score and length from which on strata have something to remove
FAMILY = "influence-agreement"
PAIRS = ("scores", "beyond_losses", "above_random")
Groups = NDArray[np.int64]


class Scored(NamedTuple):
    """What one model says about all documents, in order of the domains.

    Attributes:
        found: Its heads.
        losses: Set 0 are the chosen heads, set 1 random ones of the same layers.
    """

    found: Found
    losses: Losses

    @property
    def scores(self) -> Array:
        """[document] by the chosen heads."""
        return np.asarray(self.losses.scores[0])


def scored(bench: Bench, model: Model, texts: dict[str, list[str]], who: str) -> Scored:
    """Losses of one model with its own chosen heads, and with random ones, domain after domain."""
    found = find_heads(bench, model)
    kept, parts = KeptLosses(bench, model, f"{who}-losses"), []
    sets = [found.chosen, layer_matched_random(found.chosen, found.scores, [bench.seed, 0])]
    for number, (name, documents) in enumerate(texts.items()):
        bench.report(number, len(texts), f"{who}, {name}")
        parts.append(kept(sets, documents))
    return Scored(found, Losses(*(np.concatenate(columns, axis=-1) for columns in zip(*parts, strict=True))))


def correlation(a: Array, b: Array, groups: Groups) -> Interval:
    """Spearman's correlation of two lists inside each group, mean over groups, with its 95 % interval; documents are drawn again."""
    places = {str(group): np.flatnonzero(groups == group) for group in np.unique(groups)}
    return bootstrap(
        lambda at: float(np.mean([spearman(a[where[at[name]]], b[where[at[name]]]) for name, where in places.items()])),
        {name: len(where) for name, where in places.items()},
    )


def mean_inside(values: Array, groups: Groups) -> Interval:
    """Mean over documents, drawn again inside each group."""
    places = {str(group): np.flatnonzero(groups == group) for group in np.unique(groups)}
    return bootstrap(
        lambda at: float(np.concatenate([values[where[at[name]]] for name, where in places.items()]).mean()),
        {name: len(where) for name, where in places.items()},
    )


def beyond_losses(one: Scored, two: Scored, groups: Groups) -> Array:
    """[document] products whose mean is the partial rank correlation of scores, given both models' losses and the lengths in both."""
    known = [standard_ranks(x, groups) for model in (one, two) for x in (model.losses.base, model.losses.tokens)]
    left = [without_influence_of(standard_ranks(model.scores, groups), known) for model in (one, two)]
    return np.asarray(left[0] * left[1])


def together(one: Scored, two: Scored, groups: Groups) -> dict[str, Finding]:
    """The three claims about both models."""
    gate: dict[str, Number] = {"accuracy": one.found.accuracy, "partner_accuracy": two.found.accuracy}
    agreed = standard_ranks(one.scores, groups) * standard_ranks(two.scores, groups)
    random = standard_ranks(one.losses.scores[1], groups) * standard_ranks(two.scores, groups)
    beyond = beyond_losses(one, two, groups)
    numbers: dict[str, dict[str, Number]] = {
        "scores": {"correlation": correlation(one.scores, two.scores, groups), "losses": correlation(one.losses.base, two.losses.base, groups)},
        "beyond_losses": {"partial": mean_inside(beyond, groups), "correlation": mean_inside(agreed, groups)},
        "above_random": {"difference": mean_inside(agreed - random, groups), "random": mean_inside(random, groups)},
    }
    tests = {"scores": agreed, "beyond_losses": beyond, "above_random": agreed - random}
    return {f"{FAMILY}.{name}": Finding(rounded(gate | numbers[name]), sign_flip_test(tests[name], "greater")) for name in PAIRS}


def alone(one: Scored, groups: Groups, names: list[str]) -> dict[str, dict[str, Any]]:
    """One model's scores per domain: their size, and how they go with length, loss and the scores of random heads."""
    found = {}
    for i, name in enumerate(names):
        here = groups == i
        scores, loss, tokens, random = (x[here] for x in (one.scores, one.losses.base, one.losses.tokens, one.losses.scores[1]))
        fifth = max(1, len(scores) // 5)
        top = set(np.argsort(-scores, kind="stable")[:fifth].tolist())
        found[name] = {
            "median score": np.median(scores), "least": scores.min(), "most": scores.max(), "median loss": np.median(loss),
            "tokens": [int(tokens.min()), int(np.median(tokens)), int(tokens.max())],
            "spearman with length": spearman(scores, tokens),
            "inside strata of length": inside_strata(scores, tokens, STRATA),
            "spearman with loss": spearman(scores, loss), "spearman with random heads": spearman(scores, random),
            "share of the top fifth in the fifth of lowest loss": len(top & set(np.argsort(loss, kind="stable")[:fifth].tolist())) / fifth,
            "in the longest fifth": len(top & set(np.argsort(-tokens, kind="stable")[:fifth].tolist())) / fifth,
        }  # fmt: skip
    return found


def within(one: Scored, domains: dict[str, dict[str, Any]]) -> Finding:
    """Claim 4 on real documents."""
    grown = [row for row in domains.values() if abs(row["spearman with length"]) >= GROWS]
    gone = [removed(row["spearman with length"], row["inside strata of length"]) for row in grown]
    strongest = max((abs(row["spearman with length"]) for row in grown), default=float("nan"))
    numbers = {"accuracy": one.found.accuracy, "domains": len(grown), "least_removed": min(gone, default=float("nan")), "strongest": strongest}
    return Finding(rounded(numbers))


def partner(bench: Bench) -> Model:
    """The lab model whose scores are compared.

    Raises:
        NotTestable: It is the model itself, or is not installed.
    """
    if label(bench.name) == PARTNER:
        raise NotTestable(f"{PARTNER} would be compared with itself")
    try:
        return load(PARTNER)
    except HeadwiseError as error:
        raise NotTestable(f"needs the model {PARTNER} beside this one: {error}") from error


def measure(bench: Bench) -> Measured:
    """Four domains, as many documents of each, two models."""
    texts = short_corpus(bench, bench.pick(24, 8))
    names = list(texts)
    groups = np.repeat(np.arange(len(names)), [len(texts[name]) for name in names])
    one = scored(bench, bench.model, texts, "model")
    domains = alone(one, groups, names)
    details: dict[str, Any] = {"heads": one.found.told(), "domains": domains}
    try:
        two = scored(bench, partner(bench), texts, "partner")
    except NotTestable as why:
        findings = {f"{FAMILY}.{name}": Finding.none(str(why)) for name in PAIRS}
    else:
        findings = together(one, two, groups)
        inside = {
            name: {
                "scores": correlation(one.scores[groups == i], two.scores[groups == i], groups[groups == i]),
                "losses": correlation(one.losses.base[groups == i], two.losses.base[groups == i], groups[groups == i]),
            }
            for i, name in enumerate(names)
        }
        inside["all documents"] = {"scores": correlation(one.scores, two.scores, np.zeros_like(groups))}
        details |= {"partner": two.found.told(), "domains of the partner": alone(two, groups, names), "correlations": inside}
    return Measured(findings | {f"{FAMILY}.strata": within(one, domains)}, rounded(details))
