"""Micro-world texts: ids of pieces are ids of the whole text, spans hold what they name, layouts, errors."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from headwise.heads import HeadwiseError
from headwise.models.names import bundled_model
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.prompt import Piece
from headwise.prompts.words import SPLITS
from headwise.testing.tokenizers import character_tokenizer
from headwise_lab.microworld.registry import TASKS, make_example
from headwise_lab.microworld.texts import Example, Exchange, answer_spans, to_prompt, to_row, word_cache

TOKENIZER = Tokenizer.from_file(str(bundled_model() / "tokenizer.json"))


def plain(text):
    return TOKENIZER.encode(text, add_special_tokens=False).ids


def read(ids):
    return TOKENIZER.decode(list(ids), skip_special_tokens=False)


ENCODE = word_cache(plain)
ASKING = [task for task in TASKS if task not in ("documents", "world_text")]
# Options that change the layout; the defaults come with every draw.
OPTIONS = {
    "needle": [{"questions": 3}, {"words": 0, "depth": 0.0}, {"depth": 1.0}, {"facts": 0}],
    "key_value": [{"key_length": 32}, {"shots": 0, "k": 1}],
    "passages": [{"style": "titled"}, {"hops": 2}, {"hops": 2, "style": "titled"}, {"n": 1}, {"hard": 1.0, "n": 9}],
    "closed_book": [{"questions": 5}],
    "contradiction": [{"values": "world"}],
    "two_hop": [{"steps": True}, {"facts": 0, "words": 0}],
    "reask": [{"right": False, "cue": True}],
    "passkey": [{"kind": "digits", "by": "name"}, {"asks": 3, "kind": "words", "by": "ordinal"}],
    "grounded": [{"paraphrase": True}, {"documents": 1, "entities": 1}],
    "documents": [{"kind": k} for k in ("late_reference", "no_reference", "key_value", "duplicate", "boilerplate")],
}
CASES = [(task, options) for task in TASKS for options in [{}, *OPTIONS.get(task, [])]]
cases = st.sampled_from(CASES)


def draw(case, split, seed):
    task, options = case
    return make_example(task, split, np.random.default_rng(seed), **options)


@settings(max_examples=250)
@given(cases, st.sampled_from(SPLITS), st.integers(0, 2**32))
@pytest.mark.slow
def test_joined_ids_are_the_ids_of_the_text(case, split, seed):
    example = draw(case, split, seed)
    ids, is_answer = to_row(example, ENCODE)
    assert ids == plain(example.text)
    assert read(ids) == example.text
    assert len(is_answer) == len(ids)
    assert example.text == example.text.strip()
    assert "  " not in example.text
    assert "\n\n" not in example.text


@settings(max_examples=150)
@given(cases, st.sampled_from(SPLITS), st.integers(0, 2**32))
def test_spans_hold_what_they_name(case, split, seed):
    """Every span's ids read as the joined texts of its pieces; the names are contiguous."""
    example = draw(case, split, seed)
    ids, spans = [], {}
    if not example.turns:
        return
    prompt = to_prompt(example, ENCODE)
    for piece in example.context:
        for name in piece.names:
            spans[name] = spans.get(name, "") + piece.text
    context = example.context_text
    for name, text in spans.items():
        if name != "filler":  # the only name of scattered pieces
            assert read(prompt.ids[slice(*prompt.span(name))]) == text
            assert text in context
    for alias, name in example.turns[-1].alias.items():
        assert prompt.span(alias) == prompt.span(name)
    assert read(prompt.ids[slice(*prompt.span("question"))]) == "".join(p.text for p in example.turns[-1].ask)
    ids = [*prompt.ids, *prompt.gold]
    assert example.text == read(ids) + example.turns[-1].close
    assert read(prompt.gold).strip() == example.turns[-1].answer_text
    closed = to_prompt(example, ENCODE, closing=True)
    assert read([*closed.ids, *closed.gold]) == example.text + "\n"


@pytest.mark.parametrize("task", ["needle", "key_value", "contradiction", "passages", "two_hop", "passkey"])
@pytest.mark.parametrize("split", SPLITS)
def test_the_answer_has_the_same_ids_in_the_context(task, split):
    options = {"passages": {"style": "titled"}, "needle": {"words": 0}}.get(task, {})
    for seed in range(60):
        prompt = to_prompt(make_example(task, split, np.random.default_rng(seed), **options), ENCODE, bos=[0])
        assert prompt.ids[0] == 0
        assert prompt.ids[slice(*prompt.span("answer"))] == prompt.gold
        outer, inner = prompt.span("needle"), prompt.span("answer")
        assert outer.start <= inner.start < inner.stop <= outer.stop


def test_other_tokenizers_and_uncached_encoders_work():
    encoder = PieceEncoder(character_tokenizer())
    for task in ASKING:
        example = make_example(task, "test", np.random.default_rng(0))
        prompt = to_prompt(example, encoder.encode, bos=encoder.bos)
        spoken = encoder.decode(prompt.ids[len(encoder.bos) :] + prompt.gold)
        assert spoken + example.turns[-1].close == example.text


def test_the_mask_marks_answers_with_their_closing_marks():
    example = make_example("needle", "train", np.random.default_rng(4), questions=2)
    ids, is_answer = to_row(example, ENCODE)
    marked = read([i for i, wanted in zip(ids, is_answer, strict=True) if wanted])
    assert marked == "".join(f" {turn.answer_text}." for turn in example.turns)
    wrong = make_example("reask", "train", np.random.default_rng(4), right=False)
    ids, is_answer = to_row(wrong, ENCODE)
    assert read([i for i, wanted in zip(ids, is_answer, strict=True) if wanted]) == " No."
    assert not to_row(make_example("documents", "train", np.random.default_rng(1)), ENCODE)[1].any()


def test_earlier_turns_stand_in_the_prompt_under_their_own_names():
    example = make_example("reask", "test", np.random.default_rng(2), right=True)
    first, second = to_prompt(example, ENCODE, 0), to_prompt(example, ENCODE)
    assert second.ids[: len(first.ids)] == first.ids
    assert second.ids[slice(*second.span("turn/1/answer"))] == first.gold
    assert second.span("turn/1/question") == first.span("question")
    assert second.span("options").stop == second.span("question").stop


def test_layout_is_the_default_template():
    turn = Exchange((Piece(" Who?"),), (Piece(" Ann"),))
    example = Example("needle", "train", (Piece(" Ann came."),), (turn, turn), {})
    assert example.text == "Ann came.\nQuestion: Who?\nAnswer: Ann.\nQuestion: Who?\nAnswer: Ann."
    assert Example("closed_book", "train", (), (turn,), {}).text == "Question: Who?\nAnswer: Ann."


def test_steps_have_spans_inside_the_answer():
    example = make_example("two_hop", "test", np.random.default_rng(3), steps=True)
    prompt, spans = to_prompt(example, ENCODE), answer_spans(example, ENCODE)
    first, second = (example.info["facts"][n - 1] for n in example.info["gold"])
    assert read(prompt.gold[slice(*spans["final"])]) == " " + second.value
    for step, fact in (("step/1", first), ("step/2", second)):
        assert read(prompt.gold[slice(*spans[step])]) == f" {fact.entity}: {fact.value}."


def test_tables_are_json():
    example = make_example("key_value", "test", np.random.default_rng(3), k=12, key_length=32)
    table = json.loads(example.context_text.split("\n", 1)[1])
    assert tuple(table.items()) == example.info["pairs"]
    assert all(len(key) == 32 for key in table)
    assert table[example.info["pairs"][example.info["gold"][0] - 1][0]] == example.info["answer"]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("split", SPLITS)
def test_the_same_seed_gives_the_same_example(task, split):
    one, two, other = (make_example(task, split, np.random.default_rng(seed)) for seed in (7, 7, 8))
    assert one == two
    assert one.text != other.text


def test_the_page_shows_real_examples():
    page = (Path(__file__).parents[2] / "docs" / "microworld.md").read_text()
    shown = dict(re.findall(r"^### `(\w+)`\n\n.*?```text\n(.*?)\n```", page, re.S | re.M))
    assert set(shown) == set(TASKS)
    for task, text in shown.items():
        options = {"k": 4, "shots": 1} if task == "key_value" else {"words": 100} if task == "documents" else {}
        assert text == make_example(task, "train", np.random.default_rng(3), **options).text, task


def test_large_sizes_do_not_run_dry():
    sizes = [("needle", {"facts": 300, "hard": 1.0}), ("passages", {"n": 120, "hard": 1.0}), ("key_value", {"k": 300})]
    for task, options in [*sizes, ("two_hop", {"facts": 300}), ("contradiction", {"facts": 60}), ("grounded", {"entities": 40})]:
        for seed in range(3):
            draw((task, options), "selection", seed)


def test_bad_input_is_refused_in_one_line():
    rng = np.random.default_rng(0)
    for task, split, options, part in [
        ("nedle", "train", {}, "unknown task 'nedle'"),
        ("needle", "dev", {}, "unknown split 'dev'"),
        ("needle", "train", {"size": 3}, "no option 'size'"),
        ("needle", "train", {"depth": 1.5}, "depth must lie between 0 and 1"),
        ("needle", "train", {"questions": 9}, "questions must lie"),
        ("key_value", "train", {"k": 2}, "k must lie"),
        ("documents", "test", {"kind": "poem"}, "unknown kind of document"),
        ("passages", "test", {"style": "html"}, "unknown style"),
        ("closed_book", "train", {"which": "stated_only"}, "training never asks"),
        ("closed_book", "test", {"which": "none"}, "unknown choice of facts"),
    ]:
        with pytest.raises(HeadwiseError, match=part) as caught:
            make_example(task, split, rng, **options)
        assert "\n" not in str(caught.value)
    with pytest.raises(HeadwiseError, match="without questions"):
        to_prompt(make_example("documents", "test", rng), ENCODE)
