"""Ranking by attention: twenty queries over one set of passages, one query, and the memory of detection, against plain SDPA passes.

Parts (--only): speed (bundled lab model, about 1,000 tokens of passages), memory (random model, 4,096 tokens).
"""

from __future__ import annotations

import multiprocessing
from typing import Any

import numpy as np
import torch
from common import best_of, hardware, options, peak_memory, show

from headwise.core import HeadSet
from headwise.engine.passage_index import as_passage
from headwise.engine.passage_table import measure_passages
from headwise.families import load_model
from headwise.lab import bundled_model
from headwise.methods.rank.attention_ranker import AttentionRanker
from headwise.prompts import PieceEncoder
from headwise.prompts.passages import PassageComposer
from headwise.prompts.ranking_data import microworld_examples

QUERIES, PASSAGES, LONG = 20, 24, 4096


def world(split: str = "test") -> tuple[list[str], list[str]]:
    """Queries and passages of the micro-world."""
    examples = microworld_examples(QUERIES, split, n=PASSAGES)
    return [example.query for example in examples], [passage.text for passage in examples[0].passages]


def speed(repeats: int) -> dict[str, Any]:
    loaded = load_model(str(bundled_model()))
    layers = loaded.layout.shape[0]
    deepest = round(0.6 * layers) - 1  # the deepest head's layer lies within 60 % of the depth
    heads = HeadSet.of([(deepest, 0), (deepest, 3), (deepest - 1, 5), (deepest - 2, 6)], loaded.layout.shape)
    ranker = AttentionRanker(loaded, heads)
    queries, passages = world()
    index = ranker.index(passages)
    shared = ranker.composer.passages([as_passage(text) for text in passages])
    one = [*shared.ids, *ranker.composer.query(queries[0]).ids]

    @torch.no_grad()
    def plain() -> None:
        loaded.model(input_ids=torch.tensor([one]), use_cache=True, logits_to_keep=1)

    twenty = lambda: ranker.index(passages).scores(queries)  # noqa: E731
    single = lambda: ranker.index(passages).scores(queries[:1])  # noqa: E731
    later = lambda: index.scores(queries[:1])  # noqa: E731
    for function in (plain, twenty, single, later):
        function()
    base, many, first, cached = best_of(max(7, repeats), plain, twenty, single, later)
    together = twenty()
    alone = np.concatenate([ranker.index(passages).scores([query]) for query in queries])
    return {
        "tokens": len(one),
        "prefills_for_20_queries": many / base,
        "one_query_vs_forward": first / base,
        "one_query_of_an_index_vs_forward": cached / base,
        "largest_difference": f"{np.abs(together - alone).max():.1e}",
        "deepest_layer": f"{deepest + 1} of {layers}",
    }


def _memory(which: str, answer: Any) -> None:
    """Peak growth of a fresh process over one pass of `LONG` tokens, in bytes."""
    from headwise.families import Loaded, layout_of
    from headwise.testing import character_tokenizer, tiny_model

    sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 8, "head_dim": 64}
    model = tiny_model("llama", max_position_embeddings=2 * LONG, **sizes)
    loaded = Loaded(model, character_tokenizer(), layout_of(model))
    composer = PassageComposer(PieceEncoder(loaded.tokenizer))
    example = microworld_examples(1, "test", n=100)[0]
    while len(composer.passages(example.passages).ids) > LONG:
        example = type(example)(example.query, example.passages[:-1], frozenset({0}))
    ids = [*composer.passages(example.passages).ids, *composer.query(example.query).ids]
    before = peak_memory()
    if which == "plain":
        with torch.no_grad():
            model(input_ids=torch.tensor([ids]), use_cache=True, logits_to_keep=1)
    else:
        measure_passages(loaded.model, loaded.layout, composer, [example])
    answer.put((peak_memory() - before, len(ids)))


def memory() -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    found = {}
    for which in ("plain", "detection"):
        answer = context.Queue()
        process = context.Process(target=_memory, args=(which, answer))
        process.start()
        found[which], tokens = answer.get()
        process.join()
    return {"memory_tokens": tokens, "extra_peak_memory": found["detection"] / found["plain"] - 1}


def main() -> None:
    chosen = options(__doc__)
    parts = chosen.only.split(",") if chosen.only else ["speed", "memory"]
    result: dict[str, Any] = {}
    if "speed" in parts:
        result |= speed(chosen.repeats)
    if "memory" in parts:
        result |= memory()
    show(result | {"hardware": hardware()}, chosen.json)


if __name__ == "__main__":
    main()
