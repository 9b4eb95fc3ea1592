"""Claims of RHIO: verdicts of made-up answers, several models together, the reader's, and the exact ones on a lab model."""

from collections import Counter

import numpy as np
import pytest

import headwise as hw
from headwise.claims.claim import judge
from headwise.claims.experiment import Bench
from headwise.claims.rhio import EXPERIMENTS, reader
from headwise.claims.rhio.judged import Judge, Spoken, compared, details, real_findings
from headwise.claims.rhio.questions import Asked, grounded
from headwise.claims.rhio.trained import Run, quick
from headwise.evaluation.support import LexicalOverlap
from headwise.prompts.knowledge_record import KnowledgeRecord
from headwise.prompts.passages import Passage
from headwise_lab.claims.rhio import EXPERIMENTS as LAB
from headwise_lab.claims.rhio import measure as lab

CLAIMS = {claim.key: claim for one in (*EXPERIMENTS, *LAB) for claim in one.claims}
ASKED, KNOWN = 60, 24


def asked():
    made = []
    for number in range(ASKED):
        record = KnowledgeRecord(f"question {number}", (f"answer{number}",), Passage(f"It is answer{number}."), name=str(number))
        made.append(Asked(grounded(record), "correction" if number < ASKED - KNOWN else "resistance"))
    return made


def said(shares):
    """Texts of which a share is right, in every cell."""
    out = []
    for cell, count in (("correction", ASKED - KNOWN), ("resistance", KNOWN)):
        first = 0 if cell == "correction" else ASKED - KNOWN
        share = shares[cell] if isinstance(shares, dict) else shares
        out += [f"answer{first + i}" if i < round(share * count) else "nothing" for i in range(count)]
    return out


GOOD = {
    "start": 0.5, "plain": {"correction": 0.3, "resistance": 0.9}, "plain.heads": 0.6, "plain.closed": 0.6, "heads.0": 0.6, "heads.neg": 0.1,
    "heads.0.2": {"correction": 0.9, "resistance": 0.3}, "random.0.2": 0.5, "swap.0.2": 0.5,
}  # fmt: skip


def tables(pairs=120, gap=0.5, random=60, swap=60):
    right = {"heads": [0] * 80 + [1] * 20, "random": [0] * 40 + [1] * 60, "swap": [0] * 100}
    counts = {"heads": pairs, "random": random, "swap": swap}
    return {source: {"pairs": count, "gap": gap, "right": right[source], "labels": {}} for source, count in counts.items()}


def spoken(without=(), told=None, **shares):
    texts = {name: said(share) for name, share in (GOOD | shares).items() if name not in without}
    return Spoken("one", asked(), texts, told or tables(), ["L0H0"], {})


def verdicts(one):
    return {key.split(".")[2]: verdict.verdict for key, verdict in judge(CLAIMS, real_findings([one], LexicalOverlap())).items()}


@pytest.mark.slow
def test_every_rule_says_yes_and_no():
    good = verdicts(spoken())
    assert good == dict.fromkeys(good, "held")
    assert set(good) == {
        "tokens", "tuning", "decoding", "whole", "not_random", "not_swap", "training_free", "heads_away", "closed", "resistance",
    }  # fmt: skip
    assert verdicts(spoken(**{"heads.neg": 0.4}))["tokens"] == "not held"  # sure, but less than 30 points
    worse = verdicts(spoken(**{"heads.0": 0.1, "heads.0.2": 0.1, "plain.heads": 0.1}))
    assert {key for key, verdict in worse.items() if verdict == "held"} == {"closed", "heads_away", "resistance"}


def test_gates_and_what_is_missing():
    few = verdicts(spoken(told=tables(pairs=99)))
    assert {key for key, verdict in few.items() if verdict != "not testable"} == {"training_free", "heads_away", "closed"}
    assert verdicts(spoken(told=tables(gap=0.05)))["whole"] == "not testable"
    alone = verdicts(spoken(("random.0.2",), tables(random=30)))
    assert (alone["not_random"], alone["not_swap"]) == ("not testable", "held")
    weak = verdicts(spoken(start=0.2))
    assert {key for key, verdict in weak.items() if verdict != "not testable"} == {"resistance"}
    nothing = verdicts(spoken([name for name in GOOD if name != "start"], tables(pairs=0)))
    assert {key for key, verdict in nothing.items() if verdict != "not testable"} == {"heads_away"}


def test_a_difference_over_models_is_the_mean_of_paired_questions():
    rng = np.random.default_rng(0)
    more, less = rng.random((3, 20)), rng.random((3, 20))
    found = compared(more, less, {"start": 0.5})
    by_hand = sum(more[m][q] - less[m][q] for m in range(3) for q in range(20)) / 60
    assert found.numbers["difference"][0] == pytest.approx(by_hand, abs=1e-4)
    signs = [np.sign(sum(more[m]) - sum(less[m])) for m in range(3)]
    assert found.numbers["same_sign"] == pytest.approx(np.mean([sign == np.sign(by_hand) for sign in signs]))
    assert found.numbers["start"] == 0.5


def test_details_tell_every_condition_and_cell():
    told = details([spoken()], LexicalOverlap())
    rows = {(row["condition"], row["cell"]): row for row in told["rows"]}
    assert rows["plain", "resistance"]["mean"] == pytest.approx(22 / 24, abs=1e-3)
    assert "right" not in told["models"]["one"]["sources"]["heads"]


def test_the_lab_rules_read_distances_and_lines():
    natural = Counter(fabricated=6, mis_combined=2, unreadable=2)
    assert lab.jensen_shannon(natural, natural) == 0
    assert lab.jensen_shannon(Counter(fabricated=1), Counter(mis_combined=1)) == 1
    assert lab.share(natural) == 0.6
    x, y = np.array([0.0, 1.0, 2.0, 4.0]), np.array([1.0, 1.5, 2.0, 3.5])
    assert lab.intercept(x, y) == pytest.approx(np.polyfit(x, y, 1)[1])
    assert lab.intercept(np.zeros(4), y) == y.mean()


READ = [
    {"score": "copying", "heads": "chosen", "auc": 0.7, "low": 0.65, "high": 0.75, "supported": 300, "unsupported": 200},
    {"score": "copying", "heads": "random", "auc": 0.55, "low": 0.5, "high": 0.6},
    {"score": "attention", "heads": "chosen", "auc": 0.55, "low": 0.5, "high": 0.6, "supported": 300, "unsupported": 200},
    {"score": "attention", "heads": "random", "auc": 0.55, "low": 0.5, "high": 0.58},
    {"score": "lexical overlap", "heads": "", "auc": 0.6, "low": 0.55, "high": 0.65},
    {"score": "length", "heads": "", "auc": 0.5, "low": 0.45, "high": 0.55},
]


def test_the_reader_is_held_against_random_heads_and_words():
    told = {key: one.verdict for key, one in judge(CLAIMS, reader.findings(READ)).items()}
    assert told == {
        "reader.smollm2.above_random": "held", "reader.smollm2.above_words": "held", "reader.smollm2.attention": "not held",
    }  # fmt: skip
    few = [row | ({"unsupported": 99} if row["heads"] == "chosen" else {}) for row in READ]
    assert {one.verdict for one in judge(CLAIMS, reader.findings(few)).values()} == {"not testable"}


@pytest.mark.slow
def test_claims_about_exactness_hold_on_a_lab_model(tmp_path):
    one = next(one for one in EXPERIMENTS if one.name == "rhio-exact")
    measured = one.run(Bench("lab-6m", "lab", lambda: hw.load("lab-6m"), tmp_path, quick=True))
    judged = judge({claim.key: claim for claim in one.claims}, measured.findings)
    assert {verdict.verdict for verdict in judged.values()} == {"held"}


@pytest.mark.slow
def test_a_small_run_trains_every_source_from_the_same_start_and_goes_on_from_what_it_kept(tmp_path):
    given = Bench("world-6m", "lab", lambda: hw.load("world-6m"), tmp_path, quick=True)
    questions = lab.questions(given)
    few = questions._replace(train=questions.train[:8], judge=lambda memory: questions.judge(memory)[:3])
    run = Run(given, few, quick(lab.SIZES)._replace(dosed=2, start=30))
    spoken = run.result()
    found = lab.findings(Judge([spoken], few.checker))
    assert found.keys() == {claim.key for one in LAB for claim in one.claims}
    assert judge(CLAIMS, found)
    assert Run(given, few, run.sizes).result() == spoken
