"""Splits of the micro-world share no name, value or wording; wordings are paraphrases; the fixed world."""

import re
from itertools import combinations

import numpy as np
import pytest

from headwise.heads import HeadwiseError
from headwise.prompts.words import SPLITS, part_of
from headwise_lab.microworld import phrases, relations
from headwise_lab.microworld.names import PARTS, pool, words
from headwise_lab.microworld.registry import TASKS, make_example
from headwise_lab.microworld.relations import chains, meaning_words
from headwise_lab.microworld.world import make_world

NAMES = ("person", "place", "ship", "code")
WORDS = ("trade", "animal", "instrument", "food", "colour", "material", "container", "pass")
TABLES = {name: value for name, value in vars(phrases).items() if name.isupper() and isinstance(value, dict)}
LEAST = {"train": 6, "selection": 2, "test": 3}


@pytest.mark.parametrize("kind", [*NAMES, *WORDS, "number", "spot"])
def test_pools_of_different_splits_are_disjoint(kind):
    parts = PARTS if kind in NAMES else SPLITS
    for one, two in combinations(parts, 2):
        assert not set(pool(kind, one)) & set(pool(kind, two))
    for split in parts:
        items = pool(kind, split)
        assert len(items) == len(set(items)) >= {"train": 30, "world": 40}.get(split, 10)


def test_pools_of_different_kinds_are_disjoint():
    everything = {kind: {item for part in SPLITS for item in pool(kind, part)} for kind in (*NAMES, *WORDS)}
    for one, two in combinations(everything, 2):
        assert not {w.lower() for w in everything[one]} & {w.lower() for w in everything[two]}, (one, two)
    for kind in ("trade", "animal", "colour"):  # "a {v}" stands in front of them
        assert all(word[0] not in "aeiou" for word in everything[kind])


def wordings():
    """(where, split, text) of every wording."""
    for relation in relations().values():
        for kind in ("statements", "questions", "phrases"):
            for split, templates in getattr(relation, kind).items():
                yield from ((f"{relation.name} {kind}", split, template.text) for template in templates)
    for name, table in TABLES.items():
        for split in SPLITS:
            yield from ((name, split, text) for text in table[split])


def test_no_wording_belongs_to_two_splits():
    found = {}
    for where, split, text in wordings():
        assert found.setdefault(text.lower(), split) == split, (where, text)


def test_there_are_enough_wordings():
    for relation in relations().values():
        for split in SPLITS:
            assert len(relation.statements[split]) >= LEAST[split]
            assert len(relation.questions[split]) >= LEAST[split]
            assert any(not w.opens for w in relation.statements[split])
            assert all(
                w.text.count("{e}") == w.text.count("{v}") == 1 and w.text.endswith(".") for w in relation.statements[split]
            )
            assert all(w.text.count("{e}") == 1 and w.text.endswith("?") for w in relation.questions[split])
    assert len(relations()) >= 14
    assert sum(relation.open for relation in relations().values()) > len(relations()) / 2


def test_questions_paraphrase_their_statements():
    """No question that may be asked shares a word of meaning with the statement; some question always may."""
    for relation in relations().values():
        for split in SPLITS:
            for told in relation.statements[split]:
                asked = relation.askable(split, told)
                assert len(asked) >= (2 if split == "train" else 1), (relation.name, told.text)
                for other in (*asked, *relation.nameable(split, told)):
                    assert not meaning_words(other.text) & meaning_words(told.text) - relation.topics
                if relation.phrases[split]:
                    assert relation.nameable(split, told), (relation.name, told.text)
    assert len({(a.name, b.name) for a, b in chains()}) > 40


def test_held_out_wordings_use_known_words():
    """A model with a vocabulary of its own can read the wordings of selection and test."""
    known = frozenset().union(*(meaning_words(text) for _, split, text in wordings() if split == "train"))
    for where, split, text in wordings():
        assert meaning_words(text) <= known, (where, split, text, meaning_words(text) - known)


def test_filler_holds_no_value_and_no_wording():
    values = {word for kind in WORDS for split in SPLITS for word in words(kind, split)}
    for split in SPLITS:
        sentences = phrases._filler(split)
        assert len(sentences) > 400
        assert {word for s in sentences for word in re.findall(r"\w+", s.lower())} & values == set()
        assert all(part_of(s) == split for s in sentences)
    assert {word for _, _, text in wordings() for word in re.findall(r"\w+", text.lower())} & values == set()


def capitals(text):
    """Words with a capital that do not open a sentence, and all numbers: what could be a name or a value."""
    return set(re.findall(r"(?<=[a-z,] )[A-Z][a-z]{3,}|\b\d{3,}\b", text))


@pytest.mark.parametrize("task", TASKS)
def test_generated_examples_share_nothing_between_splits(task):
    world = make_world()
    shared = {value for fact in world.facts for value in fact} | {"Passage", "Question", "Answer"}
    found = {split: set() for split in SPLITS}
    for split in SPLITS:
        rng = np.random.default_rng(11)
        for _ in range(60):
            example = make_example(task, split, rng)
            told = example.info["facts"]
            found[split] |= capitals(example.context_text)
            if task not in ("closed_book", "world_text"):
                found[split] |= {item for fact in told for item in (fact.entity, fact.value)}
            found[split] |= set(example.info.get("wordings", ()))
            found[split] |= {item for pair in example.info.get("pairs", ()) for item in pair if isinstance(item, str)}
            found[split] -= {fact.entity for fact in told if fact.entity.startswith("the ") and "of" not in fact.entity}
    for one, two in combinations(SPLITS, 2):
        assert not (found[one] & found[two]) - shared


def test_the_world_is_fixed_and_of_its_own_names():
    world = make_world()
    assert world == make_world()
    assert world.facts != make_world(seed=2).facts
    assert len(world.people) == 120
    assert len(world.facts) == 240
    assert len({fact[:2] for fact in world.facts}) == 240
    assert len(world.stated_only) == 48
    assert all(part_of(person) == "world" for person in world.people)
    fact = world.facts[5]
    assert world.value(fact.entity, fact.relation) == fact.value
    assert len(world.of(world.people[0])) == 2
    with pytest.raises(HeadwiseError, match="knows nothing"):
        world.value("Nobody", "pet")


def test_training_never_asks_what_is_only_stated():
    hidden = make_world().stated_only
    rng = np.random.default_rng(0)
    asked = {example.info["facts"][0][:2] for example in (make_example("closed_book", "train", rng) for _ in range(1500))}
    assert not asked & hidden
    assert len(asked) > 180
    for _ in range(300):
        example = make_example("contradiction", "train", rng)
        assert example.info["facts"][example.info["gold"][0] - 1][:2] not in hidden
        grounded = make_example("grounded", "train", rng)
        assert not {fact[:2] for fact in grounded.info["facts"]} & hidden
    stated = {f[:2] for _ in range(300) for f in make_example("world_text", "train", rng).info["facts"]}
    assert stated == {fact[:2] for fact in make_world().facts}
    only = make_example("closed_book", "test", rng, which="stated_only", questions=3)
    assert {fact[:2] for fact in only.info["facts"]} <= hidden
