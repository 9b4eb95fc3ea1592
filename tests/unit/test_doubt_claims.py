"""benchmarks/doubt_real.py: verdicts by the registered rules, on made-up results."""

from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
HALF = 32


@pytest.fixture
def real(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import doubt_real

    return doubt_real


def row(kind, remedy="zero", k=2, headline=0.0, right=0.0, wrong=0.0, interval=(-0.1, 0.1)):
    return {
        "kind": kind, "remedy": remedy, "k": k, "headline": headline, "right": right, "wrong": wrong, "interval": list(interval),
        "kept_right": 0.6 + right, "kept_wrong": 0.3 + wrong,
    }  # fmt: skip


def found(chosen_headline=0.3, wrong=0.0, verdict="held", flips=0.3, half=-0.2, copy=-0.3, uniform=0.28, auc=(0.8, 0.6, 0.9)):
    chosen = row("chosen", headline=chosen_headline, right=chosen_headline, wrong=wrong, interval=(0.1, 0.5))
    test = [
        row("none", "none", 0), chosen, row("rival", "uniform", right=uniform), row("rival", "mean", right=0.3), row("rival", "scale", 1, 0.1),
        row("chosen", k=HALF, headline=half, right=half), row("copy", k=8, right=copy),
        *(row("copy-random", k=8, right=value) for value in np.linspace(-0.1, 0.1, 20)),
    ]  # fmt: skip
    rate = {"arm": "right", "items": 30, "flips": [flips, 0.1, 0.5], "kept": [1 - flips, 0.5, 0.9], "counts": flips >= 0.15, "challenge": "choice"}
    calm = {
        "test": test, "selection": [row("none", "none", 0), row("chosen", headline=0.4), row("chosen", "scale", 1, 0.2)],
        "rates": {"test": [rate], "select": [rate]},
        "chosen": chosen | {"verdict": verdict, "random_95": 0.1, "rank_p": 0.02, "optimism": 0.1},
    }  # fmt: skip
    return {"calm": calm, "half": HALF, "auc": list(auc), "rates_detect": [rate | {"items": 100}]}


def holds(real, **changes):
    return {key.split(".")[2]: each["holds"] if each["gate"] else None for key, each in real.claims("facts", found(**changes)).items()}


def test_every_rule_says_yes_and_no(real):
    good = holds(real)
    assert good == {
        "flips": True, "auc": True, "inverted_u": True, "above_random": True, "no_yes_bias": True, "retrieval_neutral": False,
        "modes_agree": True, "holding": False,
    }  # fmt: skip
    assert holds(real, wrong=0.1)["no_yes_bias"] is False
    assert holds(real, verdict="not held")["above_random"] is False
    assert holds(real, half=0.1)["inverted_u"] is False
    assert holds(real, copy=0.05)["retrieval_neutral"] is True
    assert holds(real, uniform=0.1)["modes_agree"] is False
    assert holds(real, auc=(0.8, 0.45, 0.9))["auc"] is False


def test_flips_of_the_lab_model_must_be_cued(real):
    plain = {"arm": "right", "challenge": "plain", "flips": [0.13, 0.08, 0.19]}
    assert not real.claims("lab", found() | {"rates_all": [plain]})["doubt.lab.flips"]["holds"]
    assert real.claims("lab", found() | {"rates_all": [plain | {"flips": [0.05, 0.0, 0.1]}]})["doubt.lab.flips"]["holds"]


def test_a_gate_that_fails_leaves_nothing_to_judge(real):
    weak = holds(real, flips=0.1)
    assert weak.pop("flips") is False  # whether answers flip is itself the claim
    assert set(weak.values()) == {None}
    none = real.claims("facts", {"not_testable": "nothing to repair"})
    assert all(not each["gate"] for each in none.values())
    assert len(none) == 8


def test_all_claims_are_registered(real):
    from registered import judged

    for name in ("facts", "needles", "nq", "lab"):
        assert {each["verdict"] for each in judged(real.claims(name, {"not_testable": "why"})).values()} == {"not testable on this model"}


def test_area_under_the_curve_counts_pairs(real):
    scores, effects = np.array([0.9, 0.5, 0.5, 0.1]), np.array([1.0, 1.0, -1.0, -1.0])
    assert real.area(scores, effects > 0) == pytest.approx((1 + 1 + 0.5 + 1) / 4)
    middle, low, high = real.area_with_interval(np.append(scores, np.nan), np.append(effects, 1.0))
    assert middle == pytest.approx(0.875)
    assert low <= middle <= high


def test_known_questions_have_a_wording_for_every_relation(real):
    import doubt_sets

    assert all(text.count("{}") == 1 and text.endswith("?") for text in doubt_sets.ASKED.values())
