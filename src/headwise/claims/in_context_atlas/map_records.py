"""Records for head maps: known facts and questions of NQ with swapped answers, cut into a half that finds heads and one that tests them."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import replace

from headwise.claims.cut_passages import shortened
from headwise.claims.experiment import Bench
from headwise.claims.in_context_atlas.parts import NQ, known_facts
from headwise.prompts.knowledge import KnowledgeRecord, read_knowledge
from headwise.prompts.swaps import fact_passages, swap_answers

NQ_WORDS = 60
Halves = tuple[list[KnowledgeRecord], list[KnowledgeRecord]]


def halves(records: Iterable[KnowledgeRecord]) -> Halves:
    """Those that find heads, and those that test them; everything about one subject is in one half."""
    out: Halves = ([], [])
    for record in records:
        out[zlib.crc32((record.subject or record.question).encode()) % 2].append(record)
    return out


def fact_records(bench: Bench) -> list[KnowledgeRecord]:
    """Known facts, each in a passage of four completed sentences."""
    return swap_answers(fact_passages(known_facts(bench), seed=bench.seed), bench.seed)


def nq_records(bench: Bench) -> list[KnowledgeRecord]:
    """Questions of NQ with their gold passages, cut to `NQ_WORDS` words."""
    return swap_answers([_cut(one) for one in read_knowledge(bench.folder("nq-open-oracle") / NQ)], bench.seed)


def _cut(record: KnowledgeRecord) -> KnowledgeRecord:
    passage = record.passage
    return record if passage is None else replace(record, passage=shortened(passage, record.answers, NQ_WORDS))
