"""Prompts for function vectors and conflicts: relations with and without examples, known facts in pairs, contradicted facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from headwise.attention.plan import attached
from headwise.evaluation.ablation import variant_starts
from headwise.methods.vectors.search import VectorItem
from headwise.models.model import Model
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.knowledge import KnowledgeComposer, KnowledgeRecord, read_knowledge
from headwise.prompts.mentions import mentions
from headwise.prompts.passages import Passage
from headwise.prompts.prompt import Piece, Prompt, PromptBuilder, Turn
from headwise.runtime.answer import verify_draft
from headwise.stats.metrics import begins_with

EXAMPLES, POOL, CHOOSING, SCALING = 10, 22, 2, 4
FACT_RELATIONS = (
    "country capital city", "country currency", "country language", "country largest city", "landmark on continent", "landmark in country",
    "person native language", "plays pro sport", "product by company", "company hq", "person plays instrument", "food from country",
)  # fmt: skip
PER_RELATION, CONTRADICTED, OBJECTS = 25, 60, 8
CANDIDATES = 400
LRE = "relations.jsonl.gz"


@dataclass(frozen=True)
class Relation:
    """One relation as a task.

    Attributes:
        sources: Prompts with ten examples; their last tokens give vectors. The first is the one.
        choosing: Prompts without examples, of subjects that stand in no example.
        scaling: The same, of other subjects.
        reported: The same, of others again.
        shown: The reported subjects behind ten examples.
    """

    sources: tuple[Prompt, ...]
    choosing: tuple[VectorItem, ...]
    scaling: tuple[VectorItem, ...]
    reported: tuple[VectorItem, ...]
    shown: tuple[VectorItem, ...]


def relation_task(model: Model, records: Sequence[KnowledgeRecord], seed: int, most: int) -> Relation:
    """A relation cut into disjoint parts, with at most `most` reported prompts; the same seed gives the same ones."""
    builder = PromptBuilder(PieceEncoder(model.tokenizer))
    order = [records[i] for i in np.random.default_rng([seed, 81]).permutation(len(records))]
    pool, rest = order[:POOL], order[POOL:]

    def asked(record: KnowledgeRecord, examples: Sequence[KnowledgeRecord] = ()) -> Prompt:
        lines = [
            piece
            for one in examples
            for piece in (Piece(f"Q: {one.subject}"), Piece("\n"), Piece(f"A: {one.answers[0]}"), Piece("\n"))
        ]
        return builder.build(
            [Turn("user", (*lines, Piece(f"Q: {record.subject}"), Piece("\n"), Piece("A:")))], [Piece(" " + record.answers[0])]
        )

    def items(part: Sequence[KnowledgeRecord], examples: Sequence[KnowledgeRecord] = ()) -> tuple[VectorItem, ...]:
        return tuple(VectorItem(asked(record, examples), record.answers) for record in part)

    sources = []
    for number in range(5):
        drawn = [pool[i] for i in np.random.default_rng([seed, 82, number]).permutation(POOL)[: EXAMPLES + 1]]
        sources.append(asked(drawn[EXAMPLES], drawn[:EXAMPLES]))
    first, second = CHOOSING, CHOOSING + SCALING
    reported = rest[second : second + most]
    return Relation(
        tuple(sources), items(rest[:first]), items(rest[first:second]), items(reported), items(reported, pool[:EXAMPLES])
    )


def relations(path: Path) -> dict[str, list[KnowledgeRecord]]:
    """Name -> records with subject and answers."""
    found: dict[str, list[KnowledgeRecord]] = {}
    for record in read_knowledge(path):
        found.setdefault(record.kind, []).append(record)
    return found


def known(model: Model, composer: KnowledgeComposer, records: Sequence[KnowledgeRecord]) -> list[KnowledgeRecord]:
    """Records whose answer the model says by itself: the gold answer is verified as a draft."""
    prompts, right = [composer.closed(record) for record in records], set()
    with attached(model.hf):
        for leaf in variant_starts(model.hf, [prompt.ids for prompt in prompts], "answer"):
            gold = prompts[leaf.index].gold
            if int(verify_draft(model.hf, leaf.past, leaf.rest, gold).accepted[0]) == len(gold):
                right.add(leaf.index)
    return [record for place, record in enumerate(records) if place in right]


def known_pairs(
    model: Model, composer: KnowledgeComposer, every: Sequence[KnowledgeRecord], seed: int
) -> list[tuple[KnowledgeRecord, KnowledgeRecord]]:
    """(source, target) of known facts of one relation with different objects; each target once, in a drawn order."""
    rng = np.random.default_rng([seed, 83])
    facts = known(model, composer, [every[i] for i in sorted(rng.permutation(len(every))[:CANDIDATES].tolist())])
    pairs = []
    for target in facts:
        others = [one for one in facts if one.kind == target.kind and not _alike(one.answers[0], target.answers[0])]
        if others:
            pairs.append((others[int(rng.integers(len(others)))], target))
    return [pairs[i] for i in rng.permutation(len(pairs))]


def contradicted(
    model: Model, composer: KnowledgeComposer, by_name: Mapping[str, Sequence[KnowledgeRecord]], seed: int
) -> list[KnowledgeRecord]:
    """Known facts with a sentence that says something else: another object of the relation."""
    rng, found = np.random.default_rng([seed, 84]), []
    for name in FACT_RELATIONS:
        every = by_name[name]
        objects = sorted({record.answers[0] for record in every})
        if len(objects) < OBJECTS:
            continue
        for record in known(model, composer, [every[i] for i in rng.permutation(len(every))[:PER_RELATION]]):
            others = [one for one in objects if not any(_alike(one, answer) for answer in record.answers)]
            said = others[int(rng.integers(len(others)))]
            if not mentions(record.question, (said, *record.answers)):
                found.append(replace(record, swapped=Passage(f"{record.question} {said}."), swapped_answer=said))
    return [found[i] for i in sorted(rng.permutation(len(found))[:CONTRADICTED].tolist())]


def _alike(one: str, other: str) -> bool:
    return begins_with(one, other) or begins_with(other, one)
