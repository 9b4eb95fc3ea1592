"""Claims of the card `compresskv`, section 6, beside those about the registered tables (`declared_tables`)."""

from __future__ import annotations

from functools import partial

from headwise.claims.claim import Claim

_FOUND = (
    "heads: 16 detection needles at 5 depths in 1,024 tokens, or as many as fit (lab models: 6 depths, 384 tokens), of the first 60 % of the "
    "bundled novels, one seed of the windows"
)
_SEEDS = _FOUND + " (lab models: three, mean per head)"
_TESTED = (
    _FOUND + "; test: 12 contexts with other needles in the last 40 % of the novels (lab models: three seeds of 10 contexts), depths from 0.1 to 0.9"
)
_SOLVED = "; solved: share of the detection questions that the model answers"
_claim = partial(Claim, card="compresskv")
_heads = partial(_claim, gate=("solved >= 0.8",), data=_SEEDS)

HEADS = (
    _heads(
        "compresskv.copy_zero", place="1", control="semantic_zero",
        sentence="many heads have no copy score, and none has no semantic score",
        metric="share of the heads whose copy score is 0, interval over heads; semantic_zero: the same for the semantic score, 0 by "
        "definition" + _SOLVED,
        rule=("copy_zero >= 0.4", "semantic_zero <= 0"), controls="the semantic score from the same questions",
        paper="67 % of the released copy scores are 0 (Llama-3.1-8B, Mistral-7B-v0.3)",
    ),
    _heads(
        "compresskv.scores_agree", place="1", control="shared", controls="share of the 8 strongest heads that both scores name",
        sentence="semantic and copy score rank heads alike", rule=("correlation > 0.5",),
        metric="Spearman's correlation of the two scores over heads (mean over seeds), interval over heads; shared: see controls" + _SOLVED,
    ),
    _heads(
        "compresskv.medium_heads", place="1", control="copying", controls="share of heads with a copy score above 0.1",
        sentence="behind the heads that copy come more that look at the answer: the semantic score has a tail of medium heads",
        metric="share of heads with a lift above 3 (mass on the answer over an even look) minus share with a copy score above 0.1, interval over "
        "heads" + _SOLVED, rule=("difference.low > 0",),
    ),
    _heads(
        "compresskv.depth_contamination", place="2", control="as_few", rule=("agreement < 0.6",),
        sentence="needles at depth 0 or 1 alone give other heads than needles between",
        metric="share of the four best heads of each layer that the questions at one extreme depth and those at the depths between both name: the "
        "larger of depth 0 and depth 1, interval over layers and seeds; as_few: see controls" + _SOLVED,
        controls="the same for as few questions at depths between, against the others between, mean of three draws",
    ),
    _heads(
        "compresskv.extremes_dropped", place="2", rule=("difference.low > 0",), control="all_depths",
        sentence="without depths 0 and 1 the ranking is more stable",
        metric="agreement as in compresskv.depth_contamination: as few questions between minus the mean of the two extremes, paired by layer and "
        "seed; all_depths: all questions against those between" + _SOLVED,
        controls="all questions against those between",
    ),
)  # fmt: skip

_ablated = partial(
    _claim, place="3", gate=("full >= 0.8",),
    data=_FOUND + "; test: 12 other needles (lab models: 10) at depths 0.3 and 0.7 in the last 40 % of the novels; scope answer",
    controls="20 layer-matched draws of as many heads, the weakest heads",
)  # fmt: skip
_EXACT = "share of exact answers, interval over needles; modes zero, uniform and mean, 4 heads; full: without ablation"
ABLATION = (
    _ablated(
        "compresskv.semantic_needed", rule=("difference > 0",), tested=True, control="random",
        sentence="without the four strongest semantic heads fewer questions are answered than without random heads of the same layers",
        metric="random heads minus semantic heads, paired by needle, in the mode where this is smallest, with the largest p; random: exact answers "
        "without random heads in that mode. " + _EXACT,
    ),
    _ablated(
        "compresskv.semantic_like_copy", rule=("apart <= 0.1",), control="shared",
        sentence="the strongest semantic heads are needed as much as the strongest copy heads",
        metric="difference of the two, without its sign, in the mode where it is largest; shared: how many of the four both scores name. " + _EXACT,
    ),
    _ablated(
        "compresskv.masking_gap", rule=("difference > 0",), tested=True, control="random",
        sentence="without semantic heads fewer questions are answered than without as many copy heads",
        metric="copy heads minus semantic heads, paired by needle, mode uniform (the paper's masking); random: as in compresskv.semantic_needed. "
        + _EXACT,
        paper="30 heads, Mistral-7B: copy heads about - 12 %, semantic heads about - 74 %",
    ),
)  # fmt: skip

_survival = partial(_claim, gate=("full >= 0.8",), data=_TESTED)
_HELD = "share of the answer's tokens that are held, mean over layers and KV heads; paired by context"
_FULL = "; full: share of the questions that the full cache answers, full stop included"
_WORST = "; question inside; the smaller difference of 5 % and 10 %, with the larger p"
SURVIVAL = (
    _survival(
        "compresskv.semantic_at_least_groups", place="4", rule=("difference >= 0",), control="groups", controls="SnapKV on the same contexts",
        sentence="four semantic heads that choose for the whole layer keep at least as much of the answer as SnapKV, where each KV head chooses",
        metric=f"{_HELD}; semantic heads minus SnapKV{_WORST}; groups: SnapKV's own share there" + _FULL,
    ),
    _survival(
        "compresskv.groups_above_all_shared", place="4", rule=("difference > 0",), tested=True, control="shared",
        controls="all heads of a layer choosing together",
        sentence="SnapKV keeps more of the answer than all heads of a layer that choose together",
        metric=f"{_HELD}; SnapKV minus one choice by all heads{_WORST}; shared: the latter's own share there" + _FULL,
    ),
    _survival(
        "compresskv.groups_above_wrong_groups", place="4", gate=("full >= 0.8", "group >= 2"), rule=("difference > 0",), tested=True, control="wrong",
        controls="SnapKV with query heads dealt out to KV heads as in the released code",
        sentence="SnapKV keeps more of the answer than with the wrong groups of heads of CompressKV's released baseline",
        metric=f"{_HELD}; SnapKV minus SnapKV with wrong groups{_WORST}; wrong: the latter's own share there; group: query heads of a KV "
        "head" + _FULL,
    ),
    _survival(
        "compresskv.semantic_above_random", place="4", rule=("difference > 0",), tested=True, control="random",
        controls="mean of three draws of as many random heads of each layer; random tokens",
        sentence="semantic heads keep more of the answer than random heads that choose in the same way",
        metric=f"{_HELD}; semantic heads minus random heads{_WORST}; random: the latter's own share there" + _FULL,
    ),
    _survival(
        "compresskv.outside_chance", place="6", rule=("difference <= 0.05",), control="inside", controls="random tokens",
        sentence="with the question outside, no method that looks at the last tokens keeps more of the answer than chance",
        metric=f"{_HELD}; at 10 %, minus random tokens: the largest difference of semantic heads, copy heads, all heads and SnapKV; inside: the "
        "same with the question inside" + _FULL,
    ),
    _survival(
        "compresskv.error_budgets_answer", place="headline", rule=("difference > 0",), tested=True, control="shuffled",
        controls="the same shares of the layers in random order, mean of three",
        sentence="budgets by layer errors answer more questions than equal budgets",
        metric="share of questions answered, mean over 5, 10 and 20 %, question inside: budgets by layer errors minus equal budgets, paired by "
        "context; shuffled: the same for errors in random order" + _FULL,
        paper="LongBench with 256 positions, Mistral-7B: SnapKV 43.76, semantic heads 44.96, and budgets by layer errors 45.43",
    ),
)  # fmt: skip

_layers = partial(_claim, place="5", data=_FOUND + "; errors: 24 prompts with their gold answers, test needles, last 40 % of the novels")
LAYERS = (
    _layers(
        "compresskv.errors_fall", rule=("largest_step < 0",), control="falling_prompts",
        controls="share of the prompts whose own error falls each time", sentence="the error of a layer's output falls each time its budget grows",
        metric="errors summed over layers, mean over prompts, budgets 16, 24, 32, 48, 64, 96, 128, 256: the largest change from one to the next, as "
        "a share of the error at 16; below 0: it falls each time",
    ),
    _layers(
        "compresskv.error_budgets_lower_error", rule=("change.high < 0",), control="shuffled",
        controls="shares in random order (mean of three draws), PyramidKV's shares",
        sentence="budgets in proportion to layer errors lower the summed error, compared with equal budgets of the same total",
        metric="change of the summed error as a share of that with equal budgets, interval over prompts, at a mean budget of 48 or 96, whichever "
        "is worse; shuffled: the same for shares in random order",
    ),
    _layers(
        "compresskv.profiles_agree", rule=("correlation > 0.8",), controls="two sets of detection prompts: other windows and depths, the same "
        "needles",
        sentence="two sets of prompts give the same profile of layer errors",
        metric="Pearson's correlation over layers of the profiles from two sets of detection prompts, interval over layers",
    ),
)  # fmt: skip

_exact = partial(_claim, place="7", data="200 random profiles of layer errors with random budgets, on the model's own layers", controls="none: exact")
ALLOCATION = (
    _exact(
        "compresskv.budget_sums", rule=("wrong <= 0",), metric="cases in which the sum of the layers' budgets is not layers times mean budget",
        sentence="budgets by layer errors add up to the whole budget wherever the limits allow it",
    ),
    _exact(
        "compresskv.budget_limits", rule=("outside <= 0",), sentence="no budget leaves its limits",
        metric="budgets below the floor of 32 positions (or of the mean budget, if that is smaller) or above three mean budgets or the prompt",
    ),
    _exact(
        "compresskv.budget_order", rule=("out_of_order <= 0", "uneven <= 0"),
        sentence="budgets follow the errors, up to one position, and equal errors give equal budgets",
        metric="pairs of layers whose budgets are in the wrong order by more than one position; uneven: equal errors that give budgets more than "
        "0 apart",
    ),
)  # fmt: skip
CHOICE = (
    _claim(
        "compresskv.choice_is_definition", place="ours", rule=("different <= 0",), data="a text of 160 tokens from the bundled novels, budgets of "
        "24, 48 and 96 positions", controls="a slow loop over heads, queries and keys",
        sentence="CompressKV holds exactly the positions that its definition names",
        metric="positions that a layer holds and the definition does not, or the other way round, summed over layers, KV heads and budgets; pairs "
        "of positions whose scores differ by less than 1e-6 may change places",
    ),
)  # fmt: skip

_cost = partial(
    _claim, place="8", data="random keys, values and queries in the model's own shapes; a median over rounds in which the sizes take turns, with the "
    "smallest and the largest round", controls="none",
)  # fmt: skip
_DIFFERS = " A ratio of times: it differs from run to run"
COST = (
    _cost(
        "compresskv.scoring_linear", rule=("growth <= 1.25",), sentence="the time of scoring grows no faster than the text",
        metric="time of scoring the keys of 32,768 tokens over that of 8,192, divided by 4 (1: linear)." + _DIFFERS,
    ),
    _cost(
        "compresskv.scoring_heads", rule=("ratio <= 1.25",), control="heads", controls="query heads of a KV head, the ratio without folding",
        sentence="the time of scoring does not depend on the number of heads, if the heads of a KV head are folded into rows",
        metric="time of scoring with all query heads of each KV head over that with one of each, 8,192 tokens; heads: how many there are of each."
        + _DIFFERS,
    ),
    _cost(
        "compresskv.decode_flat", rule=("growth <= 1.1",), control="full", controls="the same without compression",
        sentence="after compression the time of a token does not depend on the length of the text",
        metric="time of a token behind 8,192 tokens over that behind 2,048, 205 positions held in both cases; full: the same with everything held."
        + _DIFFERS,
    ),
)  # fmt: skip
