"""The ablation sweep against one variant at a time: plain generation, plain forward passes, edited weights."""

import copy
import json
import math
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pytest
import torch

from headwise.attention import MODES, ablate
from headwise.attention.means import head_means, head_norms, head_samples
from headwise.attention.plan import attached
from headwise.caches.shared import full_cache
from headwise.evaluation import ablation
from headwise.evaluation import perplexity as perplexity_module
from headwise.evaluation.ablation import AblationOptions, ablation_curve, describe_run
from headwise.evaluation.ablation_task import sweep_tokens
from headwise.evaluation.perplexity import perplexity, plain_windows, with_bos
from headwise.evaluation.variants import head_variants
from headwise.heads import HeadScores, HeadwiseError, UnsupportedModelError
from headwise.heads.headfile import load_result
from headwise.models.model import Model
from headwise.models.weights import silence_in_weights
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.grid import GridOptions, Task, group_specs, make_group
from headwise.prompts.haystack import Haystack
from headwise.prompts.needles import Needle, NeedleComposer
from headwise.runtime.answer import answer_variants, stop_ids
from headwise.runtime.rundir import RunDirectory
from headwise.runtime.runner import Leaf, prefill
from headwise.stats.metrics import exact_match, unigram_recall
from headwise.testing.planted import planted_copier, planted_task
from headwise.testing.tiny import tiny_model
from headwise.testing.tokenizers import character_tokenizer

FAMILIES = ("llama", "gpt2", "qwen3")
NEEDLES = (Needle("the key is x7.", "what is the key?", "x7", "the key is"), Needle("he saw a cow.", "what did he see?", "a cow"))
TEMPLATE = "{context}\nq: {question}\na: {answer_prefix}"


def make_variants(scores, chosen):
    return head_variants(scores, chosen.top, chosen.controls, chosen.seed)


def make_task(tokenizer, needles=NEEDLES, lengths=(40, 60), depths=(0.0, 0.6), part=(0.0, 0.5)):
    encoder = PieceEncoder(tokenizer)
    composer = NeedleComposer(encoder, TEMPLATE)
    return Task(needles, Haystack(planted_task().texts, encoder), composer, GridOptions(lengths, depths, part=part))


def random_scores(shape, seed=0):
    return HeadScores(np.random.default_rng(seed).random(shape), "copy", provenance={"model": "m", "cells": [1, 2, 3]})


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    model = tiny_model(request.param)
    return Model(model, character_tokenizer())


@pytest.fixture(scope="module")
def task():
    return make_task(character_tokenizer())


def options(**changes):
    return AblationOptions(**{"top": (1, 3), "controls": 3, "max_new_tokens": 6} | changes)


def sweep(model, scores, task, chosen, calibration=None, plain=None, **more):
    """The public function with its options as an object; perplexity only if a text for it is given."""
    texts = None if plain is None else (calibration, plain)
    return ablation_curve(model, scores, task=task, texts=texts, perplexity=plain is not None, **asdict(chosen), **more)


def texts_of(model, task):
    return [with_bos(plain_windows(task, 256)[0], model.tokenizer)]


def filling_of(model, task, mode):
    if mode == "mean":
        return {"means": head_means(model.hf, texts_of(model, task))}
    return {"samples": head_samples(model.hf, texts_of(model, task), 16)} if mode == "resample" else {}


def prompts_of(task):
    groups = [make_group(spec, task, 256) for spec in group_specs(task.grid, len(task.needles))]
    return [(prompt, group.needle.answer) for group in groups for prompt in group.prompts]


@torch.no_grad()
def one_at_a_time(model, prompt, answer, enter, limit):
    """(recall, exact, log-probability, answer ids) by `model.generate` and one plain forward pass, without any of the engine."""
    ids = torch.tensor([prompt.ids])
    stop = sorted(stop_ids(model))
    with enter():
        said = model.hf.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=limit, do_sample=False, eos_token_id=stop, pad_token_id=1
        )[0, len(prompt.ids) :]
        logits = model.hf(input_ids=torch.tensor([[*prompt.ids, *prompt.gold]])).logits[0, len(prompt.ids) - 1 : -1]
    logprob = logits.float().log_softmax(-1).gather(-1, torch.tensor(prompt.gold)[:, None]).sum()
    text = model.tokenizer.decode(said, skip_special_tokens=True)
    return unigram_recall(text, answer), exact_match(text, answer), float(logprob), tuple(said.tolist())


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scope", ["answer", "all"])
def test_answers_of_batched_variants_equal_plain_generation(model, task, mode, scope):
    filling = filling_of(model, task, mode)
    variants = make_variants(random_scores(model.heads.shape), options())
    sets = [variant.heads for variant in variants]
    for prompt, answer in prompts_of(task)[:2]:
        rule = {"mode": mode, "scope": scope, "answer_from": len(prompt.ids) - 1, **filling}
        with attached(model.hf):
            leaf = Leaf(0, prompt.ids, full_cache(model.hf))
            if scope == "answer":
                prefill(model.hf, leaf.past, prompt.ids[:-1])
            got = answer_variants(model.hf, leaf, prompt.gold, sets, partial(ablate, model.hf, **rule), stop_ids(model), 6)
        for heads, found in zip(sets, got, strict=True):
            _, _, logprob, ids = one_at_a_time(model, prompt, answer, partial(ablate, model.hf, heads, **rule), 6)
            assert found.ids == ids
            assert found.gold_logprob == pytest.approx(logprob, abs=1e-3)
        assert len({found.gold_logprob for found in got}) > 3


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["answer", "all"])
def test_the_sweep_equals_one_variant_at_a_time(model, task, scope):
    scores = random_scores(model.heads.shape)
    result = sweep(model, scores, task, options(scope=scope, mode="uniform"))
    prompts = prompts_of(task)
    assert len(result.items) == len(prompts) == 8
    assert result.losses.shape == (len(result.variants), 0)
    for row in (0, 1, 4, 6, 9):
        heads = result.variants[row].heads
        for item in (0, 5):
            prompt, answer = prompts[item]
            enter = partial(ablate, model.hf, heads, mode="uniform", scope=scope, answer_from=len(prompt.ids) - 1)
            recall, exact, logprob, ids = one_at_a_time(model, prompt, answer, enter, 6)
            assert result.values["recall"][row, item] == recall
            assert result.values["exact"][row, item] == exact
            assert result.values["logprob"][row, item] == pytest.approx(logprob, abs=1e-3)
            if row == 0:
                assert result.items[item]["answer"] == model.tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.slow
def test_scope_all_equals_edited_weights(model, task):
    result = sweep(model, random_scores(model.heads.shape), task, options(scope="all"))
    row = result.rows_of("top", 3)[0]
    twin = copy.deepcopy(model.hf)
    silence_in_weights(twin, result.variants[row].heads, "zero")
    edited = sweep(replace(model, hf=twin), random_scores(model.heads.shape), task, options(scope="all"))
    for metric in result.values:
        np.testing.assert_allclose(result.values[metric][row], edited.values[metric][0], atol=1e-3)
        np.testing.assert_allclose(edited.values[metric][row], edited.values[metric][0], atol=1e-3)
    assert np.abs(result.values["logprob"][row] - result.values["logprob"][0]).max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["answer", "all"])
def test_neither_batches_nor_repetition_matter(model, task, scope, monkeypatch):
    scores = random_scores(model.heads.shape)
    whole = sweep(model, scores, task, options(scope=scope))
    again = sweep(model, scores, task, options(scope=scope))
    assert all(np.array_equal(whole.values[metric], again.values[metric]) for metric in whole.values)
    assert (whole.variants, whole.items) == (again.variants, again.items)
    parts = sweep(model, scores, task, options(scope=scope, rows=3))
    monkeypatch.setattr(ablation, "TOKENS", 200)
    small = sweep(model, scores, task, options(scope=scope))
    for other in (parts, small):
        for metric in whole.values:
            np.testing.assert_allclose(other.values[metric], whole.values[metric], atol=1e-3)


@pytest.mark.slow
def test_a_hybrid_model_sweeps_in_both_scopes():
    hf = tiny_model("qwen3_next")
    model = Model(hf, character_tokenizer())
    values = np.full(model.heads.shape, np.nan)
    values[[1, 3]] = random_scores((2, 8)).values
    task = make_task(model.tokenizer, lengths=(40,), depths=(0.5,))
    for scope in ("answer", "all"):
        result = sweep(model, HeadScores(values, "copy"), task, options(scope=scope, mode="uniform"))
        prompt, answer = prompts_of(task)[0]
        for row in (0, 1, 5):
            enter = partial(ablate, hf, result.variants[row].heads, mode="uniform", scope=scope, answer_from=len(prompt.ids) - 1)
            assert result.values["logprob"][row, 0] == pytest.approx(one_at_a_time(model, prompt, answer, enter, 6)[2], abs=1e-3)
    with pytest.raises(UnsupportedModelError, match=r"layer [02] of qwen3_next has no attention heads"):
        sweep(model, random_scores((4, 8)), task, options())


def test_variants_are_disjoint_layer_matched_and_seeded():
    scores = random_scores((4, 8))
    variants = make_variants(scores, options(top=(1, 5), controls=4))
    assert [(v.kind, v.k, v.draw) for v in variants[:4]] == [("none", 0, 0), ("top", 1, 0), ("bottom", 1, 0), ("random", 1, 0)]
    assert len(variants) == 1 + 2 * (2 + 4)
    top = scores.top(5)
    for variant in variants:
        assert len(variant.heads) == variant.k
        if variant.k == 5 and variant.kind != "top":
            assert not set(variant.heads) & set(top)
        if variant.k == 5 and variant.kind == "random":
            assert sorted(h.layer for h in variant.heads) == sorted(h.layer for h in top)
    assert len({frozenset(v.heads) for v in variants if (v.kind, v.k) == ("random", 5)}) == 4
    assert variants == make_variants(scores, options(top=(1, 5), controls=4))
    assert variants != make_variants(scores, options(top=(1, 5), controls=4, seed=1))
    with pytest.raises(HeadwiseError, match="top 17 leaves too few of 32 scored heads for its controls; choose a K of 1 to 16"):
        make_variants(scores, options(top=(17,)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"top": ()}, r"different numbers of heads, each at least 1; got \[\]"),
        ({"top": (0, 2)}, r"got \[0, 2\]"),
        ({"top": (2, 2)}, r"got \[2, 2\]"),
        ({"mode": "mask"}, "unknown ablation mode 'mask'; use zero, uniform, mean"),
        ({"scope": "decode"}, "unknown ablation scope 'decode'; use all, answer"),
        ({"controls": 0}, "controls must be at least 1; got 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1; got 0"),
        ({"seed": -1}, "seed must be at least 0; got -1"),
        ({"rows": -1}, "rows must be at least 1; got -1"),
    ],
)
def test_wrong_options_are_refused(wrong, message):
    with pytest.raises(HeadwiseError, match=message):
        AblationOptions(**wrong)


def test_wrong_input_is_refused_before_any_work(model, task):
    with pytest.raises(HeadwiseError, match=r"belong to a model of 2 layers x 8 heads, but .* has 4 x 8"):
        sweep(model, random_scores((2, 8)), task, options())
    with pytest.raises(HeadwiseError, match="no heads were given"):
        sweep(model, [], task, options())
    with pytest.raises(HeadwiseError, match="no tokenizer, and prompts are made with one"):
        ablation_curve(replace(model, tokenizer=None), random_scores((4, 8)))


@pytest.mark.slow
def test_texts_come_from_the_task_where_none_are_given(model, task):
    scores, chosen = random_scores(model.heads.shape), options(mode="mean", controls=1, top=(1,))
    given = sweep(model, scores, task, chosen, *plain_windows(task, model.positions))
    found = ablation_curve(model, scores, task=task, **asdict(chosen))
    assert found.to_json() == given.to_json()
    assert (
        found.provenance["calibration"] != describe_run(model, scores, task, chosen, plain_windows(task, 256)[1])["calibration"]
    )


@pytest.mark.slow
def test_heads_in_an_order_are_swept_like_scores(model, task):
    scores = random_scores(model.heads.shape)
    listed = [tuple(head) for head in scores.top(3)]
    for heads in (listed, scores.top(3)):
        by_list, by_score = (sweep(model, given, task, options(controls=1)) for given in (heads, scores))
        for k in (1, 3):
            one, other = by_list.rows_of("top", k)[0], by_score.rows_of("top", k)[0]
            assert by_list.variants[one].heads.heads == by_score.variants[other].heads.heads
            assert by_list.values["logprob"][one].tolist() == by_score.values["logprob"][other].tolist()
            assert not set(by_list.variants[by_list.rows_of("bottom", k)[0]].heads) & set(scores.top(3))


def test_the_table_in_words(planted):
    model, scores, task = planted
    lines = sweep(model, scores, task, options(top=(1,), controls=3)).table().splitlines()
    assert lines[0].split() == ["metric", "K", "top", "95", "%", "CI", "random", "weakest", "p", "rank"]
    assert lines[1].split() == ["recall", "0", "1", "1", "to", "1"]
    assert lines[2].split() == ["recall", "1", "0", "0", "to", "0", "1", "1", "0.25"]
    assert [line.split()[0] for line in lines[1::2]] == ["recall", "exact", "logprob"]


@pytest.mark.slow
def test_perplexity_is_measured_under_scope_all(model, task):
    calibration, plain = plain_windows(task, 256)
    result = sweep(model, random_scores(model.heads.shape), task, options(controls=7, top=(3,)), calibration, plain)
    windows = with_bos(plain, model.tokenizer)
    for row in (0, 1, 2, 5):
        with ablate(model.hf, result.variants[row].heads, scope="all"):
            assert result.perplexities[row] == pytest.approx(perplexity(model.hf, windows), rel=1e-4)
    assert np.isnan(result.perplexities).tolist() == [v.draw >= 5 for v in result.variants]
    rows = {row["kind"]: row for row in result.summary() if row["metric"] == "perplexity"}
    assert rows["top"]["mean"] == pytest.approx(result.perplexities[1])
    assert rows["top"]["low"] <= rows["top"]["mean"] <= rows["top"]["high"]
    assert len(rows["random"]["draws"]) == 5
    assert rows["random"]["mean"] == pytest.approx(math.exp(np.log(rows["random"]["draws"]).mean()))
    assert result.to_json()["perplexity"]["scope"] == "all"


@pytest.fixture(scope="module")
def planted():
    """A model whose only copying head is L2H0, and a task that it solves."""
    texts = planted_task()
    model, tokenizer = planted_copier(3, 8, 2, 0, texts=["q:", "a:"])
    needles = tuple(Needle(**needle) for needle in texts.needles[:3])
    values = np.random.default_rng(0).random((3, 8)) / 10
    values[2, 0] = 1
    return Model(model, tokenizer), HeadScores(values, "copy"), make_task(tokenizer, needles, lengths=(80,))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["zero", "uniform", "mean"])
def test_the_planted_head_is_the_one_that_counts(planted, mode):
    model, scores, task = planted
    result = sweep(model, scores, task, options(top=(1,), controls=20, mode=mode), *plain_windows(task, 1024))
    rows = {(row["metric"], row["kind"]): row for row in result.summary()}
    assert rows["recall", "none"]["mean"] == rows["exact", "none"]["mean"] == 1
    assert rows["recall", "top"]["mean"] == 0
    assert rows["recall", "top"]["drop"] == rows["recall", "top"]["drop_low"] == 1
    assert rows["recall", "bottom"]["mean"] == rows["recall", "random"]["mean"] == 1
    assert rows["recall", "random"]["sd_draws"] == 0
    assert rows["recall", "top"]["p_paired"] == 2 / 2**3  # three needles
    # Layer 2 has seven other heads: 20 draws with repeats would look like more evidence than there is.
    assert rows["recall", "random"]["draws"] == [1.0] * 7
    assert rows["recall", "top"]["p_rank"] == 1 / 8
    assert rows["logprob", "top"]["mean"] < rows["logprob", "none"]["mean"] - 10


@pytest.mark.slow
def test_summary_rows_agree_with_the_tables(model, task):
    result = sweep(model, random_scores(model.heads.shape), task, options(controls=5))
    table = result.values["logprob"]
    for row in result.summary():
        found = result.rows_of(row["kind"], row["k"])
        if row["metric"] == "logprob":
            assert row["mean"] == pytest.approx(table[found].mean())
            assert row["low"] <= row["mean"] <= row["high"]
        if row["metric"] == "logprob" and row["kind"] != "none":
            assert row["drop"] == pytest.approx(table[0].mean() - table[found].mean())
        if row["metric"] == "logprob" and row["kind"] == "random":
            assert row["sd_draws"] == pytest.approx(table[found].mean(axis=1).std(ddof=1))


@pytest.mark.slow
def test_a_result_is_saved_with_its_provenance(model, task, tmp_path):
    scores = random_scores(model.heads.shape)
    result = sweep(model, scores, task, options(controls=1), *plain_windows(task, 256))
    path = tmp_path / "a" / "ablation.json"
    result.save(path)
    kind, data = load_result(path)
    assert kind == "ablation"
    assert data == json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert (data["mode"], data["scope"], data["items"]) == ("zero", "answer", 8)
    assert data["model_type"] == model.hf.config.model_type
    assert data["head_file"]["provenance"] == {"model": "m"}
    assert data["options"]["top"] == [1, 3]
    assert data["variants"][1]["heads"] == [str(scores.top(1).heads[0])]
    assert len(data["values"]["recall"]) == len(data["variants"]) == 7
    assert [row["sd_draws"] for row in data["summary"] if row["kind"] == "random"] == [None] * 8
    with pytest.raises(HeadwiseError, match="exists; give another name"):
        result.save(path)
    result.save(path, overwrite=True)


@pytest.mark.slow
def test_finished_groups_are_not_run_again(model, task, tmp_path, monkeypatch):
    scores, chosen = random_scores(model.heads.shape), options(controls=1)
    expected = sweep(model, scores, task, chosen)
    real, runs = ablation._run_group, []

    def stumble(*arguments, **chosen):
        if len(runs) == 2:
            raise KeyboardInterrupt
        runs.append(1)
        return real(*arguments, **chosen)

    monkeypatch.setattr(ablation, "_run_group", stumble)
    directory = RunDirectory(tmp_path / "run", describe_run(model, scores, task, chosen))
    with pytest.raises(KeyboardInterrupt):
        sweep(model, scores, task, chosen, directory=directory)
    monkeypatch.setattr(ablation, "_run_group", lambda *arguments, **chosen: runs.append(1) or real(*arguments, **chosen))
    seen = []
    directory = RunDirectory(tmp_path / "run", describe_run(model, scores, task, chosen))
    resumed = sweep(model, scores, task, chosen, directory=directory, report=lambda *state: seen.append(state[:2]))
    assert len(runs) == 4
    assert len(seen) == 4
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1][0] == seen[-1][1] == sweep_tokens(task, 7, "answer")
    assert resumed.to_json() == expected.to_json()


@pytest.mark.slow
def test_one_bar_counts_the_sweep_and_perplexity_in_tokens(model, task):
    seen = []
    result = sweep(
        model, random_scores(model.heads.shape), task, options(controls=1), *plain_windows(task, 256),
        report=lambda *state: seen.append(state),
    )  # fmt: skip
    windows, bos = result.losses.shape[1], 1
    plain = 7 * windows * (len(plain_windows(task, 256)[1][0]) + bos)
    assert {total for _, total, _ in seen} == {sweep_tokens(task, 7, "answer") + plain}
    done = [done for done, _, _ in seen]
    assert done == sorted(done)
    assert done[3] == sweep_tokens(task, 7, "answer")  # four groups, then seven sets of heads over plain text
    assert done[-1] == seen[-1][1]
    assert len(done) == 4 + 7
    assert seen[-1][2].startswith("perplexity ")


@pytest.mark.slow
def test_work_is_counted_as_the_passes_read_it(model):
    """Tokens that go through the model, counted at its door, against the estimate."""
    encoder = PieceEncoder(character_tokenizer())
    hay = Haystack(["".join(f"{chr(97 + i % 23)}{chr(97 + i % 7)}. " for i in range(400))], encoder)
    grid = GridOptions((100, 140), (0.0, 0.5, 1.0), part=(0.0, 0.5))
    task, read = Task(NEEDLES, hay, NeedleComposer(encoder, TEMPLATE), grid), []
    asked = {scope: sum(len(prompt.ids) for prompt, _ in prompts_of(task)) - 2 * 3 * 240 for scope in ("answer", "all")}
    asked["all"] *= 7  # questions, which the estimate leaves out
    hook = model.hf.register_forward_pre_hook(lambda _, __, given: read.append(given["input_ids"].numel()), with_kwargs=True)
    try:
        for scope, question in asked.items():
            read.clear()
            sweep(model, random_scores(model.heads.shape), task, options(controls=1, max_new_tokens=1, scope=scope))
            assert sum(read) == pytest.approx(sweep_tokens(task, 7, scope) + question, rel=0.1)
    finally:
        hook.remove()


@pytest.mark.slow
def test_finished_perplexities_are_not_measured_again(model, task, tmp_path, monkeypatch):
    scores, chosen = random_scores(model.heads.shape), options(controls=1)
    texts = plain_windows(task, 256)
    expected = sweep(model, scores, task, chosen, *texts)
    real, runs = perplexity_module.window_losses, []

    def stumble(*arguments):
        if len(runs) == 3:
            raise KeyboardInterrupt
        runs.append(1)
        return real(*arguments)

    monkeypatch.setattr(perplexity_module, "window_losses", stumble)
    directory = RunDirectory(tmp_path / "run", describe_run(model, scores, task, chosen))
    with pytest.raises(KeyboardInterrupt):
        sweep(model, scores, task, chosen, *texts, directory=directory)
    monkeypatch.setattr(perplexity_module, "window_losses", lambda *arguments: runs.append(1) or real(*arguments))
    resumed = sweep(model, scores, task, chosen, *texts, directory=directory)
    assert len(runs) == 7
    assert resumed.to_json() == expected.to_json()
    sweep(model, scores, task, chosen, texts[1], texts[0], directory=directory)  # of another text nothing is known
    assert len(runs) == 14


@pytest.mark.slow
def test_further_controls_are_drawn_and_summed_up(model, task):
    scores = random_scores(model.heads.shape)
    plain, more = sweep(model, scores, task, options()), sweep(model, scores, task, options(more=("any_layer", "norm")))
    rows = {(row["metric"], row["kind"], row["k"]): row for row in more.summary()}
    same = [row for row in more.summary() if row["kind"] not in ("any_layer", "norm") and row["metric"] != "logprob"]
    assert same == [row for row in plain.summary() if row["metric"] != "logprob"]  # batches differ, so log-probabilities do by an ulp
    for kind in ("any_layer", "norm"):
        drawn = [variant for variant in more.variants if (variant.kind, variant.k) == (kind, 3)]
        assert len(drawn) == 3
        assert all(len(variant.heads) == 3 and not set(variant.heads) & set(scores.top(3)) for variant in drawn)
        row, top = rows["recall", kind, 3], more.values["recall"][more.rows_of("top", 3)[0]]
        means = more.values["recall"][more.rows_of(kind, 3)].mean(axis=1)
        assert row["mean"] == pytest.approx(means.mean())
        assert row["draws"] == pytest.approx(means.tolist())
        assert row["p_rank"] == pytest.approx((1 + (means <= top.mean()).sum()) / 4)
        assert 0 < row["p_paired"] <= 1
    with pytest.raises(HeadwiseError, match="unknown kind of controls 'near'; use any_layer, norm"):
        options(more=("near",))
    with pytest.raises(HeadwiseError, match="need the heads' norms"):
        head_variants(scores, (1,), 2, 0, ("norm",))


@torch.no_grad()
def test_norms_are_those_of_each_heads_part_of_the_projection(model):
    """Against the projection run with one head at a time."""
    ids = torch.arange(4, 24)[None]
    seen = {}
    handles = [
        model.part("output", layer).register_forward_pre_hook(lambda _, inputs, layer=layer: seen.update({layer: inputs[0]}))
        for layer in model.modules
    ]
    model.hf(input_ids=ids)
    for handle in handles:
        handle.remove()
    found, (layers, heads), dim = head_norms(model.hf, [ids]), model.heads.shape, model.heads.head_dim
    assert found.shape == (layers, heads)
    for layer in range(layers):
        projection = model.part("output", layer)
        for head in range(heads):
            alone = torch.zeros_like(seen[layer])
            alone[..., head * dim : (head + 1) * dim] = seen[layer][..., head * dim : (head + 1) * dim]
            added = projection(alone) - projection(torch.zeros_like(alone))
            assert found[layer, head] == pytest.approx(float(added.norm(dim=-1).mean()), rel=1e-4)
    with pytest.raises(HeadwiseError, match="need calibration text"):
        head_norms(model.hf, [])
