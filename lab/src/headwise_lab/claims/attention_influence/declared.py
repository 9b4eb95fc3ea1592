"""Claims of the card `attention-influence` that need the micro-world, registered before their numbers."""

from __future__ import annotations

from functools import partial

from headwise.claims.attention_influence.declared import ACCURACY, FOUND, GATE, LATER, SETTING, STRATA_BEFORE, claim

WORLD = FOUND + (
    "16 micro-world documents of each kind, about 150 words, test split, seed 0 (lab models: 40 documents of about 200 words)"
)
_AUC = "AUC (late references and tables against documents without references)"
_DRAWS = {
    "same": ("documents with references score above documents without, and not so by random heads of the same layers", "layer-matched draws"),
    "any": ("the same beside random heads of any layer", "draws of any layer"),
}
_REPEATS = {
    "duplicate": "a paragraph again and again scores above documents with late references",
    "boilerplate": "boilerplate scores above documents with late references",
}
_separation = partial(claim, gate=(ACCURACY,), data=WORLD, tries=SETTING)

SEPARATION = (
    *(
        _separation(
            f"influence-separation.{pool}", place="2", sentence=told, tested=True,
            metric=f"{_AUC}: of the chosen heads, and mean of the random draws. Test: paired by document, one-sided. {GATE}",
            rule=("chosen >= 0.9", "random <= 0.65"), control="random", controls=f"10 {draws} outside of the chosen heads",
        )
        for pool, (told, draws) in _DRAWS.items()
    ),
    _separation(
        "influence-separation.above_loss", place="reviews", tested=True,
        sentence="the scores separate these documents better than the plain loss of the same model does",
        metric=f"{_AUC} minus that of the lowest loss. Test: paired by document, one-sided. {GATE}",
        rule=("gain > 0",), control="loss", controls="the plain loss, lowest first",
    ),
    *(
        _separation(
            f"influence-separation.{kind}", place="3", sentence=told, tested=True, rule=("auc >= 0.9",),
            metric=f"AUC against late references; test: one-sided. {GATE}",
        )
        for kind, told in _REPEATS.items()
    ),
    _separation(
        "influence-separation.modes", place="5", sentence="three ways to ablate the chosen heads rank documents alike",
        metric=f"least Spearman of the pairs of uniform, zero and mean, over documents with and without references. {GATE}",
        rule=("least_correlation > 0.8",), data=WORLD + "; means from 12 documents of the train split",
    ),
    _separation(
        "influence-separation.mode_means", place="5", sentence="three ways to ablate the chosen heads give different means",
        metric=f"difference of the mean scores of the two modes (uniform, zero, mean) that are nearest, paired by document. {GATE}",
        rule=("nearest.low > 0",), control="uniform", controls="the mean score by uniform attention",
        data=WORLD + "; means from 12 documents of the train split", tries=LATER,
    ),
)  # fmt: skip

_LONG = FOUND + "80 micro-world documents with late references, "
LENGTHS = (
    claim(
        "influence-lengths.rises", place="4", sentence="a document that is cut to fewer tokens scores lower",
        metric="least difference of mean scores between neighbours of 64, 128, 256 and 512 tokens (as far as the model reads), paired by "
        f"document. {GATE}",
        gate=(ACCURACY,), rule=("least_step > 0",), control="shortest", controls="the mean score at 64 tokens",
        tries=f"{LATER}; until 2026-11-30 the longest documents had about 320 tokens where 512 were meant",
        data=_LONG + "each cut to every length",
    ),
    claim(
        "influence-lengths.strata", place="4", sentence="inside strata of length, scores and length have little in common",
        metric=f"1 minus the size of Spearman's correlation of score and length inside five strata (mean) over that without strata. {GATE}; the "
        f"latter",
        gate=(ACCURACY, "before >= 0.2"), rule=("removed > 0.8",), control="before", controls="the correlation without strata", tries=f"{LATER}. "
        f"{STRATA_BEFORE}",
        data=_LONG + "of 45 to 270 words",
    ),
)  # fmt: skip

_trained = partial(
    claim, place="10", gate=(ACCURACY,), tries=LATER,
    data=FOUND + "a corpus of a million tokens, half of them micro-world documents of the training split without repetitions, half book passages; "
    "a fifth of each domain's tokens is seen twice; models of 1.1M parameters, three seeds; 100 documents of the test split of each of two kinds",
)  # fmt: skip
_RETRIEVAL = "mean loss (nats) of the values that documents with late references and tables say again"
TRAINING = (
    _trained(
        "influence-training.above_random", tested=True,
        sentence="the chosen fifth lowers the loss of what a text says again more than a random fifth does",
        metric=f"{_RETRIEVAL}: random fifth minus chosen fifth, mean of the seeds, paired by text; least_seed: in the worst seed. {GATE}",
        rule=("gain > 0", "least_seed > 0"), control="longest", controls="the longest fifth in place of the chosen one",
    ),
    _trained(
        "influence-training.above_longest", tested=True, sentence="the chosen fifth lowers this loss more than the longest fifth does",
        metric=f"{_RETRIEVAL}: longest fifth minus chosen fifth, mean of the seeds, paired by text; least_seed: in the worst seed. {GATE}",
        rule=("gain > 0", "least_seed > 0"), control="random", controls="the random fifth in place of the longest one",
    ),
    _trained(
        "influence-training.more_right", tested=True, sentence="the chosen fifth brings more right answers than a random fifth",
        metric=f"share of such values whose tokens are first choices: chosen fifth minus random fifth, mean of the seeds, paired by text. {GATE}",
        rule=("gain > 0",), control="longest", controls="the longest fifth in place of the chosen one",
    ),
)  # fmt: skip
