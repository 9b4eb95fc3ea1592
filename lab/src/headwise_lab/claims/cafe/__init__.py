"""Claims of the card `cafe` on the micro-world's passages, with questions of one hop and of two.

Heads are found on the split `selection`: coarse heads on its questions, fine heads on what those keep of them. Everything else is measured on
`test`.
"""

from __future__ import annotations

from functools import partial

from headwise.claims.cafe import declared
from headwise.claims.claim import Claim
from headwise.claims.experiment import Experiment, Minutes

FAMILY = "cafe-world"
ANSWERED = "first line is the right answer"
_DATA = (
    "micro-world: 48 questions of one hop and 48 of two over 8 passages; four coarse and two fine heads, one vote each, found on as many questions "
    "of the selection split"
)
_BEFORE = "measured before the ledger on lab models, with the same rules"
_claim = partial(Claim, card="cafe", data=_DATA, effect="chosen", control="control", tries=_BEFORE)
_METRIC = "share of the gold passages that are kept, difference paired by question"


def _answers() -> tuple[Claim, ...]:
    """The claims about answers that real questions are asked, too, in the micro-world's words."""
    sets = {"both": f"{_DATA}; right: an answer whose {ANSWERED}"}
    two = {"two_hop": f"{_DATA}; of these the questions of two hops; right: an answer whose {ANSWERED}"}
    told = (*declared.answers(FAMILY, sets, right=f"answers whose {ANSWERED}", tries=_BEFORE), *declared.more(FAMILY, sets | two, "two_hop"))
    return tuple(claim for claim in told if claim.key.endswith(".both") or claim.key.endswith("evidence_reads_no_evidence.two_hop"))


CLAIMS = (
    _claim(
        f"{FAMILY}.recall_above_all.both", place="1", rule=("difference >= 0.1",), tested=True, metric=_METRIC,
        sentence="the union of four coarse heads' votes holds more of the evidence than as many passages by all heads' shares",
    ),
    _claim(
        f"{FAMILY}.recall_above_random.both", place="1", rule=("difference > 0",), tested=True, metric=_METRIC,
        sentence="the union of four coarse heads' votes holds more of the evidence than the union of random heads' votes",
        controls="999 layer-matched draws of four heads",
    ),
    _claim(
        f"{FAMILY}.union_as_good_as_sum.two_hop", place="2", rule=("difference >= 0",), metric=_METRIC,
        sentence="where two passages are needed, the union of votes keeps no less of the evidence than as many passages by the sum of shares",
    ),
    _claim(
        f"{FAMILY}.union_equals_sum.one_hop", place="2", rule=("difference.low > -0.05", "difference.high < 0.05"), metric=_METRIC,
        sentence="where one passage is needed, the union of votes and the sum of shares keep as much of the evidence",
    ),
    *_answers(),
)  # fmt: skip

EXPERIMENTS = (
    Experiment(
        "cafe-world", "Evidence and answers over the micro-world's passages, with one hop and with two", CLAIMS,
        "headwise_lab.claims.cafe.measure:measure",
        Minutes(lab=1.5, real=None, quick_lab=0.5),
    ),
)  # fmt: skip
