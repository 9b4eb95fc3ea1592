"""Ranking by attention: twenty queries over one set of passages, one query, and the memory of detection, against plain SDPA passes.

Parts (--only): speed (--model or the bundled lab model, about 1,000 tokens of passages; HotpotQA where HEADWISE_DATA names its folder),
memory (random model, 4,096 tokens).
"""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import best_of, hardware, options, peak_memory, show

from headwise.heads import HeadSet
from headwise.methods.query.ranker import Ranker
from headwise.models.load import load
from headwise.models.names import DEFAULT
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.passages import PassageComposer
from headwise.runtime.passage_index import as_passage
from headwise.runtime.passage_table import measure_passages
from headwise_lab.ranking import microworld_examples

QUERIES, PASSAGES, LONG = 20, 24, 4096
DATA = "HEADWISE_DATA"  # folder with hotpotqa-distractor; without it the passages are those of the micro-world


def world(split: str = "test") -> tuple[list[str], list[str]]:
    """Queries and passages of the micro-world."""
    examples = microworld_examples(QUERIES, split, n=PASSAGES)
    return [example.query for example in examples], [passage.text for passage in examples[0].passages]


def hotpot_set(data: Path) -> tuple[list[str], list[str]]:
    """Twenty questions of HotpotQA over the ten paragraphs of the first one."""
    raw = gzip.decompress((data / "hotpotqa-distractor" / "hotpotqa_dev_100.jsonl.gz").read_bytes()).decode()
    rows = [json.loads(line) for line in raw.splitlines()[:QUERIES]]
    return [row["question"] for row in rows], [" ".join(sentences) for sentences in rows[0]["context"]["sentences"]]


def speed(repeats: int, name: str, data: Path | None) -> dict[str, Any]:
    model = load(name or DEFAULT)
    layers = model.heads.shape[0]
    deepest = round(0.6 * layers) - 1  # the deepest head's layer lies within 60 % of the depth
    heads = HeadSet.of([(deepest, 0), (deepest, 3), (deepest - 1, 5), (deepest - 2, 6)], model.heads.shape)
    ranker = Ranker(model, heads)
    queries, passages = world() if data is None else hotpot_set(data)
    index = ranker.index(passages)
    shared = ranker.composer.passages([as_passage(text) for text in passages])
    one = [*shared.ids, *ranker.composer.query(queries[0]).ids]

    @torch.no_grad()
    def plain() -> None:
        model.hf(input_ids=torch.tensor([one]), use_cache=True, logits_to_keep=1)

    twenty = lambda: ranker.index(passages).scores(queries)  # noqa: E731
    single = lambda: ranker.index(passages).scores(queries[:1])  # noqa: E731
    later = lambda: index.scores(queries[:1])  # noqa: E731
    for function in (plain, twenty, single, later):
        function()
    base, many, first, cached = best_of(repeats if name else max(7, repeats), plain, twenty, single, later)
    together = twenty()
    alone = np.concatenate([ranker.index(passages).scores([query]) for query in queries])
    return {
        "model": model.name,
        "tokens": len(one),
        "prefills_for_20_queries": many / base,
        "one_query_vs_forward": first / base,
        "one_query_of_an_index_vs_forward": cached / base,
        "largest_difference": f"{np.abs(together - alone).max():.1e}",
        "deepest_layer": f"{deepest + 1} of {layers}",
    }


def _memory(which: str, answer: Any) -> None:
    """Peak growth of a fresh process over one pass of `LONG` tokens, in bytes."""
    from headwise.models.model import Model
    from headwise.testing.tiny import tiny_model
    from headwise.testing.tokenizers import character_tokenizer

    sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 8, "head_dim": 64}
    hf = tiny_model("llama", max_position_embeddings=2 * LONG, **sizes)
    model = Model(hf, character_tokenizer())
    composer = PassageComposer(PieceEncoder(model.tokenizer))
    example = microworld_examples(1, "test", n=100)[0]
    while len(composer.passages(example.passages).ids) > LONG:
        example = type(example)(example.query, example.passages[:-1], frozenset({0}))
    ids = [*composer.passages(example.passages).ids, *composer.query(example.query).ids]
    before = peak_memory()
    if which == "plain":
        with torch.no_grad():
            hf(input_ids=torch.tensor([ids]), use_cache=True, logits_to_keep=1)
    else:
        measure_passages(model.hf, model, composer, [example])
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
        result |= speed(chosen.repeats, chosen.model, Path(os.environ[DATA]) if DATA in os.environ else None)
    if "memory" in parts:
        result |= memory()
    show(result | {"hardware": hardware()}, chosen.json)


if __name__ == "__main__":
    main()
