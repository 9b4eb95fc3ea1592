"""Questions over passages as token ids to train on."""

from dataclasses import replace

import pytest

import headwise as hw
from headwise.heads.errors import HeadwiseError
from headwise.prompts.passages import Passage, RankingExample
from headwise.prompts.prompt import Span
from headwise.train.examples import collate, prepared
from headwise.train.options import Steps
from headwise.train.tuning import describe_tuning


@pytest.fixture(scope="module")
def model():
    return hw.load("lab-6m")


def record(passages=4, gold=(1, 3), answers=("Paris",), words=6):
    texts = tuple(Passage(f"Passage about the town {number}" + " and its river" * words) for number in range(passages))
    return RankingExample("Where is it?", texts, frozenset(gold), "", tuple(answers))


def decoded(model, example, span):
    return model.tokenizer.decode(example.ids[span.start : span.stop])


def test_an_example_is_prompt_answer_and_end(model):
    (made,), counts = prepared(model, [record()], 512)
    text = model.tokenizer.decode(made.ids[: made.answer])
    assert text.endswith("Answer:")
    end = model.tokenizer.decode([model.tokenizer.eos_token_id])
    assert model.tokenizer.decode(made.ids[made.answer :]).lstrip() == f"Paris\n{end}"  # without a chat template an answer is one line
    assert decoded(model, made, made.asks).startswith(" Where is it?")
    assert made.asks.stop == made.answer
    for span, gold in zip(made.passages, made.gold, strict=True):
        words = decoded(model, made, span)
        assert gold == any(f"town {number}" in words for number in (1, 3))
    assert counts == {"shortened": 0}


def test_distractors_go_first_and_gold_passages_stay(model):
    whole = prepared(model, [record()], 512).examples[0]
    each = whole.passages[0].length
    (made,), counts = prepared(model, [record()], len(whole.ids) - 1)
    assert (sum(made.gold), len(made.gold), counts["shortened"]) == (2, 3, 1)
    assert "town 2" not in model.tokenizer.decode(made.ids)  # the last distractor
    order = [decoded(model, whole, span) for span in whole.passages if "town 2" not in decoded(model, whole, span)]
    kept = [decoded(model, made, span) for span in made.passages]
    assert [text.split(":")[1] for text in order] == [text.split(":")[1] for text in kept]
    with pytest.raises(HeadwiseError, match="none of 1 examples can be trained on: 1 are too long"):
        prepared(model, [record()], len(whole.ids) - 2 * each - 2)


def test_what_cannot_be_learnt_from_is_counted(model):
    rows = [record(), record(gold=()), record(gold=(0, 1, 2, 3)), record(answers=())]
    made = prepared(model, rows, 512)
    assert made.counts == {"no_gold": 1, "all_gold": 1, "no_answer": 1, "shortened": 0}
    assert len(made.examples) == 1
    with pytest.raises(HeadwiseError, match="1 have no gold passage, 1 have gold passages only, 1 have no answer"):
        prepared(model, rows[1:], 512)


def test_a_long_distractor_does_not_cost_the_example(model):
    given = record()
    long = given.passages[0]._replace(text="a long way " * 200)
    spare = next(i for i in range(4) if i not in given.gold)  # the first distractor
    made, counts = prepared(model, [replace(given, passages=tuple(long if i == spare else p for i, p in enumerate(given.passages)))], 300)
    assert (len(made[0].gold), counts) == (3, {"shortened": 1})
    assert "long way" not in model.tokenizer.decode(made[0].ids)


def test_losses_on_heads_alone_need_no_answer(model):
    (made,), _ = prepared(model, [record(answers=())], 512, answers=False)
    assert made.answer == len(made.ids) == made.asks.stop
    assert made.ids == (whole := prepared(model, [record()], 512).examples[0]).ids[: whole.answer]


def test_all_that_a_training_depends_on_is_in_its_description(model):
    one = prepared(model, [record()], 512, alone=True).examples[0]
    moved = Span(one.asks.start + 1, one.asks.stop)
    changes = [{"gold": one.gold[::-1]}, {"asks": moved}, {"passages": one.passages[::-1]}, {"alone": one.alone[::-1]}, {"answer": one.answer - 1}]
    told = [describe_tuning(Steps(), [replace(one, **change)])["digest"] for change in ({}, *changes)]
    assert len(set(told)) == len(told)


def test_the_order_of_passages_depends_on_the_seed_alone(model):
    rows = [record(passages=8) for _ in range(4)]
    first, again, other = (prepared(model, rows, 2048, seed=seed).examples for seed in (0, 0, 1))
    assert first == again
    assert [one.gold for one in first] != [one.gold for one in other]
    assert len({one.gold for one in first}) > 1


def test_batches_are_padded_on_the_right(model):
    short, long = (prepared(model, [record(passages=count)], 2048).examples[0] for count in (4, 5))
    batch = collate([short, long])
    assert batch.ids.shape == (2, len(long.ids))
    assert batch.ids[0, : len(short.ids)].tolist() == list(short.ids)
    assert batch.ids[1].tolist() == list(long.ids)


def test_the_question_and_its_passages_alone(model):
    made = prepared(model, [record()], 512, alone=True).examples[0]
    texts = [model.tokenizer.decode(ids) for ids in made.alone]
    assert len(texts) == 5
    assert "Where is it?" in texts[0]
    assert "town" not in texts[0]
    assert texts[0].endswith("Answer:")
    for text, gold in zip(texts[1:], made.gold, strict=True):
        assert gold == any(f"town {number}" in text for number in (1, 3))
