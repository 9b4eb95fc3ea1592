"""Cross-transfer: what is removed against a slow loop, and verdicts of made-up matrices."""

import numpy as np
import pytest
import torch

import headwise as hw
from headwise.claims.claim import HELD, NOT_HELD, NOT_TESTABLE, judge
from headwise.claims.experiment import Bench
from headwise.claims.ledger import claims as ledger_claims
from headwise.claims.transfer import declared, tasks
from headwise.claims.transfer.detectors import Found, strongest
from headwise.claims.transfer.measure import Matrix, claims, details, removed
from headwise.heads.types import HeadScores, HeadSet


@pytest.fixture(scope="module")
def model():
    return hw.load("lab-6m")


@pytest.fixture
def bench(model, tmp_path):
    return Bench("lab-6m", "lab", lambda: model, tmp_path, quick=True)


def slow_increase(model, item, heads):
    """Loss increase per token, by whole passes without a cache."""
    ids = torch.tensor([[*item.past, *item.rest, *item.answer]])
    start = ids.shape[1] - len(item.answer)
    targets = ids[0, start:]

    def loss():
        logits = model.hf(ids).logits[0, start - 1 : -1].float().log_softmax(-1)
        return -logits.gather(-1, targets[:, None]).mean().item()

    with torch.no_grad():
        before = loss()
        with hw.ablate(model, heads, mode="zero", scope="answer", answer_from=len(item.past)):
            return loss() - before


@pytest.mark.slow
def test_a_matrix_is_what_a_slow_loop_gives(model, bench, monkeypatch):
    monkeypatch.setattr("headwise.claims.transfer.measure.EXPECTED", -1e9)
    items = tasks.repeats(bench)[:2] + tasks.needles(bench, "test")[:1]
    sets = [HeadSet.of([(3, 1), (5, 6)], model.heads.shape), HeadSet.of([(0, 0)], model.heads.shape)]
    found = removed(bench, "some", items, ("one", "two"), sets)
    slow = np.array([[slow_increase(model, item, heads) for item in items] for heads in sets])
    np.testing.assert_allclose(found.values, slow, atol=2e-5)
    again = removed(bench, "some", items, ("one", "two"), sets)  # from its cells
    assert again.values.tobytes() == found.values.tobytes()


@pytest.mark.slow
def test_items_are_cut_where_the_question_begins(model, bench):
    for name, items in tasks.tasks(bench).items():
        if isinstance(items, str):
            continue
        assert all(len(one.past) + len(one.rest) + len(one.answer) <= model.positions for one in items), name
    one = tasks.needles(bench, "test")[0]
    assert model.tokenizer.decode(one.rest).strip()[0].isupper()
    first = tasks.repeats(bench)[0]
    assert first.past[-len(first.rest) - 1 :] != first.rest
    told = list(first.past)
    start = next(i for i in range(len(told)) if told[i : i + len(first.rest)] == list(first.rest))
    assert told[start + len(first.rest) :][: len(first.answer)] == list(first.answer)


def test_kv_heads_are_removed_with_all_their_query_heads():
    scores = HeadScores(np.repeat(np.arange(64.0).reshape(8, 8)[:, :4], 2, axis=1), "gate", 1)
    heads = strongest(scores, 2)
    assert {(h.layer, h.head // 2) for h in heads} == {(7, 3), (7, 2)}
    assert len(heads) == 4


def made(own, cross, random=0.0, halves=None):
    """Two detectors with one task: increases of the first's heads, the second's, and random ones."""
    rng = np.random.default_rng(0)
    names, values = [], []
    for name, level in (("copy", own), ("semantic", cross)):
        for label, mean in ((name, level), (f"{name}/a", halves or level), (f"{name}/b", halves or level), (f"{name}/random", random)):
            names.append(label)
            values.append(mean + 0.01 * rng.standard_normal(20))
    return Matrix(tuple(names), np.array(values), 24)


def found_heads():
    shape = (8, 8)
    rng = np.random.default_rng(1)

    def one(name):
        scores = HeadScores(rng.random(shape), name, 1)
        return Found(scores.top(4), (scores.top(4), scores.top(4)), scores)

    return {name: one(name) for name in ("copy", "semantic")}


def verdicts(matrices, missing=None, pairs=110.0):
    findings = claims(found_heads(), missing or {}, matrices, ("copy", "semantic"))
    every = ledger_claims()
    named = {f"transfer.{key}": one for key, one in findings.items()}
    if not named["transfer.one_kind"].missing:  # as if these two were all pairs
        named["transfer.one_kind"].numbers["pairs"] = pairs
    return {key.removeprefix("transfer."): one.verdict for key, one in judge(every, named).items()}


def test_verdicts_of_a_matrix():
    text = made(0.01, 0.01)
    same = verdicts({"needle": made(1.0, 0.8), "text": text})
    assert same["own.copy"] == same["cross.semantic.copy"] == same["one_kind"] == same["spares_text"] == HELD
    other = verdicts({"needle": made(1.0, 0.1), "text": made(0.5, 0.1)})
    assert other["cross.semantic.copy"] == other["one_kind"] == other["spares_text"] == NOT_HELD
    assert verdicts({"needle": made(1.0, 0.8), "text": text}, pairs=12.0)["one_kind"] == NOT_TESTABLE
    nothing = verdicts({"needle": made(1.0, 1.0, random=1.0), "text": text})
    assert nothing["own.copy"] == NOT_HELD
    few = made(1.0, 0.8)._replace(values=made(1.0, 0.8).values[:, :3])
    assert set(verdicts({"needle": few, "text": text}).values()) == {NOT_TESTABLE}
    assert verdicts({"needle": made(1.0, 0.8), "text": text}, {"semantic": "no heads"})["cross.copy.semantic"] == NOT_TESTABLE


def test_details_name_what_is_missing():
    told = details(found_heads(), {"gate": "too short"}, {"needle": made(1.0, 0.8)})
    assert told["missing"] == {"gate": "too short"}
    assert set(told["increases"]["needle"]) >= {"copy", "copy/random", "semantic/a"}
    assert told["overlap"]["copy"]["copy"] == 1.0


def test_the_declared_claims_are_those_that_are_measured(bench):
    names = declared.NAMES
    findings = claims({}, dict.fromkeys(names, "none"), {}, names)
    assert {f"transfer.{key}" for key in findings} == {key for key in ledger_claims() if key.startswith("transfer.")}
