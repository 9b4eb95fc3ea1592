"""Do two models score the same documents alike? Spearman's correlation of their AttentionInfluence scores, beside that of their plain losses.

    python benchmarks/influence_agreement.py --data FOLDER --models smollm2 world-6m-long [--documents 24] [--work FOLDER] [--json]

Four domains, as many documents each: passages of novels (`books-large/books-3.jsonl.xz` without the books whose sentences the proxy task uses),
of articles of WikiText-2's test split, problems of GSM8K with their solutions, and passages of Python's standard library. Both models find
their heads on the same kind of proxy prompts. Random heads are the control: of the same layers and of any. Verdicts as in `registered/`.
With --work, what is finished is kept there, and a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import lzma
import sysconfig
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from common import hardware, show
from influence_claims import GATE, find_heads, proxy_of, proxy_options
from influence_real import articles, passages, read
from influence_sets import Losses, StoredLosses, bootstrap, rounded, standard_ranks, without_influence_of
from registered import LEVEL, verdict

from headwise.heads import HeadScores
from headwise.methods.influence.proxy import top_share
from headwise.models.load import load
from headwise.stats.controls import any_layer_random, layer_matched_random
from headwise.stats.paired import benjamini_hochberg, sign_flip_test
from headwise.stats.ranks import ranks_within, spearman

WORDS = (60, 200)  # of a passage
BUNDLED = ("Alice", "Frankenstein", "Walden")  # their sentences are values of proxy prompts
STRATA = 5  # of length
FAMILY = "influence-agreement"


class Scored(NamedTuple):
    """What one model says about all documents, in order of the domains."""

    proxy: HeadScores
    heads: str
    losses: Losses  # set 0: the chosen heads; then random ones
    random: list[str]  # what the other sets are


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", nargs=2, default=["smollm2", "world-6m-long"])
    parser.add_argument("--documents", type=int, default=24, help="of each domain")
    parser.add_argument("--same", type=int, default=1, help="draws of random heads of the same layers")
    parser.add_argument("--any", type=int, default=0, help="draws of random heads of any layer")
    parser.add_argument("--work", type=Path, help="folder for what is finished")
    parser.add_argument("--seed", type=int, default=0)
    proxy_options(parser, samples=64)
    return parser.parse_args()


def novels(data: Path) -> Iterator[str]:
    """Texts of the books that are kept for evaluation."""
    with lzma.open(data / "books-large" / "books-3.jsonl.xz", "rt") as file:
        for line in file:
            book = json.loads(line)
            if not any(name in book["title"] for name in BUNDLED):
                yield book["text"]


def corpus(data: Path, count: int, seed: int) -> dict[str, list[str]]:
    """`count` documents of each domain, drawn evenly from all passages."""
    rng = np.random.default_rng([seed, 17])
    sums = [json.loads(line) for line in read(data / "gsm8k" / "test.jsonl.gz").splitlines()]
    library = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    sources = {
        "novels": novels(data),
        "wikitext": articles(read(data / "wikitext-2" / "test.txt.gz")),
        "code": (path.read_text("utf-8", errors="replace") for path in library),
    }
    pieces = {name: list(chain.from_iterable(passages(text, rng, WORDS) for text in texts)) for name, texts in sources.items()}
    pieces["gsm8k"] = [f"{one['question']}\n{one['answer']}" for one in sums]
    # A last line can be very long (a whole paragraph), so passages are held to twice the words at most.
    kept = {name: [text for text in texts if text and len(text.split()) <= 2 * WORDS[1]] for name, texts in pieces.items()}
    return {name: [texts[i] for i in sorted(rng.permutation(len(texts))[:count])] for name, texts in sorted(kept.items())}


def scored(name: str, texts: dict[str, list[str]], asked: argparse.Namespace) -> Scored:
    """Losses of one model with its own chosen heads, and with random ones, domain after domain."""
    model = load(name)
    proxy = find_heads(model, asked.samples, asked.seed, **proxy_of(asked))
    chosen, stored = top_share(proxy), StoredLosses(model, name, asked.work)
    near = [layer_matched_random(chosen, proxy, [asked.seed, draw]) for draw in range(asked.same)]
    far = [any_layer_random(chosen, proxy, [asked.seed, draw]) for draw in range(asked.any)]
    parts = []
    for documents in texts.values():
        losses = stored([chosen, *near], documents)
        other = stored(far, documents) if far else losses._replace(changed=losses.changed[:0])
        parts.append((losses.base, np.concatenate([losses.changed, other.changed]), losses.tokens))
    base, changed, tokens = (np.concatenate(columns, axis=-1) for columns in zip(*parts, strict=True))
    told = [f"same layers {i}" for i in range(len(near))] + [f"any layer {i}" for i in range(len(far))]
    return Scored(proxy, ", ".join(f"{head} {proxy.values[head]:.2f}" for head in chosen), Losses(base, changed, tokens), told)


def correlation(a: np.ndarray, b: np.ndarray, groups: np.ndarray) -> dict[str, float]:
    """Spearman's correlation of two lists inside each group, mean over groups, with its 95 % interval; documents are drawn again."""
    numbers = np.unique(groups)
    places = {str(group): np.flatnonzero(groups == group) for group in numbers}
    return bootstrap(
        lambda at: float(np.mean([spearman(a[where[at[name]]], b[where[at[name]]]) for name, where in places.items()])),
        {name: len(where) for name, where in places.items()},
    )


def agreement(one: Scored, two: Scored, groups: np.ndarray, names: list[str]) -> dict[str, Any]:
    """Correlations of scores and of losses between two models: per domain, inside domains together, and of all documents at once."""
    pairs = {"scores": (one.losses.scores[0], two.losses.scores[0]), "losses": (one.losses.base, two.losses.base)}
    found: dict[str, Any] = {}
    for told, (a, b) in pairs.items():
        found[told] = {name: correlation(a[groups == i], b[groups == i], groups[groups == i]) for i, name in enumerate(names)}
        found[told] |= {"inside domains": correlation(a, b, groups), "all documents": correlation(a, b, np.zeros_like(groups))}
    products = {told: standard_ranks(a, groups) * standard_ranks(b, groups) for told, (a, b) in pairs.items()}
    beyond = beyond_losses(one, two, groups)
    sizes = {str(i): int((groups == i).sum()) for i in range(len(names))}
    starts = {str(i): int(np.flatnonzero(groups == i)[0]) for i in range(len(names))}

    def mean_of(values: np.ndarray) -> dict[str, float]:
        return bootstrap(lambda at: float(np.concatenate([values[starts[i] + where] for i, where in at.items()]).mean()), sizes)

    random = [
        standard_ranks(row, groups) * standard_ranks(two.losses.scores[0], groups) for row in one.losses.scores[1:]
    ]  # random heads of the first model against the chosen heads of the second
    found["beyond losses and lengths"] = mean_of(beyond)
    found["random heads of the first model"] = {told: float(row.mean()) for told, row in zip(one.random, random, strict=True)}
    found["chosen above random heads"] = mean_of(products["scores"] - np.mean(random, axis=0))
    p = {
        "scores": sign_flip_test(products["scores"], "greater"),
        "beyond_losses": sign_flip_test(beyond, "greater"),
        "above_random": sign_flip_test(products["scores"] - np.mean(random, axis=0), "greater"),
    }
    return found | {"p": p}


def beyond_losses(one: Scored, two: Scored, groups: np.ndarray) -> np.ndarray:
    """[document] products whose mean is the partial rank correlation of scores, given both models' losses and the lengths in both."""
    known = [standard_ranks(x, groups) for model in (one, two) for x in (model.losses.base, model.losses.tokens)]
    left = [without_influence_of(standard_ranks(model.losses.scores[0], groups), known) for model in (one, two)]
    return left[0] * left[1]


def alone(model: Scored, groups: np.ndarray, names: list[str]) -> dict[str, Any]:
    """One model's scores per domain: their size, and how they go with length, loss and the scores of random heads."""
    found: dict[str, Any] = {}
    for i, name in enumerate(names):
        here = groups == i
        scores, loss, tokens = (x[here] for x in (model.losses.scores[0], model.losses.base, model.losses.tokens))
        strata = np.searchsorted(np.quantile(tokens, np.arange(1, STRATA) / STRATA), tokens)
        within = ranks_within(scores, strata)
        fifth = len(scores) // 5
        top = set(np.argsort(-scores, kind="stable")[:fifth])
        found[name] = {
            "median score": np.median(scores), "least": scores.min(), "most": scores.max(), "median loss": np.median(loss),
            "tokens": [int(tokens.min()), int(np.median(tokens)), int(tokens.max())],
            "spearman with length": spearman(scores, tokens), "within strata of length": spearman(within, tokens),
            "spearman with loss": spearman(scores, loss),
            "spearman with random heads": {
                told: spearman(scores, row[here]) for told, row in zip(model.random, model.losses.scores[1:], strict=True)
            },
            "share of the top fifth in the fifth of lowest loss": len(top & set(np.argsort(loss, kind="stable")[:fifth])) / fifth,
            "in the longest fifth": len(top & set(np.argsort(-tokens, kind="stable")[:fifth])) / fifth,
        }  # fmt: skip
    return found


def judged(models: list[Scored], together: dict[str, Any], each: list[dict[str, Any]]) -> dict[str, Any]:
    """Verdicts by the rules of `registered/`, with p-values raw and corrected."""
    gate = all(model.proxy.provenance["accuracy"] >= GATE for model in models)
    p = together["p"]
    fair = dict(zip(p, benjamini_hochberg(np.array(list(p.values()))), strict=True))
    inside = together["scores"]["inside domains"]
    holds = {
        "scores": inside["value"] >= 0.3 and inside["low"] > 0,
        "beyond_losses": together["beyond losses and lengths"]["low"] > 0,
        "above_random": together["chosen above random heads"]["low"] > 0,
    }
    holds = {name: bool(held and fair[name] <= LEVEL) for name, held in holds.items()}
    grown = [row for row in each[0].values() if abs(row["spearman with length"]) >= 0.2]
    strata = [abs(row["within strata of length"]) <= 0.2 * abs(row["spearman with length"]) for row in grown]
    result = {
        f"{FAMILY}.{name}": {"verdict": verdict(held if gate else None), "p": p[name], "corrected p": fair[name]}
        for name, held in holds.items()
    }
    own = models[0].proxy.provenance["accuracy"] >= GATE and bool(grown)
    return result | {f"{FAMILY}.strata": {"verdict": verdict(all(strata) if own else None), "domains": len(grown)}}


def main() -> None:
    asked = options()
    texts = corpus(asked.data, asked.documents, asked.seed)
    names = list(texts)
    groups = np.repeat(np.arange(len(names)), [len(texts[name]) for name in names])
    models = [scored(name, texts, asked) for name in asked.models]
    together, each = agreement(*models, groups, names), [alone(model, groups, names) for model in models]
    result: dict[str, Any] = {
        "documents": asked.documents,
        "seed": asked.seed,
        "agreement": together,
        "verdicts": judged(models, together, each),
    }
    for name, model, row in zip(asked.models, models, each, strict=True):
        seen = model.proxy.provenance
        result[name] = {"heads": model.heads, "proxy accuracy": seen["accuracy"], "token accuracy": seen["token_accuracy"], **row}
    show(rounded(result | {"hardware": hardware()}), asked.json)


if __name__ == "__main__":
    main()
