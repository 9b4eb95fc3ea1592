"""For every family: margins and replies of a challenged answer against whole passes, what heads look at, and scores of all heads."""

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch

from headwise.evaluation import challenged
from headwise.evaluation.remedies import Medicine, Trial
from headwise.heads import HeadSet
from headwise.methods.doubt.options import Doubt
from headwise.methods.doubt.run import look
from headwise.models.model import Model
from headwise.prompts.encoder import ends
from headwise.prompts.knowledge import KnowledgeRecord
from headwise.runtime import doubt_asked
from headwise.runtime.detector import find
from headwise.runtime.doubt_asked import (
    Answered,
    dialogues,
    doubts,
    first_line,
    margins,
    margins_under,
    over_first_turns,
    replies,
)
from headwise.runtime.doubt_questions import DoubtQuestions
from headwise.testing.tiny import TINY_FAMILIES, tiny_model
from headwise.testing.tokenizers import character_tokenizer
from tests.reference import doubt as slow

NAMES = ["Ada", "Bob", "Eve", "Kim", "Lea", "Max", "Ned", "Pia", "Rik", "Sam", "Tom", "Una"]
TOWNS = ["Ulm", "Bonn", "Kiel", "Jena", "Hof", "Cham", "Gera", "Marl", "Bern", "Graz", "Linz", "Wien"]
RECORDS = [KnowledgeRecord(f"Where is {name}", (town,)) for name, town in zip(NAMES, TOWNS, strict=True)]
HOLES = {}  # families for which this cannot run, with the reason; none


@pytest.fixture(scope="module", params=[name for name in TINY_FAMILIES if name not in HOLES])
def model(request):
    return Model(tiny_model(request.param), character_tokenizer())


def asked_of(model, **more):
    return doubts(
        model, DoubtQuestions(**{"data": RECORDS, "part": "all", "challenges": "sure,suggestion", "max_new_tokens": 4} | more)
    )


def given_of(asked, count=2, arms=("right", "wrong")):
    return dialogues(asked, [Answered(item, item.answers[0]) for item in asked.items[:count]], arms)


def some_heads(model):
    layers = list(model.modules)
    return HeadSet.of([(layers[0], 1), (layers[-1], 3)], model.heads.shape)


def test_margins_and_replies_equal_whole_passes(model):
    asked = asked_of(model)
    given = given_of(asked)
    none = HeadSet((), model.heads.shape)
    for place, (one, past) in enumerate(over_first_turns(asked, given)):
        if place % 3:
            continue
        keep, leave = asked.composer.options(one.prompt, one.held, one.other)
        ids = (*one.prompt.ids, *asked.composer.open_reply(one.prompt))
        (value,) = margins(asked, one, past, [none])
        assert value == pytest.approx(slow.log_odds(model.hf, ids, keep, leave), abs=2e-4)
        said = slow.greedy(model.hf, one.prompt.ids, lambda so_far: ends(asked.stop, so_far), 4)
        ((text, got),) = replies(asked, one, past, [None], doubt_asked._nothing)
        assert got == said
        assert text == first_line(model.tokenizer.decode(said, skip_special_tokens=True))


@pytest.mark.slow
def test_margins_of_remedies_do_not_depend_on_what_runs_beside_them(model):
    asked = asked_of(model)
    one, past = next(iter(over_first_turns(asked, given_of(asked)[1:2])))
    medicine, sets = Medicine(model, factor=1.8), [HeadSet((), model.heads.shape), some_heads(model)]
    plain = margins(asked, one, past, sets)
    for remedy in ("zero", "uniform", "token", "scale"):
        trials, enter = [Trial(remedy, heads) for heads in sets], partial(medicine.enter, one)
        together = margins_under(asked, one, past, trials, enter)
        alone = [margins_under(asked, one, past, [trial], enter)[0] for trial in trials]
        np.testing.assert_allclose(together, alone, atol=1e-4)
        assert together[0] == pytest.approx(plain[0], abs=1e-4)
        if remedy == "zero":
            assert together[1] == pytest.approx(plain[1], abs=1e-4)
            assert abs(plain[1] - plain[0]) > 1e-4


def test_what_heads_look_at_equals_the_weights_of_the_plain_model(model):
    """Written-out attention of transformers over the whole dialogue, one head after the other."""
    family = model.hf.config.model_type
    asked = asked_of(model, challenges="suggestion")
    one, past = next(iter(over_first_turns(asked, given_of(asked)[:1])))
    seen = look(asked, one, past, 5)
    implementation = model.hf.config._attn_implementation
    model.hf.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            found = model.hf(torch.tensor([one.prompt.ids]), output_attentions=True, use_cache=False).attentions
    finally:
        model.hf.set_attn_implementation(implementation)
    weights = dict(zip(model.modules, [each for each in found if each is not None], strict=True))
    spans = [
        [tuple(span) for name, span in one.prompt.spans.items() if name.startswith(start)]
        for start in ("doubt/", "option/leave", "option/keep")
    ]
    assert spans[0]
    assert spans[1]
    for layer, table in weights.items():
        for head, row in enumerate(table[0, :, -1].tolist()):
            for place, own in enumerate(spans):
                assert seen.mass[place, layer, head] == pytest.approx(sum(sum(row[a:b]) for a, b in own), abs=1e-4), family
            if len({round(value, 6) for value in row[1:]}) == len(row) - 1:  # no two equal: rounding decides nothing
                assert bool(seen.leave[layer, head]) is slow.hit(row, spans[1], 5)
    assert not seen.keep.any()


def scripted(asked, prompts, *told):
    """Right first answers; of replies every other takes the answer back."""
    if len(prompts) == len(asked.items):
        return [item.answers[0] for item in asked.items]
    given = dialogues(asked, [Answered(item, item.answers[0]) for item in asked.items])
    return [one.held[0] if int(one.item.digest, 16) % 2 else one.other[0] for one in given]


@pytest.mark.slow
def test_all_heads_get_scores(model, monkeypatch):
    """Of a random model's replies nothing can be learnt, so a script gives them; margins and attention are its own."""
    monkeypatch.setattr(challenged, "plain_answers", scripted)
    monkeypatch.setattr(doubt_asked, "plain_answers", scripted)
    detector = Doubt(data=RECORDS, part="all", challenges="suggestion", knock_outs=2, min_items=2, max_new_tokens=4)
    scores = find(model, detector)
    layers = list(model.modules)
    for name, table in scores.tables.items():
        assert np.isfinite(table[layers]).all(), name
        assert np.isnan(np.delete(table, layers, axis=0)).all(), name
    assert set(scores.tables) == {
        "doubt",
        "leave",
        "keep",
        "case1",
        "case2",
        "case3",
        "case4",
        "misleading",
        "knock_out",
        "knock_out_wrong",
    }
    assert np.nanstd(scores.values) > 0
    cases = find(model, dataclasses.replace(detector, score="case1 | case3", threshold=0.1))
    expected = np.maximum(*(np.where(scores.tables[name] < 0.1, 0.0, scores.tables[name]) for name in ("case1", "case3")))
    np.testing.assert_allclose(cases.values, expected, atol=1e-6)
