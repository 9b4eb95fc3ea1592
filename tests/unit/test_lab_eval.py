"""`headwise lab eval`: batches against one prompt after the other, draws, judges, rows; with a model that always says the truth."""

import copy
import json
import math

import numpy as np
import pytest
import torch

from headwise.evaluation.perplexity import perplexity
from headwise.heads import HeadwiseError
from headwise.models.load import load
from headwise.models.names import bundled_model
from headwise.runtime import batches
from headwise.runtime.answer import stop_ids
from headwise.runtime.batches import greedy_answers, next_token_logits
from headwise.testing.tiny import TINY_FAMILIES, tiny_model
from headwise_lab import evaluation
from headwise_lab.eval_tasks import (
    GOALS,
    LONG_TASKS,
    SPECS,
    Drawer,
    NotMeasured,
    Spec,
    right,
    right_or_world,
    right_steps,
    specs_for,
    support,
)
from headwise_lab.evaluation import BOOKS, REASK, evaluate_model, share_interval, uncued
from headwise_lab.microworld.grounded import corrupted
from headwise_lab.microworld.registry import make_example

SPEC = {spec.rows[0]: spec for spec in SPECS}


@pytest.fixture(scope="module")
def lab():
    return load(str(bundled_model()))


def with_positions(model, positions):
    shorter = copy.copy(model)
    object.__setattr__(shorter, "positions", positions)
    return shorter


def example(task, seed=0, **options):
    return make_example(task, "test", np.random.default_rng(seed), **options)


# Batches


@torch.no_grad()
def slow_answer(model, prompt, limit, stop):
    """One prompt, no padding, no cache."""
    answer = []
    while len(answer) < limit and not (answer and answer[-1] in stop):
        logits = model(input_ids=torch.tensor([[*prompt, *answer]]), use_cache=False).logits[0, -1]
        answer.append(int(logits.argmax()))
    return tuple(answer)


@pytest.mark.slow
@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_batches_give_the_answers_of_one_prompt_after_the_other(family, monkeypatch):
    monkeypatch.setattr(batches, "BATCH_TOKENS", 60)
    monkeypatch.setattr(batches, "ALONE", 24)
    model = tiny_model(family)
    rng = np.random.default_rng(1)
    prompts = [rng.integers(2, 96, size=n).tolist() for n in (5, 19, 3, 27, 12, 11, 30, 4, 20)]
    limits = [int(n) for n in rng.integers(1, 9, size=len(prompts))]
    free = greedy_answers(model, prompts, limits, ())
    assert [len(answer) for answer in free] == limits
    stop = {answer[1] for answer in free if len(answer) > 3}  # tokens that really come
    expected = [slow_answer(model, prompt, limit, stop) for prompt, limit in zip(prompts, limits, strict=True)]
    assert greedy_answers(model, prompts, limits, stop) == expected
    assert any(len(answer) < limit for answer, limit in zip(expected, limits, strict=True))
    logits = next_token_logits(model, prompts, [7, 3])
    with torch.no_grad():
        for prompt, found in zip(prompts, logits, strict=True):
            torch.testing.assert_close(found, model(input_ids=torch.tensor([prompt])).logits[0, -1, [7, 3]], atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_batches_give_the_lab_models_answers(lab):
    drawer, stop = Drawer(lab, 3, "test", 0), stop_ids(lab)
    items = [
        item for name in ("needle", "key_value", "closed_book_asked") for item in drawer.draw(SPEC[name], SPEC[name].options)
    ]
    prompts, limits = [item.prompt.ids for item in items], [len(item.prompt.gold) + 4 for item in items]
    assert greedy_answers(lab.hf, prompts, limits, stop) == [
        slow_answer(lab.hf, prompt, limit, stop) for prompt, limit in zip(prompts, limits, strict=True)
    ]


def test_every_prompt_is_in_one_batch_of_bounded_size():
    prompts = [[0] * n for n in (3000, 10, 1025, 700, 1024, 600, 9)]
    made = batches._batches(prompts)
    assert sorted(i for batch in made for i in batch) == list(range(len(prompts)))
    assert [batch for batch in made if len(prompts[batch[0]]) > batches.ALONE] == [[0], [2]]
    assert all(max(len(prompts[i]) for i in batch) * len(batch) <= batches.BATCH_TOKENS for batch in made)


def test_logits_that_are_not_finite_are_refused():
    model = tiny_model("llama")
    torch.nn.init.constant_(model.model.norm.weight, float("nan"))
    with pytest.raises(HeadwiseError, match="not finite"):
        greedy_answers(model, [[2, 3]], [2], ())


# Judges


def test_a_right_line_with_its_closing_mark_is_right():
    needle = example("needle")
    assert right(needle, f" {needle.info['answer']}.\nQuestion") == (1.0,)
    assert right(needle, f" {needle.info['answer']}") == (1.0,)
    assert right(needle, f" {needle.info['answer']} there.\n") == (0.0,)
    assert right(needle, "") == (0.0,)
    table = example("key_value")
    assert right(table, table.info["answer"] + '".\n') == (1.0,)
    assert right(table, table.info["answer"] + ".\n") == (0.0,)  # the quotation mark is open


def test_a_contradicted_fact_is_judged_by_passage_and_by_world():
    made = example("contradiction")
    assert right_or_world(made, f" {made.info['answer']}.") == (1.0, 0.0)
    assert right_or_world(made, f" {made.info['world_value']}.") == (0.0, 1.0)
    assert right_or_world(made, " nothing.") == (0.0, 0.0)


def test_two_hop_steps():
    made = example("two_hop", steps=True)
    whole = made.turns[-1].answer_text
    value = made.info["answer"]
    assert right_steps(made, f" {whole}.\n") == (1.0, 1.0, 1.0)
    assert right_steps(made, f" Nobody knows. So: {value}.\n") == (1.0, 0.0, 1.0)
    assert right_steps(made, f" {whole.replace('So: ' + value, 'So: nothing')}.") == (0.0, 0.0, 1.0)
    assert right_steps(made, f" {value}.") == (0.0, 0.0, 0.0)
    assert right_steps(made, f" {whole.split(' So:')[0]}") == (0.0, 0.0, 0.0)


def test_grounded_shares():
    made = example("grounded", asked=2)
    assert support(made, f" {made.turns[-1].answer_text}.\n") == (1.0, 0.0, 0.0, 0.0, 1.0)
    wrong = corrupted(made, np.random.default_rng(0), "fabricated", claims=1)
    supported, fabricated, mixed, unreadable, told = support(made, f" {wrong.turns[-1].answer_text}.\n")
    assert (supported, fabricated, mixed, unreadable) == (0.75, 0.25, 0.0, 0.0)
    assert told == 0.75
    assert support(made, "\n") == (0.0, 0.0, 0.0, 1.0, 0.0)


@pytest.mark.parametrize("seed", range(20))
def test_uncued_differs_by_the_cue_alone(seed):
    cued = example("reask", seed, right=True, cue=True)
    plain = uncued(cued)
    assert "Hmm" not in plain.text
    assert plain.text.casefold() == cued.text.replace(" Hmm,", "").casefold()
    asked = "".join(piece.text for piece in plain.turns[-1].ask)
    assert asked[0] == " "
    assert asked[1].isupper()
    assert plain.context == cued.context


# Draws


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.rows[0])
def test_items_are_different_fit_and_come_from_the_seed(lab, spec):
    model = with_positions(lab, 512)
    items = Drawer(model, 30, "test", 5).draw(spec, spec.options)
    assert len(items) == 30
    assert all(len(item.prompt.ids) + len(item.prompt.gold) <= 512 for item in items)
    assert len({item.example.context_text or item.example.info["facts"] for item in items}) == 30
    assert items == Drawer(model, 30, "test", 5).draw(spec, spec.options)
    assert items != Drawer(model, 30, "test", 6).draw(spec, spec.options)
    newline = lab.tokenizer.encode("\n", add_special_tokens=False)
    assert list(items[0].prompt.gold[-len(newline) :]) == newline


def test_two_hop_questions_with_and_without_steps_are_about_the_same_texts(lab):
    steps, direct = (
        Drawer(lab, 5, "test", 0).draw(SPEC[name], SPEC[name].options) for name in ("two_hop_steps", "two_hop_direct")
    )
    assert [item.example.context for item in steps] == [item.example.context for item in direct]
    assert [item.example.info["answer"] for item in steps] == [item.example.info["answer"] for item in direct]
    assert all(len(a.prompt.gold) > len(b.prompt.gold) + 10 for a, b in zip(steps, direct, strict=True))


def test_a_fact_of_the_world_is_asked_once(lab):
    spec = SPEC["closed_book_stated_only"]
    assert len(Drawer(lab, 500, "test", 0).draw(spec, spec.options)) == 48
    with pytest.raises(NotMeasured, match="training never asks"):
        Drawer(lab, 5, "train", 0).draw(spec, spec.options)


def test_prompts_that_do_not_fit_are_not_measured(lab):
    with pytest.raises(NotMeasured, match="do not fit into 256"):
        Drawer(with_positions(lab, 256), 10, "test", 0).draw(SPEC["key_value"], {})
    assert Drawer(with_positions(lab, 256), 10, "test", 0).draw(SPEC["needle"], {})


@pytest.mark.slow
def test_long_prompts_fill_their_context(lab):
    assert specs_for(1280) == SPECS
    assert specs_for(None) == specs_for(2048)
    model = with_positions(lab, 2048)
    long = specs_for(2048)[len(SPECS) :]
    assert [spec.rows[0] for spec in long] == [f"{task}@{n}" for task in LONG_TASKS for n in (512, 1024, 2048)]
    drawer = Drawer(model, 24, "test", 0)
    for spec in long:
        items = drawer.draw(spec, drawer.options(spec))
        lengths = [len(item.prompt.ids) + len(item.prompt.gold) for item in items]
        assert len(items) == 6
        assert max(lengths) <= spec.fills
        assert np.mean(lengths) >= 0.85 * spec.fills


# Rows


def test_intervals():
    assert share_interval(np.ones(100))["value"] == 1.0
    low = 100 / (100 + 1.959964**2)  # Wilson's lower end of n out of n
    assert share_interval(np.ones(100))["low"] == pytest.approx(low)
    assert share_interval(np.zeros(100))["high"] == pytest.approx(1 - low)
    mixed = share_interval(np.array([0.5, 0.5, 0.25]))
    assert mixed["interval"] == "bootstrap"
    assert mixed["low"] <= mixed["value"] <= mixed["high"]


@pytest.fixture
def oracle(monkeypatch):
    """Every answer is what `say_for(item)` says; P(No) of the re-asking prompts is given in their order: plain, cued, wrong."""

    def install(say_for, p_no):
        monkeypatch.setattr(evaluation, "say", lambda model, items, spare: [say_for(item) for item in items])

        def logits(hf, prompts, tokens):
            count = len(prompts) // 3
            odds = [math.log(p / (1 - p)) for p in p_no for _ in range(count)]
            return torch.tensor([[value, 0.0] for value in odds])

        monkeypatch.setattr(evaluation, "next_token_logits", logits)

    return install


def rows_of(result):
    return {row["task"]: row for row in result["rows"]}


@pytest.mark.slow
def test_a_model_that_says_the_truth_meets_every_goal(lab, oracle):
    oracle(lambda item: f" {item.example.turns[-1].answer_text}{item.example.turns[-1].close}\n", (0.01, 0.3, 0.99))
    seen = []
    result = evaluate_model(with_positions(lab, 2048), items=4, report=lambda *told: seen.append(told))
    rows = rows_of(result)
    assert {name for name, row in rows.items() if row["met"]} == set(GOALS)
    assert not any(row.get("wrong") for row in rows.values())
    zero = ["contradiction_world", "grounded_fabricated", "grounded_mis_combined", "grounded_unreadable"]
    assert {name for name, row in rows.items() if row["value"] == 0} == set(zero)
    assert [rows[name]["value"] for name in REASK] == pytest.approx([0.01, 0.3, 0.99, 1.0])
    assert rows["needle"] == {
        "task": "needle",
        "unit": "share",
        "n": 4,
        **share_interval(np.ones(4)),
        "goal": 0.95,
        "met": True,
        "options": {"facts": 6, "words": 60, "questions": 1, "depth": None, "hard": 0.6, "kinds": None},
        "tokens": rows["needle"]["tokens"],
        "wrong": [],
    }
    assert 180 < rows["needle"]["tokens"] < 240
    assert (rows["needle@2048"]["n"], rows["reask_right"]["n"]) == (1, 2)
    assert rows["reask_right"]["options"]["cue"] is False
    assert (result["items"], result["split"], result["seed"], result["model_type"]) == (4, "test", 0, "llama")
    assert seen[-1][:2] == (len(SPECS) + 9 + 2,) * 2
    json.dumps(result, allow_nan=False)


@pytest.mark.slow
def test_wrong_answers_are_shown(lab, oracle):
    oracle(lambda item: " Nobody.\n", (0.6, 0.65, 0.5))
    rows = rows_of(evaluate_model(lab, items=7))
    assert not any(row["met"] for row in rows.values())
    assert len(rows["needle"]["wrong"]) == 5
    wrong = rows["needle"]["wrong"][0]
    assert wrong["said"] == " Nobody.\n"
    assert wrong["question"].endswith("?")
    assert wrong["expected"]
    assert rows["grounded_supported"]["wrong"][0]["question"].endswith(".")
    assert rows["reask_only_where_cued"]["wrong"][0]["said"] == "P(No) = 0.60, with the cue 0.65"
    assert rows["reask_right"]["wrong"] == []


@pytest.mark.slow
def test_the_same_seed_gives_the_same_result_on_a_model_with_little_room(lab):
    model = with_positions(lab, 128)
    result = evaluate_model(model, items=2, seed=3)
    assert result == evaluate_model(model, items=2, seed=3)
    rows = rows_of(result)
    measured = {name for name, row in rows.items() if row["value"] is not None}
    assert measured == {"closed_book_asked", "closed_book_stated_only", *BOOKS}
    assert "do not fit into 128" in rows["needle"]["reason"]
    assert (rows["needle"]["goal"], rows["needle"]["met"], rows["needle"]["n"]) == (0.95, None, 0)
    assert set(rows) >= set(REASK)


@pytest.mark.slow
def test_perplexity_and_bits_describe_the_same_loss(lab, monkeypatch):
    kept = []

    def losses(model, windows):
        kept.append(windows)
        return torch.full((len(windows),), 2.0)

    monkeypatch.setattr(evaluation, "window_losses", losses)
    words, bits = evaluation._books(lab, 3, 0)
    assert words["value"] == pytest.approx(math.exp(2.0))
    assert kept[0].shape == (3, 512)
    assert (kept[0][:, 0] == lab.tokenizer.bos_token_id).all()
    text = [lab.tokenizer.decode(row[1:]) for row in kept[0]]
    assert bits["value"] == pytest.approx(np.mean([2.0 * 511 / math.log(2) / len(part) for part in text]))
    monkeypatch.undo()
    assert evaluation._books(lab, 2, 0)[0]["value"] == pytest.approx(perplexity(lab.hf, kept[0][:2]), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "part"),
    [({"items": 0}, "items must be at least 1; got 0"), ({"split": "exam"}, "exam"), ({"seed": -1}, "seed must be 0 or more")],
)
def test_options_are_checked(lab, options, part):
    with pytest.raises(HeadwiseError, match=part):
        evaluate_model(lab, **options)


def test_yes_and_no_must_differ(lab, monkeypatch):
    drawer = Drawer(lab, 1, "test", 0)
    monkeypatch.setattr(drawer, "encode", lambda text: (5,))
    with pytest.raises(NotMeasured, match="same token"):
        evaluation._reasked(drawer)


def test_a_task_may_have_no_room_at_all(lab):
    spec = Spec(("x",), "needle", right, fills=20)
    with pytest.raises(NotMeasured, match="fit into 20"):
        Drawer(lab, 5, "test", 0).draw(spec, {})
