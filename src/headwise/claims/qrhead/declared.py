"""Claims of the card `qrhead` about ranking real passages, exactness and work, registered before their numbers."""

from __future__ import annotations

from functools import partial

from headwise.claims.claim import Claim
from headwise.claims.copy_heads import COPY_HEADS

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
    f"16 query heads (lab models: 4), found on 96 training questions of HotpotQA; {COPY_HEADS}; passages are cut to "
    "60 words (lab models: 8 passages of 28 words); test: "
)
_RANDOM = "999 layer-matched draws outside of the chosen heads, 999 draws of any layer, the weakest heads, BM25, chance"
_METRIC = (
    "nDCG@10 of both rankings, difference paired by question. Gate: nDCG@10 above chance, of query heads or of all heads, whichever is surer"
)
_CHANCE, _NEEDLES = "above_chance.low > 0", "needles_solved >= 0.5"
_LLAMA = "nDCG@10, mean of 11 sets of BEIR, 16 heads of Llama-3.1-8B"
_ANY = f"random heads of any layer; {_LLAMA}"
# name -> (sentence, the paper's numbers); the order registered is query heads > all heads > copy heads > random heads
_ORDER = {
    "selected_above_all": ("query heads rank passages better than all heads together", f"47.5 and 42.8 ({_LLAMA})"),
    "selected_above_copy": ("query heads rank passages better than as many copy heads", f"47.5 and 43.4 ({_LLAMA})"),
    "selected_above_random": ("query heads rank passages better than random heads of the same layers", f"47.5 and 37.5 ({_ANY})"),
    "all_above_copy": ("all heads together rank passages better than the copy heads", f"42.8 and 43.4: the opposite ({_LLAMA})"),
    "copy_above_random": ("copy heads rank passages better than random heads of the same layers", f"43.4 and 37.5 ({_ANY})"),
}
_SECOND = (
    "second measurement, on questions that the first has not used, after query scores had learnt to leave out the first token of the prompt; how "
    "that is done was chosen on 8 training questions"
)


_BEFORE = (
    "measured before the ledger on the same questions, with the same rules; the score was changed afterwards (it leaves out the first token of the "
    "prompt), and verdicts of selected_above_copy.nq, selected_above_all.dbpedia, few_labels and rules_agree changed with it"
)
_LABELS = " few_labels: the label sets are those of the first measurement, so their overlap had been seen"


def _family(family: str, sets: dict[str, str], tries: str) -> tuple[Claim, ...]:
    """Which rankings are better than which on each set, and the claims without a partner in every set."""
    claim = partial(Claim, card="qrhead", tries=tries)
    above = partial(claim, rule=("difference > 0",), tested=True, effect="chosen", control="control")
    order = tuple(
        above(
            f"{family}.{name}.{data}", place="1-2, headline", sentence=told, metric=_METRIC, paper=paper,
            gate=(_CHANCE, _NEEDLES) if "copy" in name else (_CHANCE,), data=_FOUND + held, controls=_RANDOM,
        )
        for data, held in sets.items() for name, (told, paper) in _ORDER.items()
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
            paper="top 64 of three disjoint sets of 128 questions share 50 to 57 heads, BEIR 49.7 to 49.9 (Llama-3.1-8B)",
        ),
        claim(
            f"{family}.rules_agree.hotpotqa", place="7",
            sentence="the five rules for a query score choose heads that rank equally well",
            metric="largest difference in nDCG@10 between the heads of any rule and those of calibrated mass",
            rule=("largest_difference <= 0.03",), data=_FOUND + sets["hotpotqa"],
            controls="least share of heads in common with those of calibrated mass",
            paper="its two released lists share 3 of 16 heads and reach 47.5 and 47.1 (BEIR, Llama-3.1-8B)",
        ),
        claim(
            f"{family}.transfer.nq", place="6, headline", gate=(_CHANCE,),
            sentence="heads found on HotpotQA rank NQ's passages as well as heads found on NQ",
            metric="nDCG@10 on NQ, heads found on 32 questions of HotpotQA minus heads found on 32 other questions of NQ, paired by question",
            rule=("difference.low > -0.05",), data="32 training questions of HotpotQA; 32 other questions of NQ; test: " + sets["nq"],
            controls="the same number of labels and heads",
            paper="BEIR 47.1 with heads found on LongMemEval, 47.5 on NQ (Llama-3.1-8B)",
        ),
    )  # fmt: skip


RANK = (*_family("rank", SETS, _BEFORE), *_family("rank-start", NEXT_SETS, f"{_SECOND}.{_LABELS}"))


def _exact() -> tuple[Claim, ...]:
    """What needs neither labelled data nor a capable model."""
    books = (
        "passages of 100 tokens from a bundled book, 1,100 tokens at most; questions of bundled needles; the four best query heads, on detection "
        "needles, of the lower three quarters of the layers"
    )
    needles = "bundled test needles as passages, six to a question"
    claim = partial(
        Claim, card="qrhead",
        tries="heads of the lower three quarters of the layers, and passages that fill the context, were chosen after a first small run, in which "
        "nothing was left out and the gate of 1,000 tokens was missed; no bound was changed",
    )  # fmt: skip
    return (
        claim(
            "query-exact.truncated_depth", place="9", rule=("largest_difference <= 0.000001",), data=books,
            sentence="scores do not change if the layers above the deepest chosen head are not computed",
            metric="largest difference in a head's attention to a passage between a pass that ends there and one over all layers",
        ),
        claim(
            "query-exact.depth_costs_its_share", place="9", rule=("excess <= 0.001",), effect="share", control="layers_share", data=books,
            sentence="reading passages up to the deepest chosen head costs its share of the layers",
            metric="share: tokens times layers as a share of a plain pass over the passages; layers_share: (deepest layer + 1) / layers; excess: "
            "their difference",
            paper="18 of 32 layers (Llama-3.1-8B, heads of LongMemEval)",
        ),
        claim(
            "query-exact.queries_share_passages", place="9", rule=("work < 1.5", "largest_difference <= 0.00001"), control="one_by_one",
            gate=("passage_tokens >= 1000",), data=books,
            sentence="twenty queries over one set of passages cost less than one and a half plain passes, and score as if asked one by one",
            metric="work: tokens times layers of reading the passages and asking 20 queries and the empty one, in plain passes over the passages; "
            "one_by_one: the same with the passages read for each query. Gate: tokens of the passages",
        ),
        claim(
            "query-exact.residual", place="8", rule=("largest_error <= 0.00001", "residual.high < 0"), effect="residual", data=needles,
            sentence="calibration over all rows behind the passages leaves a negative share of the attention of the instruction's rows to passages",
            metric="residual: the predicted rest (w - v) I, attention to all passages, mean over heads; w and v: share of the instruction in the "
            "rows of the query and of the empty one; largest_error: of the prediction of a calibrated value from its parts",
            paper="the shares differ by 0.2 to 0.4 (computed on the released prompt)",
        ),
        claim(
            "query-exact.calibration_evens_places", place="3", rule=("shrinks >= 0.3",), control="control", data=needles,
            sentence="calibration makes the score of a passage depend less on its place",
            metric="share by which the standard deviation of a passage's score over its six places shrinks, all heads; deviations are shares of the "
            "mean "
            "size of a passage's value over all heads, raw and calibrated each by its own; control: the query heads",
        ),
    )  # fmt: skip


EXACT = _exact()
TRANSFORMED = (
    Claim(
        "query-transformed.copied", "qrhead", "2",
        "on answers that stand in a passage word by word, query heads and copy heads find the passage equally well",
        "recall@1 of the four best query heads minus the four best copy heads, paired by query", ("difference.low > -0.05", "difference.high < 0.05"),
        data="queries over passages whose answers are copied",
    ),
    Claim(
        "query-transformed.transformed", "qrhead", "2",
        "on answers that a passage states in other words, query heads find the passage as well as on copied ones, and no head has a copy score",
        "change: recall@1 of the four best query heads on transformed minus copied answers; largest_copy: the largest copy score of any head",
        ("change.low > -0.05", "largest_copy < 0.05"), data="queries over passages whose answers are transformed by a table of synonyms",
    ),
)  # fmt: skip
