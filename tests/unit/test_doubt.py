"""Doubt end to end on a planted model: which head takes answers back, which one holds on, remedies, rates, resumed runs, and what is refused."""

import dataclasses
import json
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from headwise.attention import ablate, hide, scale
from headwise.attention.plan import attached
from headwise.caches.shared import fork, full_cache
from headwise.evaluation import challenged
from headwise.evaluation.challenged import measured, under_pressure
from headwise.evaluation.remedies import (
    REMEDIES,
    Medicine,
    Trial,
    example,
    judged,
    judged_choice,
    kept_table,
    misleading_spans,
    steering_vectors,
)
from headwise.heads import HeadScores, HeadSet, HeadwiseError, save_heads
from headwise.heads.errors import NoSuccessfulRunError, NothingToRepair
from headwise.heads.headfile import write_json
from headwise.methods.doubt.calm import CalmOptions, _check_apart, _controls, _trials, calm, describe_calm
from headwise.methods.doubt.options import Doubt
from headwise.models.forward import forward
from headwise.prompts.dialogue import DoubtItem
from headwise.prompts.encoder import ends
from headwise.prompts.prompt import Prompt
from headwise.runtime.detector import find
from headwise.runtime.doubt_asked import (
    Answered,
    dialogues,
    doubts,
    first_line,
    margins,
    margins_under,
    outcome,
    over_first_turns,
    replies,
)
from headwise.runtime.doubt_questions import DoubtQuestions
from headwise.runtime.rundir import RunDirectory
from headwise.runtime.runner import prefill
from headwise.stats.paired import wilson
from headwise.testing.planted_doubt import CALMING, planted_doubt
from tests.reference import doubt as slow

SHAPE = (2, 4)
NONE = HeadSet((), SHAPE)


@pytest.fixture(scope="module")
def planted():
    return planted_doubt(56)


def options(planted, kind=DoubtQuestions, **more):
    return kind(**{"data": planted.records, "passages": True, "challenges": "suggestion", "slot": "", "max_new_tokens": 4} | more)


@pytest.fixture(scope="module")
def found(planted):
    """Scores by single heads taken away, with all tables."""
    return find(planted.model, options(planted, Doubt, top_k=1, min_items=5, knock_outs=12))


@pytest.fixture(scope="module")
def used(planted):
    return measured(doubts(planted.model, options(planted)))


def of(head):
    return HeadSet((head,), SHAPE)


# ---- what counts stays what it is


def test_margins_of_some_dialogues_are_read_around_the_mean_of_all(used):
    by_margin = dataclasses.replace(used, read_by="margin")
    some = list(range(0, len(used.dialogues), 3))
    part = by_margin.only(some).only(range(5))
    assert part.flipped == tuple(by_margin.flipped[i] for i in some[:5])
    assert part.centred == tuple(by_margin.centred[i] for i in some[:5])


def test_a_needle_at_several_depths_is_one_question(planted, used):
    """Four names, two keys: intervals and tests have two units."""
    places = [i for i, one in enumerate(used.dialogues) if one.item in [used.answered[n].item for n in range(4)]]
    few = used.only(places)
    items = {one.item.name: one.item for one in few.dialogues}
    twin = {name: dataclasses.replace(item, key=f"key {i % 2}") for i, (name, item) in enumerate(items.items())}
    few = dataclasses.replace(few, dialogues=tuple(dataclasses.replace(one, item=twin[one.item.name]) for one in few.dialogues))
    row = judged(few, Medicine(planted.model), [Trial("none", NONE, "none"), Trial("zero", of(planted.doubting))], 0)[1]
    assert row["p"] >= 0.5  # of two units the rarest pattern of signs has 2 of 4


@pytest.mark.parametrize(("counts", "verdict"), [(False, "not testable"), (True, "held")])
def test_what_is_always_or_never_taken_back_is_not_testable(counts, verdict):
    row = {"headline": 0.5, "interval": [0.2, 0.8], "right": 0.5, "wrong": 0.0, "k": 1, "kind": "chosen"}
    rows = [row | {"kind": "none"}, row, row | {"kind": "random", "headline": 0.0}]
    flips = 1.0 if not counts else 0.5
    tested = SimpleNamespace(
        rates=lambda: [
            {"arm": "right", "flips": [flips, 0, 1], "counts": counts},
            {"arm": "wrong", "flips": [0.5, 0, 1], "counts": True},
        ]
    )
    tested.asked = SimpleNamespace(options=SimpleNamespace(gate=0.15))
    assert judged_choice(rows, row, tested)["verdict"] == verdict


def test_random_sets_never_hold_a_chosen_head_whatever_the_ties():
    scores = HeadScores(np.asarray([[1.0, 0, 0, 0], [0, 0, 0, 2.0]]), "doubt")
    best = Trial("scale", scores.bottom(2))
    drawn = [one for one in _controls(scores, best, CalmOptions(top=(2,), controls=4), None) if one.kind == "random"]
    assert drawn
    assert not any(set(one.heads) & set(best.heads) for one in drawn)


def test_scores_that_lie_equally_far_from_nothing_still_have_weakest_heads():
    scores = HeadScores(np.asarray([[1.0, -1, -1, -1], [-1, -1, -1, 1.0]]), "doubt")
    (weakest,) = (
        one
        for one in _controls(scores, Trial("zero", scores.top(2)), CalmOptions(top=(2,), controls=1), None)
        if one.kind == "weakest"
    )
    assert not set(weakest.heads) & set(scores.top(2))


@pytest.mark.parametrize("items", [5, [[1]], "abc", None])
def test_a_head_file_whose_list_of_questions_was_changed_is_no_traceback(items):
    scores = HeadScores(np.asarray([[1.0, 0.0]]), "doubt", provenance={"items": items})
    one, other = ([DoubtItem("", key, "", (), "", (), Prompt((1,)))] for key in "ab")
    _check_apart(scores, one, other)
    with pytest.raises(HeadwiseError, match="1 questions are used for detection and test alike"):
        _check_apart(HeadScores(scores.values, "doubt", provenance={"items": [other[0].digest]}), one, other)


@pytest.mark.slow
def test_the_order_of_answers_makes_no_other_question(planted):
    """A question with none of its answers is another one, as one text may say this and another that."""
    known = list(dict.fromkeys(word for one in planted.records for word in (*one.answers, one.wrong)))
    free = [[word for word in known if word not in (*one.answers, one.wrong)] for one in planted.records]
    first = [dataclasses.replace(one, answers=(*one.answers, words[0])) for one, words in zip(planted.records, free, strict=True)]
    turned = [dataclasses.replace(one, answers=one.answers[::-1]) for one in first]
    others = [dataclasses.replace(one, answers=tuple(words[1:3])) for one, words in zip(planted.records, free, strict=True)]
    asked, again, apart = (doubts(planted.model, options(planted, data=data, part="all")).items for data in (first, turned, others))
    assert not {one.digest for one in asked} & {one.digest for one in again}  # what head files hold tells them apart
    scores = HeadScores(np.asarray([[1.0, 0.0]]), "doubt", provenance={"items": [one.digest for one in asked]})
    nothing = HeadScores(scores.values, "doubt")
    for used, select, test, names in (
        (nothing, asked, again, "choice and test"),
        (scores, apart, again, "detection and test"),
        (scores, again, (), "detection and choice"),
    ):
        with pytest.raises(HeadwiseError, match=f"{len(asked)} questions are used for {names} alike"):
            _check_apart(used, select, test)
    _check_apart(scores, apart[:9], apart[9:])
    both = doubts(planted.model, options(planted, data=[*first, *turned], part="all"))
    assert both.dropped["asked before"] == len(first) == len(both.items)




def test_a_run_that_is_refused_leaves_nothing_behind(planted, tmp_path):
    asked = doubts(planted.model, options(planted, items=4))
    directory = RunDirectory(tmp_path / "run", {})
    with pytest.raises(NoSuccessfulRunError, match="4 of 4"):
        measured(asked, directory)
    assert not directory.path.exists()


# ---- the planted heads


def test_the_planted_heads_are_at_both_ends(planted, found):
    assert found.ranking()[0] == planted.doubting
    assert found.ranking()[-1] == planted.holding
    table = found.tables["knock_out"]
    assert table[planted.doubting] > 2
    assert table[planted.holding] < -2
    assert (
        np.abs(
            np.delete(
                table.ravel(),
                [planted.doubting.layer * 4 + planted.doubting.head, planted.holding.layer * 4 + planted.holding.head],
            )
        ).max()
        < 0.1
    )
    np.testing.assert_array_equal(found.values, table)
    assert found.runs.shape == (12, *SHAPE)
    np.testing.assert_allclose(found.runs.mean(axis=0), table, atol=1e-5)


def test_the_four_cases_show_what_the_doubting_head_reads(planted, found):
    misleading = found.tables["misleading"]
    assert misleading[planted.doubting] == 1.0
    assert np.delete(misleading.ravel(), planted.doubting.layer * 4 + planted.doubting.head).max() < 0.6
    assert found.tables["case1"][planted.doubting] == 1.0
    assert found.tables["case3"][planted.doubting] == 0.0
    assert found.tables["leave"][planted.doubting] > 0.3
    assert found.tables["leave"][planted.holding] < 0.01


@pytest.mark.slow
@pytest.mark.parametrize(("doubting", "holding", "layers"), [((1, 0), (0, 3), 2), ((2, 1), (2, 0), 3), ((0, 0), (0, 3), 1)])
@pytest.mark.parametrize("score", ["knock_out", "misleading", "case1 - case3"])
def test_wherever_they_are_planted(doubting, holding, layers, score):
    planted = planted_doubt(66, layers=layers, doubting=doubting, holding=holding, seed=3)
    scores = find(planted.model, options(planted, Doubt, score=score, top_k=1, min_items=5))
    assert scores.ranking()[0] == planted.doubting
    if score == "knock_out":
        assert scores.ranking()[-1] == planted.holding


def test_without_the_doubting_head_in_the_second_turn_the_answer_is_kept(planted, used):
    asked, medicine = used.asked, Medicine(planted.model)
    flipped = [i for i, one in enumerate(used.dialogues) if one.arm == "right" and used.outcomes[i] == "suggested"]
    assert len(flipped) >= 8
    for one, past in over_first_turns(asked, [used.dialogues[i] for i in flipped[:3]]):
        sets = [NONE, of(planted.doubting), of(planted.holding)]
        for remedy in ("zero", "uniform"):
            said = [text for text, _ in replies(asked, one, past, trials_of(remedy, sets), partial(medicine.enter, one))]
            assert [outcome(asked, one, text) for text in said] == ["suggested", "kept", "suggested"]
            assert said[1] == one.held[0]
        (hidden, loud) = (
            replies(asked, one, past, trials_of(remedy, [of(head)]), partial(medicine.enter, one))[0][0]
            for remedy, head in (("token", planted.doubting), ("scale", planted.holding))
        )
        assert hidden == one.held[0]
        assert outcome(asked, one, loud) in ("kept", "suggested")


@pytest.fixture(scope="module")
def calmed(planted, found):
    """A remedy chosen on one part and tested on another."""
    chosen = CalmOptions(top=(1, 2), remedies=("zero",), controls=2)
    return calm(planted.model, found, options(planted, part="select"), options(planted, part="test"), chosen)


def test_calm_chooses_the_planted_head_and_it_holds_on_the_test_part(planted, calmed):
    chosen = calmed["chosen"]
    assert (chosen["remedy"], chosen["k"], chosen["heads"]) == ("zero", 1, [str(planted.doubting)])
    assert chosen["verdict"] == "held"
    assert (chosen["kept_right"], chosen["yes_bias"]) == (1.0, False)
    assert chosen["headline"] == pytest.approx(chosen["right"] - chosen["wrong"])
    assert 0.2 < chosen["interval"][0] <= chosen["headline"] <= chosen["interval"][1] <= 1
    assert chosen["headline"] > chosen["random_95"]
    assert chosen["optimism"] == pytest.approx(chosen["selected_headline"] - chosen["headline"])
    assert all(0 < row["p_corrected"] <= 1 and row["p_corrected"] >= row["p"] for row in calmed["selection"][1:])
    assert calmed["selection"][0]["headline"] == calmed["test"][0]["headline"] == 0
    select, test = (set(calmed[name]["items"]) for name in ("select", "test_questions"))
    assert select
    assert test
    assert not select & test
    assert calmed["dialogue"]["after"] == calmed["dialogue"]["said"] != calmed["dialogue"]["before"]
    weights = dict(zip(calmed["dialogue"]["tokens"], calmed["dialogue"]["weights"], strict=True))
    assert max(weights, key=weights.get).strip() == calmed["dialogue"]["before"]
    json.dumps(calmed)


@pytest.mark.slow
def test_all_remedies_beside_each_other(planted, found):
    names = ("zero", "uniform", "token", "steer", "scale")
    told = calm(
        planted.model, found, options(planted, part="select"), options(planted, part="test"),
        CalmOptions(top=(1,), remedies=names, controls=2, factor=2.5), HeadScores(-found.values, "retrieval"),
    )  # fmt: skip
    rows = {row["remedy"]: row for row in told["selection"]}
    assert set(rows) == {"none", *names}
    assert rows["scale"]["heads"] == [str(planted.holding)]
    assert all(rows[name]["headline"] > 0.3 for name in ("zero", "uniform", "scale"))
    assert rows["token"]["kept_right"] == 1.0
    assert rows["token"]["wrong"] > 0.3  # hidden is what is right there: not doubt, but the habit of staying
    assert [row["kind"] for row in told["test"]].count("retrieval") == 1


# ---- against separate runs


def test_margins_equal_whole_passes_of_the_plain_model(planted, used):
    for i in (0, 1, 17, len(used.dialogues) - 1):
        one = used.dialogues[i]
        keep, leave = used.asked.composer.options(one.prompt, one.held, one.other)
        assert used.margins[i] == pytest.approx(slow.log_odds(planted.model.hf, one.prompt.ids, keep, leave), abs=1e-4)


def test_replies_equal_whole_passes_of_the_plain_model(planted, used):
    for i in (0, 9, 20, 31):
        one = used.dialogues[i]
        ids = slow.greedy(planted.model.hf, one.prompt.ids, lambda said: ends(used.asked.stop, said), 4)
        assert used.replies[i] == first_line(planted.model.tokenizer.decode(ids))


def alone(planted, one, past, block):
    """Logits of the second turn behind a past, in a block of its own."""
    with torch.no_grad(), block:
        return (
            forward(planted.model.hf, torch.tensor([one.prompt.ids[past.get_seq_length() :]]), fork(past))
            .logits[0, -1]
            .log_softmax(-1)
        )


def trials_of(remedy, sets):
    return [Trial(remedy, heads) for heads in sets]


@pytest.mark.parametrize("remedy", ["zero", "uniform", "token", "scale", "steer", "mean"])
def test_margins_under_remedies_equal_separate_runs(planted, used, remedy):
    hf, shape = planted.model.hf, (*SHAPE, 128)
    vectors, means = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    medicine = Medicine(planted.model, means, vectors, factor=1.7, push=0.5)
    sets = [NONE, of(planted.doubting), HeadSet.of([(0, 1), (1, 0)], SHAPE)]
    one, past = next(iter(over_first_turns(used.asked, [used.dialogues[2]])))
    got = margins_under(used.asked, one, past, trials_of(remedy, sets), partial(medicine.enter, one))
    keep, leave = (ids[0][0] for ids in used.asked.composer.options(one.prompt, one.held, one.other))
    for chosen, value in zip(sets, got, strict=True):
        blocks = {
            "token": lambda c: hide(hf, c, misleading_spans(one)), "scale": lambda c: scale(hf, c, 1.7),
            "steer": lambda c: medicine.enter(one, [Trial("steer", c)]), "mean": lambda c: ablate(hf, c, "mean", means=means),
        }  # fmt: skip
        block = blocks.get(remedy, lambda c: ablate(hf, c, remedy))(chosen) if len(chosen) else attached(hf)
        logits = alone(planted, one, past, block)
        assert value == pytest.approx(float(logits[keep] - logits[leave]), abs=1e-4)
    assert abs(got[1] - got[0]) > 1e-3
    if remedy in ("zero", "uniform"):
        np.testing.assert_allclose(margins(used.asked, one, past, sets, remedy), got, atol=1e-4)


def test_steering_by_hand(planted, used):
    """The vector of a head is a difference of its outputs; adding it at the last position is what `steer` does."""
    vectors = steering_vectors(used)
    assert vectors.shape == (*SHAPE, 128)
    assert vectors[planted.doubting].norm() > 10 * vectors[0, 0].norm()
    held = used.only([i for i, flip in enumerate(used.flipped) if flip is not True])
    assert steering_vectors(held) is None


@pytest.mark.parametrize("remedy", ["zero", "uniform", "token", "scale", "steer"])
def test_the_first_turn_and_the_model_stay_bit_for_bit(planted, used, remedy):
    hf = planted.model.hf
    medicine = Medicine(planted.model, vectors=torch.ones(*SHAPE, 128))
    one = used.dialogues[0]
    ids = torch.tensor([one.prompt.ids[: one.prompt.span("first").stop]])
    with torch.no_grad():
        before = hf(ids, use_cache=False).logits
    weights = {name: tensor.clone() for name, tensor in hf.state_dict().items()}
    _, past = next(iter(over_first_turns(used.asked, [one])))
    kept = [(layer.keys.clone(), layer.values.clone()) for layer in past.layers]
    sets = [NONE, of(planted.doubting), of(planted.holding)]
    for run in (replies, margins_under):
        run(used.asked, one, past, trials_of(remedy, sets), partial(medicine.enter, one))
        for layer, (keys, values) in zip(past.layers, kept, strict=True):
            assert torch.equal(layer.keys, keys)
            assert torch.equal(layer.values, values)
    fresh = full_cache(hf)
    with attached(hf):
        prefill(hf, fresh, ids[0].tolist())
    assert all(torch.equal(layer.keys, keys) for layer, (keys, _) in zip(fresh.layers, kept, strict=True))
    if remedy in (
        "token",
        "steer",
    ):  # act behind the option, and in the last row: a whole dialogue begins with the first turn as it was
        whole = torch.tensor([one.prompt.ids])
        with torch.no_grad(), attached(hf):
            plain = hf(whole, use_cache=False).logits
        with torch.no_grad(), medicine.enter(one, [Trial(remedy, of(planted.doubting))]):
            inside = hf(whole, use_cache=False).logits
        assert torch.equal(inside[:, : ids.shape[1]], plain[:, : ids.shape[1]])
        assert not torch.equal(inside[:, -1], plain[:, -1])
    with torch.no_grad():
        assert torch.equal(hf(ids, use_cache=False).logits, before)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in hf.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in hf.modules())


# ---- rates


def test_rates_by_hand(used):
    right, wrong = used.rates()
    calming = [CALMING in str(one.item.turns) for one in used.dialogues if one.arm == "right"]
    assert (right["arm"], wrong["arm"], right["items"]) == ("right", "wrong", len(calming))
    assert right["outcomes"] == {"kept": sum(calming), "suggested": len(calming) - sum(calming), "other": 0, "incoherent": 0}
    assert right["kept"] == list(wilson(sum(calming), len(calming)))
    assert right["flips"][0] == pytest.approx(1 - right["kept"][0])
    assert right["counts"]
    assert wrong["flips"][0] == 1
    assert not wrong["counts"]
    first = [i for i, one in enumerate(used.dialogues) if one.arm == "right" and one.keep_first]
    assert right["orders"]["keep_first"] == {
        "items": len(first), "flips": sum(used.outcomes[i] != "kept" for i in first),
        "margin": pytest.approx(np.mean([used.margins[i] for i in first])),
    }  # fmt: skip
    assert right["orders"]["keep_first"]["items"] + right["orders"]["leave_first"]["items"] == len(calming)
    plain = used.to_json()
    json.dumps(plain)
    assert len(plain["replies"]) == len(used.dialogues)
    assert plain["dropped"]["not answered right at first"] == 0


@pytest.mark.slow
def test_a_model_that_prefers_what_comes_last_shows_in_the_orders(planted):
    """Asked to choose, the planted model says the option named last: all flips where the other answer comes second, none where it comes first."""
    seen = measured(doubts(planted.model, options(planted, challenges="choice", part="all", items=40)), arms=("right",))
    calm_ones = [CALMING in str(one.item.turns) for one in seen.dialogues]
    for one, calming, flipped in zip(seen.dialogues, calm_ones, seen.flipped, strict=True):
        assert flipped is (one.keep_first and not calming)
    (row,) = seen.rates()
    assert row["orders"]["leave_first"]["flips"] == 0 < row["orders"]["keep_first"]["flips"]


@pytest.mark.slow
def test_replies_that_say_neither_are_read_by_the_margin_around_the_mean_of_their_order(planted):
    seen = measured(doubts(planted.model, options(planted, form="yes-no", challenges="sure")))
    assert set(seen.outcomes) == {"incoherent"}
    assert seen.read_by == "margin"
    assert seen.to_json()["read_by"] == "margin"
    for first in (True, False):
        own = [i for i, one in enumerate(seen.dialogues) if one.keep_first is first]
        middle = np.mean([seen.margins[i] for i in own])
        np.testing.assert_allclose([seen.centred[i] for i in own], [seen.margins[i] - middle for i in own])
        assert sum(seen.centred[i] for i in own) == pytest.approx(0, abs=1e-6)
    assert list(seen.flipped) == [value < 0 for value in seen.centred]
    one, two = seen.dialogues[0], 1e-3
    keep, leave = seen.asked.composer.options(one.prompt, one.held, one.other)
    assert (len(keep), len(leave)) == (3, 3)
    assert seen.margins[0] == pytest.approx(slow.log_odds(planted.model.hf, one.prompt.ids, keep, leave), abs=two / 10)
    table = kept_table(seen, Medicine(planted.model), [Trial("none", NONE, "none")], range(8))
    assert table[0].tolist() == [not flip for flip in seen.flipped[:8]]


@pytest.mark.parametrize(("said", "read_by"), [(9, "reply"), (8, "margin")])
def test_most_replies_that_say_yes_or_no_are_read_as_they_are(planted, monkeypatch, said, read_by):
    """Nine of ten are enough; the rest count as neither."""
    asked = doubts(planted.model, options(planted, form="yes-no", challenges="sure", items=10))
    monkeypatch.setattr(challenged, "plain_answers", lambda asked, prompts, *told: ["Yes"] * said + ["Hm"] * (10 - said))
    seen = measured(asked, arms=("right",))
    assert seen.read_by == read_by
    assert seen.outcomes == ("kept",) * said + ("incoherent",) * (10 - said)


def with_outcomes(used, outcomes):
    return dataclasses.replace(used, outcomes=tuple(outcomes))


def test_nothing_to_repair(used):
    with pytest.raises(
        NothingToRepair, match=r"nothing to repair: at most 0% of .* right answers are taken back \(suggestion, part detect\); .* from 15%"
    ):
        with_outcomes(used, ["kept"] * len(used.dialogues)).counted()
    with pytest.raises(NothingToRepair, match=r"nothing to repair: all .* right answers are taken back whatever is said"):
        with_outcomes(used, ["suggested"] * len(used.dialogues)).counted()
    with pytest.raises(NothingToRepair, match="nothing to repair: at most 0%"):  # neither is no flip
        with_outcomes(used, ["incoherent"] * len(used.dialogues)).counted()
    assert len(used.counted().dialogues) == len(used.dialogues)


def test_a_model_that_answers_too_little_is_refused(planted):
    records = [dataclasses.replace(one, answers=("never",)) if i % 8 else one for i, one in enumerate(planted.records)]
    with pytest.raises(
        NoSuccessfulRunError, match=r"questions are answered right at first, and at least 10 are needed"
    ) as caught:
        measured(
            doubts(
                planted.model,
                options(
                    planted, data=[dataclasses.replace(one, wrong="Never") if one.answers == ("nix",) else one for one in records]
                ),
            )
        )
    assert not isinstance(caught.value, NothingToRepair)


def test_what_is_asked_is_told_while_it_is_asked(planted):
    """The remark names it, and every report of it ends with all of it done."""
    told = {}
    measured(doubts(planted.model, options(planted, items=12)), report=lambda done, total, remark: told.update({remark: (done, total)}))
    assert {remark: done for remark, (done, _) in told.items()} == {remark: total for remark, (_, total) in told.items()}
    assert [(remark, total) for remark, (_, total) in told.items()] == [("first answers", 12), ("replies", 24), ("margins", 24)]


# ---- several rounds


def scripted(monkeypatch, script):
    """plain_answers says what the script holds, round after round; the prompts of each round are kept."""
    rounds, seen = iter(script), []

    def say(asked, prompts, *told):
        seen.append([asked.composer.builder.encoder.decode(prompt.ids) for prompt in prompts])
        return list(next(rounds))

    monkeypatch.setattr(challenged, "plain_answers", say)
    return seen


def test_rounds_of_pressure(planted, monkeypatch):
    asked = doubts(planted.model, options(planted, challenges="sure,suggestion", items=5, part="all"))
    answered = [Answered(item, item.answers[0]) for item in asked.items]
    right, other = ([item.answers[0] for item in asked.items], [item.other for item in asked.items])
    script = [
        [right[0], other[1], right[2], "", f"no, {right[4]}"],
        [right[0], other[1], "dunno why", other[3], other[4]],
        [right[0], right[1], other[2], other[3], right[4]],
        [right[0], other[1], right[2], other[3], right[4]],
    ]
    seen = scripted(monkeypatch, script)
    rows = under_pressure(asked, answered, 4)
    assert [row["turn"] for row in rows] == [None, 1, 2, 2, 2]
    assert [row["flips"] for row in rows] == [0, 3, 2, 1, 2]
    assert [row["outcomes"] for row in rows][1] == ["suggested", "suggested", "kept", "suggested"]
    assert rows[2]["outcomes"] == ["kept", "other", "suggested", "kept"]
    assert rows[3]["outcomes"][0] == "incoherent"
    assert [row["replies"] for row in rows] == [list(column) for column in zip(*script, strict=True)]
    sure, suggestion = (one.texts["test"].replace("[", "").replace("]", "") for one in asked.challenges)
    assert all(sure in text and "I was told" not in text for text in seen[0])
    assert f"I was told {other[0]}." in seen[1][0]
    assert f"I was told {right[1]}." in seen[1][1]  # gave it up: now the right one is suggested
    assert seen[3][0].count("I was told") == 3  # the strongest is repeated
    assert all(later.startswith(before[:-7]) for before, later in zip(seen[0], seen[1], strict=True))
    assert suggestion.startswith("I do not believe")


def test_rounds_that_grow_longer_than_the_model_are_left_out_and_counted(planted, monkeypatch):
    asked = doubts(planted.model, options(planted, challenges="suggestion", items=3, part="all"))
    answered = [Answered(item, item.answers[0]) for item in asked.items]
    right, long = [item.answers[0] for item in asked.items], " ".join([asked.items[1].answers[0]] * 60)
    script = [[right[0], long, right[2]], [right[0], right[2]], [right[0], right[2]]]
    free = scripted(monkeypatch, [[right[0], right[1], right[2]]] * 3)
    under_pressure(asked, answered, 3)
    most = max(len(asked.composer.builder.encoder.encode(text)) for text in free[-1])
    small = dataclasses.replace(asked, model=SimpleNamespace(positions=most + 4 + 1))  # 4: of the reply; 1: in front of a text
    seen = scripted(monkeypatch, script)
    rows = under_pressure(small, answered, 3)
    assert [len(prompts) for prompts in seen] == [3, 2, 2]
    assert [row["item"] for row in rows] == [asked.items[0].name, asked.items[2].name]
    assert [row["outcomes"] for row in rows] == [["kept"] * 3] * 2
    assert small.dropped[challenged.TOO_LONG] == 1
    scripted(monkeypatch, [right, []])
    none = dataclasses.replace(asked, model=SimpleNamespace(positions=10))
    assert under_pressure(none, answered, 2) == []
    assert none.dropped[challenged.TOO_LONG] == 3


# ---- runs that stop and go on


class Stop(Exception):
    """Stands for a kill."""


def stopping(count):
    """A report that ends the run after so many calls."""
    calls = SimpleNamespace(left=count)

    def report(done, total, remark):
        calls.left -= 1
        if calls.left <= 0:
            raise Stop

    return report


def bytes_of(tmp_path, scores):
    save_heads(scores, tmp_path / "x.json", overwrite=True)
    return (tmp_path / "x.json").read_bytes()


@pytest.mark.slow
def test_a_killed_find_goes_on_to_the_same_bytes(planted, tmp_path):
    detector = options(planted, Doubt, top_k=1, min_items=1, knock_outs=4, items=12)
    again, stops = None, 0
    for count in (1, 6, 10, 15, 20, 10_000):
        try:
            again = find(planted.model, detector, directory=tmp_path / "run", report=stopping(count))
        except Stop:
            stops += 1
    assert stops >= 4
    assert {path.name.split("-")[0].split(".")[0] for path in (tmp_path / "run").glob("*.npz")} == {
        "firsts",
        "replies",
        "margins",
        "look",
        "knock",
    }
    assert bytes_of(tmp_path, again) == bytes_of(tmp_path, find(planted.model, detector))
    with pytest.raises(HeadwiseError, match="other options"):
        find(planted.model, options(planted, Doubt, top_k=2, min_items=1, knock_outs=4, items=12), directory=tmp_path / "run")


@pytest.mark.slow
def test_a_killed_calm_goes_on_to_the_same_bytes(planted, found, calmed, tmp_path):
    chosen, select, test = (
        CalmOptions(top=(1, 2), remedies=("zero",), controls=2),
        options(planted, part="select"),
        options(planted, part="test"),
    )
    told = describe_calm(planted.model, found, select, test, chosen, None)
    again, stops = None, 0
    for count in (1, 25, 40, 44, 10_000):
        try:
            again = calm(
                planted.model, found, select, test, chosen, directory=RunDirectory(tmp_path / "run", told), report=stopping(count)
            )
        except Stop:
            stops += 1
    assert stops >= 1
    for name, result in (("a", again), ("b", calmed)):
        write_json(result, tmp_path / name, overwrite=True)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_file_that_has_changed_is_another_run(planted, found, tmp_path):
    path = tmp_path / "own.jsonl"
    told = []
    for records in (planted.records, planted.records[:50]):
        path.write_text("".join(json.dumps(one.row()) + "\n" for one in records))
        asked = options(planted, data=path)
        told.append(describe_calm(planted.model, found, asked, asked, CalmOptions(), None))
    assert told[0] != told[1]


# ---- what is left out, and what is refused


def test_retrieval_heads_are_left_out(planted, tmp_path):
    values = np.zeros(SHAPE)
    values[planted.doubting], values[0, 0] = 0.5, 0.4
    save_heads(HeadScores(values, "copy"), tmp_path / "retrieval.json")
    scores = find(planted.model, options(planted, Doubt, top_k=1, knock_outs=2, items=12, retrieval=tmp_path / "retrieval.json"))
    assert np.isnan(scores.values[planted.doubting])
    assert np.isnan(scores.values).sum() == 1
    assert scores.provenance["left_out"] == [str(planted.doubting)]
    assert scores.runs is None
    assert scores.tables["knock_out"][planted.doubting] > 1


def never(*_):
    raise AssertionError("work was done before the refusal")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"score": "case9"}, "unknown table 'case9'"),
        ({"score": "case1 |"}, "ends too early"),
        ({"score": " "}, "the score is empty"),
        ({"knock_outs": 0}, "the score knock_out needs --knock-outs of at least 1"),
        ({"knocked": "mean"}, "knocked"),
        ({"top_k": 0}, "top_k"),
        ({"min_items": 0}, "min_items"),
        ({"score": "case1", "threshold": 0.0}, "threshold must be above 0"),
    ],
)
def test_wrong_scores_are_refused_when_they_are_given(planted, more, message):
    with pytest.raises(HeadwiseError, match=message) as caught:
        options(planted, Doubt, **more)
    assert "\n" not in str(caught.value)


def test_refusals_of_find_come_before_the_work(planted, monkeypatch, tmp_path):
    save_heads(HeadScores(np.arange(9.0).reshape(3, 3), "copy"), tmp_path / "other.json")
    monkeypatch.setattr("headwise.runtime.doubt_asked.plain_answers", never)
    for more, message in (
        ({"retrieval": tmp_path / "none.json"}, "no such head file"),
        ({"retrieval": tmp_path / "other.json"}, "3 layers x 3 heads"),
        ({"score": "misleading", "challenges": "sure"}, "none of the challenges names one"),
        ({"challenges": "shout"}, "unknown challenge 'shout'"),
    ):
        with pytest.raises(HeadwiseError, match=message):
            find(planted.model, options(planted, Doubt, **more))


def test_too_few_flips_are_refused_before_heads_are_looked_at(planted, monkeypatch):
    monkeypatch.setattr("headwise.methods.doubt.run.look", never)
    with pytest.raises(
        NoSuccessfulRunError,
        match=r"not enough flips to compare: \d+ flipped and \d+ held dialogues name the options, and at least 40",
    ):
        find(planted.model, options(planted, Doubt, score="misleading", min_items=40))


def test_the_same_questions_in_two_parts_are_refused(planted, found, monkeypatch):
    monkeypatch.setattr("headwise.runtime.doubt_asked.plain_answers", never)
    for select, test, message in (
        ("select", "select", "questions are used for choice and test alike"),
        ("all", "test", "questions are used for choice and test alike"),
        ("select", "detect", "questions are used for detection and test alike"),
        ("detect", "test", "questions are used for detection and choice alike"),
    ):
        with pytest.raises(HeadwiseError, match=message):
            calm(planted.model, found, options(planted, part=select), options(planted, part=test), CalmOptions(top=(1,)))
    changed = dataclasses.replace(found, provenance={})  # a file of other scores does not say where they come from
    with pytest.raises(HeadwiseError, match="top 20 leaves too few of 8 scored heads"):
        calm(planted.model, changed, options(planted, part="select"), options(planted, part="test"))
    for scores, message in ((HeadScores(np.arange(9.0).reshape(3, 3), "x"), "3 layers x 3 heads"),):
        with pytest.raises(HeadwiseError, match=message):
            calm(planted.model, scores, options(planted, part="select"), options(planted, part="test"), CalmOptions(top=(1,)))


@pytest.mark.slow
def test_rates_of_challenges_that_do_not_count_are_told_too(planted, found):
    """The planted model keeps its answer where nothing is suggested, so all that is tried stands on the other challenge."""
    select, test = (options(planted, part=part, challenges="sure,suggestion") for part in ("select", "test"))
    told = calm(planted.model, found, select, test, CalmOptions(top=(1,), remedies=("zero",), controls=1))
    for part in ("select", "test"):
        assert {row["challenge"]: row["counts"] for row in told["rates_of_all"][part] if row["arm"] == "right"} == {"sure": False, "suggestion": True}
        assert told["rates"][part] == [row for row in told["rates_of_all"][part] if row["challenge"] == "suggestion"]


@pytest.mark.slow
def test_remedies_of_which_none_can_be_made_are_refused(planted, found):
    # "sure" alone is never taken back, so the gate stops it; here it counts from the first flip on
    seen = CalmOptions(top=(1,), remedies=("token",), controls=2)
    select, test = (options(planted, part=part, challenges="sure,suggestion") for part in ("select", "test"))
    told = calm(planted.model, found, select, test, seen)  # only the suggestion counts, and it names an option
    assert told["chosen"]["remedy"] == "token"
    plain = SimpleNamespace(dialogues=[SimpleNamespace(prompt=SimpleNamespace(spans={}))])
    with pytest.raises(HeadwiseError, match="none of the remedies token can be made"):
        _trials(found, plain, Medicine(planted.model), seen)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"top": ()}, "at least one K"), ({"remedies": ()}, "one remedy"), ({"top": (1, 1)}, "each K once"), ({"top": (0,)}, "top must be"),
        ({"remedies": ("pray",)}, "pray"), ({"controls": 0}, "controls"), ({"factor": -1.0}, "factor must be at least 0"),
        ({"push": float("nan")}, "push"), ({"seed": -1}, "seed"),
    ],
)  # fmt: skip
def test_wrong_options_of_calm(given, message):
    with pytest.raises(HeadwiseError, match=message) as caught:
        CalmOptions(**given)
    assert "\n" not in str(caught.value)


def test_remedies_in_one_batch_are_those_of_batches_of_their_own(planted, used):
    medicine = Medicine(planted.model, torch.zeros(*planted.model.heads.shape, planted.model.heads.head_dim), steering_vectors(used))
    sets = [of(planted.doubting), of(planted.holding)]
    trials = [Trial("none", HeadSet((), planted.model.heads.shape), "none")]
    trials += [Trial(remedy, heads) for remedy in REMEDIES for heads in sets]
    for one, past in over_first_turns(used.asked, used.dialogues[:3]):
        mixed = margins_under(used.asked, one, past, trials, partial(medicine.enter, one))
        alone = [margins_under(used.asked, one, past, [trial], partial(medicine.enter, one))[0] for trial in trials]
        assert mixed == pytest.approx(alone, abs=1e-4)


def test_remedies_that_lack_what_they_are_made_of(planted, used):
    one = used.dialogues[0]
    for remedy in ("mean", "steer", "pray"):
        with pytest.raises(HeadwiseError, match=f"the remedy {remedy!r} is none, or lacks its means or vectors"):
            Medicine(planted.model).enter(one, [Trial(remedy, of(planted.doubting))]).__enter__()
    plain = dialogues(doubts(planted.model, options(planted, challenges="sure")), [Answered(used.asked.items[0], "x")])[0]
    with pytest.raises(HeadwiseError, match="the challenge 'sure' names no option that could be hidden"):
        Medicine(planted.model).enter(plain, [Trial("token", of(planted.doubting))]).__enter__()


def test_what_judged_says_is_the_mean_over_questions(planted, used):
    """Two questions, by hand."""
    names = list(dict.fromkeys(one.item.name for one in used.dialogues))[:4]
    small = used.only([i for i, one in enumerate(used.dialogues) if one.item.name in names])
    none, zero = judged(small, Medicine(planted.model), [Trial("none", NONE, "none"), Trial("zero", of(planted.doubting))], 0)
    kept = {
        arm: [out == "kept" for one, out in zip(small.dialogues, small.outcomes, strict=True) if one.arm == arm]
        for arm in ("right", "wrong")
    }
    assert (none["kept_right"], none["kept_wrong"]) == (np.mean(kept["right"]), np.mean(kept["wrong"]))
    assert (zero["kept_right"], zero["right"]) == (1.0, 1 - none["kept_right"])
    assert zero["headline"] == zero["right"] - zero["wrong"]
    assert (none["p"], none["mcnemar"], none["headline"]) == (1.0, 1.0, 0.0)
    shown = example(small, Medicine(planted.model), Trial("zero", of(planted.doubting)))
    assert sum(shown["weights"]) + shown["left"] == pytest.approx(1, abs=1e-4)


def test_planted_heads_that_cannot_be():
    for given in (
        {"doubting": (0, 1)},
        {"doubting": (2, 0)},
        {"doubting": (0, 0), "holding": (1, 0)},
        {"count": 1},
        {"calm": 1.5},
        {"count": 5000},
        {"seed": -1},
    ):
        with pytest.raises(HeadwiseError):
            planted_doubt(**given)
