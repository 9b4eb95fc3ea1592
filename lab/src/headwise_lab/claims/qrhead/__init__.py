"""Claims of the card `qrhead` on the micro-world's passages.

Heads are chosen on the split `selection` and measured on `test`. A question shares no word of meaning with the passage that answers it.
"""

from __future__ import annotations

from functools import partial

from headwise.claims.claim import Claim
from headwise.claims.experiment import Experiment, Minutes

FAMILY = "query-world"
_DATA = "micro-world: heads found on 64 queries of the selection split, tested on 60 queries of the test split, six passages each"
_GATE = ("above_chance.low > 0",)
_BEYOND = "Gate: recall@1 of the four query heads minus chance"
_METRIC = f"recall@1, paired by query. {_BEYOND}"
_BEFORE = "measured before the ledger on lab models, with the same rules"
_claim = partial(Claim, card="qrhead", gate=_GATE, data=_DATA, tries=_BEFORE)

CLAIMS = (
    _claim(
        f"{FAMILY}.few_above_all", place="1", sentence="the four best query heads rank better than all heads together", metric=_METRIC,
        rule=("difference >= 0.1",), tested=True, effect="chosen", control="control",
    ),
    _claim(
        f"{FAMILY}.few_above_random", place="1", sentence="the four best query heads rank far better than four random heads", metric=_METRIC,
        rule=("difference >= 0.4",), tested=True, effect="chosen", control="control", controls="the mean of 50 random sets of four heads",
    ),
    _claim(
        f"{FAMILY}.calibration_evens_places", place="3", gate=(), sentence="calibration makes the score of a passage depend less on its place",
        metric="share by which the standard deviation of a passage's score over its six places shrinks, all heads; deviations are shares of the mean "
        "size of a passage's value over all heads, raw and calibrated each by its own; control: the four query heads",
        rule=("shrinks >= 0.3",), control="control", data="micro-world: 24 queries of the test split, six passages, the gold one at every place",
    ),
    _claim(
        f"{FAMILY}.calibration_undoes_boilerplate", place="3", rule=("gain > 0", "more_than_few > 0"), tested=True, control="gain_few",
        sentence="with a text of boilerplate in front calibration rescues the ranking by all heads, and more than that by query heads",
        metric="recall@1, calibrated minus raw, paired by query: gain: of all heads; gain_few: of the four query heads; more_than_few: their "
        f"difference. {_BEYOND}, without boilerplate",
    ),
    _claim(
        f"{FAMILY}.few_labels", place="4", gate=(), rule=("shared >= 6", "apart < 0.02"), control="by_chance",
        sentence="32 labelled queries are enough: two disjoint sets choose nearly the same heads, which rank equally well",
        data="micro-world: two further sets of 32 queries of the selection split; tested on 60 of the test split, six passages each",
        metric="how many of the top 8 heads two sets of 32 labelled queries share; apart: difference in recall@1 of their top 8",
    ),
    _claim(
        f"{FAMILY}.number_of_heads", place="5", rule=("peak >= 2", "peak <= 6", "decline.low > 0"), effect="decline",
        tries=f"{_BEFORE}. Until 2026-11-30 the rule was decline > 0, which the best number on these queries cannot miss",
        sentence="ranking is best with two to six heads and declines towards all of them",
        metric="peak: number of heads (1, 2, 4, 8, ...) with the largest recall@1, the smallest of equal ones; decline: recall@1 with that number "
        f"minus with all heads, paired by query. {_BEYOND}",
        paper="16 heads 58.6, 64 heads 57.4, 256 heads 56.6 (nDCG@10 on NQ, Llama-3.1-8B)",
    ),
    _claim(
        f"{FAMILY}.length_transfer", place="6", rule=("ratio >= 0.9",), control="found_there",
        sentence="heads found with six passages work with as many as fit, up to 32",
        data="micro-world: heads found on 32 queries with so many passages, tested on 30",
        metric="recall@1 of heads found with six passages as a share of that of heads found with many; found_there: recall@1 of the latter. "
        f"{_BEYOND}, six passages",
        paper="LongMemEval at 128k: 85.2 with heads found at 32k, 85.6 with heads found there",
    ),
    _claim(
        f"{FAMILY}.rules_differ", place="7", rule=("most_shared < 0.7", "largest_difference <= 0.03"), effect="largest_difference",
        control="most_shared",
        sentence="rules of mass and rules of rank choose different heads that rank equally well",
        metric="largest difference in recall@1 between the four best heads of nDCG or MRR and those of calibrated mass; most_shared: the largest "
        f"share of the top 8 heads that one of them shares with calibrated mass. {_BEYOND}",
        paper="its two released lists share 3 of 16 heads (Llama-3.1-8B)",
    ),
    _claim(
        f"{FAMILY}.query_span", place="8", rule=("difference >= 0",), effect="chosen", control="control",
        sentence="with long queries the rows of the query alone rank at least as well as all rows behind the passages",
        metric="recall@1 of queries with 22 words in front, rows of the query minus all rows, each with heads found by it, paired by query. "
        f"{_BEYOND}",
    ),
    _claim(
        f"{FAMILY}.trimming", place="10", rule=("apart < 0.01",), control="control",
        sentence="leaving out tokens two standard deviations below their passage's mean changes the ranking by less than a point",
        metric=f"size of the difference in recall@1 with and without trimming, the four query heads; control: recall@1 without. {_BEYOND}",
    ),
)  # fmt: skip

EXPERIMENTS = (
    Experiment(
        "query-world", "Query heads rank the micro-world's passages", CLAIMS, "headwise_lab.claims.qrhead.measure:measure",
        Minutes(lab=0.6, real=None, quick_lab=0.5),
    ),
)  # fmt: skip
