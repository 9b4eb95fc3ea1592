"""Claims about retrieval heads: verdicts follow from made-up score maps and sweeps, exact claims hold, a killed measurement goes on."""

import json
import re

import numpy as np
import pytest
import torch

from headwise.claims import ledger
from headwise.claims.claim import judge
from headwise.claims.experiment import Bench
from headwise.claims.retrieval_head import active, exact, large, removed, same_heads, score_maps, scores, sizes, sweeps, untrained
from headwise.claims.retrieval_head.sizes import Sizes
from headwise.evaluation.ablation_table import AblationResult
from headwise.evaluation.variants import Variant
from headwise.heads import HeadScores, HeadSet, NoSuccessfulRunError, PromptError
from headwise.models.load import load
from headwise.models.model import Model
from headwise.prompts.needles import read_needles
from headwise.stats.agreement import pearson
from headwise.testing.planted import planted_copier, planted_task
from headwise.testing.tiny import tiny_model
from headwise.testing.tokenizers import character_tokenizer
from tests.reference.official_copy import official_copy_run
from tests.reference.official_span import official_span

MINE = [claim for claim in ledger.claims().values() if claim.card == "retrieval-head"]
SMALL = Sizes(lengths=(120,), depths=2, needles=4, top=(1, 2), controls=3, mode_controls=2, ablation_length=120, ablation_places=(0.5,),
              long_length=130, long_needles=2, paraphrased_lengths=(120, 120), paraphrased_k=2, paraphrased_controls=2)  # fmt: skip


def told(findings):
    """Claim -> verdict."""
    return {key: verdict.verdict for key, verdict in judge(ledger.claims(), findings).items()}


def bench_of(model, work, **options):
    return Bench("made-up", "lab", lambda: model, work, **options)


def runs_of(values, noise=0.0, seed=0, needles=6, runs=4, length=512, solved=1.0, recall=1.0):
    """Scores whose runs scatter around given values."""
    rng = np.random.default_rng(seed)
    table = np.clip(values + noise * rng.normal(size=(needles * runs, *values.shape)), 0, 1).astype(np.float32)
    info = tuple({"needle": i // runs, "length": length} for i in range(len(table)))
    cells = [{"exact": True, "success": True, "recall": recall, "length": length, "needle": i // runs} for i in range(len(table))]
    provenance = {"runs": round(len(table) / solved), "solved": len(table), "cells": cells, "grid": {"lengths": [length]}}
    return HeadScores(table.mean(axis=0).astype(float), "copy", 1, table, info, provenance)


@pytest.fixture
def values():
    table = np.zeros((8, 8))
    table[3, 1], table[5, 6] = 0.9, 0.4
    return table


def test_every_numbered_claim_of_the_card_is_declared():
    places = {place for claim in MINE for place in re.findall(r"(?<!property )(?<!rule )(?<!fig\. )\b\d+\b", claim.place)}
    assert {str(number) for number in range(1, 11)} <= places
    assert len([claim for claim in MINE if claim.family == "heads"]) == 21  # those registered before the ledger


def test_few_strong_heads_are_universal_and_sparse(values):
    good, weak, lost = runs_of(values, 0.02), runs_of(values * 0.1), runs_of(values, recall=0.5)
    for found, universal, sparse in ((good, "held", "held"), (weak, "not held", "held"), (lost, "not testable", "not testable")):
        verdicts = told({"heads.universal": score_maps.universal(found), "heads.sparse": score_maps.sparse(found)})
        assert list(verdicts.values()) == [universal, sparse]
    many = runs_of(np.clip(values + np.eye(8) * 0.3, 0, 1))
    assert told({"heads.sparse": score_maps.sparse(many)})["heads.sparse"] == "not held"
    assert told({"copy.concentrated": score_maps.concentrated(many)})["copy.concentrated"] == "held"


def test_an_interval_over_needles_equals_a_slow_loop(values):
    found = runs_of(values, 0.3, needles=5)
    left = []
    for needle in range(5):
        rows = [run for run, info in zip(found.runs, found.run_info, strict=True) if info["needle"] != needle]
        left.append(np.mean(rows, axis=0, dtype=np.float64).max())
    half = 1.959964 * np.sqrt(4 / 5 * sum((one - np.mean(left)) ** 2 for one in left))
    mean, low, high = scores.over_needles(found, lambda table: float(table.max()))
    assert mean == found.values.max()
    assert (low, high) == pytest.approx((mean - half, min(mean + half, 1.0)))
    one = scores.over_needles(runs_of(values, needles=1), lambda table: float(table.max()))
    assert np.isnan(one[1:]).all()


def test_dynamic_heads_are_some_of_the_copying_ones_and_depend_on_the_needle():
    rng = np.random.default_rng(0)
    info = tuple({"needle": i // 5} for i in range(30))
    by_needle = np.repeat(rng.random((6, 2, 8)) < 0.5, 5, axis=0).astype(np.float32)
    by_chance = (rng.random((30, 2, 8)) < 0.5).astype(np.float32)
    for runs, verdict in ((by_needle, "held"), (by_chance, "not held")):
        runs[:, 0, 0] = 1
        made = HeadScores(runs.mean(axis=0).astype(float), "copy", 1, runs, info, {"cells": [{"recall": 1.0}]})
        assert told({"heads.dynamic": score_maps.dynamic(made, 0)})["heads.dynamic"] == verdict
    one = HeadScores(by_chance.mean(axis=0).astype(float), "copy", 1, by_chance, tuple({"needle": 0} for _ in info))
    assert active.context_dependence(one, 0) == {}
    assert told({"heads.dynamic": score_maps.dynamic(one, 0)})["heads.dynamic"] == "not testable"


def test_jaccard_by_hand():
    sets = np.array([[1, 1, 0], [0, 1, 1], [0, 0, 0], [0, 0, 0]], dtype=bool)
    assert active.jaccard(sets)[0].tolist() == pytest.approx([1, 1 / 3, 0, 0])
    assert active.jaccard(sets)[2, 3] == 1


def test_the_same_heads_correlate_and_shuffled_ones_do_not(values):
    base, again = runs_of(values, 0.1), runs_of(values, 0.1, seed=1)
    found = same_heads.compared(base, again, 0)
    mean, low, high = found["pearson"]
    assert mean == pytest.approx(pearson(base.values, again.values))
    assert low <= mean <= high
    assert 0.9 < found["ceiling"] <= 1
    assert found["shuffled"][2] < mean
    clear, noisy = (same_heads.reliability(runs_of(values, noise, needles=8), 0) for noise in (0.05, 1.5))
    assert noisy < clear <= 1
    assert np.isnan(same_heads.reliability(runs_of(values, needles=2), 0))


def test_scores_of_one_length():
    short, long = runs_of(np.full((2, 2), 0.3)), runs_of(np.full((2, 2), 0.9), length=1024)
    cells = [*short.provenance["cells"], *long.provenance["cells"]]
    runs, info = np.concatenate([short.runs, long.runs]), (*short.run_info, *long.run_info)
    both = HeadScores(np.full((2, 2), 0.6), "copy", 1, runs, info, {"cells": cells})
    assert scores.at_length(both, 1024).values == pytest.approx(0.9)
    assert scores.at_length(both, 1024).provenance["solved"] == 24
    with pytest.raises(NoSuccessfulRunError, match="no run at 99 tokens"):
        scores.at_length(both, 99)


def sweep_of(means, ks=(2, 4), seed=0, noise=0.02, needles=8, windows=3):
    """A sweep with given mean recall by kind, the same at every K."""
    rng, shape = np.random.default_rng(seed), (8, 8)
    variants = [Variant("none", 0, 0, HeadSet((), shape))]
    for k in ks:
        variants += [Variant(kind, k, 0, HeadSet((), shape)) for kind in ("top", "bottom")]
        variants += [Variant(kind, k, draw, HeadSet((), shape)) for kind in ("random", "any_layer", "norm") for draw in range(3)]
    centre = np.array([means.get(variant.kind, means["none"]) for variant in variants])
    recall = np.clip(centre[:, None] + noise * rng.normal(size=(len(variants), 2 * needles)), 0, 1)
    items = tuple({"needle": i // 2} for i in range(2 * needles))
    losses = 3.0 + 0.01 * rng.normal(size=(len(variants), windows))
    values = dict.fromkeys(("recall", "exact", "logprob"), recall)
    return sweeps.Sweep(AblationResult(tuple(variants), items, values, losses, seed, {}))


@pytest.fixture
def ks(values):
    return removed.Ks(runs_of(values), (2, 4))


@pytest.mark.parametrize(
    ("means", "recall", "layer"),
    [
        ({"none": 1.0, "top": 0.1, "random": 0.95}, "held", "held"),
        ({"none": 1.0, "top": 0.1, "random": 0.5}, "held", "not held"),
        ({"none": 0.9, "top": 0.85}, "not held", "not held"),
        ({"none": 0.3, "top": 0.0}, "not testable", "not testable"),
    ],
)
def test_causal_claims_need_a_loss_that_random_heads_do_not_cause(means, recall, layer, ks):
    sweep = sweep_of(means)
    verdicts = told(removed.causal(sweep, {"zero": sweep, "uniform": sweep, "mean": sweep}, ks))
    assert (verdicts["heads.causal.recall"], verdicts["heads.causal.modes"]) == (recall, recall)
    assert verdicts["heads.causal.layer"] == layer
    assert verdicts["heads.causal.text"] == "held"


def test_the_numbers_of_a_sweep_equal_slow_loops():
    sweep = sweep_of({"none": 0.9, "top": 0.2, "random": 0.7}, noise=0.1)
    table, variants = sweep.result.values["recall"], sweep.result.variants
    whole, top = table[0], table[next(i for i, v in enumerate(variants) if (v.kind, v.k) == ("top", 4))]
    drawn = np.mean([table[i] for i, v in enumerate(variants) if (v.kind, v.k) == ("random", 4)], axis=0)
    assert sweep.left("recall", "top", 4)[0] == pytest.approx(top.mean() / whole.mean(), abs=1e-6)
    assert sweep.over_third("recall", "random", 4)[0] == pytest.approx((whole - drawn).mean() - (whole - top).mean() / 3)
    assert sweep.difference("recall", "top", "random", 4)[0] == pytest.approx((top - drawn).mean())
    units = [[table[0, 2 * i : 2 * i + 2].mean(), top[2 * i : 2 * i + 2].mean()] for i in range(8)]
    rng, shares = np.random.default_rng(0), []
    for pick in rng.integers(8, size=(sweeps.DRAWS, 8)):
        chosen = np.array([units[i] for i in pick]).mean(axis=0)
        shares.append(chosen[1] / chosen[0])
    assert sweep.left("recall", "top", 4)[1:] == pytest.approx(tuple(np.quantile(shares, [0.025, 0.975])), abs=2e-6)
    ratio = removed.plain_text(sweep, 4)["ratio"]
    losses = sweep.result.losses
    assert ratio[0] == pytest.approx(np.exp(losses[1 + 11].mean() - losses[0].mean()))


def test_the_answer_scope_keeps_what_it_keeps(ks):
    main, everywhere = sweep_of({"none": 1.0, "top": 0.2}, noise=0), sweep_of({"none": 1.0, "top": 0.1}, noise=0)
    findings = removed.section_six(main, dict.fromkeys(("zero", "uniform", "mean"), main), everywhere, ks)
    assert findings["copy.answer_scope"].numbers["kept"][0] == pytest.approx(0.8 / 0.9)
    verdicts = told(findings)
    assert (verdicts["copy.answer_scope"], verdicts["copy.modes_near"], verdicts["copy.over"]) == ("held", "held", "held")
    assert verdicts["copy.exact"] == "not held"  # 0.2 is not below 0.2


@pytest.mark.parametrize(("share", "expected"), [(0.01, 1), (0.05, 4), (0.1, 8), (0.9, 16), (3 / 64, 2)])
def test_the_number_of_heads_nearest_to_a_share(share, expected):
    assert sizes.near_share((1, 2, 4, 8, 16), 64, share) == expected


def test_sizes_follow_the_bench(tmp_path):
    whole, quick = (sizes.sizes_of(bench_of(None, tmp_path, quick=quick, seed=4)) for quick in (False, True))
    assert (whole.seed, whole.lengths, quick.lengths) == (4, (128, 256, 432), (128, 256))
    assert sizes.sizes_of(Bench("m", "real", lambda: None, tmp_path)) == Sizes()


def test_what_needs_a_large_model_is_said(tmp_path):
    with pytest.raises(large.NotTestable, match="needs an instruction-tuned model of 7 billion"):
        large.measure(bench_of(None, tmp_path))
    one = next(one for one in ledger.experiments() if one.name == "heads-large")
    assert set(told(one.run(bench_of(None, tmp_path)).findings).values()) == {"not testable"}


# ---- exact claims


@pytest.fixture(scope="module")
def tiny():
    return Model(tiny_model("llama", max_position_embeddings=2048), character_tokenizer(), "tiny")


def test_the_slow_procedure_is_the_official_one(tiny):
    ids = torch.randint(3, 90, (40,), generator=torch.Generator().manual_seed(0)).tolist()
    before = tiny.hf.config._attn_implementation
    said, strongest = exact.token_by_token(tiny, ids, 6)
    _, official, argmax = official_copy_run(tiny.hf, ids, (5, 38), set(), 6)
    assert said == official
    assert torch.equal(strongest, argmax)
    assert tiny.hf.config._attn_implementation == before


def test_the_search_by_overlap_is_the_official_one():
    rng = np.random.default_rng(0)
    for count in (3, 10, 11, 25, 40):
        ids = rng.integers(0, 60, size=200).tolist()
        wanted = list(range(100, 100 + count))
        ids[80 : 80 + count] = wanted
        assert exact.found_by_overlap(ids, wanted) == official_span(ids, wanted)
    assert exact.found_by_overlap([1, 2, 3], [7, 8]) == (-1, -1)


def test_random_heads_beside_chosen_ones(tiny):
    finding = exact.control(tiny)
    assert told({"copy-exact.control": finding})["copy-exact.control"] == "held"
    assert finding.numbers["released_lets_through"] == 8  # the released test excludes nothing


@pytest.mark.slow
def test_exact_claims_hold_on_the_lab_model(tmp_path):
    one = next(one for one in ledger.experiments() if one.name == "copy-exact")
    bench = Bench("lab-6m", "lab", lambda: load("lab-6m", "cpu", "float32"), tmp_path, quick=True)
    assert set(told(one.run(bench).findings).values()) == {"held"}


# ---- measured on a model whose head is known


def test_an_untrained_copy_leaves_the_model_and_the_seed_alone(tiny):
    before, state = tiny.hf.lm_head.weight.clone(), torch.get_rng_state()
    copy = untrained.untrained(tiny, 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(tiny.hf.lm_head.weight, before)
    assert not torch.equal(copy.hf.lm_head.weight, before)
    assert torch.equal(copy.hf.lm_head.weight, untrained.untrained(tiny, 0).hf.lm_head.weight)


@pytest.fixture(scope="module")
def planted():
    hf, tokenizer = planted_copier(layers=3)
    return Model(hf, tokenizer, "planted")


@pytest.fixture
def own_texts(monkeypatch, tmp_path):
    """Needles and a haystack that the planted model can read, in place of the bundled ones, and small sizes."""
    task = planted_task()
    (tmp_path / "needles.jsonl").write_text("\n".join(json.dumps(dict(needle)) for needle in task.needles))
    needles = read_needles(tmp_path / "needles.jsonl")
    monkeypatch.setattr("headwise.runtime.needle_runs.given_needles", lambda given, split: needles[4:] if split == "test" else needles[:4])
    monkeypatch.setattr("headwise.runtime.needle_runs.haystack_texts", lambda haystack: list(task.texts))
    for module in (score_maps, removed):
        monkeypatch.setattr(module, "sizes_of", lambda bench: SMALL)


def test_lengths_that_do_not_fit_are_left_out(planted, own_texts):
    assert scores.fitting_task(planted, "detect", (120, 5000), (0.5,), SMALL).grid.lengths == (120,)
    with pytest.raises(PromptError, match="no context length of"):
        scores.fitting_task(planted, "detect", (5000,), (0.5,), SMALL)


@pytest.mark.slow
def test_the_planted_head_is_found_and_a_killed_measurement_goes_on(planted, own_texts, tmp_path):
    measured = score_maps.measure(bench_of(planted, tmp_path / "a"))
    assert measured.findings["heads.universal"].numbers["over"] == 1
    assert measured.details["heads"][0]["head"] == "L1H2"
    assert measured.details["steps"]["heads"] == ["L1H2"]
    assert all(active == [0] for answer in measured.details["steps"]["answers"] for active in answer["active"])
    verdicts = told(measured.findings)
    assert (verdicts["heads.universal"], verdicts["copy.untrained"], verdicts["copy.frequency"]) == ("held", "held", "held")
    assert verdicts["heads.intrinsic.chat"] == "not testable"

    def killed(done, total, remark):
        if done > 0.2 * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_maps.measure(bench_of(planted, tmp_path / "b", report=killed))
    assert any((tmp_path / "b").rglob("*.npz"))
    again = score_maps.measure(bench_of(planted, tmp_path / "b"))
    assert written(again) == written(measured)


@pytest.mark.slow
def test_removing_the_planted_head_takes_recall_and_nothing_else(planted, own_texts, tmp_path):
    measured = removed.measure(bench_of(planted, tmp_path / "a"))
    verdicts = told(measured.findings)
    assert measured.details["first k that halves"] == 1
    assert (verdicts["heads.causal.recall"], verdicts["heads.causal.modes"]) == ("held", "held")
    assert written(removed.measure(bench_of(planted, tmp_path / "a"))) == written(measured)


def written(measured):
    """What a result file would hold."""
    from headwise.heads.plain import plain

    findings = {key: finding.to_json() for key, finding in measured.findings.items()}
    return json.dumps(plain({"findings": findings, "details": dict(measured.details)}), sort_keys=True)
