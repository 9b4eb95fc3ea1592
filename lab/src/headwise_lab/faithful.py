"""Grounded answers of the micro-world in the form that `headwise bench faithful` and `headwise bench reader` take, and their exact checker."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwise.heads.errors import HeadwiseError
from headwise.prompts.grounded import GroundedRecord, JudgedAnswer, JudgedSentence
from headwise.prompts.knowledge import KnowledgeRecord
from headwise.prompts.passages import Passage
from headwise_lab.microworld.facts import Fact, Scene
from headwise_lab.microworld.grounded import corrupted
from headwise_lab.microworld.registry import make_example
from headwise_lab.microworld.relations import relations
from headwise_lab.microworld.support import claims_of, read_sentence, sentences_in
from headwise_lab.microworld.texts import Example


class ExactChecker:
    """Says exactly which sentences the documents support, because every sentence of the micro-world can be read back (entry point `world`).

    A sentence is supported if its entity, relation and value stand in the documents. Otherwise it is `mis_combined` (they hold the value, but
    not for this entity and relation), `fabricated` (the value comes from memory or from nowhere), or `unreadable` (no sentence of the
    micro-world). An answer is incomplete if some of its sentences are supported and some not.
    """

    name = "world"

    def scores(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
        """[n] 1 where the chunk says what the sentence says, else 0."""
        found = [{claim.label for claim in claims_of(said, _facts(chunk))} == {"supported"} for said, chunk in pairs]
        return np.asarray(found, dtype=np.float64)

    def labels(self, sentences: Sequence[str], documents: Sequence[Passage]) -> list[str]:
        """`supported`, `mis_combined`, `fabricated` or `unreadable`, judged by all documents together; of several claims the first wrong one."""
        told = frozenset(fact for document in documents for fact in _facts(document.text))
        found = []
        for sentence in sentences:
            labels = [claim.label for claim in claims_of(sentence, told)]
            found.append(next((label for label in labels if label != "supported"), "supported" if labels else "unreadable"))
        return found

    def describe(self) -> dict[str, Any]:
        """Its name."""
        return {"checker": self.name}


@lru_cache(maxsize=10_000)
def _facts(text: str) -> frozenset[Fact]:
    """All that a text says."""
    return frozenset(fact for sentence in sentences_in(text) for fact in read_sentence(sentence))


def grounded_records(count: int, seed: int = 0, split: str = "test", wrong: bool = False, **options: Any) -> list[GroundedRecord]:
    """Questions whose answers rest on documents that partly contradict what the lab models know by heart.

    Args:
        count: How many.
        seed: Of the texts.
        split: Whose names, values and wordings are used.
        wrong: Put an answer with judged sentences beside each, in which about every second sentence is wrong; for readers of answers.
        **options: Of the task `grounded` (entities, known, asked, documents, ...).
    """
    found = []
    for number in range(count):
        rng = np.random.default_rng([seed, 89, number])
        example = make_example("grounded", split, rng, **options)
        judged = () if not wrong else (_judged(corrupted(example, rng, claims=max(1, len(example.info["claims"]) // 2))),)
        asked = "".join(piece.text for piece in example.turns[-1].ask).strip()
        reference = example.turns[-1].answer_text + "."
        facts = tuple(dict.fromkeys(example.info["facts"][place - 1].value for place in example.info["gold"]))
        found.append(GroundedRecord(asked, _documents(example), (reference,), facts, judged, name=f"text {number}"))
    return found


def conflict_records(count: int, seed: int = 0, split: str = "test", known: float = 0.5) -> list[KnowledgeRecord]:
    """Questions with a passage that is right and the same passage with another value, for correction, resistance and agreement.

    Args:
        count: How many.
        seed: Of the texts.
        split: Whose wordings and words are used.
        known: Share of questions about people of the world, whom the lab models know by heart: their right answer is the world's. The others are
            about strangers, whose right answer only the passage tells.

    Returns:
        Records to be asked in the wording `bare`, as in the training of the lab models.
    """
    found = []
    for number in range(count):
        rng = np.random.default_rng([seed, 101, number])
        asks_world = number < round(known * count)
        example = make_example("contradiction" if asks_world else "needle", split, rng, words=20)
        place = example.info["gold"][0]
        fact: Fact = example.info["facts"][place - 1]
        right, wrong = (example.info["world_value"], fact.value) if asks_world else (fact.value, _other(example, fact, rng))
        passages = {value: Passage(_with_value(example, place, value)) for value in (right, wrong)}
        asked = "".join(piece.text for piece in example.turns[-1].ask).strip()
        found.append(
            KnowledgeRecord(
                asked, (right,), passages[right], passages[wrong], wrong, kind=fact.relation, subject=fact.entity, name=f"text {number}"
            )
        )
    return found


def _other(example: Example, fact: Fact, rng: np.random.Generator) -> str:
    """Another value of the fact's relation, which the example does not mention."""
    scene = Scene(rng, example.split)
    scene.reserve(*(one.value for one in example.info["facts"]))
    return scene.name(relations()[fact.relation].value)


def _with_value(example: Example, place: int, value: str) -> str:
    """The context with another value of fact number `place`."""
    name = f"fact/{place}/value"
    given = [piece.text for piece in example.context if name in piece.names]
    swapped = [
        piece.text.replace(piece.text.strip(), value) if name in piece.names else piece.text for piece in example.context
    ]
    if len(given) != 1:
        raise HeadwiseError(f"fact {place} states its value in {len(given)} pieces; one was expected")
    return "".join(swapped)


def _documents(example: Example) -> tuple[Passage, ...]:
    """The passages without their tags, which whoever makes a prompt puts in front again."""
    texts: dict[str, str] = {}
    for piece in example.context:
        name = next((name for name in piece.names if name.startswith("passage/")), None)
        if name is not None:
            texts[name] = texts.get(name, "") + piece.text
    return tuple(Passage(text.partition(":")[2].strip()) for text in texts.values())


def _judged(example: Example) -> JudgedAnswer:
    """The example's answer with its labels."""
    sentences = (JudgedSentence(text, float(label == "supported"), label) for text, label in example.info["claims"])
    return JudgedAnswer(tuple(sentences), "micro-world")


def write_records(path: Path, records: Sequence[GroundedRecord] | Sequence[KnowledgeRecord]) -> Path:
    """Write records as JSON lines, as `read_grounded` and `read_knowledge` take them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one.row(), ensure_ascii=False) + "\n" for one in records), "utf-8")
    return path
