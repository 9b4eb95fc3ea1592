"""Claims of the Atlas: verdicts of made-up results, what holds by construction on the lab model, patches beside a slow loop, resumed runs."""

import json
from collections import Counter

import numpy as np
import pytest
import torch

from headwise.claims import ledger
from headwise.claims.claim import judge
from headwise.claims.experiment import Bench, NotTestable
from headwise.claims.in_context_atlas import conflicts, copying, exact, function_vectors, parts
from headwise.claims.in_context_atlas.map_findings import LISTS, RULES, Effects, findings
from headwise.claims.in_context_atlas.map_records import halves
from headwise.claims.in_context_atlas.patch_findings import Counts, Found
from headwise.claims.in_context_atlas.patch_findings import findings as patch_findings
from headwise.claims.in_context_atlas.patch_records import Item
from headwise.claims.in_context_atlas.patching import Prepared, Variant, variants_of
from headwise.claims.in_context_atlas.trace_findings import probe_findings, usable
from headwise.heads import HeadScores, HeadSet
from headwise.models.load import load
from headwise.models.names import bundled_model
from headwise.prompts.knowledge import KnowledgeRecord
from headwise.stats.probes import Platt

MINE = [one for one in ledger.experiments() if any(claim.card == "in-context-atlas" for claim in one.claims)]
KEYS = {claim.key for one in MINE for claim in one.claims}


def told(found):
    """Key -> verdict of findings on their own."""
    return {key: verdict.verdict for key, verdict in judge(ledger.claims(), found).items()}


@pytest.fixture(scope="module")
def model():
    return load(str(bundled_model()))


def bench_of(model, folder, **options):
    return Bench("lab-6m", "lab", lambda: load(str(bundled_model())), folder, quick=True, **options)


def test_every_claim_of_the_card_is_declared():
    assert len(KEYS) == sum(len(one.claims) for one in MINE)
    places = " ".join(claim.place for one in MINE for claim in one.claims)
    for name in (
        "modified gradients are right", "kernel-free wrapper", "D isolates in-context heads", "D isolates parametric heads", "AttnLRP separates",
        "brings back the gold answer", "retrieval heads, last query row", "all-rows rho_ret", "6: probe", "forced copying of another value",
        "input heatmap localises", "attention row localises",
    ):  # fmt: skip
        assert name in places
    cheap = [one for one in MINE if not one.data and (one.minutes.quick_lab or 1) <= 0.3]
    assert sum(len(one.claims) for one in cheap) >= 3


@pytest.mark.slow
def test_what_holds_by_construction(tmp_path, model):
    bench = bench_of(model, tmp_path)
    measured = exact.measure(bench)
    assert measured.findings.keys() == {claim.key for claim in exact_experiment().claims}
    assert set(told(measured.findings).values()) == {"held"}
    json.dumps(measured.details)


def exact_experiment():
    return next(one for one in MINE if one.name == "atlas-exact")


def test_a_model_that_is_too_large_for_float64_is_not_testable(tmp_path, monkeypatch):
    monkeypatch.setattr(exact, "LARGEST", 1000)
    with pytest.raises(NotTestable, match="needs a float64 copy"):
        exact.measure(bench_of(None, tmp_path))


def test_shares_of_heads_are_those_that_were_registered(model):
    class Of270:
        modules, heads = range(30), type("Heads", (), {"shape": (30, 9)})

    assert [parts.share(Of270, k) for k in (4, 5, 8, 11, 13, 16, 26, 27)] == [4, 5, 8, 11, 13, 16, 26, 27]
    assert parts.share(model, 26) == 6
    assert parts.share(model, 1) == 1


# ---- function vectors, copying, conflicts


def relation(shown, steered, average=0.5, random=0.0, plain=0.0, items=20):
    def ones(share):
        return (np.arange(items) < share * items).astype(float)

    drawn = np.stack([ones(random)] * 3)
    return {"shown": ones(shown), "steered": ones(steered), "average": ones(average), "random": drawn, "plain": ones(plain), "scale": np.array(1.0)}


def relations_of(*cells):
    return dict(zip(function_vectors.RELATIONS, cells, strict=True))


def test_task_vectors_hold_do_not_hold_and_are_not_testable():
    good, poor = relation(1.0, 0.9), relation(0.3, 0.1)
    found = told(function_vectors.judge_tasks(relations_of(good, good, good, poor, poor)))
    assert found["steer.task_vectors"] == found["steer.task_vectors.none"] == found["steer.task_vectors.one_prompt"] == "held"
    assert found["steer.task_vectors.antonyms"] == "not testable"
    weak = relation(1.0, 0.25, average=0.6)
    found = told(function_vectors.judge_tasks(relations_of(weak, weak, weak, weak, weak)))
    assert set(found.values()) == {"not held"}
    found = told(function_vectors.judge_tasks(relations_of(good, poor, poor, poor, poor)))
    assert set(found.values()) == {"not testable"}
    assert set(told(function_vectors.judge_tasks(relations_of(*[poor] * 5))).values()) == {"not testable"}


def test_antonyms_are_harder_only_if_the_intervals_part():
    good, worse = relation(1.0, 1.0), relation(1.0, 0.3)
    cells = relations_of(good, good, good, good, worse)
    assert told(function_vectors.judge_tasks(cells))["steer.task_vectors.antonyms"] == "held"
    assert told(function_vectors.judge_tasks(relations_of(*[good] * 5)))["steer.task_vectors.antonyms"] == "not held"


def test_parametric_vectors_need_forty_pairs():
    cell = {"steered": np.ones(20), "plain": np.zeros(20), "random": np.zeros((3, 20)), "scale": np.array(1.0)}
    assert told(function_vectors.judge_facts(cell | {"pairs": np.array(40)})) == {"steer.parametric_vectors": "held"}
    assert told(function_vectors.judge_facts(cell | {"pairs": np.array(39)})) == {"steer.parametric_vectors": "not testable"}
    assert told(function_vectors.judge_facts({"pairs": np.array(3)})) == {"steer.parametric_vectors": "not testable"}


def test_forced_copying_is_judged():
    zeros = {"plain": np.zeros(20), "random_two_step": np.zeros((3, 20)), "random_mix": np.zeros((3, 20))}
    found = told(copying.judge(zeros | {"two_step": np.full(20, 0.8), "mix": np.full(20, 0.4), "no_boost": np.full(20, 0.1)}))
    assert found == {"steer.copying.two_step": "held", "steer.copying.mix": "not held", "steer.copying.boost": "held"}
    weak = told(copying.judge(zeros | {"two_step": np.full(20, 0.1), "mix": np.full(20, 0.4), "no_boost": np.zeros(20)}))
    assert weak["steer.copying.boost"] == "not testable"


def curves(whole, top, random, records=60, ks=(5, 16, 26)):
    """memory and passage shares per K."""
    kinds, memory, passage = ["none 0"], [whole[0]], [whole[1]]
    for number, k in enumerate(ks):
        kinds += [f"top {k}", f"random {k}"]
        memory += [top[number][0], random[0]]
        passage += [top[number][1], random[1]]

    def rows(shares):
        return np.stack([(np.arange(records) < share * records).astype(float) for share in shares])

    return {"memory": rows(memory), "passage": rows(passage), "kinds": np.array(kinds)}


def test_conflicts_are_judged():
    context = curves((0.1, 0.8), ((0.5, 0.4), (0.7, 0.2), (0.6, 0.0)), (0.1, 0.8))
    memory = curves((0.1, 0.8), ((0.0, 0.8),), (0.1, 0.8), ks=(5,))
    found = told(conflicts.judge(context, memory, "4 usable records", (5, 16, 26)))
    assert {key for key, verdict in found.items() if verdict == "held"} == {
        f"steer.conflict.{name}" for name in ("passage_falls", "memory_returns", "not_monotonic", "passage_stays")
    }
    assert found["steer.conflict_nq.passage_falls"] == found["steer.conflict_nq.memory_returns"] == "not testable"
    rising = curves((0.1, 0.8), ((0.1, 0.8), (0.2, 0.8), (0.3, 0.7)), (0.1, 0.8))
    worse = curves((0.1, 0.8), ((0.0, 0.3),), (0.1, 0.8), ks=(5,))
    found = told(conflicts.judge(rising, worse, rising, (5, 16, 26)))
    assert {key for key, verdict in found.items() if verdict == "held"} == {"steer.conflict_nq.memory_returns"}
    deaf = curves((0.1, 0.3), ((0.5, 0.0),) * 3, (0.1, 0.3))
    assert set(told(conflicts.judge(deaf, deaf, deaf, (5, 16, 26))).values()) == {"not testable"}


# ---- maps


def made_maps(rng, shape=(6, 10), records=60):
    base = rng.normal(size=shape)
    base[3:] += 1.0
    runs = base + 0.01 * rng.normal(size=(records, *shape))
    other = base[::-1] + 0.01 * rng.normal(size=(records, *shape))
    made = {name: HeadScores(runs.mean(axis=0), name, 1, runs) for name in ("in-context", "task", "retrieval")}
    memory = -base
    memory.flat[base.argmax()] = 9.0  # one head is strong in both
    tables = {"opened": base, "closed": memory, "signed": base}
    made["in-context"] = HeadScores(runs.mean(axis=0), "in-context", 1, runs, provenance={"records_dropped": {}}, tables=tables)
    made["parametric"] = HeadScores(-runs.mean(axis=0), "parametric", 1, runs)
    made["retrieval, all rows"] = HeadScores(other.mean(axis=0), "retrieval", 1, other)
    for factor, rule in enumerate(RULES, 1):
        made[f"D by {rule}"] = HeadScores(factor * base, rule, 1)
    return made


def effects_of(costs, gate=(60.0, 16.0), records=16, draws=3):
    """costs: list -> nats that each kind of answer loses without its top heads."""
    maps, rng = made_maps(np.random.default_rng(0)), np.random.default_rng(1)
    noise = 0.01 * rng.normal(size=(records, 4))
    whole = np.array([-1.0, -3.0, -1.0, -1.0]) + noise

    def cell(lost):
        return {"log_probs": whole - np.array(lost) - 0.001 * rng.normal(size=whole.shape), "first": np.ones((records, 4), bool)}

    found = {"none": {"log_probs": whole, "first": np.ones((records, 4), bool)}}
    for name in LISTS:
        found[f"{name}, top 6"] = cell(costs[name])
        found |= {f"{name}, draw {draw}": cell([0.1, 0.1, 0.1, 0.1]) for draw in range(draws)}
    found["in-context, without overlap"] = found["in-context, top 6"]
    found |= {f"in-context, without overlap, draw {draw}": cell([0.1, 0.1, 0.1, 0.1]) for draw in range(draws)}
    return Effects(maps, found, draws, {"found": gate[0], "tested": gate[1]})


def test_maps_are_judged():
    costs = {"in-context": [4, 0, 0, 0], "parametric": [0, 0, 0, 4], "retrieval": [3, 0, 0, 0.1], "task": [5, 5, 5, 5]}
    found = {f"atlas.{name}.facts": one for name, one in findings(effects_of(costs)).items()}
    assert found.keys() == {claim.key for one in MINE if one.name == "atlas-facts" for claim in one.claims}
    assert set(told(found).values()) == {"held"}
    same = {name: [0.1, 0.1, 0.1, 0.1] for name in LISTS}
    weak = told({f"atlas.{name}.facts": one for name, one in findings(effects_of(same)).items()})
    ablated = ("needed", "memory", "context", "overlap", "comes_back")
    assert {verdict for key, verdict in weak.items() if key.split(".")[1].endswith(ablated)} == {"not held"}
    few = told({f"atlas.{name}.facts": one for name, one in findings(effects_of(costs, (49.0, 16.0))).items()})
    assert set(few.values()) == {"not testable"}


def test_nothing_is_left_out_where_no_head_is_strong_in_both():
    effects = effects_of({name: [4, 0, 0, 0] for name in LISTS})
    table = effects.maps["in-context"].tables
    table["closed"] = -table["opened"]
    found = {"atlas.needed_without_overlap.facts": findings(effects)["needed_without_overlap"]}
    assert found["atlas.needed_without_overlap.facts"].numbers["left_out"] == 0
    assert set(told(found).values()) == {"not testable"}


def test_needed_is_a_difference_of_means():
    effects = effects_of({"in-context": [4, 0, 0, 0], "parametric": [0] * 4, "retrieval": [0] * 4, "task": [0] * 4})
    by_hand = []
    for record in range(16):
        drawn = [effects.found[f"in-context, draw {draw}"]["log_probs"][record, 0] for draw in range(3)]
        by_hand.append(sum(drawn) / 3 - effects.found["in-context, top 6"]["log_probs"][record, 0])
    found = effects.needed("in-context", "in-context, top 6", 0).numbers
    assert found["difference"][0] == pytest.approx(sum(by_hand) / 16, abs=1e-4)


def test_a_subject_is_in_one_half():
    records = [KnowledgeRecord(f"{i}?", ("a",), subject=f"s{i % 7}") for i in range(70)]
    first, second = halves(records)
    assert len(first) + len(second) == 70
    assert not {record.subject for record in first} & {record.subject for record in second}


# ---- patches


def patched(share, draws=0.05, few=0.4, records=30, error=0.0):
    """Made-up log-odds: -5 in the corrupted run, 5 in the clean one."""
    rng = np.random.default_rng(2)
    counts = Counts(6, 2, (2, 6), (2, 6), 3)

    def cell(restored, reverse=False):
        odds = -5 + 10 * (restored + 0.01 * rng.normal(size=records))
        odds = -odds if reverse else odds
        return {"log_odds": odds, "top": np.where(odds > 0, 1, 2)}

    exactly = {"log_odds": np.full(records, -5.0), "top": np.full(records, 2)}
    cells = {}
    for rows in ("last", "all"):
        cells |= {f"{rows}-nothing-in-corrupted": exactly, f"{rows}-nothing-in-clean": {"log_odds": np.full(records, 5.0), "top": np.ones(records)}}
        cells[f"{rows}-every-head"] = {"log_odds": np.full(records, 5.0 + 10 * error), "top": np.ones(records)}
        for k, each in ((2, few), (6, share)):
            cells |= {f"{rows}-context-{k}": cell(each), f"{rows}-copy-{k}": cell(each - 0.1), f"{rows}-reverse-{k}": cell(each, True)}
            cells |= {f"{rows}-random-{k}-draw-{draw}": cell(draws) for draw in range(3)}
            cells |= {f"{rows}-elsewhere-{k}": cell(each), f"{rows}-stranger-{k}": cell(each / 2)}
    return Found(cells, np.ones(records), np.full(records, 2), counts)


def test_patches_are_judged():
    keys = {claim.key for one in MINE if one.name == "patch" for claim in one.claims}
    found = patch_findings(patched(0.8))
    assert found.keys() == keys
    assert set(told(found).values()) == {"held"}
    assert set(told(patch_findings(patched(0.8, error=0.02))).values()) == {"not testable"}
    weak = told(patch_findings(patched(0.1, few=0.6)))
    assert weak["patch.half.last"] == weak["patch.few.all"] == weak["patch.flips.last"] == weak["patch.own_answer"] == "not held"


def items_of(model, count=5):
    """Prompts that differ in one token in their middle."""
    texts, vocabulary = np.random.default_rng(4), len(model.tokenizer)
    out = []
    for number in range(count):
        ids = texts.integers(10, vocabulary, size=12 + number).tolist()
        clean, corrupted, elsewhere = list(ids), list(ids), list(ids)
        corrupted[5], elsewhere[2] = ids[5] + 1 if ids[5] + 1 < vocabulary else 10, 11
        out.append(Item(str(number), tuple(clean), tuple(corrupted), tuple(elsewhere), 20 + number, 40 + number))
    return out


def slow_patch(model, item, heads, rows):
    """Log-odds of the corrupted prompt with clean outputs of heads, by hooks in front of the output projection, one prompt at a time."""
    layers, width = model.hf.model.layers, model.heads.head_dim
    start = len(item.clean) - (1 if rows == "last" else item.suffix)
    kept = {}

    def keep(layer):
        return lambda _, given: kept.__setitem__(layer, given[0].clone())

    def put(layer):
        def hook(_, given):
            out = given[0].clone()
            for head in (h.head for h in heads if h.layer == layer):
                out[:, start:, head * width : (head + 1) * width] = kept[layer][:, start:, head * width : (head + 1) * width]
            return (out,)

        return hook

    for make, ids in ((keep, item.clean), (put, item.corrupted)):
        hooks = [one.self_attn.o_proj.register_forward_pre_hook(make(layer)) for layer, one in enumerate(layers)]
        with torch.no_grad():
            logits = model.hf(torch.tensor([ids]), use_cache=False).logits[0, -1]
        for hook in hooks:
            hook.remove()
    return float(logits[item.right] - logits[item.swapped])


@pytest.mark.parametrize("rows", ["last", "all"])
def test_patched_runs_are_those_of_a_slow_loop(model, rows):
    items, heads = items_of(model), HeadSet.of([(1, 2), (1, 5), (4, 0), (7, 7)], model.heads.shape)
    found = Prepared(model, items, rows).measure(Variant(rows, "context 4", heads))["log_odds"]
    assert found == pytest.approx([slow_patch(model, item, heads, rows) for item in items], abs=1e-3)


@pytest.mark.slow
def test_all_heads_restore_the_clean_run_and_none_the_corrupted(model):
    items, scores = items_of(model), HeadScores(np.random.default_rng(0).random(model.heads.shape), "context")
    counts = Counts(6, 2, (2, 6), (2, 6), 2)
    variants = list(variants_of(scores, scores, counts, 0))
    assert Counter(variant.rows for variant in variants) == {"last": 17, "all": 13}
    for rows in ("last", "all"):
        prepared = Prepared(model, items, rows)
        cells = {v.key: prepared.measure(v) for v in variants if v.rows == rows and "draw" not in v.name}
        right, swapped = (np.array([getattr(item, name) for item in items]) for name in ("right", "swapped"))
        found = Found(cells, right, swapped, counts)
        assert found.share(rows, "every head") == pytest.approx(np.ones(len(items)), abs=1e-2)
        assert found.share(rows, "nothing in corrupted") == pytest.approx(np.zeros(len(items)))
        assert found.share(rows, "copy 6") == pytest.approx(found.share(rows, "context 6"))


# ---- tracing


def traced(number, top1=True, offset=0, read=3.0, remembered=-3.0, rank=0):
    """One made-up row."""

    def said(hit, spearman, place, score):
        return {"top1": hit, "drop": 5.0 if hit else 0.0, "spearman": spearman, "offset": place, "read": score}

    rivals = {"probe": said(top1, 0.9, offset, read), "rows": said(number % 2 == 0, 0.2, 1, 0.3), "gim": said(True, 0.8, 0, 0.9)}
    rivals |= {"gradient": said(True, 0.5, 0, 0.9), "attnlrp": said(True, 0.5, 0, 0.9), "learned": said(number % 2 == 1, 0.4, None, None)}
    rivals |= {"leave_one_out": said(True, 1.0, None, None), "bm25": said(True, 0.5, None, None), "uniform": said(number % 4 == 0, 0.0, None, None)}
    other = {"probe": remembered - 0.01 * number, "rows": 0.2}
    return {"rivals": rivals, "same": False, "read_rank": rank, "remembered_rank": 1, "paired": other, "unrelated": other, "closed": other}


def probe_of_two():
    class Made:
        calibration = Platt(1.0, 0.0)

    return Made()


@pytest.mark.slow
def test_traced_items_are_judged():
    found = probe_findings("nq", [traced(i) for i in range(30)], probe_of_two())
    verdicts = told(found)
    assert found.keys() < KEYS
    assert verdicts["trace.probe_above_bm25.nq"] == "not held"
    assert {verdict for key, verdict in verdicts.items() if "bm25" not in key} == {"held"}
    weak = told(probe_findings("nq", [traced(i, top1=i % 3 == 0, read=-4.0) for i in range(30)], probe_of_two()))
    for key in ("auc_paired", "auc_unrelated", "top1_passage"):
        assert weak[f"trace.{key}.nq"] == "not held"
    few = told(probe_findings("nq", [traced(i) for i in range(19)], probe_of_two()))
    assert few["trace.auc_paired.nq"] == few["trace.heatmap_localises.nq"] == "not testable"
    none = [traced(i, rank=10) for i in range(30)]
    assert not usable(none)
    assert set(told(probe_findings("nq", none, probe_of_two())).values()) == {"not testable"}


# ---- runs


@pytest.mark.slow
def test_a_killed_run_of_forced_copying_goes_on_with_the_same_bytes(tmp_path, model):
    whole = copying.measure(bench_of(model, tmp_path / "whole"))

    def stop(done, total, remark):
        if remark.startswith("random heads, mix"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copying.measure(bench_of(model, tmp_path / "killed", report=stop))
    again = copying.measure(bench_of(model, tmp_path / "killed"))
    assert written(again) == written(whole)


def written(measured):
    return json.dumps([{key: one.to_json() for key, one in measured.findings.items()}, measured.details], sort_keys=True)


@pytest.mark.slow
def test_tracing_the_micro_world_goes_on_with_the_same_bytes(tmp_path):
    from headwise_lab.claims.traced_world import measure

    path = str(bundled_model("world-6m"))

    def made(folder, **options):
        return Bench("world-6m", "lab", lambda: load(path), tmp_path / folder, quick=True, **options)

    whole = measure(made("whole"))
    assert whole.findings.keys() == {claim.key for one in MINE if one.name == "trace-world" for claim in one.claims}

    def stop(done, total, remark):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(made("killed", report=stop))
    assert written(measure(made("killed"))) == written(whole)
