"""Claims of ZigzagAttention and DuoAttention: verdicts from made-up results, the exact ones on lab-6m, and the parts that measure."""

import numpy as np
import pytest
import torch

from headwise.claims.cache_runs import Runs
from headwise.claims.claim import HELD, NOT_HELD, NOT_TESTABLE, Finding, judge
from headwise.claims.experiment import Bench, NotTestable
from headwise.claims.zigzagattention import EXPERIMENTS, gates
from headwise.claims.zigzagattention.passkeys import FOUND_AT, SEEN, PassKeys, block
from headwise.methods.duo.prompts import LabelledText
from headwise.models.load import load
from headwise.models.names import bundled_model

CLAIMS = {claim.key: claim for one in EXPERIMENTS for claim in one.claims}


@pytest.fixture(scope="module")
def model():
    return load(str(bundled_model("lab-6m")), "cpu")


def experiment(name):
    return next(one for one in EXPERIMENTS if one.name == name)


def verdicts(found):
    return {key: one.verdict for key, one in judge(CLAIMS, found).items()}


def test_verdicts_by_the_rules():
    assert verdicts({
        "cache.duo_two_points": Finding({"full": (1.0, 1.0, 1.0), "difference": (-0.02, -0.1, 0.0)}),
        "cache.zigzag_two_points": Finding({"full": (1.0, 1.0, 1.0), "difference": (-0.08, -0.25, 0.0)}),
        "zigzag.two_points_grouped": Finding({"full": 0.9, "group": 1, "gap": 0.0, "random": 0.5}),
        "zigzag.half_precision_ties": Finding({"full": 0.9, "half_spread": 0.3, "float_spread": 0.2}),
        "zigzag.prefill_order": Finding({"full": 0.9, "dense_above_windowed": (0.3, 0.1, 0.5), "least_step": 0.0, "first_token": 0.1}, 0.01),
    }) == {
        "cache.duo_two_points": HELD, "cache.zigzag_two_points": NOT_HELD, "zigzag.two_points_grouped": NOT_TESTABLE,
        "zigzag.half_precision_ties": NOT_HELD, "zigzag.prefill_order": HELD,
    }  # fmt: skip


def test_every_numbered_claim_of_the_card_is_declared():
    places = {place.strip() for claim in CLAIMS.values() for place in claim.place.split(",")}
    assert {str(number) for number in range(1, 10)} <= places
    assert all(claim.card == "zigzagattention" for claim in CLAIMS.values())
    timed = [claim for one in EXPERIMENTS for claim in one.claims if one.name == "zigzag-time"]
    assert all("differs from run to run" in claim.metric for claim in timed)


@pytest.mark.slow
def test_exact_claims_hold_on_a_lab_model(model, tmp_path):
    one = experiment("zigzag-exact")
    assert one.minutes.quick_lab <= 0.3
    measured = one.run(Bench("lab-6m", "lab", lambda: model, tmp_path, quick=True))
    assert set(verdicts(measured.findings).values()) == {HELD}
    assert measured.details["windows of 2 and 4 tokens"] > 1e-3  # the measure can tell


def test_pass_keys_of_a_text():
    labels = (False, False, True, True, False, True, True, True, False)
    found = block([LabelledText(tuple(range(9)), labels)])
    assert found.keys == [[[1, 2], [4, 5, 6]]]
    assert found.ids.tolist() == [list(range(9))]


@pytest.fixture
def keys(model, tmp_path):
    return PassKeys(Runs(Bench("lab-6m", "lab", lambda: model, tmp_path, quick=True)))


@pytest.mark.slow
def test_a_profile_is_what_a_loop_over_attention_says(keys, model):
    text = keys.texts("train", 0, FOUND_AT, 1)[0]
    eager = load(str(bundled_model("lab-6m")), "cpu").hf
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        seen = eager(input_ids=torch.tensor([text.ids]), output_attentions=True).attentions
    for rows in ("all", "answers"):
        asked = range(len(text.ids)) if rows == "all" else text.places
        slow = np.zeros(keys.shape)
        for layer, weights in enumerate(seen):
            for head in range(weights.shape[1]):
                table = weights[0, head].tolist()
                shares = [sum(table[row][SEEN.sinks : max(SEEN.sinks, row - SEEN.recent + 1)]) for row in asked]
                slow[layer, head // 2] += np.mean(shares) / 2
        np.testing.assert_allclose(gates._mass(keys, text, rows), slow, atol=1e-5)


@pytest.mark.slow
def test_a_pattern_is_measured_once_and_what_is_kept_is_the_same(keys, model, tmp_path):
    whole, none = keys.everything(), ~keys.everything()
    first = keys.answered(whole)
    assert first.mean() > keys.answered(none).mean()
    again = PassKeys(Runs(Bench("lab-6m", "lab", lambda: model, tmp_path, quick=True)))
    again._answers = lambda pattern: pytest.fail("measured again")
    assert np.array_equal(again.answered(whole), first)


@pytest.mark.slow
def test_needles_on_a_lab_model(model, tmp_path):
    one = experiment("streaming-needles")
    measured = one.run(Bench("lab-6m", "lab", lambda: model, tmp_path, quick=True))
    assert verdicts(measured.findings).keys() == {claim.key for claim in one.claims}


def test_a_model_that_misses_the_gate_is_not_searched_for_gates(model, tmp_path, monkeypatch):
    monkeypatch.setattr(PassKeys, "answered", lambda self, pattern: np.array([0.4, 0.5]))
    for name in ("zigzag-gates", "zigzag-layers"):
        found = experiment(name).run(Bench("lab-6m", "lab", lambda: model, tmp_path / name)).findings
        assert {one.missing for one in found.values()} == {"answers 0.45 of the pass-keys with everything visible; 0.5 is needed"}
    with pytest.raises(NotTestable):
        PassKeys(Runs(Bench("lab-6m", "lab", lambda: model, tmp_path)))
