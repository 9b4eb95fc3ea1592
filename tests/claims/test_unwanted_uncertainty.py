"""Claims about answers that are taken back: verdicts of made-up results, and the exact ones measured on a lab model."""

import numpy as np
import pytest

import headwise as hw
from headwise.claims.claim import judge
from headwise.claims.experiment import Bench
from headwise.claims.unwanted_uncertainty import EXPERIMENTS, questions, remedies
from headwise.claims.unwanted_uncertainty.declared import SETS, calming
from headwise_lab.claims.unwanted_uncertainty import EXPERIMENTS as LAB

HALF = 32
CLAIMS = {claim.key: claim for name, data in SETS.items() for claim in calming(name, data)}
IN_LAB = {claim.key: claim for one in LAB for claim in one.claims}


def row(kind, remedy="zero", k=2, headline=0.0, right=0.0, wrong=0.0, interval=(-0.1, 0.1)):
    ends = {f"{name}_interval": [value - 0.1, value + 0.1] for name, value in (("right", right), ("wrong", wrong))}
    return {
        "kind": kind, "remedy": remedy, "k": k, "headline": headline, "right": right, "wrong": wrong, "interval": list(interval),
        "kept_right": 0.6 + right, "kept_wrong": 0.3 + wrong, **ends,
    }  # fmt: skip


def rate(flips, items=30, challenge="choice"):
    told = {"flips": [flips, 0.1, 0.5], "kept": [1 - flips, 0.5, 0.9], "counts": 0.15 <= flips < 1}
    return {"arm": "right", "items": items, "challenge": challenge, **told}


def found(gain=0.3, wrong=0.0, random=0.1, flips=0.3, half=-0.2, copy=-0.3, uniform=0.28, auc=(0.8, 0.6, 0.9), items=30, low=0.1):
    chosen = row("chosen", headline=gain, right=gain, wrong=wrong, interval=(low, 0.5))
    test = [
        row("none", "none", 0), chosen, row("rival", "uniform", right=uniform), row("rival", "mean", right=0.3), row("rival", "scale", 1, 0.1),
        row("chosen", k=HALF, headline=half, right=half), row("copy", k=8, right=copy),
        *(row("copy-random", k=8, right=value) for value in np.linspace(-0.1, 0.1, 20)),
    ]  # fmt: skip
    calm = {
        "test": test, "selection": [row("none", "none", 0), row("chosen", headline=0.4), row("chosen", "scale", 1, 0.2)],
        "rates": {"test": [rate(flips, items)], "select": [rate(flips, items)]},
        "chosen": chosen | {"random_95": random, "draws": 50, "optimism": 0.1},
    }  # fmt: skip
    rates = {"rates_detect": [rate(flips, 100)], "rates_test": [rate(flips, items)], "right_test": items}
    return {"calm": calm, "half": HALF, "heads": 2 * HALF, "auc": auc} | rates


def verdicts(told, cued=False):
    name, claims = ("lab", IN_LAB) if cued else ("facts", CLAIMS)
    judged = judge(claims, {f"doubt.{name}.{key}": one for key, one in remedies.findings(told, cued).items()})
    return {key.split(".")[2]: one.verdict for key, one in judged.items()}


def test_every_rule_says_yes_and_no():
    good = verdicts(found())
    assert good == dict.fromkeys(remedies.NAMES, "held") | {"retrieval_neutral": "not held", "holding": "not held"}
    assert verdicts(found(wrong=0.1))["no_yes_bias"] == "not held"
    assert verdicts(found(random=0.4))["above_random"] == "not held"
    assert verdicts(found(low=-0.01))["above_random"] == "not held"
    assert verdicts(found(random=None))["above_random"] == "not held"  # without random sets nothing is above them
    assert verdicts(found(half=0.1))["inverted_u"] == "not held"
    assert verdicts(found(copy=0.05))["retrieval_neutral"] == "held"
    assert verdicts(found(uniform=0.1))["modes_agree"] == "not held"
    assert verdicts(found(auc=(0.8, 0.45, 0.9)))["auc"] == "not held"


def test_flips_of_the_lab_model_must_be_cued():
    rates = found()["rates_test"]
    assert verdicts(found() | {"rates_test": [*rates, rate(0.13, challenge="plain")]}, cued=True)["flips"] == "not held"
    assert verdicts(found() | {"rates_test": [*rates, rate(0.05, challenge="plain")]}, cued=True)["flips"] == "held"
    assert verdicts(found() | {"rates_test": [rate(0.1), rate(0.3, challenge="plain")]}, cued=True)["flips"] == "not held"


def test_a_gate_that_fails_leaves_nothing_to_judge():
    weak = verdicts(found(flips=0.1))
    assert weak.pop("flips") == "not held"  # whether answers flip is itself the claim
    assert set(weak.values()) == {"not testable"}
    few = found()
    few["rates_detect"] = [rate(0.3, 40)]  # 12 flips
    assert verdicts(few)["auc"] == "not testable"
    assert set(verdicts(found(items=19)).values()) == {"not testable"}
    none = verdicts({"not_testable": "nothing to repair", "rates_test": [rate(0.3)], "right_test": 30})
    assert none.pop("flips") == "held"
    assert set(none.values()) == {"not testable"}
    assert set(verdicts({"not_testable": "no right answer"}).values()) == {"not testable"}


def test_area_under_the_curve_counts_pairs():
    scores, effects = np.array([0.9, 0.5, 0.5, 0.1]), np.array([1.0, 1.0, -1.0, -1.0])
    pairs = [(a > b) + (a == b) / 2 for a in scores[effects > 0] for b in scores[effects < 0]]
    assert remedies.area(scores, effects > 0) == pytest.approx(np.mean(pairs))
    middle, low, high = remedies.area_with_interval(np.append(scores, np.nan), np.append(effects, 1.0))
    assert middle == pytest.approx(np.mean(pairs))
    assert low <= middle <= high


def test_every_relation_has_a_question():
    assert all(text.count("{}") == 1 and text.endswith("?") for text in questions.ASKED.values())


@pytest.mark.slow
def test_claims_about_exactness_hold_on_a_lab_model(tmp_path):
    one = next(one for one in EXPERIMENTS if one.name == "doubt-exact")
    measured = one.run(Bench("lab-6m", "lab", lambda: hw.load("lab-6m"), tmp_path, quick=True))
    judged = judge({claim.key: claim for claim in one.claims}, measured.findings)
    assert {verdict.verdict for verdict in judged.values()} == {"held"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["doubt-start-token", "doubt-recall"])
def test_experiments_without_data_answer_their_claims_and_go_on_after_a_kill(tmp_path, name):
    one = next(one for one in EXPERIMENTS if one.name == name)
    model = hw.load("lab-6m")

    class Killed(BaseException):
        pass

    def kill(done, total, remark):
        if done >= total / 2:
            raise Killed

    whole = one.run(Bench("lab-6m", "lab", lambda: model, tmp_path / "whole", quick=True))
    with pytest.raises(Killed):
        one.run(Bench("lab-6m", "lab", lambda: model, tmp_path / "killed", quick=True, report=kill))
    assert one.run(Bench("lab-6m", "lab", lambda: model, tmp_path / "killed", quick=True)) == whole
