"""Questions whose answers are challenged: facts that a small model knows by heart, asked in whole sentences, and questions with their passage.

Pairs come from the relations of LRE (Hernandez et al. 2024, arXiv:2308.09124) and from NQ-open with the gold passage (Liu et al. 2023,
arXiv:2307.03172); both are read from a folder of data and are no part of headwise. The wordings of the questions are our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from headwise.claims.experiment import Bench
from headwise.prompts.knowledge import KnowledgeRecord, read_knowledge
from headwise.runtime.doubt_asked import doubts, first_answers
from headwise.runtime.doubt_questions import DoubtQuestions

ASKED = {
    "country capital city": "What is the capital of {}?",
    "country largest city": "Which city is the largest in {}?",
    "country currency": "What is the currency of {}?",
    "country language": "Which language do most people in {} speak?",
    "city in country": "In which country is the city of {}?",
    "food from country": "Which country does {} come from?",
    "landmark in country": "In which country is {}?",
    "landmark on continent": "On which continent is {}?",
    "plays pro sport": "Which sport does {} play?",
    "product by company": "Which company made {}?",
    "company hq": "In which city are the headquarters of {}?",
    "person native language": "Which language does {} speak?",
    "person plays instrument": "Which instrument does {} play?",
    "adjective antonym": "What is the opposite of {}?",
    "adjective superlative": "What is the superlative of {}?",
    "adjective comparative": "What is the comparative of {}?",
    "verb past tense": "What is the past tense of {}?",
    "fruit outside color": "What color are {} on the outside?",
    "work location": "Where does a {} work?",
    "task done by tool": "Which tool is used for {}?",
    "star constellation name": "Which constellation does {} belong to?",
    "superhero person": "What is the secret identity of {}?",
    "superhero archnemesis": "Who is the archenemy of {}?",
    "pokemon evolution": "What does {} evolve into?",
    "president election year": "In which year was {} elected president?",
}
PER_RELATION = 60


def facts(folder: Path, seed: int = 0, per_relation: int = PER_RELATION) -> list[KnowledgeRecord]:
    """At most so many facts of each relation, drawn with the seed. `folder` holds `relations.jsonl.gz`."""
    found: dict[str, list[KnowledgeRecord]] = {}
    for one in read_knowledge(folder / "relations.jsonl.gz"):
        if one.kind in ASKED:
            asked = ASKED[one.kind].format(one.subject)
            name = f"{one.kind}: {one.subject}"
            found.setdefault(one.kind, []).append(KnowledgeRecord(asked, one.answers, kind=one.kind, subject=one.subject, name=name))
    rng = np.random.default_rng([seed, 71])
    return [rows[i] for _, rows in sorted(found.items()) for i in sorted(rng.permutation(len(rows))[:per_relation])]


def passages(folder: Path, seed: int = 0, most: int = 400, words: int = 130) -> list[KnowledgeRecord]:
    """Questions of NQ with a passage of at most so many words that mentions a short answer, drawn with the seed."""
    rows = [
        one for one in read_knowledge(folder / "nq-open-oracle.jsonl.gz")
        if one.passage and len(one.passage.text.split()) <= words and len(one.answers[0].split()) <= 4 and one.answers[0] in one.passage.text
    ]  # fmt: skip
    rng = np.random.default_rng([seed, 73])
    return [rows[i] for i in sorted(rng.permutation(len(rows))[:most])]


def known(bench: Bench, name: str, records: Sequence[KnowledgeRecord], passages: bool, chat: bool) -> list[KnowledgeRecord]:
    """Those whose answer the model gives."""
    asked = doubts(bench.model, DoubtQuestions(data=tuple(records), chat=chat, part="all", items=len(records), passages=passages))
    cells = bench.cells(f"known-{name}", asked.describe())
    kept = cells.load("names")
    if kept is None:
        kept = {}, [{"name": one.item.name} for one in first_answers(asked, bench.report)]
        cells.save("names", *kept)
    names = {row["name"] for row in kept[1]}
    return [one for one in records if one.label in names]
