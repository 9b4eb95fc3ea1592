"""Relations of the micro-world and their wordings: statements, questions, noun phrases, each with its own set per split."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import product

from headwise.prompts.prompt import Piece
from headwise.prompts.words import SPLITS
from headwise_lab.microworld.names import words

# Kinds of values that are drawn from short lists of ordinary words; all others are open and must be copied.
CLOSED = ("trade", "animal", "instrument", "food", "colour")
_SUFFIXES = ("ing", "ed", "es", "s", "e", "y", "i")


def stem(word: str) -> str:
    """A word without its endings, crudely: lives, living and live become the same."""
    cut = next((word.removesuffix(s) for s in _SUFFIXES if word.endswith(s) and len(word) - len(s) >= 3), word)
    return cut if cut == word else stem(cut)


def meaning_words(text: str) -> frozenset[str]:
    """Stems of the words of a wording that carry meaning (no function words, no slots)."""
    found = re.findall(r"[a-z]+", re.sub(r"\{\w\}", " ", text.lower()))
    return frozenset(stem(word) for word in found if word not in words("function", "train"))


@dataclass(frozen=True)
class Template:
    """A wording with the slots {e} (entity) and {v} (value).

    Attributes:
        text: The wording.
        parts: (slot or "", text with its leading space).
        words: Stems of its words of meaning.
    """

    text: str
    parts: tuple[tuple[str, str], ...]
    words: frozenset[str]

    def render(self, entity: str, value: str = "", name: str = "") -> list[Piece]:
        """Pieces of the sentence, with a space in front.

        Args:
            entity: What stands in {e}.
            value: What stands in {v}.
            name: Name of the whole span; the slots are `name`/entity and `name`/value. Without it nothing is named.
        """
        own = (name,) if name else ()
        out = []
        for slot, text in self.parts:
            if not slot:
                out.append(Piece(text, own))
            elif slot == "e":
                out.append(Piece(" " + entity, (*own, f"{name}/entity") if name else ()))
            else:
                out.append(Piece(" " + value, (*own, f"{name}/value") if name else ()))
        return out

    @property
    def opens(self) -> bool:
        """Whether it starts with the value."""
        return self.parts[0][0] == "v"

    def fill(self, entity: str, value: str = "") -> str:
        """The plain sentence."""
        return self.text.replace("{e}", entity).replace("{v}", value)


@cache
def template(text: str) -> Template:
    """Cut a wording at its slots and before its final mark."""
    parts: list[tuple[str, str]] = []
    for part in re.split(r"( \{[ev]\})", " " + text):
        if part.startswith(" {"):
            parts.append((part[2], ""))
        elif part:
            body, mark = (part[:-1], part[-1]) if part[-1] in ".?" else (part, "")
            parts += [("", body)] * bool(body) + [("", mark)] * bool(mark)
    return Template(text, tuple(parts), meaning_words(text))


@dataclass(frozen=True)
class Relation:
    """Wordings of one relation.

    Attributes:
        name: Its name.
        subject: Kind of the entity.
        value: Kind of what is said about it.
        topics: Stems of words that statement and question may share.
        statements: Split -> sentences that tell a fact.
        questions: Split -> questions for its value.
        phrases: Split -> noun phrases for its value.
    """

    name: str
    subject: str
    value: str
    topics: frozenset[str]
    statements: Mapping[str, tuple[Template, ...]]
    questions: Mapping[str, tuple[Template, ...]]
    phrases: Mapping[str, tuple[Template, ...]]

    @property
    def open(self) -> bool:
        """Whether values are names or numbers that nobody could guess."""
        return self.value not in CLOSED

    def askable(self, split: str, statement: Template) -> tuple[Template, ...]:
        """Questions that share no word of meaning with the statement, save the topic words of the relation."""
        return _apart(self.topics, statement, self.questions[split])

    def nameable(self, split: str, statement: Template) -> tuple[Template, ...]:
        """Noun phrases for the value, under the same condition."""
        return _apart(self.topics, statement, self.phrases[split])


@cache
def _apart(topics: frozenset[str], statement: Template, others: tuple[Template, ...]) -> tuple[Template, ...]:
    return tuple(t for t in others if not (t.words & statement.words) - topics)


@cache
def relations() -> dict[str, Relation]:
    """All relations by name, read once from `wordings.txt`."""
    text = resources.files(__package__).joinpath("wordings.txt").read_text("utf-8")
    found: dict[str, Relation] = {}
    for block in re.split(r"^\[", text, flags=re.M)[1:]:
        head, *lines = block.strip().splitlines()
        name, subject, rest = head.rstrip("]").split(" ", 2)
        value, topics = rest.split(":")
        rows = [tuple(line.split(" ", 2)) for line in lines if line]
        found[name] = Relation(name, subject, value, meaning_words(topics), _rows(rows, "."), _rows(rows, "?"), _rows(rows, "="))
    return found


def _rows(rows: Sequence[tuple[str, ...]], sign: str) -> dict[str, tuple[Template, ...]]:
    found: dict[str, dict[str, None]] = {split: {} for split in SPLITS}  # ordered, each wording once
    for split, kind, text in rows:
        if kind == sign:
            found[split].update(dict.fromkeys(alternatives(text)))
    return {split: tuple(template(text) for text in texts) for split, texts in found.items()}


def alternatives(text: str) -> list[str]:
    """Every wording that a line with choices stands for: `{e} (lives|stays) in {v}.` are two."""
    parts = re.split(r"\(([^()]*)\)", text)
    choices = [part.split("|") if i % 2 else [part] for i, part in enumerate(parts)]
    return [re.sub(" +(?=[ .?,])", "", "".join(chosen)) for chosen in product(*choices)]  # no spaces where a choice is empty


@cache
def about(subject: str) -> tuple[Relation, ...]:
    """Relations of a kind of subject; open ones twice, so that they are drawn more often."""
    own = [r for r in relations().values() if r.subject == subject]
    return tuple(r for r in own for _ in range(2 if r.open else 1))


@cache
def chains(first: str = "") -> tuple[tuple[Relation, Relation], ...]:
    """Pairs of relations where the value of the first can be the subject of the second. first: only this relation."""
    every = relations().values()
    return tuple(
        (a, b) for a in every if a.phrases["train"] and first in ("", a.name) for b in every if b.subject == a.value and a != b
    )
