"""Tracing answers about the micro-world: every fact is a passage, and one of them says something else than the world."""

from __future__ import annotations

import numpy as np

from headwise.claims.experiment import Bench, Measured
from headwise.claims.in_context_atlas.trace_findings import probe_findings
from headwise.claims.in_context_atlas.trace_sets import SEED, Item
from headwise.claims.in_context_atlas.tracing import Source, Tracer, about, described, probe_of
from headwise.prompts.knowledge_record import KnowledgeRecord
from headwise.prompts.passages import Passage

TRAIN = 1500  # contradictions that a probe is fitted on, where none comes with headwise
SPLITS = {"train": "train", "weights": "selection", "test": "test"}


def measure(bench: Bench) -> Measured:
    """Claims about contradictions of the micro-world."""
    items, learning, train = bench.pick((30, 10, TRAIN), (8, 3, TRAIN // 3))
    probe = probe_of(bench, [item.record for item in world("train", train)], shots=0)
    rows = Tracer(bench, probe, Source("world", world("test", items), world("weights", learning))).rows()
    return Measured(probe_findings("world", rows, probe), described("world", rows, probe) | about(probe))


def world(part: str, count: int) -> list[Item]:
    """Contradictions of one part; a record has the whole text as its passage."""
    from headwise_lab.microworld.contradiction import make

    out = []
    for number in range(count):
        example = make(np.random.default_rng([SEED, number]), SPLITS[part])
        info, asked = example.info, "".join(piece.text for piece in example.turns[-1].ask).strip()
        texts = [wording.format(e=fact.entity, v=fact.value) for wording, fact in zip(info["wordings"], info["facts"], strict=True)]
        (gold,) = (place - 1 for place in info["gold"])
        text = example.context_text
        passage, right = Passage(text), Passage(text.replace(info["answer"], info["world_value"]))
        record = KnowledgeRecord(
            asked, (info["world_value"],), right, passage, info["answer"], info["facts"][gold].relation, name=f"{part} {number}"
        )
        out.append(Item(record.name, record, tuple(map(Passage, texts)), (gold,)))
    return out
