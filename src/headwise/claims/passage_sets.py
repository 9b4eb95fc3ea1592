"""Real questions with passages for the claims about query heads and CAFE, and tables of what every head pays to them.

The data folder holds hotpotqa-distractor, nq-open-oracle and dbpedia-entity-40 (BEIR layout). Candidates: HotpotQA's own paragraphs; on NQ
the gold passage and the best of BM25 among the other questions' passages that do not hold the answer; on DBpedia up to three relevant
abstracts and the best of BM25 that are not judged relevant. The order of the passages is random, seeded by question, so that neither a
head nor the model gains by place.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from headwise.claims.experiment import Bench, NotTestable
from headwise.models.model import Model, describe_model
from headwise.prompts.collections import beir_files, read_passages, read_qrels, read_queries
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.passages import Passage, PassageComposer, RankingExample
from headwise.runtime.passage_table import PassageTable, measure_passages
from headwise.runtime.passages import Scoring
from headwise.stats.ranking import bm25_candidates

PIECE = 8  # questions that are measured and kept at once
LABEL_SETS = {"hotpotqa-train": 3, "nq-train": 1}  # how many disjoint sets of labelled questions, for detection
NQ_SEED = 3
HOTPOT = {"hotpotqa-train": "hotpotqa_train_100.json.gz", "hotpotqa": "hotpotqa_dev_100.jsonl.gz"}
NQ = {"nq": 1, "nq-train": -1}  # from which end of the questions, after one seeded shuffle
SETS = (*HOTPOT, *NQ, "dbpedia")


class Labelled(NamedTuple):
    """A question with its passages and the answers that count."""

    ranking: RankingExample
    answers: tuple[str, ...] = ()


def shorten(text: str, words: int) -> str:
    """The first words."""
    return " ".join(text.split()[:words])


def shuffled(query: str, passages: list[Passage], gold: int, number: int, answers: tuple[str, ...] = ()) -> Labelled:
    """The first `gold` passages answer the query; afterwards the order is random."""
    order = np.random.default_rng([17, number]).permutation(len(passages))
    places = frozenset(place for place, i in enumerate(order) if i < gold)
    return Labelled(RankingExample(query, tuple(passages[i] for i in order), places), answers)


def hotpot(folder: Path, name: str, words: int, most: int) -> list[Labelled]:
    """HotpotQA with its own paragraphs, gold ones first where they are cut to `most`."""
    raw = gzip.decompress((folder / HOTPOT[name]).read_bytes()).decode()
    rows = json.loads(raw) if HOTPOT[name].endswith(".json.gz") else [json.loads(line) for line in raw.splitlines()]
    out = []
    for number, row in enumerate(rows):
        context = row["context"]
        pairs = context if isinstance(context, list) else list(zip(context["title"], context["sentences"], strict=True))
        facts = row["supporting_facts"]
        wanted = {fact[0] for fact in facts} if isinstance(facts, list) else set(facts["title"])
        chosen = sorted(pairs, key=lambda pair: pair[0] not in wanted)[:most]
        passages = [Passage(shorten(" ".join(sentences), words), title) for title, sentences in chosen]
        gold = sum(title in wanted for title, _ in chosen)
        out.append(shuffled(row["question"], passages, gold, number, (row["answer"],)))
    return out


def natural_questions(folder: Path, name: str, words: int, most: int, count: int) -> list[Labelled]:
    """`count` questions, from the front (`nq`) or from the back (`nq-train`) of one random order."""
    raw = gzip.decompress((folder / "nq-open-oracle.jsonl.gz").read_bytes()).decode()
    rows = [json.loads(line) for line in raw.splitlines()]
    gold = [Passage(shorten(r["ctxs"][0]["text"], words), r["ctxs"][0]["title"]) for r in rows]
    chosen = np.random.default_rng(NQ_SEED).permutation(len(rows))[:: NQ[name]][:count]
    queries = {str(i): rows[i]["question"] for i in chosen}
    found = bm25_candidates(queries, {str(i): f"{p.title} {p.text}" for i, p in enumerate(gold)}, most + 4)
    out = []
    for i in chosen:
        answers = tuple(rows[i]["answers"])
        others = [
            int(j)
            for j in found[str(i)]
            if gold[int(j)].text != gold[i].text and not any(a in gold[int(j)].text for a in answers)
        ]
        passages = [gold[j] for j in (i, *others[: most - 1])]
        out.append(shuffled(queries[str(i)], passages, 1, int(i), answers))
    return out


def dbpedia(folder: Path, words: int, most: int) -> list[Labelled]:
    """Queries of DBpedia-Entity: up to three relevant abstracts, the others by BM25."""
    corpus, asked, judged = beir_files(folder)
    passages, queries, qrels = read_passages(corpus, keep_empty=True), read_queries(asked), read_qrels(judged)
    texts = {key: Passage(shorten(p.text, words), p.title) for key, p in passages.items() if p.text.strip()}
    found = bm25_candidates(queries, {key: f"{p.title} {p.text}" for key, p in texts.items()}, 60)
    out = []
    for number, (key, grades) in enumerate(qrels.items()):
        relevant = [d for d in sorted(grades, key=lambda d: -grades[d]) if grades[d] > 0 and d in texts][:3]
        others = [d for d in found[key] if grades.get(d, -1) <= 0][: most - len(relevant)]
        out.append(shuffled(queries[key], [texts[d] for d in (*relevant, *others)], len(relevant), number))
    return out


@dataclass(frozen=True)
class Sizes:
    """How much is read.

    Attributes:
        items: Test questions per set, at most.
        first: So many test questions are left out in front.
        labels: Questions of one label set: three of HotpotQA's training part, one of NQ.
        passages: Per question.
        words: Passages are cut to so many.
    """

    items: int
    first: int
    labels: int
    passages: int
    words: int


class Sets:
    """The sets of questions as a model can read them, and tables of what its heads pay to them, measured once.

    Attributes:
        model: That reads them.
        sizes: How much is read.
    """

    def __init__(self, bench: Bench, sizes: Sizes) -> None:
        self.model: Model = bench.model
        self.sizes, self.composer = sizes, PassageComposer(PieceEncoder(self.model.tokenizer))
        self._bench = bench
        self._read: dict[str, list[Labelled]] = {}

    def questions(self, name: str) -> list[Labelled]:
        """Those that fit into the model and have both gold and other passages: `items` behind the `first` ones, or `labels` per set of labels."""
        if name not in self._read:
            sizes, labelled = self.sizes, name in LABEL_SETS
            first = 0 if labelled else sizes.first
            count = first + (LABEL_SETS[name] * sizes.labels if labelled else sizes.items)
            if name in HOTPOT:
                every = hotpot(self._bench.folder("hotpotqa-distractor"), name, sizes.words, sizes.passages)
            elif name in NQ:
                every = natural_questions(self._bench.folder("nq-open-oracle"), name, sizes.words, sizes.passages, count)
            else:
                every = dbpedia(self._bench.folder("dbpedia-entity-40"), sizes.words, sizes.passages)
            usable = [q for q in every if self.fits(q.ranking) and 0 < len(q.ranking.gold) < len(q.ranking.passages)]
            self._read[name] = usable[first:count]
        return self._read[name]

    def examples(self, name: str) -> list[RankingExample]:
        """The questions without their answers."""
        return [question.ranking for question in self.questions(name)]

    def fits(self, example: RankingExample) -> bool:
        """Whether the model can read it."""
        tokens = len(self.composer.passages(example.passages).ids) + len(self.composer.query(example.query).ids)
        return tokens <= (self.model.positions or 10**9)

    def table(self, name: str) -> PassageTable:
        """What every head pays to the passages of a set's questions."""
        first = "" if name in LABEL_SETS or not self.sizes.first else f"-from-{self.sizes.first}"
        return self.measured(name + first, self.examples(name))

    def measured(self, name: str, examples: list[RankingExample]) -> PassageTable:
        """The table of any examples, piece by piece; `name` is its folder's name."""
        if not examples:
            raise NotTestable(f"no question of {name} fits into {self.model.positions} positions")
        directory = self._bench.shared_cells(name, self.describe(examples))
        tables = []
        for start in range(0, len(examples), PIECE):
            kept = directory.load(str(start))
            if kept is None:
                made = measure_passages(self.model.hf, self.model, self.composer, examples[start : start + PIECE], seed=None)
                kept = {key: getattr(made, key) for key in ("raw", "calibrated", "gold", "lengths")}, []
                directory.save(str(start), *kept)
            tables.append(kept[0])
            self._bench.report(min(start + PIECE, len(examples)), len(examples), name)
        return joined(tables, self.model)

    def describe(self, examples: list[RankingExample]) -> dict[str, Any]:
        """All that decides a table."""
        texts = [[e.query, [tuple(p) for p in e.passages], sorted(e.gold)] for e in examples]
        return {"model": describe_model(self.model), "composer": self.composer.describe(), "examples": texts}


def joined(tables: list[dict[str, np.ndarray]], model: Model) -> PassageTable:
    """One table of several; passages that an example lacks have length 0 and NaN values."""
    most = max(table["lengths"].shape[1] for table in tables)

    def whole(key: str, fill: Any) -> np.ndarray:
        padded = [
            np.pad(t[key], [(0, 0)] * (t[key].ndim - 1) + [(0, most - t[key].shape[-1])], constant_values=fill) for t in tables
        ]
        return np.concatenate(padded)

    left_out = tuple(sorted(set(range(model.heads.shape[0])) - set(model.heads.full_layers)))
    return PassageTable(
        whole("raw", np.nan), whole("calibrated", np.nan), whole("gold", False), whole("lengths", 0), 0, Scoring(), None, left_out
    )
