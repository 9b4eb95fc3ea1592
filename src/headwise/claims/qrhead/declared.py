"""Claims of the card `qrhead` about ranking real passages, registered before their numbers."""

from __future__ import annotations

from functools import partial

from headwise.claims.claim import Claim

SETS = {
    "hotpotqa": "60 questions of HotpotQA's development part, their ten paragraphs (two gold)",
    "nq": "60 questions of NQ: the gold passage and nine others by BM25",
    "dbpedia": "40 queries of DBpedia-Entity: up to three relevant abstracts, the others by BM25",
}
NEXT_SETS = {
    "hotpotqa": "questions 61 to 100 of HotpotQA's development part, their ten paragraphs (two gold)",
    "nq": "the next 60 questions of NQ: the gold passage and nine others by BM25",
}
_FOUND = (
    "16 query heads (lab models: 4), found on 96 training questions of HotpotQA; copy heads: 8 detection needles, 3 depths; passages are cut to "
    "60 words (lab models: 8 passages of 28 words); test: "
)
_RANDOM = "999 layer-matched draws outside of the chosen heads, 999 draws of any layer, the weakest heads, BM25, chance"
_METRIC = (
    "nDCG@10 of both rankings, difference paired by question. Gate: nDCG@10 above chance, of query heads or of all heads, whichever is surer"
)
_CHANCE, _NEEDLES = "above_chance.low > 0", "needles_solved >= 0.5"
_ORDER = {  # the order registered is query heads > all heads > copy heads > random heads
    "selected_above_all": "query heads rank passages better than all heads together",
    "selected_above_copy": "query heads rank passages better than as many copy heads",
    "selected_above_random": "query heads rank passages better than random heads of the same layers",
    "all_above_copy": "all heads together rank passages better than the copy heads",
    "copy_above_random": "copy heads rank passages better than random heads of the same layers",
}
_SECOND = (
    "second measurement, on questions that the first has not used, after query scores had learnt to leave out the first token of the prompt; how "
    "that is done was chosen on 8 training questions"
)


def _family(family: str, sets: dict[str, str], tries: str = "") -> tuple[Claim, ...]:
    """Which rankings are better than which on each set, and the claims without a partner in every set."""
    claim = partial(Claim, card="qrhead", tries=tries)
    above = partial(claim, rule=("difference > 0",), tested=True, effect="chosen", control="control")
    order = tuple(
        above(
            f"{family}.{name}.{data}", place="1-2, headline", sentence=told, metric=_METRIC,
            gate=(_CHANCE, _NEEDLES) if "copy" in name else (_CHANCE,), data=_FOUND + held, controls=_RANDOM,
        )
        for data, held in sets.items() for name, told in _ORDER.items()
    )  # fmt: skip
    return (
        *order,
        claim(
            f"{family}.calibration_helps_all.hotpotqa", place="3", rule=("difference > 0",), tested=True, control="control",
            sentence="subtracting the values of a query without content improves the ranking by all heads",
            metric="nDCG@10 by all heads, calibrated minus raw, paired by question; control: the same difference for the query heads",
            data=_FOUND + sets["hotpotqa"], controls="the same difference for the query heads",
        ),
        claim(
            f"{family}.few_labels.hotpotqa", place="4", control="halves_share",
            sentence="32 labelled questions are enough: disjoint label sets choose nearly the same heads, which rank equally well",
            metric="mean share of the chosen heads that two of three disjoint label sets have in common; spread: largest difference of their nDCG@10",
            rule=("shared >= 0.75", "spread < 0.02"), data=_FOUND + sets["hotpotqa"],
            controls="overlap by chance, and of random halves of all labels",
        ),
        claim(
            f"{family}.rules_agree.hotpotqa", place="7",
            sentence="the five rules for a query score choose heads that rank equally well",
            metric="largest difference in nDCG@10 between the heads of any rule and those of calibrated mass",
            rule=("largest_difference <= 0.03",), data=_FOUND + sets["hotpotqa"],
            controls="least share of heads in common with those of calibrated mass",
        ),
        claim(
            f"{family}.transfer.nq", place="6, headline", gate=(_CHANCE,),
            sentence="heads found on HotpotQA rank NQ's passages as well as heads found on NQ",
            metric="nDCG@10 on NQ, heads found on 32 questions of HotpotQA minus heads found on 32 other questions of NQ, paired by question",
            rule=("difference.low > -0.05",), data="32 training questions of HotpotQA; 32 other questions of NQ; test: " + sets["nq"],
            controls="the same number of labels and heads",
        ),
    )  # fmt: skip


RANK = (*_family("rank", SETS), *_family("rank-start", NEXT_SETS, _SECOND))
