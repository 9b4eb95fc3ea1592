"""Claims of the card `rhio`, registered before their numbers: unfaithful answers, tuning on both kinds, contrast, and a reader by heads.

Every model is first tuned on references (`start`), because a base model writes off-task text; its retrieval heads (copy score, the best 10 %) are
taken away to make unfaithful answers, and all trainings go on from there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from headwise.claims.claim import Claim

TRIES = (
    "second try. In the first one on smollm2 (100 steps of 4 answers; new tokens that began 0.1 standard deviations apart and learnt at the "
    "adapter's rate) the model did not tell the tokens apart: correction 0.30 behind [POS], 0.28 behind [NEG], 0.56 after plain fine-tuning. The "
    "tokens now begin apart and have a rate of their own, and steps were doubled; chosen on 48 micro-world questions that no claim uses"
)
SHORTER = "; before the third passages were cut from 110 to 60 words, so that it takes less than an hour"
CONTROLS = (
    "plain fine-tuning on the faithful answers of the same pairs, seen as often; unfaithful answers without random heads of the same layers (one "
    "draw), and "
    "references of other questions (swap); where they leave fewer pairs than the heads, these are seen more often"
)
REAL = (
    "NQ-open oracle, passages of 60 words: 300 questions to train on; of 400 others at most 40 that `start` answers from memory "
    "(resistance, agreement) and 80 that it does not (correction)"
)
PAIRS = ("pairs >= 100", "gap >= 0.1")
GAINS = "mean faithfulness 72.98 → 82.35 (RHIO), 80.03 without contrast, GroundBench, Llama-2-7B"


def claimed(name: str, data: str, several: bool = False) -> Callable[..., Claim]:
    """`Claim` for one set of questions; of several models every one must agree in sign where numbers are paired (`same_sign`, a share)."""

    def claim(
        key: str, place: str, sentence: str, metric: str, rule: tuple[str, ...], gate: tuple[str, ...], paired: bool = True, **more: str
    ) -> Claim:
        same = ("same_sign >= 1",) if several and paired else ()
        told = "; mean over the models; same_sign: share of them with the sign of the mean" if same else ""
        return Claim(
            f"rhio.{name}.{key}", "rhio", place, sentence, metric + told, (*rule, *same), gate, paired,
            data=data, controls=CONTROLS, tries=TRIES if several else TRIES + SHORTER, **more,
        )  # fmt: skip

    return claim


def both(name: str, data: str, measure: str, start: str, several: bool = False) -> tuple[Claim, ...]:
    """Claims that are tested on every set.

    Args:
        name: Of the set: the second part of the keys.
        data: What it is.
        measure: What is measured: `support` or `correction`.
        start: Bound of the gate on what `start` does.
        several: Whether several models are judged together.
    """
    claim = claimed(name, data, several)
    gate = (start, *PAIRS)
    gated = (
        f" Gate: {measure} of `start`, pairs that are left, and by how much references are better supported than unfaithful answers"
        f"{' (the worst model counts)' if several else ''}"
    )
    above, shown = ("difference > 0",), {"effect": "chosen", "control": "control"}
    return (
        claim("tokens", "3", "the control tokens decide whether answers are faithful", f"{measure} behind [POS] minus behind [NEG].{gated}",
              ("difference >= 0.3",), gate, **shown),
        claim("tuning", "4", "tuning on both kinds is better than plain fine-tuning",
              f"{measure} behind [POS] (alpha 0) minus plain fine-tuning.{gated}", above, gate, paper=GAINS, **shown),
        claim("decoding", "5", "self-induced decoding adds to it", f"{measure} at alpha 0.2 minus alpha 0.{gated}",
              above, gate, paper=GAINS, **shown),
        claim("whole", "5, headline", "RHIO is better than plain fine-tuning", f"{measure} at alpha 0.2 minus plain fine-tuning.{gated}",
              above, gate, paper=GAINS, **shown),
        claim("not_random", "6", "unfaithful answers without retrieval heads teach more than those without random heads",
              f"{measure} at alpha 0.2, retrieval minus random heads.{gated}; random_pairs: pairs that random heads leave",
              above, (*gate, "random_pairs >= 40"), **shown),
        claim("not_swap", "6", "unfaithful answers without retrieval heads teach more than swapped ones",
              f"{measure} at alpha 0.2, heads minus swapped answers.{gated}; swap_pairs: pairs that swapped answers leave",
              above, (*gate, "swap_pairs >= 40"), **shown),
        claim("training_free", "8", "contrast with the headless model needs no training to help",
              f"{measure} of plain fine-tuning decoded against itself without the heads (entropy) minus greedy. Gate: {measure} of `start`",
              above, (start,), **shown),
    )  # fmt: skip


_real = claimed("smollm2", REAL)
_START = "start >= 0.3"
TRAINED = (
    *both("smollm2", REAL, "correction", _START),
    _real("heads_away", "1", "without its retrieval heads the model answers less from the passage than without random heads",
          "share of training questions answered right without random heads minus without retrieval heads. Gate: correction of `start`",
          ("difference > 0",), (_START,), effect="chosen", control="control"),
    _real("closed", "4 (related code)", "contrast with the question alone (CAD) helps",
          "correction of plain fine-tuning at alpha 0.5 minus greedy. Gate: correction of `start`",
          ("difference > 0",), (_START,), effect="chosen", control="control"),
    _real("resistance", "ours", "who trusts passages more resists wrong ones less",
          "resistance of plain fine-tuning minus that of RHIO at alpha 0.2. Gate: known questions, share of them resisted after plain fine-tuning, "
          "pairs that are left with their gap", ("difference > 0",), ("known >= 20", "resisted >= 0.2", *PAIRS), effect="chosen", control="control"),
)  # fmt: skip

_reader = partial(
    Claim, card="rhio", gate=("supported >= 100", "unsupported >= 100"),
    data="ExpertQA, test part of the random split: claims that were judged on evidence; the 8 best heads by copy score, from needles",
    controls="20 draws of layer-matched random heads, shared words, length",
)  # fmt: skip
_AUC = "area under the ROC curve for supported sentences, interval over questions"
READER = (
    _reader("reader.smollm2.above_random", place="evidence (2605.07209)", effect="auc", control="random", rule=("above_random > 0",),
            sentence="copying by retrieval heads of a small reader tells supported sentences better than random heads do",
            metric=f"{_AUC}: of copying; above_random: minus the best of 20 draws (p of the rank 0.048). Gate: sentences of either kind"),
    _reader("reader.smollm2.above_words", place="evidence (2605.07209)", effect="auc", control="words", rule=("low_above_words > 0",),
            sentence="and better than shared words",
            metric=f"{_AUC}: of copying; low_above_words: the lower end minus the area of shared words. Gate: sentences of either kind"),
    _reader("reader.smollm2.attention", place="evidence (2605.07209)", effect="auc", control="random", rule=("above_random > 0",),
            sentence="attention to the documents tells them better than random heads do",
            metric=f"{_AUC}: of attention; above_random: minus the best of 20 draws (p of the rank 0.048). Gate: sentences of either kind"),
)  # fmt: skip

_exact = partial(Claim, card="rhio", data="passages of novels as prompts, heads spread over the layers: exactness asks for no ability")
EXACT = (
    _exact("rhio.exact.branches", place="7 (notes)", rule=("largest_difference <= 0.001",), control="apart",
           sentence="both branches in one batch give what two separate passes give",
           metric="largest difference of a logit, over branches without heads (zero, uniform) and with another first token; apart: how far branches "
           "differ from one another"),
    _exact("rhio.exact.alpha_zero", place="5", rule=("other_tokens == 0",), control="moved",
           sentence="with alpha 0 the contrast is the model's own greedy answer",
           metric="tokens that differ from greedy ones; moved: the same with alpha 3"),
    _exact("rhio.exact.zeroed", place="7 (a)", rule=("largest_difference <= 0.001",), control="moved",
           sentence="a head that is taken away is one whose part of the output projection's input is 0",
           metric="largest difference of a logit from that of a hook on the output projection; moved: largest change that the heads make"),
    _exact("rhio.exact.new_tokens", place="3.2", rule=("largest_difference <= 0.001", "apart > 0"), control="apart",
           sentence="two new tokens leave what the model says of all others as it is, and begin apart",
           metric="largest change of an old token's logit; apart: largest difference of the two new rows of the embedding"),
)  # fmt: skip
