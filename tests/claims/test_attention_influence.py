"""Claims of AttentionInfluence: what their rules say of made-up results, statistics against slow loops, small runs on a lab model."""

import itertools
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import rankdata, spearmanr

from headwise.attention.branches import branches
from headwise.claims.attention_influence import (
    EXPERIMENTS,
    agreement,
    beyond,
    choice,
    exact,
    losses,
    proxy_heads,
    real_texts,
    statistics,
)
from headwise.claims.attention_influence.declared import PAPER
from headwise.claims.claim import HELD, NOT_HELD, NOT_TESTABLE, Finding, judge
from headwise.claims.experiment import Bench, NotTestable
from headwise.claims.ledger import experiments
from headwise.corpus.documents import DocumentScore
from headwise.heads import HeadSet
from headwise.heads.headfile import write_json
from headwise.models.load import load
from headwise.models.model import Model
from headwise.models.names import bundled_model
from headwise.prompts.haystack import bundled_texts
from headwise.testing.tiny import tiny_model
from headwise.testing.tokenizers import character_tokenizer
from headwise_lab.claims.attention_influence import EXPERIMENTS as LAB
from headwise_lab.claims.attention_influence import separation, training, training_models, training_texts
from tests.reference.influence import plain_losses, reference_model

CLAIMS = {claim.key: claim for one in (*EXPERIMENTS, *LAB) for claim in one.claims}
PLACES = ("1", "2", "3", "4", "5", "6", "7", "8", "9", "10")
SURE = {"accuracy": (0.8, 0.7, 0.9)}


@pytest.fixture(scope="module")
def tiny():
    return Model(tiny_model("llama"), character_tokenizer())


@pytest.fixture(scope="module")
def lab():
    return load(str(bundled_model("lab-6m")), "cpu")


def bench_of(model, work, name="lab-6m", quick=True):
    return Bench(name, "lab", lambda: model, work, quick=quick)


def verdict(key, numbers, p=None):
    return judge(CLAIMS, {key: Finding(numbers, p)})[key].verdict


# --- declarations ----------------------------------------------------------------------------------------------------------------------


def test_every_numbered_claim_of_the_card_is_declared():
    assert set(PLACES) <= {claim.place for claim in CLAIMS.values()}
    assert {claim.card for claim in CLAIMS.values()} == {"attention-influence"}
    assert {one.name for one in (*EXPERIMENTS, *LAB)} <= {one.name for one in experiments()}
    cheap = [one for one in EXPERIMENTS if not one.data and (one.minutes.quick_lab or 1) <= 0.3]
    assert sum(len(one.claims) for one in cheap) >= 3


@pytest.mark.parametrize(
    ("key", "numbers", "p", "expected"),
    [
        ("influence-separation.few_heads", {"margin": 0.1, "strongest": (0.9, 0.8, 1.0), "untrained_strongest": 0.05}, None, HELD),
        ("influence-separation.few_heads", {"margin": -0.01, "strongest": 0.9, "untrained_strongest": 0.05}, None, NOT_HELD),
        ("influence-separation.few_heads", {"accuracy": 0.49, "margin": 1, "strongest": 1, "untrained_strongest": 0}, None, NOT_TESTABLE),
        ("influence-separation.same", {"chosen": (0.95, 0.9, 1.0), "random": 0.65}, 0.01, HELD),
        ("influence-separation.same", {"chosen": (0.95, 0.9, 1.0), "random": 0.66}, 0.01, NOT_HELD),
        ("influence-separation.any", {"chosen": (0.95, 0.9, 1.0), "random": 0.5}, 0.06, NOT_HELD),
        ("influence-separation.modes", {"least_correlation": 0.8}, None, NOT_HELD),
        ("influence-agreement.scores", {"partner_accuracy": 0.5, "correlation": (0.3, 0.01, 0.5), "losses": 0.5}, 0.04, HELD),
        ("influence-agreement.scores", {"partner_accuracy": 0.4, "correlation": (0.3, 0.01, 0.5), "losses": 0.5}, 0.04, NOT_TESTABLE),
        ("influence-agreement.scores", {"partner_accuracy": 0.5, "correlation": (0.29, 0.01, 0.5), "losses": 0.5}, 0.04, NOT_HELD),
        ("influence-agreement.strata", {"domains": 0, "least_removed": math.nan, "strongest": math.nan}, None, NOT_TESTABLE),
        ("influence-agreement.strata", {"domains": 2, "least_removed": 0.8, "strongest": 0.4}, None, HELD),
        ("influence-exact.export", {"bits": 32, "difference": 1e-8}, None, NOT_HELD),
        ("influence-exact.prefix", {"bits": 16, "difference": 0.0, "heads_cost": 0.1}, None, NOT_TESTABLE),
        ("influence-training.above_random", {"gain": (0.04, 0.02, 0.06), "least_seed": 0.01, "longest": 0.0}, 0.001, HELD),
        ("influence-training.above_random", {"gain": (0.04, 0.02, 0.06), "least_seed": -0.01, "longest": 0.0}, 0.001, NOT_HELD),
    ],
)
def test_verdicts_follow_the_rules(key, numbers, p, expected):
    assert verdict(key, SURE | numbers, p) == expected


def test_claims_of_large_trainings_say_what_they_need():
    found = beyond.measure(None).findings
    assert set(found) == {claim.key for claim in PAPER}
    assert {one.verdict for one in judge(CLAIMS, found).values()} == {NOT_TESTABLE}


# --- statistics against slow loops -------------------------------------------------------------------------------------------------------


def test_placements_are_shares_below():
    rng = np.random.default_rng(0)
    above, below = rng.integers(0, 6, 9), rng.integers(0, 6, 7)
    slow = [sum((a > b) + 0.5 * (a == b) for b in below) / 7 for a in above]
    assert statistics.placements(above, below) == pytest.approx(slow)
    value, low, high = statistics.auc_interval(above, below)
    assert value == pytest.approx(np.mean(slow))
    assert low <= value <= high


def test_products_of_standard_ranks_are_rank_correlations():
    rng = np.random.default_rng(1)
    groups = np.repeat([0, 1], [8, 5])
    a, b = rng.normal(size=13), rng.normal(size=13)
    products = statistics.standard_ranks(a, groups) * statistics.standard_ranks(b, groups)
    for group in (0, 1):
        assert products[groups == group].mean() == pytest.approx(spearmanr(a[groups == group], b[groups == group]).statistic)


def test_what_others_explain_is_taken_away():
    rng = np.random.default_rng(2)
    a, b, c = rng.normal(size=(3, 30))
    a, b = a + 2 * c, b - c
    ranks = [rankdata(x) for x in (a, b, c)]
    ab, ac, bc = (np.corrcoef(ranks[i], ranks[j])[0, 1] for i, j in ((0, 1), (0, 2), (1, 2)))
    partial = (ab - ac * bc) / math.sqrt((1 - ac**2) * (1 - bc**2))
    left = [statistics.without_influence_of(one, [ranks[2]]) for one in ranks[:2]]
    assert (left[0] * left[1]).mean() == pytest.approx(partial)


def test_losses_of_several_sets_equal_slow_ones(tiny, tmp_path):
    sets = [HeadSet.of([(2, 5), (3, 1)], (4, 8)), HeadSet.of([(1, 0)], (4, 8))]
    texts = ["a text of some length", "another, a longer text, of even more letters"]
    kept = losses.KeptLosses(bench_of(tiny, tmp_path), tiny)
    found = kept(sets, texts)
    bos = [tiny.tokenizer.bos_token_id]
    for i, text in enumerate(texts):
        ids = [*bos, *tiny.tokenizer.encode(text, add_special_tokens=False)]
        assert found.base[i] == pytest.approx(np.mean(plain_losses(tiny.hf, ids)[1:]), abs=1e-5)
        for row, heads in zip(found.changed, sets, strict=True):
            assert row[i] == pytest.approx(np.mean(plain_losses(reference_model(tiny.hf, heads), ids)[1:]), abs=1e-5)
    assert found.scores == pytest.approx((found.changed - found.base) / found.base)
    again = losses.KeptLosses(bench_of(tiny, tmp_path), tiny)
    again.model = None  # what is finished needs no model
    assert all(np.array_equal(a, b) for a, b in zip(again(sets, texts), found, strict=True))


def test_the_formula_counts_pairs_in_different_orders():
    def row(base, ref, score):
        return DocumentScore(base, ref, score, 100, 99)

    right = [row(1.0, 1.5, 0.5), row(2.0, 2.2, 0.1), row(1.0, 0.9, -0.1), row(0.01, 5.0, -9.0)]  # the last one is below the floor
    assert dict(exact.formula(right).numbers) == {"differently_ordered": 0, "pairs": 3, "documents": 3}
    wrong = [replace(right[0], score=0.0), *right[1:]]
    assert exact.formula(wrong).numbers["differently_ordered"] == 1


def test_the_operator_is_compared_with_the_values(tiny, monkeypatch):
    heads = exact.some_heads(tiny, 0)
    assert len(heads) == 2
    assert min(head.layer for head in heads) >= 1
    ids = torch.arange(3, 40)[None]
    assert exact.uniform_difference(tiny, heads, ids) < 1e-6
    monkeypatch.setattr(exact, "branches", lambda hf, heads, mode: branches(hf, heads, "zero"))  # another operator
    assert exact.uniform_difference(tiny, heads, ids) > 0.01


def test_shares_of_tokens_and_of_the_lowest_losses():
    one = choice.Domain(np.arange(10.0), np.array([9, 8, 7, 6, 5, 4, 3, 2, 10, 1.0]), np.arange(1, 11))
    assert choice.token_share(one) == pytest.approx((9 + 10) / 55)
    assert choice.token_share(one, "losses") == pytest.approx((8 + 10) / 55)
    assert choice.shared_with_loss(one) == 0.5
    mean, low, high = choice.over_domains({"a": one, "b": one}, choice.shared_with_loss)
    assert mean == 0.5
    assert low <= 0.5 <= high


def test_strata_take_length_away():
    tokens = np.arange(50)
    assert np.bincount(statistics.strata(tokens, 5)).tolist() == [10] * 5
    assert statistics.removed(0.5, -0.1) == pytest.approx(0.8)
    assert math.isnan(statistics.removed(0.0, 0.1))
    rng = np.random.default_rng(0)
    assert statistics.inside_strata(tokens.astype(float), tokens, 5) == pytest.approx(1.0)  # a score that is the length is it in every stratum
    assert abs(statistics.inside_strata(rng.random(50), tokens, 5)) < 0.4
    assert statistics.inside_strata(np.ones(50), tokens, 5) == 0.0
    found = SimpleNamespace(accuracy=1.0)
    names = ("spearman with length", "inside strata of length")
    domains = {"a": dict(zip(names, (0.19, 0.19), strict=True)), "b": dict(zip(names, (-0.4, 0.1), strict=True))}
    numbers = agreement.within(SimpleNamespace(found=found), domains).numbers
    assert (numbers["domains"], numbers["least_removed"], numbers["strongest"]) == (1, 0.75, 0.4)


def test_passages_are_whole_lines_of_the_drawn_length():
    text = "\n".join(f"line {i} of a text" for i in range(200))
    found = list(real_texts.passages(text, np.random.default_rng(0), (20, 60)))
    assert "\n".join(found) == text[: sum(map(len, found)) + len(found) - 1]
    assert all(20 <= len(piece.split()) <= 65 for piece in found)
    assert list(real_texts.articles(" = One = \n a\n = = part = = \n b\n = Two = \n c")) == ["= One =\na\n= = part = =\nb", "= Two =\nc"]


# --- judged results of the micro-world ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_separation_is_judged_by_document():
    rng = np.random.default_rng(3)
    scores = {kind: {name: rng.normal(size=12) for name in ("same/0", "same/1", "any/0", "any/1")} for kind in separation.KINDS}
    for kind in separation.KINDS:
        shift = {"no_reference": 0, "late_reference": 2, "key_value": 3, "duplicate": 9, "boilerplate": 9}[kind]
        scores[kind] |= {"top": rng.normal(size=12) / 4 + shift, "loss": rng.normal(size=12)}
    found = separation.separated(scores, (0.9, 0.8, 1.0))
    assert found["influence-separation.same"].numbers["chosen"][0] == 1
    assert found["influence-separation.above_loss"].numbers["gain"][0] > 0.2
    verdicts = {key: one.verdict for key, one in judge(CLAIMS, found).items()}
    assert set(verdicts.values()) == {HELD}
    modes = {"uniform": np.arange(9.0), "zero": np.arange(9.0) + 1, "mean": np.arange(9.0) + 1.5}
    compared = separation.compared(modes, (0.9, 0.8, 1.0))
    assert compared["influence-separation.modes"].numbers["least_correlation"][0] == 1
    assert compared["influence-separation.mode_means"].numbers["nearest"] == (0.5, 0.5, 0.5)


def test_trainings_are_paired_by_seed_and_text():
    def run(loss, right):
        table = np.column_stack([np.arange(6.0) + loss, np.full(6, right)])
        return {kind: table if kind != "books" else table[:2] for kind in ("late_reference", "key_value", "books")}

    runs = {"random": [run(1.0, 0.1), run(1.2, 0.1)], "score": [run(0.9, 0.1), run(1.0, 0.1)], "longest": [run(1.1, 0.2), run(1.2, 0.2)]}
    for each in itertools.chain.from_iterable(runs.values()):
        each["late_reference"][0] = np.nan  # a text without judged tokens
    found = training.judged(runs, (0.9, 0.8, 1.0))
    numbers = found["influence-training.above_random"].numbers
    assert (numbers["gain"][0], numbers["least_seed"], numbers["longest"][0]) == (0.15, 0.1, -0.05)
    assert found["influence-training.more_right"].numbers["longest"][0] == 0.1
    verdicts = judge(CLAIMS, found)
    assert verdicts["influence-training.above_random"].verdict == HELD
    assert verdicts["influence-training.more_right"].verdict == NOT_HELD
    assert training.tables(runs)["books"]["score"]["loss to random, by seed"] == pytest.approx([-0.1, -0.2])


def test_chosen_documents_are_read_twice():
    documents = [[1] * 10, [2] * 5, [3] * 20]
    ids = training_models.stream(documents, np.array([False, True, False]), 40, 0)
    assert np.bincount(ids).tolist() == [0, 10, 10, 20]
    assert np.array_equal(ids, training_models.stream(documents, np.array([False, True, False]), 40, 0))


@pytest.mark.slow
def test_what_is_judged_is_what_a_document_says_again(lab):
    items = training_texts.test_items(lab, 2, 0)
    assert {name: len(one) for name, one in items.items()}.keys() >= {*training_texts.REFERENCES, "books", "repeats"}
    ids, judged = items["repeats"][0]
    places = [i for i, one in enumerate(judged) if one]
    assert all(ids[i] == ids[i - 100] for i in places)
    measured = training_texts.measure_texts(lab.hf, {"repeats": items["repeats"][:1]})["repeats"]
    losses_of = plain_losses(lab.hf, ids)
    assert measured[0, 0] == pytest.approx(np.mean([losses_of[i - 1] for i in places]), abs=1e-4)


# --- small runs ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_exact_claims_hold_on_a_lab_model(lab, tmp_path):
    one = next(one for one in EXPERIMENTS if one.name == "influence-exact")
    found = one.run(bench_of(lab, tmp_path))
    assert {verdict.verdict for verdict in judge(CLAIMS, found.findings).values()} == {HELD}
    assert not list(tmp_path.iterdir())  # the exported checkpoint is gone


@pytest.mark.slow
def test_a_model_without_copying_heads_is_not_testable(tiny, tmp_path):
    with pytest.raises(NotTestable, match="the proxy task finds no heads"):
        proxy_heads.find_heads(bench_of(tiny, tmp_path))


@pytest.mark.slow
def test_an_untrained_model_is_refused(lab, tmp_path):
    one = next(one for one in EXPERIMENTS if one.name == "influence-heads")
    before = torch.get_rng_state()
    found = one.run(bench_of(lab, tmp_path))
    assert torch.equal(torch.get_rng_state(), before)
    verdicts = judge(CLAIMS, found.findings)
    assert verdicts["influence-heads.untrained"].verdict == HELD
    assert "answered" in found.details["untrained model"]


@pytest.mark.slow
def test_a_killed_scoring_job_ends_with_the_same_files(tmp_path):
    one = next(one for one in EXPERIMENTS if one.name == "influence-resume")
    found = one.run(bench_of(load("lab-6m", "cpu"), tmp_path))
    numbers = found.findings["influence-resume.killed"].numbers
    assert (numbers["killed"], numbers["different_files"], numbers["lost"], numbers["doubled"]) == (1, 0, 0, 0)


@pytest.mark.slow
def test_a_small_training_runs_to_its_end(tmp_path, monkeypatch):
    """Without the books and without the compiled training of the start: both are the recipe's own."""
    monkeypatch.setattr(training, "QUICK", training.Sizes(tokens=9_000, start=1, seeds=1, items=2))
    monkeypatch.setattr(training_models, "training_books", lambda folder: bundled_texts())
    monkeypatch.setattr(training_models, "train_lab_model", lambda *arguments: None)
    bench = bench_of(load(str(bundled_model("world-6m")), "cpu"), tmp_path / "work", "world-6m")
    bench.data = tmp_path
    (tmp_path / "books-large").mkdir()
    one = next(one for one in LAB if one.name == "influence-training")
    found = one.run(bench)
    assert {claim.key for claim in one.claims} == set(found.findings)
    twice = found.details["seen twice"]
    assert len(twice) == 3
    tokens = [each["tokens"] for each in twice.values()]
    assert all(1_000 < each < 2_500 for each in tokens)  # a fifth of 7,500, up to a document of each domain
    monkeypatch.setattr(training, "train", None)  # everything is kept
    assert one.run(bench) == found


@pytest.mark.slow
def test_a_killed_measurement_ends_with_the_same_bytes(lab, tmp_path, monkeypatch):
    monkeypatch.setattr(separation, "effort", lambda bench: separation.Effort(3, 60, 2, idle=True, repeats=False))
    one = next(one for one in LAB if one.name == "influence-separation")

    def bytes_of(work, name):
        measured = one.run(bench_of(lab, work))
        write_json({"findings": {key: each.to_json() for key, each in measured.findings.items()}, "details": measured.details}, tmp_path / name)
        return (tmp_path / name).read_bytes()

    whole = bytes_of(tmp_path / "whole", "whole.json")
    real, calls = losses.losses_without, itertools.count()

    def dies(*arguments):
        if next(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(losses, "losses_without", dies)
    with pytest.raises(KeyboardInterrupt):
        bytes_of(tmp_path / "cut", "never.json")
    assert bytes_of(tmp_path / "cut", "cut.json") == whole
    assert next(calls) > 5  # the rest was measured
    assert json.loads(whole)["details"]["documents of each kind"] == 3
