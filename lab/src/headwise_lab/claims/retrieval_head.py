"""Claims of the card `retrieval-head` about the micro-world and about lab models beside one another."""

from __future__ import annotations

from functools import partial

from headwise.claims.claim import Claim
from headwise.claims.experiment import Experiment, Minutes

_KNOWN = "the lab models had been measured before this rule was written into the ledger; the rule is the one of the page of properties"
_FOUND = "heads by copy score: 16 needles of the half `detect` x 128, 256 and 432 tokens x 5 depths"
_WORLD = (
    f"{_FOUND}; 40 questions of the micro-world's test split per task, 80 without a text; K = 8 of 64 heads (nearest to 100 of 1,024); mode zero, "
    "scope answer"
)
_DRAWS = "10 layer-matched and 10 any-layer draws, the weakest heads"
_RIGHT = "right: share of the questions that the whole model answers right"
_claim = partial(Claim, card="retrieval-head", tries=_KNOWN)
_asked = partial(_claim, data=_WORLD, controls=_DRAWS)
_steps = partial(_asked, gate=("right >= 0.5",))
_QUARTER = (
    "over_quarter: loss on facts minus a quarter of the loss on written steps; difference: loss on written steps minus loss on facts, items of both "
    f"resampled; {_RIGHT} (facts), steps_right: the same of written steps"
)
_memory = partial(
    _asked, place="10", gate=("right >= 0.5", "steps_right >= 0.5"), rule=("over_quarter <= 0", "difference.low > 0"), effect="loss",
    control="steps_loss", metric=_QUARTER, paper="answer only (MMLU, MuSiQue): hardly change",
)  # fmt: skip

WORLD = (
    _steps(
        "heads-world.steps", place="10; fig. 10", sentence="Two written steps about a text need the copy heads.", rule=("left < 0.5",), tested=True,
        metric=f"left: share right without the top K over that of the whole model; p: sign flips against the mean layer-matched draw; {_RIGHT}",
        control="random_left", paper="GSM8K with written steps, 100 heads masked: about 45 to a few per cent",
    ),
    *(
        _steps(
            f"heads-world.steps.{kind}", place="10", sentence=f"Random heads ({what}) cost written steps less.", tested=True,
            rule=("over_third <= 0",), effect="loss", control="top_loss",
            metric=f"over_third: loss of the mean draw minus a third of the top heads' loss, in share right; p: sign flips over questions; {_RIGHT}",
        )
        for kind, what in (("layer", "of the same layers"), ("any", "of any layer"))
    ),
    _steps(
        "heads-world.steps.weakest", place="10", sentence="Written steps do not need the weakest heads.", rule=("left >= 0.5",), control="top_left",
        metric=f"left: share right without the K weakest heads over that of the whole model; {_RIGHT}",
    ),
    _asked(
        "heads-world.direct", place="10", sentence="Direct answers to the same questions lose a smaller share than written steps.",
        gate=("right >= 0.3", "steps_right >= 0.5"), rule=("difference > 0",), effect="kept", control="steps_kept",
        metric=f"difference: share kept without the top K of direct answers minus that of written steps; {_RIGHT} directly. Both need the text",
    ),
    _memory("heads-world.memory", sentence="Facts known by heart hardly need the copy heads."),
    _memory("heads-world.memory.everywhere", sentence="Facts known by heart hardly need the copy heads, ablated at every position."),
    _asked(
        "heads-world.memory.random", place="10", sentence="Facts known by heart lose no more without the copy heads than without random ones.",
        gate=("right >= 0.5",), rule=("worse == 0",), effect="difference", control="random",
        metric="difference: share right without the top K minus that without a layer-matched draw; worse: 1 if it is below 0 with a sign-flip p of "
        f"at most 0.05; {_RIGHT}",
    ),
    _asked(
        "heads-world.passage", place="10", sentence="Following a passage against memory needs the copy heads.", gate=("follows >= 0.5",),
        rule=("left < 0.5", "memory_gain > 0"), tested=True, control="random_left",
        metric="follows: share of the whole model's answers that follow the passage; left: that share without the top K over that of the whole "
        "model; memory_gain: answers from memory without the top K minus those of the whole model; p: sign flips against the mean layer-matched "
        "draw",
    ),
)  # fmt: skip

_PEARSON = "Pearson correlation of the score maps of two models on the same prompts, interval over needles"
_pair = partial(
    _claim, data=_FOUND, control="shuffled", controls="split-half ceiling; heads of one model shuffled inside their layers"
)
_STRANGE = ("size < 0.3",)  # chance correlations of 64 heads have a standard deviation of 0.13, so the paper's 0.1 cannot be asked of them
MODELS = (
    _pair(
        "heads-models.extended", place="property 3; 6", sentence="A model that is continued on longer contexts uses the heads of its base.",
        metric=f"{_PEARSON}; of all pairs of base and continuation the least", rule=("pearson > 0.8",), paper="over 0.8 (0.84 to 0.96)",
    ),
    _pair(
        "heads-models.other_seed", place="property 3; 6", sentence="A model of the same recipe from another seed uses other heads.", rule=_STRANGE,
        metric=f"{_PEARSON}; size: without its sign, of all pairs the largest", effect="pearson", paper="across families: below 0.1",
    ),
    _pair(
        "heads-models.other_family", place="property 3; 6", sentence="A model of another architecture uses other heads.", rule=_STRANGE,
        metric=f"{_PEARSON}; size: without its sign, of all pairs the largest", effect="pearson", paper="across families: below 0.1 (-0.012 to "
        "-0.001)",
    ),
    _pair(
        "heads-models.own_lengths", place="6", sentence="In contexts that its base cannot take a continued model uses the heads of short ones.",
        metric=f"{_PEARSON}, here of one model in long and in short contexts; gate: least share of solved runs of both", gate=("solved_share >= "
        "0.5",),
        rule=("pearson > 0.8",),
    ),
)  # fmt: skip

STORIES = (
    _claim(
        "heads-stories.none", place="ours", sentence="A model that was trained on stories only has no retrieval heads, and detection says so.",
        metric="found: heads over 0.1 by detection; forced_over: the same with the gold answer taken as what the model says; forced_max: highest "
        "score",
        rule=("found == 0", "forced_over == 0"), effect="forced_max", control="solved", data="stories260K; 16 needles, 128 tokens, 5 depths",
    ),
)  # fmt: skip

_HERE = "headwise_lab.claims"
EXPERIMENTS = (
    Experiment(
        "heads-world", "Written steps, direct answers, facts and contradicted facts of the micro-world without the heads that copy", WORLD,
        f"{_HERE}.world_questions:measure", Minutes(lab=1, real=None, quick_lab=0.5),
    ),
    Experiment(
        "heads-models", "Whether related lab models use the same heads", MODELS, f"{_HERE}.related:measure",
        Minutes(lab=0.8, real=None, quick_lab=0.6),
    ),
    Experiment(
        "heads-stories", "Negative control: a trained model that cannot retrieve", STORIES, f"{_HERE}.stories:measure",
        Minutes(lab=0.3, real=None, quick_lab=0.2), data=("stories260K",),
    ),
)  # fmt: skip
