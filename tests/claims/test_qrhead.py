"""Claims of QRHead: verdicts of made-up results, work and residuals against loops, quick runs."""

import json

import numpy as np
import pytest

from headwise.claims import ledger
from headwise.claims.claim import HELD, NOT_HELD, NOT_TESTABLE, Finding, judge
from headwise.claims.experiment import Bench
from headwise.claims.needle_passages import needle_examples
from headwise.claims.qrhead.declared import EXACT, RANK
from headwise.claims.qrhead.exact import Work, residual
from headwise.claims.qrhead.measure import paired
from headwise.claims.qrhead.places import moved, place_spread, shrinks
from headwise.claims.run import plan, run
from headwise.heads import HeadSet
from headwise.models.forward import token_tensor
from headwise.models.load import load
from headwise.models.model import Model
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.passages import PassageComposer
from headwise.runtime.passage_table import measure_passages
from headwise.testing.tiny import tiny_model
from headwise.testing.tokenizers import character_tokenizer

CLAIMS = {claim.key: claim for claim in (*RANK, *EXACT)}


@pytest.fixture(scope="module")
def model():
    return Model(tiny_model("llama", max_position_embeddings=1024), character_tokenizer())


def rankers(**ndcg):
    names = ("query heads", "all heads", "copy heads", "layer-matched random heads", "random heads, matched to copy heads", "chance")
    return {name: {"ndcg": np.full((30, 1), ndcg.get(name.replace(" ", "_"), 0.5))} for name in names}


def test_rankers_are_judged_by_paired_differences():
    found = rankers(query_heads=0.9, all_heads=0.7, copy_heads=0.7)
    told = judge(CLAIMS, {f"rank.{name}.nq": one for name, one in paired(found, 1.0).items()})
    assert {key.split(".")[1]: one.verdict for key, one in told.items()} == {
        "selected_above_all": HELD, "selected_above_copy": HELD, "selected_above_random": HELD, "all_above_copy": NOT_HELD, "copy_above_random": HELD,
    }  # fmt: skip
    told = judge(CLAIMS, {f"rank.{name}.nq": one for name, one in paired(found, 0.2).items()})
    assert told["rank.selected_above_copy.nq"].verdict == NOT_TESTABLE
    assert told["rank.selected_above_all.nq"].verdict == HELD
    told = judge(CLAIMS, {f"rank.{name}.nq": one for name, one in paired(rankers(), 1.0).items()})
    assert {one.verdict for one in told.values()} == {NOT_TESTABLE}  # nobody is above chance


@pytest.mark.parametrize(("work", "tokens", "verdict"), [(1.2, 1060, HELD), (1.6, 1060, NOT_HELD), (1.2, 300, NOT_TESTABLE)])
def test_twenty_queries_are_cheap_over_long_passages(work, tokens, verdict):
    key = "query-exact.queries_share_passages"
    numbers = {"work": work, "one_by_one": 15.0, "largest_difference": 1e-7, "passage_tokens": tokens}
    assert judge(CLAIMS, {key: Finding(numbers)})[key].verdict == verdict


def test_every_claim_of_the_card_is_declared():
    places = " ".join(claim.place for claim in ledger.claims().values() if claim.card == "qrhead")
    assert all(str(number) in places for number in range(1, 11))


def test_work_counts_tokens_of_every_layer(model):
    work = Work(model)
    with work.counted():
        model.hf(token_tensor(model.hf, [3] * 7, 2), use_cache=False)
    assert work.done == 2 * 7 * model.heads.shape[0]
    model.hf(token_tensor(model.hf, [3] * 7), use_cache=False)
    assert work.done == 2 * 7 * model.heads.shape[0]


def test_a_passage_goes_to_every_place():
    example = needle_examples("test", 1, 5)[0]
    gold = example.passages[min(example.gold)]
    for place in range(5):
        one = moved(example, place)
        assert one.passages[place] == gold
        assert sorted(one.passages) == sorted(example.passages)
        assert one.gold == {place}


@pytest.mark.slow
def test_the_spread_over_places_equals_a_loop(model):
    composer = PassageComposer(PieceEncoder(model.tokenizer))
    examples = needle_examples("test", 2, 3)
    heads = HeadSet.of([(0, 1), (1, 2)], model.heads.shape)
    found = place_spread(model, composer, examples, {"all": None, "few": heads})
    for number, example in enumerate(examples):
        for kind in ("raw", "calibrated"):
            scores = {"all": [], "few": []}
            for place in range(3):
                values = getattr(measure_passages(model.hf, model, composer, [moved(example, place)], seed=None), kind)[0].astype(float)
                size = np.abs(values).sum(axis=(0, 1)).mean()
                scores["all"].append(values[..., place].sum() / size)
                scores["few"].append((values[0, 1, place] + values[1, 2, place]) / size)
            for name in scores:
                assert found[name][kind][number] == pytest.approx(np.std(scores[name]), rel=1e-5)
    assert shrinks({"raw": np.array([2.0, 2.0]), "calibrated": np.array([1.0, 1.0])}) == (0.5, 0.5, 0.5)


def test_calibration_leaves_what_the_formula_says(model):
    found = residual(model, needle_examples("test", 2, 4))
    assert found.numbers["largest_error"] < 1e-6
    assert found.numbers["residual"][2] < 0


@pytest.mark.slow
def test_quick_runs(tmp_path):
    planned = plan(["lab-6m"], ledger.chosen(names=["query-exact", "query-transformed"]), tmp_path, quick=True)
    results = {path.stem: json.loads(path.read_text()) for path in run(planned, tmp_path, load=load)}
    numbers = {key: one["numbers"] for key, one in results["query-exact"]["findings"].items()}
    assert numbers["query-exact.truncated_depth"]["largest_difference"] <= 1e-6
    assert numbers["query-exact.depth_costs_its_share"]["share"] < 1
    assert numbers["query-exact.queries_share_passages"]["work"] < 1.5
    assert all("needs a model" in one["missing"] for one in results["query-transformed"]["findings"].values())


@pytest.mark.slow
def test_tables_of_the_micro_world_are_kept(tmp_path, monkeypatch):
    declared = pytest.importorskip("headwise_lab.claims.qrhead")
    lab = pytest.importorskip("headwise_lab.claims.qrhead.measure")
    model = load("world-6m")
    bench = Bench("world-6m", "lab", lambda: model, tmp_path, quick=True)
    whole = declared.EXPERIMENTS[0].run(bench)
    assert set(whole.findings) == {claim.key for claim in declared.CLAIMS}
    monkeypatch.setattr(lab, "measure_passages", None)  # all of them are there
    again = declared.EXPERIMENTS[0].run(bench)
    assert again.details == whole.details
    assert plain(again.findings) == plain(whole.findings)


def plain(findings):
    return json.dumps({key: one.to_json() for key, one in findings.items()})
