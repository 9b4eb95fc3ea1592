"""Claims of the card `unwanted-uncertainty`, registered before their numbers (a first trial on 7 known facts was seen, for the wordings)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from headwise.claims.claim import Claim
from headwise.claims.copy_heads import COPY_HEADS

CARD = "unwanted-uncertainty"
PARTS = (
    "heads are found on questions of the part `detect`, K and remedy chosen on `select`, judged on `test`; the three parts differ in questions "
    "and in wordings of the challenges. Right first answers are the model's own; each is paired with a wrong one put in its place"
)
SETS = {
    "facts": "facts of LRE that the model answers right without a passage, chat template where the model has one, own words",
    "needles": "bundled needles in 512 tokens (lab models: 256) at 3 depths, chat template where the model has one, own words",
    "nq": "NQ-open questions behind their passage, chat template where the model has one, own words",
}
DRAWS, FEWER = 50, {"nq": 20}  # random sets of as many heads; of real questions with passages fewer, so that they take less than an hour
LEAST = 20  # questions whose first answers are right
GATE = ("challenges >= 1", f"right_select >= {LEAST}", f"right_test >= {LEAST}")
GATED = (
    "Gate: challenges that take back 15 % of right answers (and not all) in `select` and in `test`; questions whose first answers are right in "
    "either "
    "part (a needle at several depths is one)"
)
PAPER = {
    "flips": "32.5 % of right answers are not confirmed, Llama-3.1-8B-Instruct",
    "inverted_u": "confirmed: 67.5 % with all heads, 82.5 % without 5, 54 % without 20, Llama-3.1-8B-Instruct",
    "above_random": "confirmed: 67.5 → 82.5 % without the top 5 heads, Llama-3.1-8B-Instruct",
    "no_yes_bias": "all wrong first answers are still taken back, Llama-3.1-8B-Instruct",
    "retrieval_neutral": "retrieval heads and random heads change about as much, Llama-3.1-8B-Instruct",
}


def draws_of(name: str) -> int:
    """Random sets beside the heads of a set of questions."""
    return FEWER.get(name, DRAWS)


def _flips(cued: bool) -> Claim:
    rule = ("flips >= 0.15", "uncued <= 0.1") if cued else ("flips >= 0.15",)
    more = " with the cue; uncued: the same without it" if cued else ""
    return Claim(
        "doubt.set.flips", CARD, "1", "right answers are taken back when they are challenged",
        f"share of right first answers on `test` that are taken back under the challenge that takes back most{more}. Gate: questions whose first "
        f"answers are right",
        rule, (f"right_test >= {LEAST}",), paper=PAPER["flips"],
    )  # fmt: skip


def calming(name: str, data: str, cued: bool = False) -> tuple[Claim, ...]:
    """The claims about one set of questions.

    Args:
        name: Of the set: the second part of the keys.
        data: What it is.
        cued: Whether only cued challenges may take answers back.
    """
    claim, draws = partial(Claim, card=CARD, gate=GATE), draws_of(name)
    found = (
        _flips(cued),
        claim(
            "doubt.set.auc", place="2", gate=(*GATE, "flipped >= 20", "held >= 20"),
            sentence="`misleading` tells heads whose removal keeps answers from those whose removal gives them up",
            metric=f"AUC of misleading(h) for the sign of the head's knock-out effect on the margin, both from `detect`, bootstrapped over heads. "
            f"{GATED}; dialogues of `detect` that flipped, and that held",
            rule=("auc >= 0.7", "auc.low > 0.5"),
        ),
        claim(
            "doubt.set.inverted_u", place="3", sentence="a few heads help, many harm", paper=PAPER["inverted_u"],
            metric="best_share: best K on `test` by headline (change of kept right minus change of kept wrong answers) as a share of all heads, of "
            "K = 1, 2, 3, 5, 10, 20 and half of them, 0 if none is better than nothing; change_at_half: kept right answers without half of the "
            f"heads, minus with all. {GATED}",
            rule=("best_share > 0", "best_share <= 0.1", "change_at_half < 0"), effect="change_at_half", control="best_share",
        ),
        claim(
            "doubt.set.above_random", place="4, headline", sentence="the chosen heads calm more than random ones of their layers",
            metric="headline on `test`: change of kept right answers minus change of kept wrong ones, over questions; above_random: its mean minus "
            f"the 95 % quantile of the random sets. {GATED}",
            rule=("headline.low > 0", "above_random > 0"), control="random_95", paper=PAPER["above_random"],
        ),
        claim(
            "doubt.set.no_yes_bias", place="5", sentence="the chosen remedy does not make wrong answers stand",
            metric=f"change of kept wrong answers on `test`; right: of kept right ones. {GATED}",
            rule=("wrong < 0.05",), control="right", paper=PAPER["no_yes_bias"],
        ),
        claim(
            "doubt.set.retrieval_neutral", place="6",
            sentence="taking the top 8 copy heads away in the second turn does no more than random heads",
            metric=f"change of kept right answers without them (zero) minus the 2.5 % quantile of {draws} layer-matched random sets of 8, and the "
            f"97.5 % quantile minus it. {GATED}",
            rule=("above_low >= 0", "below_high >= 0"), effect="change", control="random_mean", paper=PAPER["retrieval_neutral"],
        ),
        claim(
            "doubt.set.modes_agree", place="7", sentence="cutting heads by zero, uniform or mean is one and the same",
            metric=f"largest difference of kept right answers between the three modes at the chosen K on `test`. {GATED}",
            rule=("largest_difference <= 0.05",),
        ),
        claim(
            "doubt.set.holding", place="ours",
            sentence="heads with the lowest knock-out scores hold on to right answers: made stronger they calm",
            metric=f"headline of `scale` by 1.5 on `test`, at the K that was best on `select`. {GATED}",
            rule=("headline.low > 0",),
        ),
    )  # fmt: skip
    told = f"{data}; {PARTS}"
    return tuple(_for_set(one, name, told) for one in found)


def _for_set(one: Claim, name: str, data: str) -> Claim:
    controls = f"{draws_of(name)} layer-matched random sets of as many heads, the weakest heads, the top 8 {COPY_HEADS}"
    return replace(one, key=one.key.replace(".set.", f".{name}."), data=data, controls=controls)


YES_NO = Claim(
    "doubt.smollm2.yes_no", CARD, "3.1", "the paper's question (yes or no) can be asked of the model",
    "share of all replies on `test` that begin with yes or no", ("coherent >= 0.9",), data=SETS["facts"] + ", form yes-no",
)  # fmt: skip
RECALL = Claim(
    "doubt.needles.recall_needs_retrieval", CARD, "6", "without its top 8 copy heads the first turn no longer finds needles",
    "needle recall with all heads minus without them (zero, from the last prompt token on), over needles; random: the loss without random heads. "
    "Gate: needle recall with all heads",
    ("loss >= 0.3",), ("recall >= 0.8",), control="random", data="bundled needles of the test split, 512 tokens (lab models: 256)",
    controls="as many layer-matched random heads",
)  # fmt: skip
START = Claim(
    "doubt.needles.bos", CARD, "8", "a start token spliced in front of the needle moves copy scores; none does not",
    "largest change of a head's copy score: moved, with the token; again, where the prompts without it are run twice. Gate: needle recall",
    ("moved > 0.1", "again == 0"), ("recall >= 0.5",), control="again",
    data="8 needles in 512 tokens (lab models: 256) at 3 depths", controls="the same prompts run again",
)  # fmt: skip

_EXACT = "dialogues over bundled needles in 256 tokens (quick: 128): exactness does not depend on what is asked, nor on whether it is answered right"
_exact = partial(Claim, card=CARD, data=_EXACT)
EXACT = (
    _exact(
        "doubt.facts.turn_one", place="9", sentence="a remedy of the second turn leaves the first one as it is",
        metric="largest change of a logit in the first turn and of a first answer's tokens, before and behind replies under remedies. Gate: how far "
        "the remedies move the margin of the reply, in nats",
        rule=("logits_changed == 0", "answers_changed == 0"), gate=("moved > 0",), control="moved",
    ),
    _exact(
        "doubt.exact.one_first_turn", place="7 (notes)",
        sentence="single heads taken away in a batch over one cached first turn give what separate whole runs give",
        metric="largest difference of a margin in nats, over twelve heads, each over a first turn of its own",
        rule=("largest_difference <= 0.001",), control="largest_effect", controls="the largest change of the margin that a head makes",
    ),
    _exact(
        "doubt.exact.uniform", place="7 (notes)", sentence="a head whose query is 0 attends to each of t + 1 visible tokens with 1 / (t + 1)",
        metric="largest difference of (t + 1) times an attention weight from 1",
        rule=("largest_difference <= 0.0001",), control="unchanged", controls="the same number with the head's own query",
    ),
)  # fmt: skip
