"""Claims 1 to 5 of the AttentionInfluence card (section 6) on micro-world documents and any model. Prints numbers and verdicts (`registered/`).

Heads come from the key-value proxy task, whose keys and sentences are none of the documents'. Documents are of the test split. A document's
own loss is computed once for all sets of heads. With --work, what is finished is kept there, and a run that was stopped goes on. Claim 10
(what training on the choice brings) is `influence_training.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import hardware, show
from influence_sets import StoredLosses, auc_interval, placements, rounded
from registered import LEVEL, verdict

from headwise.attention.means import head_means
from headwise.heads import HeadScores, HeadSet, HeadwiseError
from headwise.methods.influence.options import Proxy
from headwise.methods.influence.prompts import ProxyPrompts
from headwise.methods.influence.proxy import proxy_scores, top_share
from headwise.methods.influence.scorer import AttentionInfluence
from headwise.models.load import load
from headwise.models.model import Model
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.haystack import bundled_texts, read_texts
from headwise.stats.controls import any_layer_random, layer_matched_random
from headwise.stats.paired import benjamini_hochberg, sign_flip_test
from headwise.stats.ranks import auc, ranks_within, spearman
from headwise_lab.microworld.registry import make_example

WITH, WITHOUT, REPEATS = ("late_reference", "key_value"), "no_reference", ("duplicate", "boilerplate")
LENGTHS = (64, 128, 256, 512)  # tokens, claim 4
COPIES = 0.1  # proxy score; heads below it are a pool of random ones of their own
KINDS = (*WITH, WITHOUT, *REPEATS)
POOLS = {"same": "random heads of the same layers", "idle": "random heads that do not copy", "any": "random heads of any layer"}
GATE = 0.5  # proxy questions answered in full
FAMILY = "influence-separation"
Scores = dict[str, dict[str, np.ndarray]]  # kind -> name of a head set (or `loss`) -> [document]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--model", default="world-6m", help="any model")
    parser.add_argument("--documents", type=int, default=100, help="per kind")
    parser.add_argument("--words", type=int, default=200, help="of a document")
    parser.add_argument("--draws", type=int, default=10, help="sets of random heads, of each pool")
    parser.add_argument("--pools", nargs="+", choices=POOLS, default=list(POOLS))
    parser.add_argument("--chosen-only", nargs="*", choices=KINDS, default=[], help="kinds that random heads are not tried on")
    parser.add_argument("--no-lengths", action="store_true", help="leave out claim 4")
    parser.add_argument("--work", type=Path, help="folder for what is finished")
    parser.add_argument("--seed", type=int, default=0)
    proxy_options(parser, samples=200)
    return parser.parse_args()


def proxy_options(parser: argparse.ArgumentParser, samples: int) -> None:
    """Options of the task that heads are found on."""
    parser.add_argument("--samples", type=int, default=samples, help="proxy prompts")
    parser.add_argument("--pairs", type=int, help="in a prompt; default: as many as fit into 512 tokens")
    parser.add_argument("--key-length", type=int, default=8)
    parser.add_argument("--value-tokens", type=int, default=12)
    parser.add_argument("--haystack", help="folder of texts whose sentences are values; default: three bundled books")


def proxy_of(chosen: argparse.Namespace) -> dict[str, Any]:
    """What `find_heads` takes from the command line."""
    texts = {"haystack": read_texts(chosen.haystack)} if chosen.haystack else {}
    return {"pairs": chosen.pairs, "key_length": chosen.key_length, "value_tokens": chosen.value_tokens, **texts}


def find_heads(model: Model, samples: int, seed: int, min_accuracy: float = 0.0, **sizes: Any) -> HeadScores:
    """Proxy scores of all heads. By default of any model: the bundled ones write few of these answers out in full without a mistake."""
    asked = Proxy(**{"length": 512, "key_length": 8, "value_tokens": 12, **sizes}, samples=samples, seed=seed)
    prompts = ProxyPrompts(sizes.get("haystack") or bundled_texts(), PieceEncoder(model.tokenizer), asked)
    return proxy_scores(model, prompts, Proxy(min_accuracy=min_accuracy))


def detection(model: Model, scores: HeadScores, samples: int, seed: int, **sizes: Any) -> dict[str, Any]:
    """Claim 1: the strongest heads are far above the median; a model that was never trained is refused."""
    chosen = top_share(scores)
    torch.manual_seed(seed)
    untrained = Model(type(model.hf)(model.hf.config).eval(), model.tokenizer)
    few = max(4, samples // 8)
    return {
        "accuracy": scores.provenance["accuracy"],
        "token_accuracy": scores.provenance["token_accuracy"],
        "heads": ", ".join(f"{head} {scores.values[head]:.3f}" for head in chosen),
        "weakest of them": min(float(scores.values[head]) for head in chosen),
        "strongest": float(np.nanmax(scores.values)),
        "median": float(np.nanmedian(scores.values)),
        "heads that copy (score of at least 0.1)": int((scores.values >= COPIES).sum()),
        "untrained, strongest head": _told(lambda: f"{np.nanmax(find_heads(untrained, few, seed, **sizes).values):.3f}"),
        "untrained, as users meet it": _told(lambda: f"{np.nanmax(find_heads(untrained, few, seed, GATE, **sizes).values):.3f}"),
    }


def _told(run: Callable[[], str]) -> str:
    try:
        return run()
    except HeadwiseError as error:
        return f"refused: {error}"


def documents(count: int, words: int, seed: int) -> dict[str, list[str]]:
    return {
        kind: [
            make_example("documents", "test", np.random.default_rng([seed, number, i]), kind=kind, words=words).context_text
            for i in range(count)
        ]
        for number, kind in enumerate(KINDS)
    }


def scored(
    chosen: HeadSet, scores: HeadScores, texts: dict[str, list[str]], stored: StoredLosses, asked: argparse.Namespace
) -> Scores:
    """Scores of all documents by the chosen heads (`top`), by every random set (`same/0`, ...), and the plain loss (`loss`)."""
    copies = scores.values >= COPIES
    seeds = [[asked.seed, draw] for draw in range(asked.draws)]
    drawn = {
        "same": [layer_matched_random(chosen, scores, seed) for seed in seeds],
        "idle": [layer_matched_random(chosen, ~copies, seed) for seed in seeds] if "idle" in asked.pools else [],
        "any": [any_layer_random(chosen, scores, seed) for seed in seeds],
    }
    found: Scores = {}
    for kind in KINDS:
        pools = [pool for pool in asked.pools if kind not in asked.chosen_only]
        near = [
            pool for pool in pools if pool != "any"
        ]  # they begin in the layers of the chosen heads, so they share a pass with them
        names = ["top", *(f"{pool}/{i}" for pool in near for i in range(asked.draws))]
        losses = stored([chosen, *(one for pool in near for one in drawn[pool])], texts[kind])
        found[kind] = {"loss": losses.base, **dict(zip(names, losses.scores, strict=True))}
        if "any" in pools:
            found[kind] |= {f"any/{i}": row for i, row in enumerate(stored(drawn["any"], texts[kind]).scores)}
    return found


def modes(chosen: HeadSet, texts: dict[str, list[str]], scores: Scores, stored: StoredLosses, seed: int) -> dict[str, Any]:
    """Claim 5: the three ways to ablate heads rank the documents alike."""
    kinds, encoder = (*WITH, WITHOUT), PieceEncoder(stored.model.tokenizer)
    other = [
        make_example("documents", "train", np.random.default_rng([seed, 7, i]), kind=kinds[i % 3], words=200) for i in range(12)
    ]
    means = head_means(stored.model.hf, (torch.tensor([encoder.encode(one.context_text)]) for one in other))
    found = {"uniform": np.concatenate([scores[kind]["top"] for kind in kinds])}
    for mode, given in (("zero", None), ("mean", means)):
        found[mode] = np.concatenate([stored([chosen], texts[kind], mode, given).scores[0] for kind in kinds])
    size = len(texts[WITHOUT])
    separated = {f"auc both, {mode}": auc(values[:-size], values[-size:]) for mode, values in found.items()}
    return separated | {f"spearman {a}, {b}": spearman(found[a], found[b]) for a, b in combinations(found, 2)}


def both(scores: Scores, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Scores of documents with references, and of documents without."""
    return np.concatenate([scores[kind][name] for kind in WITH]), scores[WITHOUT][name]


def separation(scores: Scores) -> dict[str, Any]:
    """AUC of each kind against documents without references: of the chosen heads with intervals, of random ones, of the loss."""
    none, result = scores[WITHOUT], dict[str, Any]()
    groups = {kind: (scores[kind], none) for kind in KINDS if kind != WITHOUT}
    groups |= {f"{kind} above late_reference": (scores[kind], scores["late_reference"]) for kind in REPEATS}
    groups["both"] = ({name: both(scores, name)[0] for name in none}, none)
    for group, (above, below) in groups.items():
        result[group] = {
            "top": auc_interval(above["top"], below["top"]),
            "lower loss": auc_interval(-above["loss"], -below["loss"]),
        }
        for pool, told in POOLS.items():
            draws = [auc(above[name], below[name]) for name in below if name.startswith(pool + "/") and name in above]
            if draws:
                result[group][told] = {
                    "mean": np.mean(draws),
                    "sd": np.std(draws),
                    "least": min(draws),
                    "most": max(draws),
                    "draws": len(draws),
                }
    return result | {"mean scores": {kind: float(scores[kind]["top"].mean()) for kind in KINDS}}


def beside_random(scores: Scores, pools: list[str]) -> dict[str, Any]:
    """How the scores of random heads, the loss and the chosen heads' scores go together, over the documents that all have scored."""
    kinds = [kind for kind in KINDS if all(f"{pool}/0" in scores[kind] for pool in pools)]
    table = {name: np.concatenate([scores[kind][name] for kind in kinds]) for name in scores[kinds[0]]}
    found: dict[str, Any] = {"loss": spearman(table["top"], table["loss"])}
    for pool in pools:
        values = [spearman(table["top"], row) for name, row in table.items() if name.startswith(pool + "/")]
        found[POOLS[pool]] = {"mean": np.mean(values), "least": min(values), "most": max(values)}
    return found


def judged(
    heads: dict[str, Any], scores: Scores, table: dict[str, Any], rank: dict[str, Any], pools: list[str]
) -> dict[str, Any]:
    """Verdicts by the rules of `registered/`, with p-values raw and corrected."""
    top, none = both(scores, "top")
    place, p, holds = placements(top, none), dict[str, float](), dict[str, bool]()
    chosen = table["both"]["top"]["value"]
    for pool in (pool for pool in pools if pool != "idle"):
        draws = [placements(*both(scores, name)) for name in scores[WITHOUT] if name.startswith(pool + "/")]
        p[pool] = sign_flip_test(place - np.mean(draws, axis=0), "greater")
        holds[pool] = chosen >= 0.9 and table["both"][POOLS[pool]]["mean"] <= 0.65
    with_loss, without_loss = both(scores, "loss")
    p["above_loss"] = sign_flip_test(place - placements(-with_loss, -without_loss), "greater")
    holds["above_loss"] = chosen > table["both"]["lower loss"]["value"]
    for kind in REPEATS:
        p[kind] = sign_flip_test(placements(scores[kind]["top"], scores["late_reference"]["top"]) - 0.5, "greater")
        holds[kind] = table[f"{kind} above late_reference"]["top"]["value"] >= 0.9
    fair = dict(zip(p, benjamini_hochberg(np.array(list(p.values()))), strict=True))
    holds = {name: held and fair[name] <= LEVEL for name, held in holds.items()}
    holds["few_heads"] = heads["weakest of them"] >= 3 * heads["median"] and heads["strongest"] > 0.5
    holds["modes"] = min(value for name, value in rank.items() if name.startswith("spearman")) > 0.8
    gate = heads["accuracy"] >= GATE
    return {
        f"{FAMILY}.{name}": {"verdict": verdict(held if gate else None), "p": p.get(name), "corrected p": fair.get(name)}
        for name, held in holds.items()
    }


def score(model: Model, heads: HeadSet, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Scores and lengths in tokens; every document is ranked, however short."""
    scorer = AttentionInfluence(model, heads, min_tokens=0)
    rows = scorer.score(scorer.encode(texts))
    return np.array([row.score for row in rows]), np.array([row.n_tokens for row in rows])


def lengths(model: Model, heads: HeadSet, count: int, seed: int) -> dict[str, Any]:
    """Claim 4: late-reference documents of several lengths, whole ones and one text cut to each length."""
    room = model.positions or LENGTHS[-1]
    kept = [length for length in LENGTHS if length <= room]
    encoder = PieceEncoder(model.tokenizer)
    whole, cut = list[str](), dict[int, list[str]]()
    for i in range(count):
        rng = np.random.default_rng([seed, 99, i])
        size = int(np.exp(rng.uniform(np.log(45), np.log(max(kept) / 1.9))))
        whole.append(make_example("documents", "test", rng, kind="late_reference", words=size).context_text)
        ids = encoder.encode(
            make_example("documents", "test", rng, kind="late_reference", words=int(max(kept) / 1.9)).context_text
        )
        for length in kept:
            cut.setdefault(length, []).append(encoder.decode(ids[:length]))
    scores, tokens = score(model, heads, whole)
    strata = np.searchsorted(np.quantile(tokens, np.arange(1, 10) / 10), tokens)
    before, after = spearman(scores, tokens), spearman(ranks_within(scores, strata), tokens)
    return {
        "documents": len(whole),
        "tokens": (int(tokens.min()), int(tokens.max())),
        "spearman_before": before,
        "spearman_within_10_strata": after,
        "removed": 1 - abs(after) / abs(before) if before else float("nan"),
        **{f"mean cut to {length}": float(score(model, heads, texts)[0].mean()) for length, texts in cut.items()},
    }


def main() -> None:
    asked = options()
    model, sizes = load(asked.model), proxy_of(asked)
    found = find_heads(model, asked.samples, asked.seed, **sizes)
    chosen, texts = top_share(found), documents(asked.documents, asked.words, asked.seed)
    stored = StoredLosses(model, asked.model, asked.work)
    scores = scored(chosen, found, texts, stored, asked)
    heads, table = detection(model, found, asked.samples, asked.seed, **sizes), separation(scores)
    rank = modes(chosen, texts, scores, stored, asked.seed)
    result: dict[str, Any] = {
        "model": asked.model, "documents": asked.documents, "words": asked.words, "draws": asked.draws, "seed": asked.seed,
        "1 heads": heads, "2, 3 auc": table, "spearman with the chosen heads' scores": beside_random(scores, asked.pools),
        "5 modes": rank, "verdicts": judged(heads, scores, table, rank, asked.pools),
    }  # fmt: skip
    if not asked.no_lengths:
        result["4 lengths"] = lengths(model, chosen, asked.documents, asked.seed)
    show(rounded(result | {"hardware": hardware()}), asked.json)


if __name__ == "__main__":
    main()
