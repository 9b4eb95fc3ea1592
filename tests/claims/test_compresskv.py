"""Claims of CompressKV and of the caches beside it: verdicts from made-up results, cheap experiments on lab-6m, and an interrupted run."""

import json

import numpy as np
import pytest

from headwise.claims.cache_runs import Tables, compared, largest, ratio, resampled, smallest
from headwise.claims.claim import HELD, NOT_HELD, NOT_TESTABLE, Finding, judge
from headwise.claims.compresskv import EXPERIMENTS, exact, tables
from headwise.claims.compresskv.layers import shuffled
from headwise.claims.compresskv.survival import PAIRS, Held
from headwise.claims.experiment import Bench
from headwise.claims.intervals import interval
from headwise.heads.files import read_json
from headwise.models.load import load
from headwise.models.names import bundled_model
from headwise.stats.paired import benjamini_hochberg

CLAIMS = {claim.key: claim for one in EXPERIMENTS for claim in one.claims}
METHODS = (*tables.BUDGETED, "headkv, released form", "oracle")
LENGTH, CONTEXTS = 512, 12


@pytest.fixture(scope="module")
def model():
    return load(str(bundled_model("lab-6m")), "cpu")


def experiment(name):
    return next(one for one in EXPERIMENTS if one.name == name)


def made_up(right, survival=None):
    """Tables of needles; right: (place, method) -> how many of the contexts are right at every budget; others: none, the full cache all."""
    rows = []
    for place in ("inside", "outside"):
        for method, budget in [("full", None), *((method, size) for method in METHODS for size in tables.SMALL)]:
            count = CONTEXTS if method == "full" else right.get((place, method), 0)
            for number in range(CONTEXTS):
                kept = (survival or {}).get((place, method), 0.1)
                about = {"task": "needle", "length": LENGTH, "question": place, "method": method, "budget": budget}
                rows.append(about | {"exact": float(number < count), "survival": kept, "bytes": 1.0, "bytes_full": 10.0})
    return Tables(rows)


def verdicts(found):
    return {key: one.verdict for key, one in judge(CLAIMS, found).items()}


def judged(made):
    found = tables.needle_findings(made, LENGTH)
    return verdicts({f"cache.{name}": Finding(numbers, p) for name, (numbers, p) in found.items()})


def test_verdicts_of_the_registered_needles():
    right = {("inside", "compresskv"): 10, ("inside", "snapkv"): 2, ("inside", "headkv"): 12, ("outside", "headkv"): 3}
    kept = {("inside", "compresskv"): 0.5, ("inside", "snapkv"): 0.3}
    names = ("compresskv_first", "compresskv_survival", "question_outside", "headkv_small")
    assert judged(made_up(right, kept)) == {f"cache.{name}": HELD for name in names}
    right[("inside", "adakv")] = 11  # above CompressKV, below HeadKV
    right[("outside", "streamingllm")] = 4  # above HeadKV
    kept[("outside", "snapkv")] = 0.2  # random tokens: 0.1
    assert judged(made_up(right, kept)) == {
        "cache.compresskv_first": NOT_HELD, "cache.compresskv_survival": HELD, "cache.question_outside": NOT_HELD, "cache.headkv_small": NOT_HELD,
    }  # fmt: skip


def test_a_missed_gate_is_not_testable_and_its_number_may_be_missing():
    found = {"cache.real_tables_fail": Finding({"full": (0.1, 0.0, 0.2), "difference": float("nan")}, 1.0)}
    assert verdicts(found) == {"cache.real_tables_fail": NOT_TESTABLE}
    lossless = Finding({"full": 0.5, "difference": float("nan"), "nearly_lossless": 0})
    assert verdicts({"cache.many_lookups": lossless}) == {"cache.many_lookups": NOT_HELD}
    lost = Finding({"full": 0.5, "difference": (-0.2, -0.3, -0.1), "nearly_lossless": 2})
    assert verdicts({"cache.many_lookups": lost}) == {"cache.many_lookups": HELD}


def test_every_numbered_claim_of_the_card_is_declared():
    places = {place.strip() for claim in CLAIMS.values() for place in claim.place.split(",")}
    assert {str(number) for number in range(1, 9)} <= places
    assert all(claim.card == "compresskv" for claim in CLAIMS.values())


def test_the_surest_of_several_differences():
    tests = [compared(np.array(one, dtype=float), np.zeros(6)) for one in ([1] * 6, [1, 0, 0, 0, 0, 0], [-1] * 6)]
    ends, p = tables.most_sure(tests)
    assert ends == (1.0, 1.0, 1.0)
    assert p == pytest.approx(benjamini_hochberg(np.array([test.p for test in tests]))[0])
    assert smallest(tests).ends[0] == -1
    assert largest(tests).ends[0] == 1
    assert smallest(tests).p == max(test.p for test in tests)


def test_statistics_of_a_table():
    one = np.arange(20.0)
    mean, low, high = resampled(lambda x: float(x.mean()), one)
    assert (mean, low < mean < high) == (9.5, True)
    assert interval(one)[0] == 9.5
    assert ratio([2.0, 3.0, 8.0], [1.0, 1.0, 2.0]) == (3.0, 2.0, 4.0)
    rows = made_up({("inside", "snapkv"): 6}).rows()
    row = next(row for row in rows if (row["question"], row["method"], row["budget"]) == ("inside", "snapkv", 0.1))
    assert (row["exact"][0], row["minus_full"][0], row["held"], row["contexts"]) == (0.5, -0.5, 0.1, CONTEXTS)


def test_draws_of_one_method_are_averaged():
    contexts = [
        [{"place": "inside", "method": f"random tokens/{draw}", "budget": 0.1, "survival": float(draw + number)} for draw in range(3)]
        for number in range(2)
    ]
    held = Held(contexts)
    assert held.names == [("inside", "random tokens", 0.1)]
    assert held.values("inside", "random tokens", 0.1, "survival").tolist() == [1.0, 2.0]
    assert {f"compresskv.{name}" for name in PAIRS} <= CLAIMS.keys()


def test_shares_in_random_order_stay_with_the_layers_that_are_compressed():
    shares = (0.0, 0.5, 0.3, 0.2)
    for draw in range(3):
        found = shuffled(shares, draw, [1, 2, 3])
        assert found[0] == 0
        assert sorted(found) == sorted(shares)


def test_a_wrong_position_is_seen():
    scores = [0.0, 0.9, 0.1, 0.8, 0.7, 0.2, 0.0, 0.0]
    assert exact.misplaced([0, 1, 3, 6, 7], scores, 5, 1, 2) == 0
    assert exact.misplaced([0, 1, 2, 6, 7], scores, 5, 1, 2) == 1  # 2 does not belong; 3, the last that fits, might have tied
    assert exact.misplaced([1, 3, 4, 6, 7], scores, 5, 1, 2) == 2  # the first position is always kept
    assert exact.misplaced([0, 3, 4, 6, 7], scores, 5, 1, 2) == 2


@pytest.mark.parametrize("name", ["compresskv-allocation", "compresskv-choice"])
@pytest.mark.slow
def test_exact_claims_hold_on_a_lab_model(name, model, tmp_path):
    one = experiment(name)
    assert one.minutes.quick_lab <= 0.3
    assert not one.data
    measured = one.run(Bench("lab-6m", "lab", lambda: model, tmp_path, quick=True))
    assert set(verdicts(measured.findings).values()) == {HELD}


@pytest.mark.slow
def test_an_interrupted_run_ends_with_the_same_bytes(model, tmp_path):
    one = experiment("compresskv-layers")

    def run(folder, report):
        measured = one.run(Bench("lab-6m", "lab", lambda: model, tmp_path / folder, quick=True, report=report))
        return json.dumps([{key: found.to_json() for key, found in measured.findings.items()}, measured.details])

    class Killed(Exception):
        pass

    seen = []

    def kill(done, total, remark):
        seen.append(remark)
        if remark.startswith("layer errors") and len([one for one in seen if one.startswith("layer errors")]) == 5:
            raise Killed

    whole = run("whole", lambda *_: None)
    with pytest.raises(Killed):
        run("killed", kill)
    assert run("killed", lambda *_: None) == whole
    assert read_json(next((tmp_path / "killed").glob("errors-*/*.json")), "a mark")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cache-needles", "cache-lookups"])
def test_small_tables_on_a_lab_model(name, model, tmp_path):
    one = experiment(name)
    measured = one.run(Bench("lab-6m", "lab", lambda: model, tmp_path, quick=True))
    assert verdicts(measured.findings).keys() == {claim.key for claim in one.claims}
