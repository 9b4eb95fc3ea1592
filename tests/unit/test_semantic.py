"""The semantic score: against slow loops, on a model whose only copying head is known, with extremes left out, with too few runs."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headwise.heads import HeadwiseError, NoSuccessfulRunError, load_heads, save_heads
from headwise.methods.compresskv.formula import EPSILON, layer_shares, matching_steps, row_errors, semantic_lift, semantic_score
from headwise.methods.compresskv.options import Semantic
from headwise.methods.compresskv.semantic import describe_run, semantic_scores
from headwise.models.model import Model
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.grid import GridOptions, Task, make_group, plan_groups
from headwise.prompts.haystack import Haystack
from headwise.prompts.needles import Needle, NeedleComposer
from headwise.runtime.rundir import RunDirectory
from headwise.testing.planted import check_detector, planted_copier, planted_task
from headwise.testing.tiny import tiny_model
from headwise.testing.tokenizers import character_tokenizer
from tests.reference.semantic import slow_semantic

FEW = Semantic(min_runs=1)


def task_for(model, planted, lengths=(60,), depths=(0.0, 0.3, 1.0), needles=2, **grid):
    encoder = PieceEncoder(model.tokenizer)
    chosen = [Needle(**row) for row in planted.needles[:needles]]
    return Task(
        chosen, Haystack(planted.texts, encoder), NeedleComposer(encoder), GridOptions(tuple(lengths), tuple(depths), **grid)
    )


def planted():
    """The planted copier, in which L1H3 looks evenly at everything and two more heads look somewhere by chance."""
    model, tokenizer = planted_copier()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer, head, strength in ((1, 3, 0), (0, 2, 0.3), (1, 1, 0.3)):
            rows = model.model.layers[layer].self_attn.q_proj.weight[head * 128 : (head + 1) * 128]
            rows.copy_(strength * torch.randn(rows.shape, generator=generator))
    return Model(model, tokenizer)


@pytest.fixture(scope="module")
def model():
    return planted()


@pytest.fixture(scope="module")
def task(model):
    return task_for(model, planted_task())


@pytest.fixture(scope="module")
def scores(model, task):
    return semantic_scores(model, task, FEW)


# ---- the formula


@st.composite
def runs(draw):
    answer = draw(st.lists(st.integers(0, 4), min_size=1, max_size=5))
    emitted = draw(st.lists(st.integers(0, 6), min_size=1, max_size=9))
    seed = draw(st.integers(0, 2**31))
    weights = torch.rand(3, len(emitted), len(answer), generator=torch.Generator().manual_seed(seed)) / len(answer)
    return answer, emitted, weights


@given(runs(), st.integers(1, 500))
def test_score_and_lift_are_those_of_slow_loops(run, prompt):
    answer, emitted, weights = run
    matching = matching_steps(torch.tensor(emitted), torch.tensor(answer))
    mass = weights.sum(dim=-1)
    slow = [slow_semantic(head.tolist(), emitted, answer) for head in weights]
    assert semantic_score(mass, matching).tolist() == pytest.approx([score for score, _ in slow], abs=1e-5)
    for lift, (score, steps) in zip(semantic_lift(mass, matching, len(answer), prompt).tolist(), slow, strict=True):
        wanted = score / steps / (len(answer) / prompt) if steps else math.nan
        assert lift == pytest.approx(wanted, rel=1e-4, nan_ok=True)


def test_a_token_that_occurs_twice_in_the_span_counts_once():
    """The released code multiplies by the number of occurrences (card 4.7)."""
    matching = matching_steps(torch.tensor([7, 5, 9]), torch.tensor([5, 6, 5]))
    assert matching.tolist() == [False, True, False]
    assert semantic_score(torch.tensor([0.9, 0.25, 0.9]), matching).item() == 0.25


def test_a_head_that_looks_evenly_has_lift_one():
    mass = torch.full((4,), 3 / 60)
    assert semantic_lift(mass, torch.tensor([True, False, True, True]), 3, 60).item() == pytest.approx(1)
    assert math.isnan(semantic_lift(mass, torch.zeros(4, dtype=torch.bool), 3, 60).item())
    assert semantic_score(mass, torch.zeros(4, dtype=torch.bool)).item() == 0


def test_row_errors_of_known_rows():
    full = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert row_errors(torch.tensor([[3.0, 5.0], [0.0, 0.0]]), full).item() == pytest.approx(1 / 5, abs=1e-6)
    assert row_errors(torch.tensor([[3.0, 4.0], [0.0, 1.0]]), full).item() == pytest.approx(1 / EPSILON)


def test_every_data_set_counts_alike_in_the_layer_shares():
    errors = np.array([[1.0, 3.0, np.nan], [1.0, 3.0, np.nan], [800.0, 200.0, np.nan]])
    assert layer_shares(errors, ("a", "a", "b")) == pytest.approx((0.525, 0.475, 0))
    assert layer_shares(errors, ("a", "a", "a")) == pytest.approx((802 / 1008, 206 / 1008, 0))
    with pytest.raises(HeadwiseError, match="the prompts of a data set have no error in any layer"):
        layer_shares(np.array([[1.0, 2.0], [0.0, 0.0]]), ("a", "b"))


# ---- the detector


@torch.no_grad()
def slow_tables(model, prompt, answer):
    """[L, H] scores and lifts from the whole attention matrices of one pass over prompt and answer."""
    hf = model.hf
    hf.set_attn_implementation("eager")
    ids = torch.tensor([[*prompt.ids, *answer[:-1]]])
    attentions = hf(input_ids=ids, output_attentions=True).attentions
    hf.set_attn_implementation("sdpa")
    start, stop = prompt.span("answer")
    found = np.zeros((2, *model.heads.shape))
    for layer, weights in enumerate(attentions):
        for head in range(model.heads.shape[1]):
            first = len(prompt.ids) - 1  # the row of the last prompt token gives the first token of the answer
            masses = [weights[0, head, first + t, start:stop].tolist() for t in range(len(answer))]
            score, steps = slow_semantic(masses, answer, prompt.ids[start:stop])
            found[:, layer, head] = score, score / steps / ((stop - start) / len(prompt.ids))
    return found


def answers_of(model, scores):
    encoder = PieceEncoder(model.tokenizer)
    return [encoder.encode(cell["answer"]) for cell in scores.provenance["cells"]]


def test_the_detector_is_the_slow_loop_over_whole_attention_matrices(model, task, scores):
    prompts = [p for spec in plan_groups(task, None) for p in make_group(spec, task, None).prompts]
    answers = answers_of(model, scores)
    assert len(prompts) == len(scores.runs) == 6
    tables = np.stack([slow_tables(model, prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)])
    np.testing.assert_allclose(scores.runs, tables[:, 0], atol=1e-5)
    np.testing.assert_allclose(scores.values, tables[:, 0].mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(scores.tables["lift"], tables[:, 1].mean(axis=0), rtol=1e-4, atol=1e-5)
    assert (scores.values > 1e-3).sum() == 4  # the copy score is 0 for all but the planted head
    lift = scores.tables["lift"]
    assert lift[1, 3] == pytest.approx(1, abs=0.03)  # it looks evenly, at a few more tokens with every step


def test_the_planted_head_looks_at_the_answer_in_each_of_its_three_steps(scores):
    assert scores.top(1).heads == ((1, 2),)
    assert scores.values[1, 2] == pytest.approx(3, abs=0.01)
    assert np.delete(scores.values.ravel(), 6).max() < 1
    lift = scores.tables["lift"]
    assert lift[1, 2] > 10
    assert (scores.score, scores.score_version, scores.provenance["solved"]) == ("semantic", 1, 6)
    assert {cell["matching_steps"] for cell in scores.provenance["cells"]} == {3}


def test_an_answer_that_goes_its_own_way_is_scored_step_by_step(model, task):
    """The gold draft is wrong from its third token on, so that the model's own answer is decoded and looked at again."""
    needle = task.needles[0]
    first, second, third = needle.answer.split()
    broken = Needle(f"{needle.answer_prefix} {first} {second}. so {third}.", needle.question, f"{first} {second}. so {third}")
    partly = replace(task, needles=(replace(broken, answer_prefix=needle.answer_prefix),))
    found = semantic_scores(model, partly, replace(FEW, min_recall=0.4))
    prompts = [p for spec in plan_groups(partly, None) for p in make_group(spec, partly, None).prompts]
    answers = answers_of(model, found)
    assert all(answer != prompt.gold for prompt, answer in zip(prompts, answers, strict=True))
    tables = np.stack([slow_tables(model, prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)])
    np.testing.assert_allclose(found.runs, tables[:, 0], atol=1e-5)


def test_the_semantic_detector_passes_the_check():
    check_detector(lambda model, material: semantic_scores(model, task_for(model, material, (80,), (0.5,), 3), FEW))


def test_layers_without_softmax_attention_are_not_scored():
    hf = tiny_model("qwen3_next", max_position_embeddings=1024)
    model = Model(hf, character_tokenizer())
    task = task_for(model, planted_task(), (150,), (0.5,), 1)
    said = {"length": 150, "depth": 0.5, "needle": 0, "window": 0}
    with pytest.raises(NoSuccessfulRunError, match="no successful run: the model answered none of 1 needle questions"):
        semantic_scores(model, task, FEW)
    needle = replace(task.needles[0], answer_prefix="")  # a run is solved by decree
    from headwise.runtime import answer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answer, "judged_answer", lambda *_: {"answer": "", "recall": 1.0, "exact": True})
        found = semantic_scores(model, replace(task, needles=(needle,)), FEW)
    assert np.isnan(found.values[[0, 2]]).all()
    assert (found.values[[1, 3]] >= 0).all()
    assert found.run_info == (said,)
    assert np.isnan(found.tables["lift"][0]).all()


def test_the_prompt_holds_one_bos_and_none_before_the_needle(model, task):
    bos = model.tokenizer.bos_token_id
    for spec in plan_groups(task, None):
        for prompt in make_group(spec, task, None).prompts:
            assert [i for i, token in enumerate(prompt.ids) if token == bos] == [0]


# ---- extremes


def test_dropped_extremes_are_not_run_and_the_rest_is_as_before(model, task, scores):
    found = semantic_scores(model, task, replace(FEW, extremes="drop"))
    assert {info["depth"] for info in found.run_info} == {0.3}
    middle = [i for i, info in enumerate(scores.run_info) if info["depth"] == 0.3]
    np.testing.assert_allclose(found.runs, scores.runs[middle], atol=1e-6)
    assert found.provenance["options"]["extremes"] == "drop"
    assert found.provenance["grid"]["depths"] == (0.0, 0.3, 1.0)  # what was asked for
    with pytest.raises(HeadwiseError, match="no depth but 0 and 1"):
        semantic_scores(model, replace(task, grid=replace(task.grid, depths=(0.0, 1.0))), replace(FEW, extremes="drop"))


# ---- refusals and long runs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"extremes": "some"}, "unknown extremes 'some'; use keep or drop"),
        ({"min_recall": 1.0}, r"min_recall must lie in \[0, 1\); got 1"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number of at least 1; got 0"),
        ({"min_runs": 0}, "min_runs must be a whole number of at least 1; got 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(HeadwiseError, match=message):
        Semantic(**options)


def test_too_few_runs_give_no_ranking(model, task, tmp_path):
    with pytest.raises(HeadwiseError, match="the grid has 6 runs, but a ranking needs 30 solved ones; use more depths"):
        semantic_scores(model, task, Semantic(), RunDirectory(tmp_path / "run", {}))
    assert not (tmp_path / "run").exists()  # said before any work
    lost = replace(task.needles[1], answer_prefix="the river of stone is")
    half = replace(task, needles=(task.needles[0], lost))
    directory = RunDirectory(tmp_path / "run", describe_run(model, half, replace(FEW, min_runs=4)))
    with pytest.raises(HeadwiseError, match="3 of 6 runs solved, but a ranking needs 4") as error:
        semantic_scores(model, half, replace(FEW, min_runs=4), directory)
    assert "\n" not in str(error.value)
    cells = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("*.npz")}
    again = RunDirectory(tmp_path / "run", describe_run(model, half, replace(FEW, min_runs=3)))  # the same run goes on
    found = semantic_scores(model, half, replace(FEW, min_runs=3), again)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("*.npz")} == cells
    assert (found.provenance["runs"], found.provenance["solved"]) == (6, 3)


def test_thirty_runs_are_enough_by_default(model):
    many = task_for(model, planted_task(), (60,), (0.2, 0.5, 0.8), 2, windows=5)
    assert semantic_scores(model, many, Semantic()).provenance["solved"] == 30


def test_a_run_is_resumed_and_gives_the_same_bytes(model, task, scores, tmp_path):
    class EnoughError(Exception):
        pass

    def interrupt(*_):
        raise EnoughError

    description = describe_run(model, task, FEW)
    assert "min_runs" not in json.dumps(description)
    with pytest.raises(EnoughError):
        semantic_scores(model, task, FEW, RunDirectory(tmp_path / "run", description), interrupt)
    assert len(list((tmp_path / "run").glob("*.npz"))) == 1
    again = semantic_scores(model, task, FEW, RunDirectory(tmp_path / "run", description))
    save_heads(scores, tmp_path / "a.json")
    save_heads(again, tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert load_heads(tmp_path / "a.json").top(1).heads == ((1, 2),)
    stated = scores.provenance
    assert stated == {**description, "runs": 6, "solved": 6, "cells": stated["cells"], "shared_places": stated["shared_places"]}


@torch.no_grad()
def test_the_model_is_as_before(task):
    model = planted()
    ids = torch.tensor([list(range(5, 40))])
    before = model.hf(input_ids=ids).logits
    weights = {name: tensor.clone() for name, tensor in model.hf.state_dict().items()}
    semantic_scores(model, task, FEW)
    assert model.hf.config._attn_implementation == "sdpa"
    assert torch.equal(model.hf(input_ids=ids).logits, before)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.hf.state_dict().items())
