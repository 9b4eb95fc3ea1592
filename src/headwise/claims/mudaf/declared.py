"""Claims of the card `mudaf` about training with heads, registered before their numbers.

A first run in the lab asked for two facts and was stopped after 10 of 33 trainings, before any claim was judged: models answered 2 to 11 % right,
before and after, and wrote tokens that no text holds where an answer should end (mended in `train.examples.answer_end`).
"""

from __future__ import annotations

from functools import partial

from headwise.claims.claim import Claim

PARTS = "heads are found, examples are trained on, and judged, on three parts without a common question"
CONTROLS = "plain fine-tuning with equal steps on the same examples in the same order; random heads of the same layers, trained the same way"
REAL = (
    "training: 200 of 300 NQ questions with six passages (BM25, from the questions of the same part) and 100 of hotpotqa_train together; judged: 40 "
    "of NQ with ten passages (from these 40), 20 of hotpotqa_dev with ten, two of them gold; passages of at most 40 words"
)
SHORTER = (
    "before the ledger passages had up to 110 words and 100 questions were judged; cut to 40 and 60 so that the measurement takes an hour, before "
    "any of its numbers were seen"
)
GATE = ("plain_right >= 0.2",)
GATED = "Gate: exact match after plain fine-tuning"


def training(name: str, data: str, several: bool = False) -> tuple[Claim, ...]:
    """The claims about one set of questions.

    Args:
        name: Of the set: the second part of the keys.
        data: What it is.
        several: Whether several models are judged together: questions are paired, the mean over models counts, and every model must agree in sign.
            Of gates and of numbers without a pair the worst model's counts.
    """
    same, models = (("same_sign >= 1",), "; mean over the models; same_sign: share of them with the sign of the mean") if several else ((), "")
    tries = "" if several else SHORTER
    claim = partial(Claim, card="mudaf", data=f"{data}; {PARTS}", controls=CONTROLS, tries=tries)
    pair = partial(claim, gate=GATE, control="plain_right")
    worst = " (the worst model's)" if several else ""
    return (
        claim(
            f"mudaf.{name}.not_copy", place="1", sentence="heads of multi-document QA are not the heads that copy needles",
            metric=f"Jaccard index of the 8 best by MDQA F1 and by copy score, and Spearman correlation of the two scores{worst}. Gate: F1 of the "
            "best head, needle recall",
            rule=("jaccard <= 0.6", "spearman < 0.8"), gate=("best_f1 >= 0.3", "recall >= 0.5"), control="spearman",
        ),
        claim(
            f"mudaf.{name}.focus", place="2", sentence="the contrastive loss focuses heads of middling score",
            metric="F1 on judged questions of the heads of rank 9 to 16: trained so, minus after plain fine-tuning, paired by question" + models,
            rule=("gain >= 0.2", "gain.low > 0", *same), control="plain",
        ),
        claim(
            f"mudaf.{name}.weak", place="3", sentence="weak heads can be taught, but stay below strong ones",
            metric="F1 of the 8 lowest heads after their training minus before; strong_above: F1 of the 8 best heads after theirs, minus it" + models,
            rule=("gain.low > 0", "strong_above > 0", *same), control="strong_above",
        ),
        pair(
            f"mudaf.{name}.answers", place="4", sentence="answers with eight and more distractors are no worse than after plain fine-tuning",
            metric=f"exact match, 8 best heads trained, minus plain fine-tuning, paired by question{models}. {GATED}",
            rule=("difference.low >= -0.05", *same),
        ),
        pair(
            f"mudaf.{name}.better", place="4, headline", sentence="answers with eight and more distractors are better than after plain fine-tuning",
            metric=f"exact match, 8 best heads trained, minus plain fine-tuning, paired by question{models}. {GATED}",
            rule=("difference.low > 0", *same), paper="better on long-context QA, most of all with several documents (tables not read)",
        ),
        pair(
            f"mudaf.{name}.not_random", place="evidence 4", sentence="those answers are better than after the same training of random heads",
            metric=f"exact match, 8 best heads trained, minus 8 random heads of their layers trained, paired by question{models}. {GATED}",
            rule=("difference.low > 0", *same),
        ),
        pair(
            f"mudaf.{name}.causal", place="6", sentence="the trained heads matter more for answers than before",
            metric="loss of exact match when the 8 best heads are ablated (zero, from the last prompt token on), after MuDAF minus after plain "
            f"fine-tuning, paired by question{models}; plain_loss: the loss after plain fine-tuning. {GATED}",
            rule=("difference.low > 0", *same), control="plain_loss",
        ),
        claim(
            f"mudaf.{name}.text", place="ours", sentence="plain text is not forgotten",
            metric=f"perplexity of novels over that after plain fine-tuning{worst}", rule=("ratio <= 1.05",),
        ),
    )  # fmt: skip


_exact = partial(
    Claim, card="mudaf", data="questions over passages of novels, one of which holds a needle; heads spread over the layers, nothing is looked for"
)
EXACT = (
    _exact(
        "mudaf.exact.per_head", place="7", sentence="the loss per head trains keys; copied into a new tensor, as in the released code, none",
        metric="largest gradient of a chosen head's own loss on the projection of keys of its layer, of the head where it is smallest; detached: the "
        "largest one where the losses of the heads are copied, none by construction",
        rule=("smallest > 0", "detached == 0"), control="detached",
    ),
    _exact(
        "mudaf.exact.mass", place="7 (notes)", sentence="the loss with pool lse is InfoNCE on the attention masses of the passages",
        metric="largest difference of the loss of a question from that of measured attention masses, in nats, over questions and heads none of whose "
        "masses is rounded to 0; compared: their share", gate=("compared >= 0.5",),
        rule=("largest_difference <= 0.001",), control="loss",
    ),
    _exact(
        "mudaf.exact.layers", place="7 (notes)", sentence="a pass that ends at the deepest chosen head trains as a whole pass does",
        metric="largest difference of a gradient, over the largest gradient; layers: share of the layers that ran",
        rule=("largest_difference <= 0.0001",), control="layers",
    ),
    _exact(
        "mudaf.exact.resume", place="ours", sentence="a training that was killed and goes on ends with the weights of one that was not",
        metric="largest difference of a trained weight; learnt: largest trained weight of a factor that begins at 0",
        rule=("largest_difference == 0", "learnt > 0"), control="learnt",
    ),
)  # fmt: skip
FIRST = Claim(
    "mudaf.lab.question_first", "mudaf", "8", "trained with the question behind the passages, models answer worse with the question in front",
    "exact match with the question behind the passages minus in front of them, after plain fine-tuning and after MuDAF",
    ("after_plain > 0", "after_mudaf > 0"), data="micro-world, as the claims mudaf.lab", controls="plain fine-tuning",
)  # fmt: skip
