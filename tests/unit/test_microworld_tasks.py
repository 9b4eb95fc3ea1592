"""What the micro-world's tasks promise: one right answer, gold where it should be, consistent chains, proportions, support."""

from collections import Counter

import numpy as np
import pytest

from headwise.prompts.words import SPLITS
from headwise_lab.microworld import relations
from headwise_lab.microworld.facts import Fact
from headwise_lab.microworld.grounded import corrupted
from headwise_lab.microworld.names import _lists
from headwise_lab.microworld.registry import make_example
from headwise_lab.microworld.relations import template
from headwise_lab.microworld.support import LABELS, check_support, read_sentence
from headwise_lab.microworld.world import make_world


def many(task, split, count=60, **options):
    rng = np.random.default_rng(5)
    return [make_example(task, split, rng, **options) for _ in range(count)]


def questions_by_text(entity, split):
    """Every question that could be asked about an entity -> its relation. The slow way."""
    return {t.fill(entity): r.name for r in relations().values() for t in r.questions[split]}


def read_answer(example, turn):
    """Answers of a slow reader that knows only the facts and all wordings: every value that fits the question of a turn."""
    asked = "".join(piece.text for piece in example.turns[turn].ask).strip()
    facts = example.info["facts"]
    direct = {f.value for f in facts if questions_by_text(f.entity, example.split).get(asked) == f.relation}
    chained = set()
    for first in facts:
        for phrase in relations()[first.relation].phrases[example.split]:
            for second in (f for f in facts if f.entity == first.value):
                name = phrase.fill(first.entity)
                for form in relations()[second.relation].questions[example.split]:
                    if form.text.replace("the {e}", "{e}").replace("{e}", name) == asked:
                        chained.add(second.value)
    return direct | chained


ONE_RIGHT = [
    ("needle", {"questions": 3}),
    ("needle", {"facts": 20, "hard": 1.0}),
    ("contradiction", {}),
    ("contradiction", {"values": "world", "facts": 9, "questions": 4}),
    ("two_hop", {}),
    ("two_hop", {"chains": 3}),
    ("passages", {"n": 8, "questions": 5}),
    ("passages", {"n": 8, "hops": 2, "hard": 1.0}),
]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(("task", "options"), ONE_RIGHT)
def test_exactly_one_answer_is_right(task, options, split):
    for example in many(task, split, 25, **options):
        facts = example.info["facts"]
        assert len({fact[:2] for fact in facts}) == len(facts)
        for turn, asked in enumerate(example.turns):
            assert read_answer(example, turn) == {asked.answer_text}
        assert example.turns[-1].answer_text == example.info["answer"]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("task", ["needle", "passages", "reask", "two_hop", "grounded", "contradiction", "documents"])
def test_told_sentences_are_the_facts(task, split):
    """The text that carries fact/i says fact i, as an independent reader has it, and no other."""
    for example in many(task, split, 20):
        for number, fact in enumerate(example.info["facts"], 1):
            told = "".join(p.text for p in example.context if f"fact/{number}" in p.names).strip()
            assert fact in read_sentence(told)
            assert template(example.info["wordings"][number - 1]).fill(fact.entity, fact.value) == told


def test_every_statement_can_be_read_back_and_means_one_thing():
    samples = {
        "person": "Balbekin",
        "place": "Ashwick",
        "ship": "Aquion",
        "code": "blabix dop",
        "number": "472",
        "spot": "tin jar",
    }
    for relation in relations().values():
        fact = Fact("Dorlin", relation.name, samples.get(relation.value, "red"))
        for split in SPLITS:
            for wording in relation.statements[split]:
                assert read_sentence(wording.fill(fact.entity, fact.value)) == [fact]


def test_needles_stand_where_they_are_put():
    for depth, place in ((0.0, 0), (1.0, -1)):
        for example in many("needle", "test", 20, depth=depth):
            sentence = "".join(p.text for p in example.context if f"fact/{example.info['gold'][0]}" in p.names).strip()
            text = example.context_text
            assert text.startswith(sentence) if place == 0 else text.endswith(sentence)


def test_needles_have_hard_distractors():
    same_entity = same_relation = 0
    for example in many("needle", "train", 80):
        facts = list(example.info["facts"])
        needle = facts.pop(example.info["gold"][-1] - 1)
        same_entity += any(f.entity == needle.entity for f in facts)
        same_relation += any(f.relation == needle.relation for f in facts)
    assert same_entity > 50
    assert same_relation > 60


def test_own_filler_is_used():
    example = make_example(
        "needle", "test", np.random.default_rng(0), filler=lambda rng, n: ["Call me  Ishmael.", f"{n} whales."]
    )
    assert "Call me Ishmael." in example.context_text
    assert "60 whales." in example.context_text


@pytest.mark.parametrize("split", SPLITS)
def test_passages_have_the_gold_they_claim(split):
    for hops in (1, 2):
        for example in many("passages", split, 25, hops=hops, n=7):
            info = example.info
            assert len(info["gold_passages"]) == hops
            assert [i for i, kind in enumerate(info["kinds"], 1) if kind == "gold"] == list(info["gold_passages"])
            homes = {n for number in info["gold"] for p in example.context if f"fact/{number}" in p.names for n in p.names}
            assert {f"passage/{n}" for n in info["gold_passages"]} == {name for name in homes if name.startswith("passage/")}
            assert Counter(info["kinds"])["hard"] == round(0.5 * (7 - hops))
            relation = info["facts"][info["gold"][-1] - 1].relation
            for number, kind in enumerate(info["kinds"], 1):
                body = {n for p in example.context if f"passage/{number}" in p.names for n in p.names if n.startswith("fact/")}
                told = [info["facts"][int(n.split("/")[1]) - 1] for n in body]
                assert len(told) >= 1
                assert kind != "background" or all(f.relation != relation for f in told)


def test_closed_book_has_no_context_and_asks_the_world():
    for split in SPLITS:
        for example in many("closed_book", split, 30, questions=2):
            assert example.context == ()
            for turn, fact in zip(example.turns, example.info["facts"], strict=True):
                assert fact in make_world().facts
                assert turn.answer_text == fact.value
                asked = "".join(piece.text for piece in turn.ask).strip()
                assert fact.value not in asked.split()
                assert questions_by_text(fact.entity, split)[asked] == fact.relation


@pytest.mark.parametrize("values", ["split", "world"])
@pytest.mark.parametrize("split", SPLITS)
def test_contradictions_contradict(split, values):
    world = make_world()
    for example in many("contradiction", split, 40, values=values):
        info = example.info
        fact = info["facts"][info["gold"][0] - 1]
        assert info["world_value"] == world.value(fact.entity, fact.relation) != info["answer"] == fact.value
        assert info["world_value"] not in {f.value for f in info["facts"]}
        if values == "world":
            assert fact.value in {f.value for f in world.facts}


@pytest.mark.parametrize("split", SPLITS)
def test_two_hop_bridges_and_decoys(split):
    decoys = 0
    for example in many("two_hop", split, 40):
        first, second = (example.info["facts"][n - 1] for n in example.info["gold"])
        assert first.value == second.entity == example.info["bridge"]
        asked = "".join(p.text for p in example.turns[0].ask)
        assert first.entity in asked.replace("?", " ").split()
        assert example.info["bridge"] not in asked
        decoys += any(f.relation == second.relation and f != second for f in example.info["facts"])
        assert not [f for f in example.info["facts"] if f.entity == f.value]
    assert decoys == 40


@pytest.mark.slow
def test_reasking_has_its_proportions():
    made = many("reask", "train", 3000)
    right = [e for e in made if e.info["right"]]
    cued = [e for e in right if e.info["cue"]]
    assert abs(len(right) / 3000 - 0.5) < 0.04
    assert abs(len(cued) / len(right) - 0.5) < 0.05
    assert abs(sum(e.info["target"] == "No" for e in cued) / len(cued) - 0.3) < 0.06
    assert all(e.info["target"] == "Yes" for e in right if not e.info["cue"])
    assert all(e.info["target"] == "No" for e in made if not e.info["right"])
    assert abs(sum(e.info["order"][0] == "Yes" for e in made) / 3000 - 0.5) < 0.04
    for example in made[:200]:
        info = example.info
        true = info["facts"][info["gold"][0] - 1]
        assert (info["given"] == true.value) == info["right"]
        assert example.turns[0].scored == info["right"]
        assert info["given"] in {f.value for f in info["facts"] if f.relation == true.relation}
        assert ("Hmm," in example.text) == info["cue"]
        assert example.turns[1].answer_text == info["target"] == info["answer"]


@pytest.mark.parametrize("split", SPLITS)
def test_every_round_of_reasking_is_judged_by_the_text(split):
    for example in many("reask", split, 30, rounds=3, facts=8, flip=0.0):
        assert len(example.turns) == 6
        for first in range(0, 6, 2):
            asked, challenge = example.turns[first : first + 2]
            truth = read_answer(example, first)
            assert len(truth) == 1
            assert challenge.answer_text == ("Yes" if truth == {asked.answer_text} else "No")
            assert asked.scored == (truth == {asked.answer_text})


@pytest.mark.parametrize("task", ["needle", "contradiction", "passages"])
def test_questions_ask_about_different_facts(task):
    for example in many(task, "train", 20, questions=4):
        assert len(example.turns) == 4
        assert len({turn.alias["needle"] for turn in example.turns}) == 4


def test_reasking_can_be_set():
    assert all(e.info["target"] == "Yes" for e in many("reask", "test", 100, right=True, cue=True))
    assert all(e.info["flipped"] for e in many("reask", "test", 20, right=True, cue=True, flip=1.0))
    assert not any(e.info["cue"] or e.info["right"] for e in many("reask", "selection", 20, right=False, cue=False))


@pytest.mark.parametrize("by", ["ordinal", "name"])
@pytest.mark.parametrize("kind", ["words", "digits"])
def test_passkeys_are_told_apart(by, kind):
    for example in many("passkey", "test", 20, keys=5, asks=2, length=6, by=by, kind=kind):
        facts, gold = example.info["facts"], example.info["gold"]
        assert len({f.value for f in facts}) == len({f.entity for f in facts}) == 5
        assert gold == tuple(sorted(gold))
        for turn, number in zip(example.turns, gold, strict=True):
            asked = "".join(p.text for p in turn.ask)
            assert [f for f in facts if f.entity in asked] == [facts[number - 1]]
            assert turn.answer_text == facts[number - 1].value
            assert len(turn.answer_text.split()) == (6 if kind == "words" else 1)
        if by == "ordinal":
            assert [f.entity.split()[1] for f in facts] == ["first", "second", "third", "fourth", "fifth"]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("paraphrase", [False, True])
def test_grounded_answers_are_supported_and_complete(split, paraphrase):
    world = make_world()
    for example in many("grounded", split, 30, paraphrase=paraphrase):
        info = example.info
        claims = check_support(info["answer"], example)
        assert [(c.text, c.label) for c in claims] == list(info["claims"])
        assert {c.label for c in claims} == {"supported"}
        wanted = [f for f in info["facts"] if f.entity in info["asked"]]
        assert [c.fact for c in claims] == wanted
        assert len(claims) in (2, 4)
        told = {f[:2]: f.value for f in info["facts"]}
        assert len(info["prior"]) == 2
        for fact in info["prior"]:
            assert world.value(fact.entity, fact.relation) == fact.value != told[fact[:2]]
            assert fact.value not in told.values()


@pytest.mark.parametrize("error", ["fabricated", "mis_combined", None])
def test_corrupted_answers_are_found_out(error):
    rng = np.random.default_rng(1)
    labels = Counter()
    for example in many("grounded", "test", 40):
        wrong = corrupted(example, rng, error, claims=1)
        assert wrong.context == example.context
        assert not wrong.turns[-1].scored
        found = [(c.text, c.label) for c in check_support(wrong.info["answer"], wrong)]
        assert found == list(wrong.info["claims"])
        bad = [label for _, label in found if label != "supported"]
        assert len(bad) == 1
        labels += Counter(bad)
    if error == "fabricated":
        assert set(labels) == {"fabricated"}
    elif error == "mis_combined":  # without a second value of the kind there is nothing to mix up
        assert labels["mis_combined"] > labels["fabricated"]
    assert set(labels) <= set(LABELS)


def test_support_of_single_sentences():
    example = make_example("grounded", "test", np.random.default_rng(9))
    one, two = example.info["facts"][0], next(f for f in example.info["facts"] if f.entity != example.info["facts"][0].entity)
    say = lambda fact: relations()[fact.relation].statements["train"][0].fill(*fact[::2])  # noqa: E731
    answer = " ".join(
        [
            say(one),
            say(one._replace(value="Zzyx")),
            say(two._replace(entity=one.entity)),
            "Blue seven the of.",
            say(two).rstrip("."),
        ]
    )
    found = check_support(answer, example)
    assert [c.label for c in found] == ["supported", "fabricated", "mis_combined", "unreadable", "supported"]
    assert found[3].fact is None
    assert check_support("", example) == []


def test_documents_repeat_what_they_say_they_repeat():
    for split in SPLITS:
        for example in many("documents", split, 15, kind="late_reference"):
            facts, pairs = example.info["facts"], example.info["pairs"]
            assert len(pairs) > 2
            for early, late in pairs:
                assert facts[early - 1] == facts[late - 1]
                assert example.info["wordings"][early - 1] != example.info["wordings"][late - 1]
        for example in many("documents", split, 15, kind="no_reference"):
            values = [item for fact in example.info["facts"] for item in (fact.entity, fact.value)]
            assert len(values) == len(set(values))
            assert example.info["pairs"] == ()
        for example in many("documents", split, 10, kind="key_value"):
            assert example.info["pairs"]
            table = example.context_text[: example.context_text.index("}")]
            for line, number in example.info["pairs"]:
                key, value = ("".join(p.text for p in example.context if f"pair/{line}/{x}" in p.names) for x in ("key", "value"))
                said = "".join(p.text for p in example.context if f"late/{number}" in p.names)
                assert f'"{key}": "{value}"' in table
                assert key in said
                assert value in said
        for kind in ("duplicate", "boilerplate"):
            sentences = Counter(s for e in many("documents", split, 5, kind=kind) for s in e.context_text.split(". "))
            assert sentences.most_common(1)[0][1] > 3


def test_documents_have_about_the_words_asked_for():
    for kind in ("late_reference", "no_reference", "key_value", "duplicate", "boilerplate"):
        for words in (100, 400):
            for example in many("documents", "train", 4, kind=kind, words=words):
                assert 0.7 * words < len(example.text.split()) < 1.3 * words + 20, kind


def test_with_one_kind_only_the_entity_tells_facts_apart():
    for example in many("needle", "test", 20, facts=5, kinds=1, questions=4):
        assert len({fact.relation for fact in example.info["facts"]}) == 1
        assert len({fact.entity for fact in example.info["facts"]}) == len(example.info["facts"])
        assert 1 <= len(example.turns) <= min(4, len(example.info["facts"]))


def test_training_copies_words_that_are_in_no_list():
    known = {word for (kind, _), found in _lists().items() if kind != "pass" for word in found}
    short = {r.name for r in relations().values() if not r.open or r.value == "spot"}
    for split, low, high in (("train", 0.3, 0.5), ("selection", 0.0, 0.0), ("test", 0.0, 0.0)):
        facts = [fact for example in many(split=split, task="needle", count=150, facts=8) for fact in example.info["facts"]]
        made_up = [not set(fact.value.split()) <= known for fact in facts if fact.relation in short]
        assert low <= np.mean(made_up) <= high
