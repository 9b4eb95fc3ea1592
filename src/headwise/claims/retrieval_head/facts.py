"""Questions about the real world for models that were trained on it: facts, passages that contradict them, and two steps.

Made from the relations of LRE (Hernandez et al. 2023, arXiv 2308.09124; github.com/evandez/relations), which are not shipped. Every question
is one line behind a few answered ones. Only facts are asked that the whole model knows: it was asked them before, in another wording and
behind other examples, and answered right.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from headwise.claims.experiment import Bench, NotTestable
from headwise.claims.retrieval_head.quiz import Asked, Quiz, answer_items, describe_answers
from headwise.claims.retrieval_head.sizes import MODE, SCOPE, Sizes
from headwise.heads import HeadSet, HeadwiseError
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.prompt import Piece, PromptBuilder, Turn
from headwise.stats.metrics import begins_with

FILES = ("relations.jsonl.gz", "relations.jsonl")
CAPITAL, BELONGS = "country capital city", ("landmark in country", "food from country", "city in country")
RELATIONS = (
    CAPITAL, *BELONGS, "country currency", "country language", "country largest city", "landmark on continent",
    "person native language", "plays pro sport", "product by company", "company hq", "person plays instrument",
)  # fmt: skip
EXAMPLES, CONFLICT_EXAMPLES = 4, 3
PER_RELATION, PER_COUNTRY = 15, 8  # facts and two-step questions, so that no relation and no country decides the result
LEAST_OBJECTS = 8  # different answers of a relation whose facts are contradicted
BELONGING = 12  # times as many candidates for two steps


Pair = tuple[str, str]  # subject, object


@dataclass(frozen=True)
class Relation:
    """Pairs of subject and object. asked: the wording of questions; stated: that of passages and of the questions that choose facts."""

    name: str
    stated: str
    asked: str
    pairs: tuple[Pair, ...]


class Fact(NamedTuple):
    """A subject, and what the relation says of it."""

    relation: Relation
    subject: str
    object: str


def read_relations(folder: Path) -> dict[str, Relation]:
    """The relations of `RELATIONS` in a file of LRE relations, one JSON object per line.

    Args:
        folder: Holds one of `FILES`.

    Raises:
        HeadwiseError: There is no such file, or it lacks a relation or a field.
    """
    path = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if path is None:
        raise HeadwiseError(f"no relations in {folder}; give the folder of {FILES[1]} (or {FILES[0]}) of LRE")
    try:
        text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text("utf-8")
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        found = {row["name"]: _relation(row) for row in rows if row["name"] in RELATIONS}
    except (OSError, ValueError, KeyError, TypeError, IndexError, EOFError) as error:
        raise HeadwiseError(f"{path} holds no LRE relations ({type(error).__name__}: {error})") from error
    if missing := [name for name in RELATIONS if name not in found]:
        raise HeadwiseError(f"{path} lacks the relation {missing[0]!r}; get the whole data set")
    return found


def _relation(row: Mapping[str, object]) -> Relation:
    stated, *others = [*_texts(row["prompt_templates"]), *_texts(row["prompt_templates_zs"])]
    asked = [template for template in others if template != stated][-1]
    pairs = {(str(pair["subject"]), str(pair["object"])) for pair in _pairs(row["samples"])}
    pairs = {pair for pair in pairs if "\\" not in pair[0] + pair[1]}  # a few are escaped twice
    return Relation(str(row["name"]), stated, asked, tuple(sorted(pairs)))


def _texts(value: object) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list) else []


def _pairs(value: object) -> list[Mapping[str, object]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def right(wanted: str, answer: str) -> tuple[float]:
    """The answer begins with the right object."""
    return (float(begins_with(answer, wanted)),)


def right_or_memory(wanted: str, known: str, answer: str) -> tuple[float, float]:
    """The passage's object; or what the model knows instead."""
    return float(begins_with(answer, wanted)), float(begins_with(answer, known))


def right_step(country: str, capital: str, answer: str) -> tuple[float, float]:
    """The capital behind the last `is`; and the country in front of it."""
    _, written, last = answer.split("\n")[0].rpartition(" is ")
    return float(bool(written) and begins_with(last, capital)), float(begins_with(answer, country))


class Asker:
    """Makes questions for one model. The same data, tokenizer and seed give the same ones."""

    def __init__(self, bench: Bench, relations: Mapping[str, Relation], sizes: Sizes) -> None:
        self._bench, self._model, self._relations, self._sizes = bench, bench.model, relations, sizes
        self._builder = PromptBuilder(PieceEncoder(self._model.tokenizer))

    def quizzes(self) -> list[Quiz]:
        """Written steps, direct answers, facts, contradicted facts; the whole model is asked first what it knows.

        Raises `NotTestable` if it knows too little for one of them.
        """
        known = {name: self._known(relation) for name, relation in self._relations.items()}
        askable = [fact for name in RELATIONS for fact in self._unshown(known[name])[:PER_RELATION]]
        facts = self._drawn(askable, self._sizes.facts, 1)
        able = [fact for fact in askable if len({answer for _, answer in fact.relation.pairs}) >= LEAST_OBJECTS]
        found = [*self._two_steps(known), self._facts(facts), self._conflicts(self._drawn(able, self._sizes.facts, 2))]
        if empty := [quiz.task for quiz in found if not quiz.items]:
            raise NotTestable(f"knows too few facts for {', '.join(empty)}")
        return found

    def _known(self, relation: Relation) -> list[Fact]:
        """Facts that the whole model answers right in the wording `stated`, in a drawn order."""
        examples, others, rest = self._split(relation)
        shown = {answer for _, answer in examples}
        most = self._sizes.candidates * (BELONGING if relation.name == BELONGS[0] else 1)
        # Nothing is asked whose answer stands in an example: it could be copied.
        candidates = [Fact(relation, *pair) for pair in (*others, *rest) if pair[1] not in shown][:most]
        front = "".join(_line(relation.stated, *pair) for pair in examples)
        asked = [self._question(front, "", f.relation.stated, f.subject, f.object) for f in candidates]
        return self._right(candidates, Quiz("known", ("right",), 2, asked), relation.name)

    def _right(self, facts: Sequence[Fact], quiz: Quiz, name: str) -> list[Fact]:
        """The facts whose question the whole model answers right; one question per fact."""
        nothing = [HeadSet((), self._model.heads.shape, "no head")]
        directory = self._bench.cells(f"known-{name.replace(' ', '-')}", describe_answers(self._model, quiz, nothing, MODE, SCOPE))
        marks = answer_items(self._model, quiz, nothing, MODE, SCOPE, directory).marks[0, :, 0]
        return [fact for fact, mark in zip(facts, marks, strict=True) if mark]

    def _unshown(self, facts: Sequence[Fact]) -> list[Fact]:
        """Those whose answer stands in no example of the questions that are asked in the end."""
        return [fact for fact in facts if all(fact.object != answer for _, answer in self._split(fact.relation)[1])]

    def _facts(self, facts: Sequence[Fact]) -> Quiz:
        items = []
        for fact in facts:
            _, examples, _ = self._split(fact.relation)
            front = "".join(_line(fact.relation.asked, *pair) for pair in examples)
            items.append(self._question(front, "", fact.relation.asked, fact.subject, fact.object))
        return Quiz("closed_book", ("right",), 2, items)

    def _conflicts(self, facts: Sequence[Fact]) -> Quiz:
        """A passage says something else of the subject than the model knows; the answered examples are of the same kind."""
        items = []
        for number, fact in enumerate(facts):
            relation, rng = fact.relation, np.random.default_rng([self._sizes.seed, 72, number])
            examples = self._split(relation)[1][:CONFLICT_EXAMPLES]
            shown = {o for _, o in examples} | {fact.object}
            others = [
                o
                for o in sorted({o for _, o in relation.pairs})
                if not any(begins_with(o, s) or begins_with(s, o) for s in shown)
            ]
            if len(others) <= len(examples):
                continue
            *wrong, said = (others[int(i)] for i in rng.choice(len(others), len(examples) + 1, replace=False))
            front = "".join(
                f"Passage: {_line(relation.stated, subject, other)}{_line(relation.asked, subject, other)}"
                for (subject, _), other in zip(examples, wrong, strict=True)
            )
            passage = f"Passage: {_line(relation.stated, fact.subject, said)}"
            judge = partial(right_or_memory, said, fact.object)
            items.append(self._question(front, passage, relation.asked, fact.subject, said, judge))
        return Quiz("contradiction", ("passage", "memory"), 2, items)

    def _two_steps(self, known: Mapping[str, Sequence[Fact]]) -> tuple[Quiz, Quiz]:
        """The capital of the country that a thing belongs to, with the country written first and without.

        The whole model knows both facts, and writes both steps right in another wording.
        """
        capitals = {fact.subject: fact.object for fact in known[CAPITAL]}
        able = [
            f for name in BELONGS for f in known[name] if f.object in capitals and not begins_with(f.subject, capitals[f.object])
        ]
        drawn, things = self._drawn(able, len(able), 3), Counter(fact.object for fact in able)
        examples: list[Fact] = []
        for fact in sorted(drawn, key=lambda one: things[one.object]):  # of the rarest countries, which cost fewest questions
            if len(examples) < EXAMPLES and all(fact.object != one.object for one in examples):
                examples.append(fact)
        shown = {fact.object for fact in examples}

        def steps(wording: str, middle: str, facts: Sequence[Fact]) -> list[Asked]:
            said = [f"{fact.object}{middle.format(fact.object)} {capitals[fact.object]}" for fact in (*examples, *facts)]
            front = "".join(_line(wording, fact.subject, text) for fact, text in zip(examples, said, strict=False))
            judges = [partial(right_step, fact.object, capitals[fact.object]) for fact in facts]
            asked = zip(facts, said[len(examples) :], judges, strict=True)
            return [self._question(front, "", wording, fact.subject, text, judge) for fact, text, judge in asked]

        asked = [fact for fact in drawn if fact.object not in shown]
        chosen = Quiz("known", ("capital", "country"), 8, steps("The home of {} is", ", whose capital is", asked))
        kept = self._spread(self._right(asked, chosen, "two steps"))
        alone = "{}: the capital of its country is"
        front = "".join(_line(alone, fact.subject, capitals[fact.object]) for fact in examples)
        written = steps("{}: it belongs to", ", and the capital of {} is", kept)
        direct = [self._question(front, "", alone, fact.subject, capitals[fact.object]) for fact in kept]
        return Quiz("steps", ("capital", "country"), 8, written), Quiz("direct", ("capital",), 2, direct)

    def _spread(self, facts: Sequence[Fact]) -> list[Fact]:
        """As many as are wanted, few of each country."""
        kept: list[Fact] = []
        for fact in facts:
            if sum(fact.object == one.object for one in kept) < PER_COUNTRY and len(kept) < self._sizes.two_step:
                kept.append(fact)
        return kept

    def _question(
        self,
        front: str,
        context: str,
        wording: str,
        subject: str,
        answer: str,
        judge: Callable[[str], tuple[float, ...]] | None = None,
    ) -> Asked:
        question = wording.format(subject)
        pieces = [Piece(text) for text in _by_line(f"{front}{context}{question}")]
        prompt = self._builder.build([Turn("user", tuple(pieces))], [Piece(f" {answer}"), Piece("."), Piece("\n")])
        return Asked(prompt, judge or partial(right, answer), context.strip(), question, answer)

    def _split(self, relation: Relation) -> tuple[list[Pair], list[Pair], list[Pair]]:
        """(examples of the questions that choose facts, those of the other questions, the other pairs), in a drawn order.

        The examples of a group have different objects.
        """
        order = np.random.default_rng([self._sizes.seed, 71, RELATIONS.index(relation.name)]).permutation(len(relation.pairs))
        groups: tuple[list[Pair], list[Pair], list[Pair]] = ([], [], [])
        for pair in (relation.pairs[i] for i in order):
            new = (group for group in groups[:2] if len(group) < EXAMPLES and all(pair[1] != other for _, other in group))
            next(new, groups[2]).append(pair)
        return groups

    def _drawn(self, facts: Sequence[Fact], count: int, part: int) -> list[Fact]:
        order = np.random.default_rng([self._sizes.seed, 73, part]).permutation(len(facts))
        return [facts[i] for i in order[:count]]


def _line(wording: str, subject: str, answer: str) -> str:
    return f"{wording.format(subject)} {answer}.\n"


def _by_line(text: str) -> Iterable[str]:
    """Pieces that are encoded alone, as those of the gold answer are: line breaks and the full stops in front of them."""
    for line in text.splitlines(keepends=True):
        body = line.rstrip("\n")
        if line.endswith(".\n"):
            yield from (body[:-1], ".", "\n")
        else:
            yield body
            if line != body:
                yield "\n"
