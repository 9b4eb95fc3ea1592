"""Claims 1 to 4 of the AttentionInfluence card (section 6) on micro-world documents and a bundled model. Writes nothing; prints numbers.

Heads come from the key-value proxy task, whose keys and sentences are none of the documents'. Documents are of the test split. Claim 10 (what
training on the choice brings) is `influence_training.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import hardware, show

from headwise.heads import HeadScores, HeadSet, HeadwiseError
from headwise.methods.influence.options import Proxy
from headwise.methods.influence.prompts import ProxyPrompts
from headwise.methods.influence.proxy import proxy_scores, top_share
from headwise.methods.influence.scorer import AttentionInfluence
from headwise.models.load import load
from headwise.models.model import Model
from headwise.models.names import bundled_model
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.haystack import bundled_texts
from headwise.stats.controls import layer_matched_random
from headwise.stats.ranks import auc, ranks_within, spearman
from headwise_lab.microworld.registry import make_example

WITH, WITHOUT, REPEATS = ("late_reference", "key_value"), "no_reference", ("duplicate", "boilerplate")
LENGTHS = (64, 128, 256, 512)  # tokens, claim 4
COPIES = 0.1  # proxy score; heads below it are a second pool for random ones
KINDS = (*WITH, WITHOUT, *REPEATS)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--model", default="world-6m", help="name of a bundled model")
    parser.add_argument("--documents", type=int, default=100, help="per kind")
    parser.add_argument("--words", type=int, default=200, help="of a document")
    parser.add_argument("--draws", type=int, default=10, help="sets of random heads, of each pool")
    parser.add_argument("--samples", type=int, default=200, help="proxy prompts")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def find_heads(model: Model, samples: int, seed: int, min_accuracy: float = 0.0) -> HeadScores:
    """Proxy scores of all heads. By default of any model: the bundled ones write few of these answers out in full without a mistake."""
    sizes = Proxy(length=512, samples=samples, key_length=8, value_tokens=12, seed=seed)
    prompts = ProxyPrompts(bundled_texts(), PieceEncoder(model.tokenizer), sizes)
    return proxy_scores(model, prompts, Proxy(min_accuracy=min_accuracy))


def detection(model: Model, scores: HeadScores, samples: int, seed: int) -> dict[str, Any]:
    """Claim 1: the strongest heads are far above the median; a model that was never trained is refused."""
    chosen = top_share(scores)
    torch.manual_seed(seed)
    untrained = model._replace(model=type(model.hf)(model.hf.config).eval())
    few = max(4, samples // 8)
    return {
        "accuracy": scores.provenance["accuracy"],
        "token_accuracy": scores.provenance["token_accuracy"],
        "heads": ", ".join(f"{head} {scores.values[head]:.3f}" for head in chosen),
        "median": float(np.nanmedian(scores.values)),
        "heads that copy (score of at least 0.1)": int((scores.values >= COPIES).sum()),
        "untrained, strongest head": _told(lambda: f"{np.nanmax(find_heads(untrained, few, seed).values):.3f}"),
        "untrained, as users meet it": _told(lambda: f"{np.nanmax(find_heads(untrained, few, seed, 0.5).values):.3f}"),
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


def score(model: Model, heads: HeadSet, texts: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, base losses, lengths in tokens; every document is ranked, however short."""
    scorer = AttentionInfluence(model, heads, min_tokens=0)
    rows = scorer.score(scorer.encode(texts))
    return tuple(np.array([getattr(row, name) for row in rows]) for name in ("score", "loss_base", "n_tokens"))  # type: ignore[return-value]


def separation(model: Model, heads: HeadSet, texts: dict[str, list[str]]) -> dict[str, float]:
    """AUC of each kind against documents without references, and the mean score of each kind."""
    found = {kind: score(model, heads, texts[kind])[0] for kind in KINDS}
    none = found[WITHOUT]
    result = {f"auc {kind}": auc(found[kind], none) for kind in KINDS if kind != WITHOUT}
    result["auc both"] = auc(np.concatenate([found[kind] for kind in WITH]), none)
    result |= {f"mean {kind}": float(found[kind].mean()) for kind in KINDS}
    result["auc duplicate above late_reference"] = auc(found["duplicate"], found["late_reference"])
    result["auc boilerplate above late_reference"] = auc(found["boilerplate"], found["late_reference"])
    return result


def perplexity_separation(model: Model, heads: HeadSet, texts: dict[str, list[str]]) -> dict[str, float]:
    """What the plain loss separates, both ways round: the baseline that needs no heads."""
    losses = {kind: score(model, heads, texts[kind])[1] for kind in KINDS}
    return {f"auc lower loss, {kind}": auc(-losses[kind], -losses[WITHOUT]) for kind in KINDS if kind != WITHOUT}


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
    scores, _, tokens = score(model, heads, whole)
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
    chosen = options()
    model = load(str(bundled_model(chosen.model)))
    scores = find_heads(model, chosen.samples, chosen.seed)
    heads = top_share(scores)
    texts = documents(chosen.documents, chosen.words, chosen.seed)
    top = separation(model, heads, texts)
    pools = {"random heads": ~np.isnan(scores.values), "random heads that do not copy": scores.values < COPIES}
    result: dict[str, Any] = {"model": chosen.model, "documents": chosen.documents, "words": chosen.words, "draws": chosen.draws}
    result |= {f"1 {name}": value for name, value in detection(model, scores, chosen.samples, chosen.seed).items()}
    result |= {f"2, 3 {name}": value for name, value in top.items()}
    for pool, mask in pools.items():
        drawn = (layer_matched_random(heads, mask, [chosen.seed, draw]) for draw in range(chosen.draws))
        draws = [separation(model, random, texts) for random in drawn]
        for name in top:
            found = np.array([draw[name] for draw in draws])
            result[f"2, 3 {name}, {pool}"] = f"{found.mean():.3f} ± {found.std():.3f}, {found.min():.3f} to {found.max():.3f}"
    result |= {f"2 {name}": value for name, value in perplexity_separation(model, heads, texts).items()}
    result |= {f"4 {name}": value for name, value in lengths(model, heads, chosen.documents, chosen.seed).items()}
    show(result | {"hardware": hardware()}, chosen.json)


if __name__ == "__main__":
    main()
