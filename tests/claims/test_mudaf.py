"""Claims about training with heads: verdicts of made-up trainings, several models together, and the exact ones on a lab model."""

import numpy as np
import pytest

import headwise as hw
from headwise.claims.claim import judge
from headwise.claims.experiment import Bench
from headwise.claims.mudaf import EXPERIMENTS
from headwise.claims.mudaf.judged import Models, Trained, details, findings, more_findings
from headwise_lab.claims.mudaf import EXPERIMENTS as LAB

CLAIMS = {claim.key: claim for one in (*EXPERIMENTS, *LAB) for claim in one.claims}
HEADS = {"best": ((0, 0), (1, 1)), "middle": ((0, 1), (0, 2)), "weak": ((1, 2), (1, 3)), "random": ((0, 3), (1, 0))}
OTHERS = ("alpha-0.3", "alpha-1", "top-1", "top-2", "top-4", "top-all", "lse")
RIGHT = {"before": 0.4, "plain": 0.5, "best": 0.8, "random": 0.5, "alpha-1": 0.1, "top-all": 0.3}
QUESTIONS = 50


def model(name="one", seed=0, found=(), right=(), f1=(), ablated=()):
    """A model whose answers and F1 are as given, question by question around their means."""
    rng = np.random.default_rng(seed)
    heads = HEADS | dict.fromkeys(("before", "plain", *OTHERS), HEADS["best"])
    measured = {}
    for condition in heads:
        scores = 0.3 + 0.01 * rng.standard_normal((QUESTIONS, 2, 4))
        for kind, value in dict(f1).get(condition, {}).items():
            for layer, head in HEADS[kind]:
                scores[:, layer, head] = value + 0.01 * rng.standard_normal(QUESTIONS)
        share = (RIGHT | dict(right)).get(condition, 0.5)
        left = dict(ablated).get(condition, 0.1)
        answers, away = (np.arange(QUESTIONS) < round(QUESTIONS * value) for value in (share, left))
        measured[condition] = {"f1": scores, "answers": answers, "ablated": away, "perplexity": 100.0}
    return Trained(name, measured, heads, {"best_f1": 0.5, "recall": 0.9, "jaccard": 0.4, "spearman": 0.5} | dict(found))


GOOD_F1 = {
    "middle": {"middle": 0.6}, "plain": {"middle": 0.3, "best": 0.4}, "weak": {"weak": 0.2}, "before": {"weak": 0.1}, "best": {"best": 0.5},
    "alpha-1": {"best": 0.9}, "lse": {"best": 0.7},
}  # fmt: skip


def verdicts(models, name="smollm2"):
    found = findings(name, models) | (more_findings(name, models) if name == "lab" else {})
    return {key.split(".")[2]: one.verdict for key, one in judge(CLAIMS, found).items()}


def test_every_rule_says_yes_and_no():
    good = verdicts([model(f1=GOOD_F1)])
    assert good == dict.fromkeys(good, "held")
    assert set(good) == {"not_copy", "focus", "weak", "answers", "better", "not_random", "causal", "text"}
    assert verdicts([model(f1=GOOD_F1, found={"jaccard": 0.7})])["not_copy"] == "not held"
    assert verdicts([model(f1=GOOD_F1 | {"middle": {"middle": 0.45}})])["focus"] == "not held"
    assert verdicts([model(f1=GOOD_F1 | {"best": {"best": 0.1}})])["weak"] == "not held"
    same = verdicts([model(f1=GOOD_F1, right={"best": 0.5})])
    assert (same["answers"], same["better"], same["not_random"]) == ("held", "not held", "not held")
    assert verdicts([model(f1=GOOD_F1, right={"best": 0.3})])["answers"] == "not held"
    assert verdicts([model(f1=GOOD_F1, ablated={"best": 0.5})])["causal"] == "not held"
    worse = model(f1=GOOD_F1)
    worse.measured["best"]["perplexity"] = 106.0
    assert verdicts([worse])["text"] == "not held"


def test_gates():
    few = verdicts([model(f1=GOOD_F1, right={"plain": 0.1}, found={"recall": 0.4})])
    assert {key for key, verdict in few.items() if verdict == "not testable"} == {"not_copy", "answers", "better", "not_random", "causal"}
    none = model(f1=GOOD_F1)
    del none.found["jaccard"]
    assert verdicts([none])["not_copy"] == "not testable"


def test_several_models_must_agree_in_sign():
    good, other = model("a", 1, f1=GOOD_F1), model("b", 2, f1=GOOD_F1)
    assert set(verdicts([good, other], "lab").values()) == {"held"}
    against = model("c", 3, f1=GOOD_F1, right={"best": 0.4})
    told = verdicts([good, other, against], "lab")
    assert (told["better"], told["not_random"]) == ("not held", "not held")
    assert told["focus"] == "held"
    number = findings("lab", [good, other, against])["mudaf.lab.better"].numbers
    by_hand = np.mean([[one.right("best")[i] - one.right("plain")[i] for i in range(QUESTIONS)] for one in (good, other, against)])
    assert number["difference"][0] == pytest.approx(by_hand, abs=1e-6)
    assert number["same_sign"] == pytest.approx(2 / 3)


def test_other_numbers_of_heads_and_alphas():
    assert verdicts([model(f1=GOOD_F1, right={"top-all": 0.9})], "lab")["more_heads"] == "not held"
    assert verdicts([model(f1=GOOD_F1, right={"top-all": 0.8})], "lab")["more_heads"] == "held"  # as good as the best is not better
    assert verdicts([model(f1=GOOD_F1, right={"alpha-1": 0.6})], "lab")["alpha"] == "not held"
    assert verdicts([model(f1=GOOD_F1 | {"alpha-1": {"best": 0.2}})], "lab")["alpha"] == "not held"
    assert verdicts([model(f1=GOOD_F1 | {"lse": {"best": 0.3}})], "lab")["lse"] == "not held"


def test_the_table_has_a_row_per_training():
    told = details([model(f1=GOOD_F1), model("two", 4, f1=GOOD_F1)])
    rows = {row["condition"]: row for row in told["rows"]}
    assert rows["best"]["exact_match"] == pytest.approx(0.8)
    assert rows["middle"]["f1_trained"] == pytest.approx(0.6, abs=0.01)
    assert Models([model()]).same_sign(lambda m: m.right("best") - m.right("plain")) == 1


@pytest.mark.slow
def test_claims_about_exactness_hold_on_a_lab_model(tmp_path):
    one = next(one for one in EXPERIMENTS if one.name == "mudaf-exact")
    measured = one.run(Bench("lab-6m", "lab", lambda: hw.load("lab-6m"), tmp_path, quick=True))
    judged = judge({claim.key: claim for claim in one.claims}, measured.findings)
    assert {verdict.verdict for verdict in judged.values()} == {"held"}


@pytest.mark.slow
def test_three_lab_models_are_measured_under_one_of_them(tmp_path):
    measured = LAB[0].run(Bench("world-6m-seed1", "lab", lambda: hw.load("world-6m-seed1"), tmp_path, quick=True))
    assert {one.missing for one in measured.findings.values()} == {
        "the lab models world-6m, world-6m-seed1, world-6m-qwen3 are measured together, under world-6m"
    }


def test_the_question_in_front_is_declared_and_not_testable(tmp_path):
    one = next(one for one in EXPERIMENTS if one.name == "mudaf-question-first")
    assert "prompt builder" in one.run(Bench("lab-6m", "lab", lambda: None, tmp_path)).findings["mudaf.lab.question_first"].missing
