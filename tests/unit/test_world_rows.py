"""Training rows of the world models: every task comes up, answers weigh most, and resuming sees the same rows."""

import gzip
import re

import numpy as np
import pytest
from tokenizers import Tokenizer

from headwise.models.names import bundled_model
from headwise.prompts.haystack import bundled_texts
from headwise_lab.microworld.registry import TASKS, make_example
from headwise_lab.recipe.facts import FactMaker
from headwise_lab.recipe.find_rows import ASKS, PassageFinder, paragraphs, read_wikitext
from headwise_lab.recipe.mixture import ANSWER_WEIGHT
from headwise_lab.recipe.noise import noisy_example
from headwise_lab.recipe.recall import recall_text
from headwise_lab.recipe.recipes import RECIPES, Phase
from headwise_lab.recipe.world_rows import MIXES, SIZES, Mix, WorldRows


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(bundled_model() / "tokenizer.json"))


@pytest.fixture(scope="module")
def rows(tokenizer):
    tokens = np.asarray(tokenizer.encode(bundled_texts()[0][:300_000], add_special_tokens=False).ids)
    return WorldRows(tokenizer, tokens, FactMaker(tokenizer, [bundled_texts()[0]]), seed=0)


def phase(mix="first"):
    return Phase(1, 1, (1,), mix=mix)


@pytest.mark.parametrize("mix", list(MIXES))
@pytest.mark.parametrize("length", [128, 256, 512])
def test_rows_are_full_and_answers_weigh_most(rows, length, mix):
    ids, weights = rows.batch(3, 24, length, phase(mix))
    assert ids.shape == weights.shape == (24, length)
    assert ids.min() >= 0
    assert ids.max() < 4096
    assert set(np.unique(weights)) <= {0.0, MIXES[mix].context, 1.0, 2.0, ANSWER_WEIGHT}
    assert 0.03 < (weights == ANSWER_WEIGHT).mean() < 0.5
    assert (ids[:, 0] == 0).mean() > 0.9


def test_a_step_gives_the_same_rows_again_and_another_step_others(rows):
    one, again, other = (rows.batch(step, 4, 128, phase())[0] for step in (5, 5, 6))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_all_tasks_come_up_and_fit(rows):
    assert set(SIZES) == set(TASKS)
    assert all(set(mix.tasks) <= set(SIZES) for mix in MIXES.values())
    assert set(MIXES["many"].tasks) == set(MIXES["first"].tasks) == set(TASKS)  # re-asking has mixes of its own
    rng = np.random.default_rng(0)
    for task in TASKS:
        mix = Mix(books=0, needles=0, repeats=(0, 0), small=0.5, context=0.1, find=0, recall=0, lists=0, tasks={task: 1.0})
        for room, least in ((128, 0.2), (256, 0.4), (512, 0.6)):
            made = [rows._text(rng, room, mix) for _ in range(30)]
            fitting = [len(found[0]) for found in made if found is not None]
            assert len(fitting) >= least * 30 * (room > 128 or task not in ("key_value", "grounded")), (task, room, fitting)
            assert max(fitting, default=0) <= room


def test_what_is_said_again_was_said_before(tokenizer):
    """Every answer of a recall text stands in its first line, as do the names that are asked about; answers fill all later lines."""
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids  # noqa: E731
    forms = set()
    for seed in range(60):
        ids, marks = recall_text(np.random.default_rng(seed), 200, encode, ["of"])
        first, again = tokenizer.decode(ids).split("\n", 1)
        assert not any(marks[: ids.index(encode("\n")[0])])
        answers = tokenizer.decode([i if mark else encode("|")[0] for i, mark in zip(ids, marks, strict=True)])
        found = [answer.strip(" .") for answer in re.split(r"\|+", answers) if answer.strip(" .")]
        assert found
        forms |= {"verdict"} if {"Yes", "No"} & set(found) else set()
        assert all(answer in first for answer in found if answer not in ("Yes", "No"))
        asked = re.findall(r"Question: (.*)\?", again)
        assert all(name in first for name in asked if " " not in name)
        forms.add("question" if "Question" in again else "sentence")
    assert forms == {"question", "sentence", "verdict"}


def test_verdicts_of_recall_texts_are_true(tokenizer):
    """`Name value?` is answered with Yes where the first line has them next to each other, and both answers come up."""
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids  # noqa: E731
    found = []
    for seed in range(120):
        text = tokenizer.decode(recall_text(np.random.default_rng(seed), 200, encode, ["of"], lists=1.0)[0])
        first, again = text.split("\n", 1)
        for pair, verdict in re.findall(r"Question: (\w+ [\w ]+)\?\nAnswer: (Yes|No)\.", again):
            name, value = pair.split(" ", 1)
            told = re.search(rf"{name}\b[^.]*\b{value}\.", first)
            assert (told is not None) == (verdict == "Yes"), (first, pair)
            found.append(verdict)
    assert 0.25 < np.mean([verdict == "Yes" for verdict in found]) < 0.75


def test_noise_leaves_entities_values_and_answers():
    """Noise drops, adds and exchanges words around them, in some texts; without noisy texts every wording would be whole."""
    changed = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        example = make_example("needle", "train", rng, questions=2)
        noisy = noisy_example(rng, example, ["zebra"])
        changed += noisy != example
        keep = lambda pieces: [p for p in pieces if any(n.endswith(("/entity", "/value")) or n == "filler" for n in p.names)]  # noqa: E731
        assert keep(noisy.context) == keep(example.context)
        assert [piece.names for piece in noisy.context] == [piece.names for piece in example.context]
        assert [turn.answer for turn in noisy.turns] == [turn.answer for turn in example.turns]
    assert 12 < changed < 40


def test_words_are_looked_for_in_the_passage_they_come_from(tokenizer):
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids  # noqa: E731
    finder = PassageFinder(paragraphs(bundled_texts()[:1]), encode)
    around = {word.strip("?.") for ask in ASKS for word in ask.split()} - {"{q}"}
    for seed in range(30):
        ids, marks = finder.text(np.random.default_rng(seed), 400)
        text = tokenizer.decode(ids)
        passages = dict(re.findall(r"Passage (\d+): (.*)\n", text))
        asked = re.findall(r"Question: (.*)\nAnswer: Passage (\d+)\.", text)
        assert asked
        for question, number in asked:
            words = {word.strip("?.") for word in question.split()} - around
            assert len(words) >= 1
            assert all(word in passages[number] for word in words)
        assert sum(marks) == sum(len(encode(f" Passage {number}.")) for _, number in asked)


def test_wikitext_reads_like_text(tmp_path):
    path = tmp_path / "w.txt.gz"
    path.write_bytes(gzip.compress(b" = Title = \n\n It has 1 @,@ 000 legs ( or so ) , and <unk> does n't care . \n"))
    assert read_wikitext(path) == "It has 1,000 legs (or so), and doesn't care."


def test_every_recipe_is_complete():
    for name, recipe in RECIPES.items():
        lengths = {length for phase in (*recipe.phases, recipe.polish) for length in phase.lengths}
        assert max(lengths) <= recipe.positions, name
        assert recipe.start is None or recipe.start in RECIPES
        assert 0 < recipe.rate(recipe.steps - 1) < 0.2
        shapes = {recipe.shape(step) for step in range(recipe.steps)}
        assert all(rows * length <= 16_384 for rows, length in shapes)
