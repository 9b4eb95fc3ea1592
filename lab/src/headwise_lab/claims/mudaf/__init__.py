"""Claims of MuDAF on three lab models, which are judged together: questions are paired, the mean over models counts."""

from __future__ import annotations

from functools import partial

from headwise.claims.claim import Claim
from headwise.claims.experiment import Experiment, Minutes
from headwise.claims.mudaf.declared import CONTROLS, GATE, GATED, PARTS, training

DATA = "micro-world, a fact in one of 4 to 6 passages in training, of 11 (215 words at most) when judged; 100 questions; mean of three models"

_claim = partial(Claim, card="mudaf", data=f"{DATA}; {PARTS}", controls=CONTROLS)
MORE = (
    _claim(
        "mudaf.lab.more_heads", place="5", sentence="more heads are not better", gate=GATE, rule=("all_above_best <= 0",), control="best_right",
        metric="mean exact match over models: all heads trained minus the best K of 1, 2, 4, 8. " + GATED,
    ),
    _claim(
        "mudaf.lab.lse", place="ours", sentence="the loss on attention mass raises the F1 of the heads that it trains", control="plain",
        metric="F1 on judged questions of the 8 best heads, trained with pool=lse, minus after plain fine-tuning, paired by question; mean over the "
        "models; same_sign: share of them with the sign of the mean",
        rule=("gain.low > 0", "same_sign >= 1"), tries="added when the other claims had been judged: the published loss had not raised F1",
    ),
    _claim(
        "mudaf.lab.alpha", place="9", sentence="with alpha 1 the heads are best and the answers worst", rule=("f1_above > 0", "right_above < 0"),
        metric="means over models at alpha 1 (8 best heads): F1 minus the highest at alpha 0, 0.3, 0.7; exact match minus the lowest there",
        control="right_above",
    ),
)  # fmt: skip

EXPERIMENTS = (
    Experiment(
        "mudaf-lab", "Heads of several scores are trained and judged on three lab models together (run it on world-6m)",
        (*training("lab", DATA, several=True), *MORE), "headwise_lab.claims.mudaf.measure:measure", Minutes(lab=30, real=None, quick_lab=6),
        needs="the extra train (peft, accelerate)",
    ),
)  # fmt: skip
