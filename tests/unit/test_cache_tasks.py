"""Contexts and questions of the tasks that come with headwise, and where answers stand in texts of the user."""

import inspect
from functools import partial
from importlib.metadata import entry_points

import numpy as np
import pytest

from headwise.caches.controls import Full
from headwise.evaluation.compression import Candidate, measure_compression
from headwise.evaluation.contexts import CacheTask, longest, place_of
from headwise.evaluation.tasks import ENTRIES, SHOTS, extraction_contexts, key_value_contexts, needle_contexts
from headwise.heads import HeadwiseError
from headwise.models.load import load
from headwise.models.names import bundled_model
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.needles import bundled_needles
from headwise.prompts.words import SPLITS, made_up_name
from headwise.testing.tokenizers import character_tokenizer
from tests.reference.tokenizers import llama2_like

TASKS = {"needle": needle_contexts, "key_value": key_value_contexts}


@pytest.fixture(scope="module")
def model():
    return load(str(bundled_model()))


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("questions", [1, 3])
def test_prompts_fill_the_length_and_hold_their_answers(model, task, questions):
    found = TASKS[task](model, task, 400, 4, questions, seed=1)
    assert [len(context.questions) for context in found] == [questions] * 4
    sizes = [longest(context) for context in found]
    assert max(sizes) <= 400
    assert np.mean(sizes) > 0.8 * 400
    assert len({context.ids for context in found}) == 4
    for context in found:
        assert (context.task, context.length) == (task, 400)
        assert context.ids[:1] == PieceEncoder(model.tokenizer).bos
        text = model.tokenizer.decode(context.ids)
        assert len({question.id for question in context.questions}) == questions
        for question in context.questions:
            answer = model.tokenizer.decode(context.ids[question.answer.start : question.answer.stop])
            assert answer.strip() == question.gold
            assert text.count(question.gold) == 1
            assert (
                question.judge(answer) == question.judge(question.gold + ('"\n' if task == "key_value" else ". And so on")) == 1.0
            )
            assert question.judge("nobody knows") == question.judge("") == 0.0
            asked = model.tokenizer.decode(question.rest)
            assert question.gold not in asked
            assert question.id in asked
            assert asked.count('": "') == (SHOTS + 1 if task == "key_value" else 0)


@pytest.mark.slow
def test_needles_are_those_that_detection_never_uses(model):
    for split, other in (("test", "detect"), ("selection", "test")):
        asked = {question.id for context in needle_contexts(model, "needle", 300, 8, 2, split) for question in context.questions}
        assert not asked & {needle.question for needle in bundled_needles(other)}


def test_a_table_is_json_and_demonstrations_are_true(model):
    import json

    for context in key_value_contexts(model, "key_value", 300, 3, 2):
        table = json.loads(model.tokenizer.decode(context.ids, skip_special_tokens=True))
        for question in context.questions:
            *told, asked = model.tokenizer.decode(question.rest).strip().split("\n")
            assert len(told) == SHOTS
            for line in told:
                assert {tuple(line.strip('"').split('": "'))} <= set(table.items())
            assert table[asked.strip('": ')] == question.gold


@pytest.mark.slow
def test_an_extraction_asks_for_ten_records_of_the_text(model):
    """Records are lines of the text, each value is where it is said to be, and the list in front of the question is answered rightly."""
    contexts = extraction_contexts(model, "extraction", 900, 3, 2, seed=1)
    for context in contexts:
        assert 0.8 * 900 < longest(context) <= 900
        text = model.tokenizer.decode(context.ids, skip_special_tokens=True)
        records = dict(line[2:].split(": ") for line in text.split("\n") if line.startswith("- ") and line.count(": ") == 1)
        assert len(records) == len(set(records.values())) == SHOTS + ENTRIES
        for question in context.questions:
            names = question.id.split(", ")
            assert len(names) == len(question.places) == ENTRIES
            for name, span in zip(names, question.places, strict=True):
                assert model.tokenizer.decode(context.ids[span.start : span.stop]).strip() == records[name]
            assert question.gold == " ".join(f"{i}. {name}: {records[name]}" for i, name in enumerate(names, 1))
            shown, told, asked, closing = model.tokenizer.decode(question.rest, skip_special_tokens=True).strip().split("\n")
            assert asked == "Names: " + " ".join(f"{i}. {name}" for i, name in enumerate(names, 1))
            assert closing == "Numbers:"
            pairs = dict(part.split(":") for part in told.removeprefix("Numbers: ").replace(": ", ":").split()[1::2])
            assert shown == "Names: " + " ".join(f"{i}. {name}" for i, name in enumerate(pairs, 1))
            assert len(pairs) == SHOTS
            assert pairs.items() <= records.items()
            assert not set(pairs) & set(names)


@pytest.mark.slow
def test_an_extraction_is_right_by_the_share_of_its_values(model):
    (context,) = extraction_contexts(model, "extraction", 700, 1)
    (question,) = context.questions
    parts = question.gold.split(" ")
    entries = [" ".join(parts[i : i + 3]) for i in range(0, len(parts), 3)]
    assert question.judge(" " + question.gold) == 1.0
    assert question.judge(" ".join(reversed(entries))) == 1.0
    assert question.judge(" ".join(entries[:7])) == pytest.approx(0.7)
    assert question.judge(question.gold.replace(": ", ": 1")) == question.judge(question.gold.replace(":", "")) == 0.0
    assert question.judge(question.gold + "0") == pytest.approx(0.9)
    assert question.judge("") == 0.0


def test_names_of_splits_differ():
    found = {}
    for split in SPLITS:
        rng = np.random.default_rng(3)
        found[split] = [made_up_name(rng, split) for _ in range(40)]
        assert made_up_name(np.random.default_rng(3), split, taken=found[split]) not in found[split]
    train, selection, test = map(set, found.values())
    assert not train & selection
    assert not train & test
    assert not selection & test


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_the_same_seed_draws_the_same(model, task):
    draw = partial(TASKS[task], model, task, 256, 3)
    assert [c.ids for c in draw(seed=1)] == [c.ids for c in draw(seed=1)] != [c.ids for c in draw(seed=2)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((256, 0), "at least 1"),
        ((256, 2, 0), "at least 1"),
        ((10**6, 2), "positions; choose"),
        ((20, 2), "no .* prompt with 1 questions fits into 20 tokens"),
        ((256, 2, 1, "exam"), "unknown split 'exam'"),
        ((256, 2, 1, "test", -1), "seed 0 or more"),
    ],
)
@pytest.mark.parametrize("task", [*TASKS, "extraction"])
def test_what_cannot_be_drawn_is_refused(model, task, given, message):
    with pytest.raises(HeadwiseError, match=message):
        (TASKS | {"extraction": extraction_contexts})[task](model, task, *given)


def test_every_registered_task_has_the_signature_of_the_protocol():
    wanted = list(inspect.signature(CacheTask.__call__).parameters)[1:]
    found = {entry.name: entry for entry in entry_points(group="headwise.tasks")}
    assert {"needle", "key_value"} <= set(found)
    for entry in found.values():
        assert list(inspect.signature(entry.load()).parameters) == wanted


@pytest.mark.slow
def test_the_bundled_model_finds_needles_with_the_full_cache(model):
    contexts = needle_contexts(model, "needle", 256, 4)
    found = measure_compression(model, [Candidate("full", None, Full())], contexts, ["inside"])
    assert found.gates[0]["gate"] == "passed"
    assert found.rows[0]["exact"] >= 0.5
    assert found.rows[0]["survival"] == 1.0


def test_the_place_of_an_answer(model):
    character = character_tokenizer()
    text = "The mill stands by the river. Ada has the key of Ämter 27. The boat is old."
    for tokenizer in (model.tokenizer, character, llama2_like()):
        encoder = PieceEncoder(tokenizer)
        asked = text if tokenizer is not character else text.casefold().replace("ä", "a")
        ids = encoder.encode(asked)
        for answer in ("the key of", "mter 27", "old.", "mill stands"):
            span = place_of(encoder, ids, asked, answer)
            assert answer in encoder.decode(ids[span.start : span.stop])
            assert answer not in encoder.decode(ids[span.start + 1 : span.stop])
            assert answer not in encoder.decode(ids[span.start : span.stop - 1])
        assert place_of(encoder, ids, asked, "moon") is None
        assert place_of(encoder, ids, asked, "the") is None  # several times
        assert place_of(encoder, ids[:-1], asked, "mill") is None  # not the ids of this text
