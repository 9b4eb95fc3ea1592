"""Claims of the card `retrieval-head` about needles and facts, registered before their numbers (family `heads`)."""

from __future__ import annotations

from functools import partial

from headwise.claims.claim import Claim

CARD = "retrieval-head"
FOUND = (
    "heads by copy score: 16 needles of the half `detect` x 512 and 1,024 tokens x 5 depths, plain template, seed 0 (lab models: 128, 256 and 432 "
    "tokens)"
)
NEEDLES = f"{FOUND}; recall: 16 needles of the half `test`, 512 tokens, depth 1/2 (lab models: 256 tokens, 3 depths)"
DRAWS = "20 layer-matched, 20 any-layer and 20 norm-matched draws, the weakest heads"
FINDS = ("recall >= 0.8",)
RECALL = "recall: mean unigram recall of the whole model"
_FACTS = (
    f"{FOUND}; LRE relations (--data), items that the whole model answers right in another wording with other examples (two-step questions: the "
    "same examples): at most 100 facts, 100 passages that contradict such facts, 40 two-step questions (capital of the country that a thing belongs "
    "to); seed 0"
)
_SECOND = (
    "two-step questions: second try. In the first the model had been asked both facts, but not both steps, in another wording; it wrote 0.40 of the "
    "capitals (direct 0.20), the gate failed, and nothing was judged"
)
_FACT_DRAWS = "K = 16 with 20 layer-matched and 20 any-layer draws and the weakest heads (the top 8 beside it); mode zero, scope answer"
_NEAR_K = "K: 16 of 270 heads, the number of 1, 2, 4, 8, 16 nearest to 5 % of all"
_HALVING = "K: the first of 1, 2, 4, 8, 16 that halves recall"
_CORRELATION = (
    "Pearson correlation of both score maps, its interval over the needles of both; gate: least share of solved runs of both sides; shuffled: mean "
    "and 95 % range with the heads of one map shuffled inside their layers"
)
_COSTS = (
    "over_third: loss of the mean random draw minus a third of the top heads' loss, in recall; halved_at: K, 0 if no number of heads halves recall; "
    "p: sign flips over needles, top heads against the mean draw"
)
_claim = partial(Claim, card=CARD)

DETECTION = (
    _claim(
        "heads.universal", place="property 1; 1", sentence="The model has heads that copy.", gate=FINDS, effect="strongest", control="over",
        metric=f"strongest: highest copy score; over: heads with a score over 0.1; gate, {RECALL} on the detection runs",
        rule=("over >= 1", "strongest > 0.5"), data=FOUND, paper="all models tested have such heads (four families)",
    ),
    _claim(
        "heads.sparse", place="property 2; 1", sentence="Few heads copy.", gate=FINDS, control="strong_share",
        metric=f"share of heads with a copy score over 0.1 (strong_share: over 0.5); gate, {RECALL} on the detection runs",
        rule=("over_share <= 0.062",), data=FOUND, paper="2.1 to 6.2 % over 0.1, 0.1 to 0.7 % over 0.5 (abstract: less than 5 %)",
    ),
    *(
        _claim(
            f"heads.intrinsic.{name}", place="property 3; 6", sentence=sentence, gate=("solved_share >= 0.5",), metric=_CORRELATION,
            rule=("pearson > 0.8",), control="shuffled", data=data, controls="split-half ceiling; heads shuffled inside their layers",
            paper="base against derived model: over 0.8 (0.84 to 0.96); across families: below 0.1 (-0.012 to -0.001)",
        )
        for name, sentence, data in (
            ("length", "At 4,096 tokens the same heads copy as at 512.",
             "16 needles x 5 depths at 512; 6 of them x depths 0.3 and 0.7 at 4,096 (lab models: 128 and 1,024)"),
            ("chat", "In the chat template the same heads copy as without.", "16 needles x 5 depths at 512, both templates (lab models: 128)"),
            ("needles", "With other needles the same heads copy.",
             "needles of the halves `detect` and `test`, 16 each, x 5 depths at 512 (lab models: 128)"),
        )
    ),
    _claim(
        "heads.dynamic", place="property 4; 5", sentence="Some retrieval heads copy in every run, others by context.", gate=FINDS, tested=True,
        metric="always_on: heads that copy in every solved run; others: the remaining heads over 0.1; difference: mean Jaccard similarity of the "
        "active sets of two runs with the same needle minus that of two runs with different needles; p: 1,000 shuffles of the needles over the "
        f"runs; gate, {RECALL} on the detection runs",
        rule=("always_on >= 1", "others >= 1", "difference > 0"), effect="difference", control="always_on", data=FOUND,
        paper="12 of 1,024 heads always on (Llama-2-7B-80K); the others in some contexts",
    ),
)  # fmt: skip

REMOVAL = (
    _claim(
        "heads.causal.recall", place="property 5; 2", sentence="Ablating 5 % of the heads destroys recall.", gate=FINDS, rule=("left < 0.5",),
        metric=f"left: recall without the top K over that of the whole model; {RECALL}; {_NEAR_K}; mode zero, scope answer", control="random_left",
        data=NEEDLES, controls=DRAWS, paper="needle recall below half in every model with 50 of 1,024 heads masked",
    ),
    *(
        _claim(
            f"heads.causal.{kind}", place="property 5; 2", sentence=f"As many random heads ({what}) cost much less.", gate=FINDS, tested=True,
            metric=f"{_COSTS}; {_HALVING}", rule=("halved_at >= 1", "over_third <= 0"), effect="loss", control="top_loss", data=NEEDLES,
            controls=DRAWS, paper="as many random heads: much smaller loss",
        )
        for kind, what in (("layer", "of the same layers"), ("any", "of any layer"), ("norm", "of nearly the same output norm"))
    ),
    _claim(
        "heads.causal.modes", place="3", sentence="It holds in every ablation mode.", gate=FINDS, rule=("worst_left < 0.5",), control="random_left",
        metric=f"worst_left: largest of the modes zero, uniform, mean of recall without the top K over that of the whole model; {_NEAR_K}",
        data=f"{NEEDLES}; the same prompts in all modes", controls="10 layer-matched draws per mode",
    ),
    _claim(
        "heads.causal.text", place="2", sentence="Plain text stays.", rule=("ratio < 1.1",), control="random_ratio",
        metric="ratio: perplexity without the top K over that of the whole model, heads ablated at every position, interval over windows; "
        f"{_HALVING} (if none does, that nearest to 5 % of all)",
        data="8 windows x 128 tokens of the haystack's end", controls="5 layer-matched draws",
    ),
    _claim(
        "heads.paraphrased.recall", place="evidence rule 9", gate=("literal >= 0.8",), rule=("left < 0.5",), tested=True, effect="paraphrased",
        sentence="Needles that share no word with their question are found much less often.", control="literal",
        metric="left: mean recall of paraphrased over that of literal questions, both of the whole model; p: sign flips over needles",
        data="24 needles of the set `paraphrased`, whose questions share no content word with them, and the same 24 asked literally, 512 tokens, "
        "depths 1/3 and 2/3 (128 tokens beside it; lab models: 256 and 128)",
        paper="11 of 13 models of NoLiMa (arXiv 2502.05167) below half of their short-context recall at 32k tokens",
    ),
    _claim(
        "heads.paraphrased.causal", place="evidence rule 9", sentence="The same heads carry paraphrased needles.", gate=FINDS,
        metric=f"left: recall without the top 8 over that of the whole model; {RECALL} on paraphrased needles", rule=("left < 0.5",),
        control="random_left", controls="10 layer-matched draws",
        data="24 needles of the set `paraphrased`, whose questions share no content word with them, and the same 24 asked literally, 128 tokens, "
        "depths 1/3 and 2/3",
    ),
)  # fmt: skip

_fact = partial(_claim, data=_FACTS, controls=_FACT_DRAWS)
_RIGHT = "right: share of the questions that the whole model answers right"
_step = partial(_fact, tries=_SECOND, gate=("right >= 0.5",), tested=True)
FACTS = (
    _step(
        "heads.reasoning.written", place="fig. 10; 10", sentence="Written steps need the copy heads.", rule=("left < 0.5",), control="random_left",
        metric=f"left: share right without the top 16 over that of the whole model; p: sign flips against the mean layer-matched draw; {_RIGHT}",
        paper="GSM8K with written steps, 100 heads masked: about 45 to a few per cent",
    ),
    *(
        _step(
            f"heads.reasoning.written.{kind}", place="evidence rule 4", sentence=f"Random heads ({what}) cost written steps less.",
            metric="over_third: loss of the mean random draw minus a third of the top 16's loss, in share right; p: sign flips over questions, top "
            f"heads against the mean draw; {_RIGHT}",
            rule=("over_third <= 0",), effect="loss", control="top_loss",
        )
        for kind, what in (("layer", "of the same layers"), ("any", "of any layer"))
    ),
    _fact(
        "heads.reasoning.direct", place="fig. 10; 10", sentence="Direct answers lose a smaller share than written steps.", gate=("right >= 0.3",),
        metric=f"difference: share kept without the top 16 of direct answers minus that of written steps; {_RIGHT} directly", tries=_SECOND,
        rule=("difference > 0",), effect="kept", control="steps_kept", paper="GSM8K, MMLU, MuSiQue answer only: about 2, 55, 15; hardly change",
    ),
    _fact(
        "heads.reasoning.memory", place="10", sentence="Facts known by heart hardly need the copy heads.", gate=("right >= 0.5",),
        metric="over_quarter: loss on facts minus a quarter of the loss on written steps; difference: loss on written steps minus loss on facts, "
        f"items of both resampled; {_RIGHT}",
        rule=("over_quarter <= 0", "difference.low > 0"), effect="loss", control="steps_loss",
    ),
    _fact(
        "heads.reasoning.memory.layer", place="ours", gate=("right >= 0.5",), tested=True, control="layer",
        sentence="Neighbours of the copy heads in their layers matter more for facts than the copy heads.",
        metric="difference: share right without the top 16 minus that without a layer-matched draw (mean of draws: layer); p: sign flips over "
        f"questions; {_RIGHT}",
        rule=("difference > 0",),
    ),
    _fact(
        "heads.reasoning.passage", place="10", sentence="Following a passage against memory needs the copy heads.", gate=("follows >= 0.5",),
        metric="follows: share of the whole model's answers that follow the passage; left: that share without the top 16 over that of the whole "
        "model; memory_gain: answers from memory without the top 16 minus those of the whole model; p: sign flips against the mean layer-matched "
        "draw",
        rule=("left < 0.5", "memory_gain > 0"), tested=True, control="random_left",
    ),
)  # fmt: skip
